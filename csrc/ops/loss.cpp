#include "ops/loss.h"

#include "core/error.h"
#include "ops/elementwise.h"
#include "ops/slots.h"

namespace fastnn::ops {
namespace {

enum class Reduction { mean, sum, none };

Reduction reduction_named(const char* op, const std::string& name) {
  if (name == "mean") return Reduction::mean;
  if (name == "sum") return Reduction::sum;
  check(name == "none", op, ": reduction expects 'mean', 'sum' or 'none', got '", name, "'");
  return Reduction::none;
}

// The sum of `losses`, divided, as a scalar tensor.
Array total(const Array& losses, double divisor) {
  Array out = empty({}, DType::float32);
  kernels().loss.total(losses.data<float>(), losses.count(), divisor, out.data<float>());
  return out;
}

// The operands of a class loss, in the kernels' form.
struct Classes {
  Array x, labels, probabilities, weight;
  ClassParams p{};
  Dims rows_shape;  // of reduction="none"
};

Classes prepare(const char* op, const Array& input, const Array& target, const Array* weight,
                int64_t ignore_index, double smoothing, bool log_probabilities) {
  check_floating(op, "input", input);
  check(input.rank() == 2 || input.rank() == 4, op,
        ": input expects shape (N, C) or (N, C, H, W), got ", input.shape());
  check(smoothing >= 0 && smoothing <= 1, op, ": label_smoothing expects 0 to 1, got ", smoothing);
  Classes c;
  const int64_t C = input.size(1);
  check(C > 0, op, ": input expects at least one class, got shape ", input.shape());
  c.rows_shape.push_back(input.size(0));
  for (int i = 2; i < input.rank(); ++i) c.rows_shape.push_back(input.size(i));
  c.x = canonical(input);
  c.p.rows = c.x.count() / C;
  c.p.C = C;
  if (is_floating(target.dtype()) && !log_probabilities) {
    check(target.shape() == input.shape(), op, ": target probabilities expect the input's shape ",
          input.shape(), ", got ", target.shape());
    c.probabilities = canonical(astype(target, DType::float32));
    c.p.probabilities = c.probabilities.data<float>();
  } else {
    check<TypeError>(target.dtype() == DType::int64 || target.dtype() == DType::int32, op,
                     ": target expects int64 or int32 labels",
                     log_probabilities ? "" : ", or floating probabilities", ", got ",
                     name_of(target.dtype()));
    check(target.shape() == c.rows_shape, op, ": target labels expect shape ", c.rows_shape,
          ", got ", target.shape());
    c.labels = row_major(astype(target, DType::int64));
    const int64_t* labels = c.labels.data<int64_t>();
    const int64_t bad = kernels().shape.first_outside(labels, c.p.rows, C, ignore_index, op);
    check(bad < 0, op, ": target labels expect 0 to ", C - 1, " (or ignore_index ", ignore_index,
          "), got ", bad < 0 ? 0 : labels[bad], " at flat position ", bad);
    c.p.labels = labels;
  }
  if (weight) {
    check_floating(op, "weight", *weight);
    check(weight->rank() == 1 && weight->size(0) == C, op, ": weight expects shape (", C,
          ",), got ", weight->shape());
    c.weight = row_major(astype(*weight, DType::float32));
    c.p.weight = c.weight.data<float>();
  }
  c.p.x = c.x.raw();
  c.p.dtype = input.dtype();
  c.p.ignore_index = ignore_index;
  c.p.smoothing = static_cast<float>(smoothing);
  c.p.log_probabilities = log_probabilities;
  return c;
}

// x divided by what the mean divides by: rows for probabilities, else the weights of the labels.
Array averaged(const ClassParams& p, const Array& x) {
  if (!p.labels)
    return arithmetic("mean", Arithmetic::div, x, Operand::of(static_cast<double>(p.rows)), {});
  Array weights = empty({}, DType::float32);
  kernels().loss.label_weight(p, weights.data<float>());
  return arithmetic("mean", Arithmetic::div, x, weights, {});
}

const char* class_op(bool log_probabilities) {
  return log_probabilities ? "nll_loss" : "cross_entropy";
}

struct Pairs {
  Array x, t, weight, pos_weight;
  PairParams p{};
};

Pairs prepare_pairs(const std::string& name, const Array& input, const Array& target, double a,
                    const Array* weight, const Array* pos_weight) {
  const char* op = name.c_str();
  const char* const names[] = {"mse_loss", "l1_loss", "smooth_l1_loss",
                               "binary_cross_entropy_with_logits"};
  int kind = 0;
  while (kind < 4 && name != names[kind]) ++kind;
  check(kind < 4, "pair_loss: unknown kind '", name, "'");
  check_floating(op, "input", input);
  check_floating(op, "target", target);
  check(target.shape() == input.shape(), op, ": target expects the input's shape ", input.shape(),
        ", got ", target.shape());
  check(a >= 0, op, ": beta expects a value >= 0, got ", a);
  const DType dtype = input.dtype() == target.dtype() ? input.dtype() : DType::float32;
  Pairs c{canonical(astype(input, dtype)), canonical(astype(target, dtype)), {}, {}, {}};
  for (auto [given, kept] : {std::pair(weight, &c.weight), std::pair(pos_weight, &c.pos_weight)})
    if (given) {
      check_floating(op, "weight", *given);
      check(given->shape() == input.shape(), op, ": weights expect the input's shape ",
            input.shape(), ", got ", given->shape());
      *kept = canonical(astype(*given, DType::float32));
    }
  const auto pointer = [](const Array& x) { return x.defined() ? x.data<float>() : nullptr; };
  c.p = {static_cast<PairLoss>(kind), static_cast<float>(a), c.x.raw(),  c.t.raw(), dtype,
         pointer(c.weight),           pointer(c.pos_weight), c.x.count()};
  return c;
}

}  // namespace

Array cross_entropy(const Array& input, const Array& target, const Array* weight,
                    int64_t ignore_index, const std::string& reduction, double smoothing,
                    bool log_probabilities) {
  const char* op = class_op(log_probabilities);
  const Reduction how = reduction_named(op, reduction);
  const Classes c = prepare(op, input, target, weight, ignore_index, smoothing, log_probabilities);
  Array losses = empty_strided(c.rows_shape, row_major_strides(c.rows_shape), DType::float32);
  kernels().loss.classes(c.p, losses.data<float>());
  if (how == Reduction::none) return losses;
  const Array sum = total(losses, 1.0);
  return how == Reduction::sum ? sum : averaged(c.p, sum);
}

Array cross_entropy_backward(const Array& grad_output, const Array& input, const Array& target,
                             const Array* weight, int64_t ignore_index,
                             const std::string& reduction, double smoothing,
                             bool log_probabilities) {
  const char* op = class_op(log_probabilities);
  const Reduction how = reduction_named(op, reduction);
  const Classes c = prepare(op, input, target, weight, ignore_index, smoothing, log_probabilities);
  Array scale = row_major(astype(grad_output, DType::float32));
  check(how != Reduction::none || scale.shape() == c.rows_shape, op, ": grad_output expects shape ",
        c.rows_shape, ", got ", scale.shape());
  if (how == Reduction::mean) scale = averaged(c.p, scale);
  Array grad_input = empty(input.shape(), input.dtype());
  kernels().loss.classes_backward(c.p, scale.data<float>(), how != Reduction::none,
                                  grad_input.raw());
  return grad_input;
}

Array pair_loss(const std::string& kind, const Array& input, const Array& target, double a,
                const Array* weight, const Array* pos_weight, const std::string& reduction) {
  const Reduction how = reduction_named(kind.c_str(), reduction);
  const Pairs c = prepare_pairs(kind, input, target, a, weight, pos_weight);
  if (how == Reduction::none) {
    Array losses = empty(c.x.shape(), DType::float32);
    kernels().loss.pairs(c.p, losses.data<float>());
    return losses;
  }
  Array out = empty({}, DType::float32);
  kernels().loss.pairs_total(c.p, how == Reduction::sum ? 1.0 : static_cast<double>(c.p.count),
                             out.data<float>());
  return out;
}

Array pair_loss_backward(const std::string& kind, const Array& grad_output, const Array& input,
                         const Array& target, double a, const Array* weight,
                         const Array* pos_weight, const std::string& reduction) {
  const Reduction how = reduction_named(kind.c_str(), reduction);
  const Pairs c = prepare_pairs(kind, input, target, a, weight, pos_weight);
  Array g = canonical(astype(grad_output, DType::float32));
  if (how == Reduction::none)
    check(g.shape() == c.x.shape(), kind, ": grad_output expects shape ", c.x.shape(), ", got ",
          g.shape());
  else if (how == Reduction::mean)
    g = arithmetic("mean", Arithmetic::div, g, Operand::of(static_cast<double>(c.p.count)), {});
  Array grad_input = empty(c.x.shape(), c.p.dtype);
  kernels().loss.pairs_backward(c.p, g.data<float>(), how != Reduction::none, grad_input.raw());
  return astype(grad_input, input.dtype());
}

}  // namespace fastnn::ops
