#include "ops/elementwise.h"

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "core/error.h"
#include "core/parallel.h"
#include "ops/slots.h"

namespace fastnn::ops {
namespace {

// Rank in the promotion order, lowest first.
int order_of(DType dtype) {
  switch (dtype) {
    case DType::boolean:
      return 0;
    case DType::uint8:
      return 1;
    case DType::int32:
      return 2;
    case DType::int64:
      return 3;
    case DType::bfloat16:
      return 4;
    default:
      return 5;
  }
}

Operand::Kind kind_of(DType dtype) {
  return dtype == DType::boolean ? Operand::boolean
         : is_floating(dtype)    ? Operand::floating
                                 : Operand::integer;
}

DType default_dtype(Operand::Kind kind) {
  return kind == Operand::boolean   ? DType::boolean
         : kind == Operand::integer ? DType::int64
                                    : DType::float32;
}

DType promote(std::initializer_list<const Operand*> operands) {
  bool any_array = false;
  DType dtype = DType::boolean;
  Operand::Kind kind = Operand::boolean;
  for (const Operand* x : operands) {
    if (x->is_number()) {
      kind = std::max(kind, x->kind);
    } else {
      if (!any_array || order_of(x->array.dtype()) > order_of(dtype)) dtype = x->array.dtype();
      any_array = true;
    }
  }
  return any_array && kind_of(dtype) >= kind ? dtype : default_dtype(kind);
}

void check_fits(const char* name, const Operand& x, DType dtype) {
  if (!x.is_number() || x.kind == Operand::floating) return;
  const bool fits = dtype == DType::uint8   ? x.whole >= 0 && x.whole <= 255
                    : dtype == DType::int32 ? x.whole == static_cast<int32_t>(x.whole)
                                            : true;
  check(fits, name, ": the number ", x.whole, " does not fit dtype ", name_of(dtype));
}

// The operand as a kernel of `dtype` reads it: floating kernels convert float32 and bfloat16
// themselves.
Operand prepared(const char* name, const Operand& x, DType dtype) {
  check_fits(name, x, dtype);
  if (x.is_number() || (is_floating(dtype) && is_floating(x.array.dtype()))) return x;
  return astype(x.array, dtype);
}

Dims common_shape(const char* name, std::initializer_list<const Operand*> operands) {
  Dims shape;
  for (const Operand* x : operands)
    if (!x->is_number()) shape = broadcast_shape(name, shape, x->array.shape());
  return shape;
}

// Where a result of `shape` and `dtype` goes. Throws unless `out`, if given, can hold it.
Array destination(const char* name, const Out& out, const Dims& shape, DType dtype) {
  if (!out) return empty(shape, dtype);
  check(out->shape() == shape, name, ": the tensor changed in place has shape ", out->shape(),
        ", the result has ", shape);
  check<TypeError>(kind_of(out->dtype()) >= kind_of(dtype), name, ": the result is ",
                   name_of(dtype), ", which a tensor of dtype ", name_of(out->dtype()),
                   " cannot hold");
  check(out->storage()->writable, name, ": the tensor is a view of read-only memory");
  check(!out->overlaps_itself(), name,
        ": the tensor's elements overlap in memory (it was expanded); change a .clone()");
  return is_floating(dtype) || out->dtype() == dtype ? *out : empty(shape, dtype);
}

// Ends an operator: converts to `out` if the kernel could not write there, and counts the change.
Array delivered(const Array& result, const Out& out) {
  if (!out) return result;
  if (result.storage() != out->storage())
    copy_into(*out, result);  // counts the change itself
  else
    ++out->storage()->version;
  return *out;
}

// Takes several short innermost rows for one: a channel vector of 3 against NHWC pixels would leave
// most lanes of a vector empty. Applies where every operand either runs on through the two
// innermost dimensions or is the same row throughout the last but one: `tiles` gets such rows,
// repeated, at most a quarter of the output where there are many of them.
void widen_short_rows(ElementwiseParams& p, std::vector<Array>& tiles) {
  constexpr int64_t kShort = 128, kWide = 2048;
  const int last = p.rank - 1, row = last - 1;
  if (p.rank < 2 || p.shape[last] >= kShort) return;
  const int64_t columns = p.shape[last], rows = p.shape[row];
  if (p.out_steps[row] != columns * p.out_steps[last]) return;
  bool repeats[kMaxOperands] = {}, many = false;
  for (int k = 0; k < p.operands; ++k) {
    if (!p.in[k] || p.in_steps[k][row] == columns * p.in_steps[k][last]) continue;
    if (p.in_steps[k][row] != 0) return;
    repeats[k] = true;
    for (int i = 0; i < row; ++i) many = many || p.in_steps[k][i] != 0;
  }
  int64_t repeat = 1;
  for (int64_t r = 2; r * columns <= kWide && r <= (many ? rows / 4 : rows); ++r)
    if (rows % r == 0) repeat = r;
  if (repeat == 1) return;
  for (int k = 0; k < p.operands; ++k) {
    int64_t* const steps = p.in_steps[k];
    if (!repeats[k]) {
      steps[row] *= repeat;
      continue;
    }
    const int64_t item = item_size(p.in_dtype[k]), bytes = repeat * columns * item;
    int64_t count = 1, old[kMaxRank];
    std::copy_n(steps, p.rank, old);
    for (int i = row - 1; i >= 0; --i)
      if (old[i] != 0) steps[i] = count * bytes, count *= p.shape[i];
    const Array tile = empty({count * repeat * columns}, p.in_dtype[k]);
    auto* const to = static_cast<char*>(tile.raw());
    const auto* const first = static_cast<const char*>(p.in[k]);
    parallel_ranges(count, (1 << 16) / bytes + 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const char* from = first;
        char* const at = to + t * bytes;
        int64_t rest = t;
        for (int i = row - 1; i >= 0; --i)
          if (old[i] != 0) from += rest % p.shape[i] * old[i], rest /= p.shape[i];
        if (old[last] == item)
          std::copy_n(from, columns * item, at);
        else
          for (int64_t i = 0; i < columns; ++i)
            std::copy_n(from + i * old[last], item, at + i * item);
        for (int64_t done = columns * item, more; done < bytes; done += more) {
          more = std::min(done, bytes - done);
          std::copy_n(at, more, at + done);
        }
      }
    });
    p.in[k] = tile.raw();
    steps[last] = item;
    tiles.push_back(tile);
  }
  p.out_steps[row] *= repeat;
  p.shape[row] = rows / repeat;
  p.shape[last] = repeat * columns;
}

