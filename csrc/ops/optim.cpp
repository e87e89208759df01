#include "ops/optim.h"

#include "core/error.h"
#include "ops/slots.h"

namespace fastnn::ops {
namespace {

Optimizer optimizer_named(const std::string& name) {
  const char* const names[] = {"sgd", "adam", "adagrad", "rmsprop", "adadelta"};
  for (int i = 0; i < 5; ++i)
    if (name == names[i]) return static_cast<Optimizer>(i);
  throw ValueError(text("optimizer_step: unknown kind '", name, "'"));
}

OptimStep settings(const std::map<std::string, double>& numbers,
                   const std::map<std::string, bool>& flags) {
  auto number = [&](const char* name) {
    const auto found = numbers.find(name);
    return found == numbers.end() ? 0.0f : static_cast<float>(found->second);
  };
  auto flag = [&](const char* name) {
    const auto found = flags.find(name);
    return found != flags.end() && found->second;
  };
  OptimStep s{};
  s.lr = number("lr"), s.weight_decay = number("weight_decay");
  s.a = number("a"), s.b = number("b"), s.eps = number("eps");
  auto rest = [&](const char* name) {
    const auto found = numbers.find(name);
    return found == numbers.end() ? 1.0f : static_cast<float>(1.0 - found->second);
  };
  s.rest_a = rest("a"), s.rest_b = rest("b");
  s.correction1 = number("correction1"), s.correction2 = number("correction2");
  s.dampening = number("dampening"), s.momentum = number("momentum");
  s.has_momentum = s.momentum != 0;
  s.nesterov = flag("nesterov"), s.first = flag("first"), s.amsgrad = flag("amsgrad");
  s.centered = flag("centered"), s.decoupled = flag("decoupled"), s.maximize = flag("maximize");
  return s;
}

// An array whose memory may be changed in place, element by element.
void check_target(const char* op, const char* what, size_t i, const Array& x) {
  check_floating(op, what, x);
  check(x.is_dense(), op, ": ", what, " ", i, " expects a dense tensor, got strides ", x.strides(),
        " for shape ", x.shape());
  check(x.storage()->writable, op, ": ", what, " ", i, " is read-only");
}

// y in the memory order of x.
Array ordered_like(const Array& x, const Array& y) {
  if (y.has_strides(x.strides()) && y.dtype() == x.dtype()) return y;
  Array out = empty_strided(x.shape(), x.strides(), x.dtype());
  copy_into(out, y);
  return out;
}

std::vector<OptimTensor> gradients(const char* op, const std::vector<Array>& grads) {
  std::vector<OptimTensor> out;
  for (size_t i = 0; i < grads.size(); ++i) {
    check_target(op, "gradient", i, grads[i]);
    out.push_back({grads[i].raw(), nullptr, {}, grads[i].count(), grads[i].dtype()});
  }
  return out;
}

// Where the step shall write a parameter in bfloat16 too: if somebody has asked for it since the
// last step. In the same memory, unless a graph still holds what was there.
std::shared_ptr<KeptBlock> lowered_for_step(const Array& param) {
  KeptWorkspaces* const kept = param.device() == kCpu ? kept_with(param) : nullptr;
  std::shared_ptr<KeptBlock> block = kept ? kept->find(kLoweredKey) : nullptr;
  if (!block || !block->wanted) return nullptr;
  constexpr int kOurs = 2;  // `block` and the one kept
  if (block.use_count() > kOurs) block = lowered_block(block->bytes);
  block->wanted = false;
  block->kept->clear();
  return block;
}

}  // namespace

void optimizer_step(const std::string& kind, const std::vector<Array>& params,
                    const std::vector<Array>& grads, const std::vector<std::vector<Array>>& states,
                    const std::map<std::string, double>& numbers,
                    const std::map<std::string, bool>& flags) {
  const Optimizer which = optimizer_named(kind);
  const char* op = kind.c_str();
  check(params.size() == grads.size(), op, ": expected as many gradients as parameters, got ",
        grads.size(), " and ", params.size());
  check(states.size() <= 3, op, ": expected at most 3 state buffers, got ", states.size());
  std::vector<Array> ordered;  // keeps reordered gradients alive
  std::vector<std::shared_ptr<KeptBlock>> low;
  std::vector<OptimTensor> tensors;
  for (size_t i = 0; i < params.size(); ++i) {
    check_target(op, "parameter", i, params[i]);
    check(grads[i].shape() == params[i].shape(), op, ": gradient ", i, " expects shape ",
          params[i].shape(), ", got ", grads[i].shape());
    check_floating(op, "gradient", grads[i]);
    ordered.push_back(ordered_like(params[i], grads[i]));
    OptimTensor t{params[i].raw(), ordered.back().raw(), {}, params[i].count(), params[i].dtype()};
    for (size_t k = 0; k < states.size(); ++k) {
      if (states[k].empty()) continue;
      check(states[k].size() == params.size(), op, ": state ", k, " expects ", params.size(),
            " buffers, got ", states[k].size());
      const Array& buffer = states[k][i];
      check<TypeError>(buffer.dtype() == DType::float32, op, ": state expects dtype float32, got ",
                       name_of(buffer.dtype()));
      check(buffer.shape() == params[i].shape() && buffer.has_strides(params[i].strides()), op,
            ": state ", k, " of parameter ", i, " expects its shape and strides, got shape ",
            buffer.shape());
      t.state[k] = buffer.data<float>();
    }
    low.push_back(lowered_for_step(params[i]));
    if (low.back()) t.low = static_cast<bfloat16*>(low.back()->data);
    tensors.push_back(t);
  }
  kernels().optim.step(which, settings(numbers, flags), tensors.data(),
                       static_cast<int64_t>(tensors.size()));
  for (const Array& p : params) ++p.storage()->version;
  for (size_t i = 0; i < params.size(); ++i)
    if (KeptWorkspaces* const kept = low[i] ? kept_with(params[i]) : nullptr)
      kept->keep(kLoweredKey, low[i]);
  for (const auto& buffers : states)
    for (const Array& buffer : buffers) ++buffer.storage()->version;
}

Array clip_grad_norm(const std::vector<Array>& grads, double max_norm) {
  check(max_norm >= 0, "clip_grad_norm_: max_norm expects a value >= 0, got ", max_norm);
  const std::vector<OptimTensor> tensors = gradients("clip_grad_norm_", grads);
  Array norm = empty({}, DType::float32);
  kernels().optim.clip_norm(tensors.data(), static_cast<int64_t>(tensors.size()),
                            static_cast<float>(max_norm), norm.data<float>());
  for (const Array& g : grads) ++g.storage()->version;
  return norm;
}

void clip_grad_value(const std::vector<Array>& grads, double clip_value) {
  check(clip_value >= 0, "clip_grad_value_: clip_value expects a value >= 0, got ", clip_value);
  const std::vector<OptimTensor> tensors = gradients("clip_grad_value_", grads);
  kernels().optim.clamp(tensors.data(), static_cast<int64_t>(tensors.size()),
                        static_cast<float>(clip_value));
  for (const Array& g : grads) ++g.storage()->version;
}

}  // namespace fastnn::ops