// Calls a kernel: broadcasts, sorts and merges dimensions.
void run(void (*kernel)(const ElementwiseParams&), int op, DType dtype, const Array& out,
         std::initializer_list<const Operand*> operands) {
  if (out.count() == 0) return;
  ElementwiseParams p{};
  p.op = op;
  p.operands = static_cast<int>(operands.size());
  p.dtype = dtype;
  p.out = out.raw();
  p.out_dtype = out.dtype();
  Array views[kMaxOperands];
  int k = 0;
  for (const Operand* x : operands) {
    p.number[k] = x->number;
    p.integer[k] = x->whole;
    p.in_dtype[k] = dtype;
    if (!x->is_number()) {
      Array source = x->array;
      if (overlaps(out, source)) source = clone(source);
      views[k] = broadcast_to(source, out.shape());
      p.in[k] = views[k].raw();
      p.in_dtype[k] = source.dtype();
    }
    ++k;
  }

  int order[kMaxRank];
  int kept = 0;
  for (int i = 0; i < out.rank(); ++i)
    if (out.size(i) != 1) order[kept++] = i;
  std::stable_sort(order, order + kept, [&](int a, int b) {
    return std::abs(out.strides()[a]) > std::abs(out.strides()[b]);
  });
  const auto in_step = [&](int operand, int dim) {
    return p.in[operand] ? views[operand].strides()[dim] * item_size(p.in_dtype[operand]) : 0;
  };
  for (int at = 0; at < kept; ++at) {
    const int dim = order[at], last = p.rank - 1;
    const int64_t size = out.size(dim), out_step = out.strides()[dim] * item_size(out.dtype());
    bool merges = last >= 0 && p.out_steps[last] == out_step * size;
    for (int i = 0; i < p.operands && merges; ++i)
      merges = p.in_steps[i][last] == in_step(i, dim) * size;
    const int to = merges ? last : p.rank++;
    p.shape[to] = merges ? p.shape[to] * size : size;
    p.out_steps[to] = out_step;
    for (int i = 0; i < p.operands; ++i) p.in_steps[i][to] = in_step(i, dim);
  }
  if (p.rank == 0) {
    p.rank = 1;
    p.shape[0] = 1;
    p.out_steps[0] = item_size(out.dtype());
  }
  std::vector<Array> tiles;
  if (out.device() == kCpu) widen_short_rows(p, tiles);
  kernel(p);
}

const ElementwiseSlots& slots() { return kernels().elementwise; }

}  // namespace

Operand Operand::of(double value) {
  Operand x;
  x.number = value;
  if (value > -9.2e18 && value < 9.2e18) x.whole = static_cast<int64_t>(value);  // not for NaN
  return x;
}

Operand Operand::of(int64_t value, Kind kind) {
  Operand x;
  x.kind = kind;
  x.number = static_cast<double>(value);
  x.whole = value;
  return x;
}

Dims broadcast_shape(const char* name, const Dims& a, const Dims& b) {
  const int rank = std::max(a.rank(), b.rank());
  Dims shape(rank);
  for (int i = 0; i < rank; ++i) {
    const int ia = i - (rank - a.rank()), ib = i - (rank - b.rank());
    const int64_t na = ia < 0 ? 1 : a[ia], nb = ib < 0 ? 1 : b[ib];
    check(na == nb || na == 1 || nb == 1, name,
          ": expected shapes that broadcast (equal sizes, or 1), got ", a, " and ", b);
    shape[i] = na == 1 ? nb : na;
  }
  return shape;
}

Array broadcast_to(const Array& x, const Dims& shape) {
  if (x.shape() == shape) return x;
  Dims strides(shape.rank());
  const int lead = shape.rank() - x.rank();
  for (int i = lead; i < shape.rank(); ++i)
    strides[i] = x.size(i - lead) == 1 ? 0 : x.strides()[i - lead];
  return x.view(x.offset(), shape, strides);
}

Array arithmetic(const char* name, Arithmetic op, const Operand& x, const Operand& y,
                 const Out& out) {
  DType dtype = promote({&x, &y});
  const bool logical = op >= Arithmetic::logical_and;
  if (logical) dtype = DType::boolean;
  if (op == Arithmetic::div && !is_floating(dtype)) dtype = DType::float32;
  if (dtype == DType::boolean) {
    // On bool, the product and the minimum are `and`, the maximum is `or`.
    check<TypeError>(op != Arithmetic::pow, name, ": expected numbers, got two operands of bool");
    if (op == Arithmetic::mul || op == Arithmetic::minimum) op = Arithmetic::logical_and;
    if (op == Arithmetic::maximum) op = Arithmetic::logical_or;
  }
  check(op != Arithmetic::pow || is_floating(dtype) || !y.is_number() || y.whole >= 0, name,
        ": expected an exponent >= 0 for dtype ", name_of(dtype), ", got the negative number ",
        y.whole);
  const Array result = destination(name, out, common_shape(name, {&x, &y}), dtype);
  const auto ready = [&](const Operand& operand) {
    if (logical && operand.is_number())
      return Operand::of(int64_t{operand.number != 0}, Operand::boolean);
    return prepared(name, operand, dtype);
  };
  const Operand a = ready(x), b = ready(y);
  run(slots().arithmetic, static_cast<int>(op), dtype, result, {&a, &b});
  return delivered(result, out);
}

Array add_scaled(const char* name, const Operand& x, const Operand& y, const Operand& alpha,
                 const Out& out) {
  const DType dtype = promote({&x, &y});
  check<TypeError>(alpha.kind <= kind_of(dtype) || alpha.kind == Operand::integer, name,
                   ": alpha expects an integer for dtype ", name_of(dtype), ", got ", alpha.number);
  const Array result = destination(name, out, common_shape(name, {&x, &y}), dtype);
  const Operand a = prepared(name, x, dtype), b = prepared(name, y, dtype);
  if (dtype == DType::boolean) {
    check<TypeError>(alpha.whole == 1, name,
                     ": bool does not subtract or scale; use logical_xor or convert it first");
    run(slots().arithmetic, static_cast<int>(Arithmetic::logical_or), dtype, result, {&a, &b});
  } else {
    run(slots().arithmetic, static_cast<int>(Arithmetic::add), dtype, result, {&a, &b, &alpha});
  }
  return delivered(result, out);
}

Array clamp(const Array& x, const std::optional<Operand>& min, const std::optional<Operand>& max,
            const Out& out) {
  check(min || max, "clamp: expected min, max or both, got neither");
  const Operand input(x);
  const Operand low = min ? *min : Operand::of(int64_t{0}, Operand::boolean);
  const Operand high = max ? *max : Operand::of(int64_t{0}, Operand::boolean);
  const DType dtype = promote({&input, &low, &high});
  check<TypeError>(dtype != DType::boolean, "clamp: expected numbers, got dtype bool");
  Array result = destination("clamp", out, common_shape("clamp", {&input, &low, &high}), dtype);
  const Operand source = prepared("clamp", input, dtype);
  if (min && max) {
    const Operand a = prepared("clamp", low, dtype), b = prepared("clamp", high, dtype);
    run(slots().arithmetic, static_cast<int>(Arithmetic::clamp), dtype, result, {&source, &a, &b});
  } else {
    const Operand limit = prepared("clamp", min ? low : high, dtype);
    const auto op = static_cast<int>(min ? Arithmetic::maximum : Arithmetic::minimum);
    run(slots().arithmetic, op, dtype, result, {&source, &limit});
  }
  return delivered(result, out);
}

Array compare(const char* name, Comparison op, const Operand& x, const Operand& y) {
  const DType dtype = promote({&x, &y});
  const Array result = empty(common_shape(name, {&x, &y}), DType::boolean);
  const Operand a = prepared(name, x, dtype), b = prepared(name, y, dtype);
  run(slots().compare, static_cast<int>(op), dtype, result, {&a, &b});
  return result;
}

Array test(const char*, Test op, const Array& x) {
  if (!is_floating(x.dtype())) return full(x.shape(), op == Test::isfinite, DType::boolean);
  const Operand input(x);
  const Array result = empty(x.shape(), DType::boolean);
  run(slots().test, static_cast<int>(op), x.dtype(), result, {&input});
  return result;
}

Array logical_not(const Array& x) {
  return compare("logical_not", Comparison::eq, x, Operand::of(int64_t{0}, Operand::boolean));
}

Array unary(const char* name, Unary op, const Array& x, const Out& out) {
  DType dtype = x.dtype();
  const bool rounds = op == Unary::floor || op == Unary::ceil || op == Unary::round;
  const bool integral = op <= Unary::square;
  check<TypeError>(!(integral || rounds) || dtype != DType::boolean, name,
                   ": expected numbers, got dtype bool");
  if (!is_floating(dtype) && !integral && !rounds) dtype = DType::float32;
  const Array result = destination(name, out, x.shape(), dtype);
  if (!is_floating(dtype) && rounds) {
    if (!out) copy_into(result, x);  // integers are whole already
    return result;
  }
  const Operand input = prepared(name, x, dtype);
  run(slots().unary, static_cast<int>(op), dtype, result, {&input});
  return delivered(result, out);
}

Array where(const Array& condition, const Operand& input, const Operand& other) {
  check<TypeError>(condition.dtype() == DType::boolean, "where: condition expects dtype bool, got ",
                   name_of(condition.dtype()));
  const DType dtype = promote({&input, &other});
  const auto as_array = [&](const Operand& x) -> Operand {
    check_fits("where", x, dtype);
    if (!x.is_number()) return astype(x.array, dtype);
    return is_floating(dtype) ? full(Dims(), x.number, dtype) : full_whole(Dims(), x.whole, dtype);
  };
  const Operand mask(condition), a = as_array(input), b = as_array(other);
  const Array result = empty(common_shape("where", {&mask, &a, &b}), dtype);
  run(slots().where, 0, dtype, result, {&mask, &a, &b});
  return result;
}

Array gradient(Gradient op, const Array& g, const Operand& x, const Operand& y, const Operand& z) {
  const Operand first(g);
  // Whether the second to fourth operands exist follows from the operator.
  const int operands = op < Gradient::div_other ? 2 : op < Gradient::clamp ? 3 : 4;
  const DType dtype = operands == 2   ? promote({&first, &x})
                      : operands == 3 ? promote({&first, &x, &y})
                                      : promote({&first, &x, &y, &z});
  check_floating("gradient", "grad_output", g);
  const auto ready = [&](const Operand& operand) { return prepared("gradient", operand, dtype); };
  const Operand a = ready(x);
  const int code = static_cast<int>(op);
  if (operands == 2) {
    const Array result = empty(common_shape("gradient", {&first, &a}), dtype);
    run(slots().gradient, code, dtype, result, {&first, &a});
    return result;
  }
  const Operand b = ready(y), c = operands == 4 ? ready(z) : Operand::of(0.0);
  const Array result = empty(common_shape("gradient", {&first, &a, &b, &c}), dtype);
  if (operands == 3)
    run(slots().gradient, code, dtype, result, {&first, &a, &b});
  else
    run(slots().gradient, code, dtype, result, {&first, &a, &b, &c});
  return result;
}

}  // namespace fastnn::ops
