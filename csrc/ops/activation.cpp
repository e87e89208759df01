#include "ops/activation.h"

#include <algorithm>
#include <iterator>

#include "core/error.h"
#include "ops/reduce.h"
#include "ops/slots.h"

namespace fastnn::ops {
namespace {

Activation activation_named(const std::string& name) {
  const char* const names[] = {"leaky_relu", "elu",         "gelu",    "gelu_tanh",
                               "silu",       "sigmoid",     "tanh",    "softplus",
                               "hardswish",  "hardsigmoid", "hardtanh"};
  for (int i = 0; i < 11; ++i)
    if (name == names[i]) return static_cast<Activation>(i);
  throw ValueError(text("activation: unknown kind '", name, "'"));
}

// Those that an operator may apply in its own pass beside a ReLU.
constexpr const char* kCurves[] = {"gelu",    "gelu_tanh", "hardsigmoid", "hardswish",
                                   "sigmoid", "silu",      "tanh"};

// Elementwise kernels do not mind in which order dimensions lie, as long as all operands agree: the
// result of a linear layer on pixels, say, goes through the next activation as it is.
Array dense(const Array& x) { return x.is_dense() ? x : clone(x); }
Array empty_like(const Array& x) { return empty_strided(x.shape(), x.strides(), x.dtype()); }

Array gradient_like(const char* op, const Array& grad_output, const Array& like) {
  check(grad_output.shape() == like.shape(), op, ": grad_output expects shape ", like.shape(),
        ", got ", grad_output.shape());
  if (grad_output.dtype() == like.dtype() && grad_output.has_strides(like.strides()))
    return grad_output;
  const Array g = empty_like(like);
  copy_into(g, grad_output);
  return g;
}

int64_t channels_of(const char* op, const Array& x) {
  check(x.rank() == 2 || x.rank() == 4, op, ": input expects shape (N, C) or (N, C, H, W), got ",
        x.shape());
  return x.size(1);
}

// The slope of each channel.
Array slopes(const Array& weight, int64_t channels) {
  check_floating("prelu", "weight", weight);
  check(weight.rank() == 1 && (weight.size(0) == 1 || weight.size(0) == channels),
        "prelu: weight expects 1 or ", channels, " values, got shape ", weight.shape());
  const Array w = canonical(astype(weight, DType::float32));
  return w.size(0) == channels ? w : clone(w.view(w.offset(), {channels}, {0}));
}

Dims pooled_shape(const Array& input, int64_t pool) {
  const int64_t channels = channels_of("maxout", input);
  check(pool > 0 && channels % pool == 0, "maxout: pool_size expects a divisor of ", channels,
        " channels, got ", pool);
  Dims shape = input.shape();
  shape[1] = channels / pool;
  return shape;
}

}  // namespace

FusedRelu fused_relu(const char* op, const std::string& activation) {
  if (activation.empty()) return {};
  if (activation == "relu") return {true};
  check(activation == "relu6", op, ": activation expects None, 'relu' or 'relu6', got '",
        activation, "'");
  return {true, 6.0f};
}

FusedActivation fused_activation(const char* op, const std::string& activation) {
  if (activation.empty() || activation == "relu" || activation == "relu6")
    return {fused_relu(op, activation)};
  const auto known = std::find(std::begin(kCurves), std::end(kCurves), activation);
  check(known != std::end(kCurves), op,
        ": activation expects None, 'relu', 'relu6', 'gelu', 'gelu_tanh', 'hardsigmoid', "
        "'hardswish', 'sigmoid', 'silu' or 'tanh', got '",
        activation, "'");
  const CurveSlots& curves = kernels().curves;
  check<NotImplementedError>(curves.apply, op, ": activation '", activation,
                             "' is not part of a pass on a GPU; apply it to the result");
  return {{}, {activation_named(activation), curves.apply, curves.slope}};
}

Array relu(const Array& input) {
  check_floating("relu", "input", input);
  const Array x = dense(input);
  Array output = empty_like(x);
  kernels().activation.relu(x.raw(), output.raw(), x.count(), x.dtype());
  return output;
}

Array relu_backward(const Array& grad_output, const Array& output) {
  const Array y = dense(output), g = gradient_like("relu", grad_output, y);
  Array grad_input = empty_like(y);
  kernels().activation.relu_backward(g.raw(), y.raw(), grad_input.raw(), y.count(), y.dtype());
  return grad_input;
}

Array activation(const std::string& name, const Array& input, double a, double b,
                 const std::string& asked_by) {
  const Activation kind = activation_named(name);
  check_floating(asked_by.c_str(), "input", input);
  const Array x = dense(input);
  Array y = empty_like(x);
  kernels().activation.forward(kind, static_cast<float>(a), static_cast<float>(b), x.raw(), y.raw(),
                               x.count(), x.dtype());
  return y;
}

Array activation_backward(const std::string& name, const Array& grad_output, const Array& input,
                          double a, double b) {
  const Array x = dense(input), g = gradient_like(name.c_str(), grad_output, x);
  Array grad_input = empty_like(x);
  kernels().activation.backward(activation_named(name), static_cast<float>(a),
                                static_cast<float>(b), g.raw(), x.raw(), grad_input.raw(),
                                x.count(), x.dtype());
  return grad_input;
}

Array prelu(const Array& input, const Array& weight) {
  check_floating("prelu", "input", input);
  const int64_t C = channels_of("prelu", input);
  const Array w = slopes(weight, C), x = canonical(input);
  Array y = empty(x.shape(), x.dtype());
  if (x.count())
    kernels().activation.prelu(x.raw(), w.data<float>(), y.raw(), x.count() / C, C, x.dtype());
  return y;
}

std::pair<Array, Array> prelu_backward(const Array& grad_output, const Array& input,
                                       const Array& weight) {
  const Array x = canonical(input), g = gradient_like("prelu", grad_output, x);
  const int64_t C = channels_of("prelu", x);
  const Array w = slopes(weight, C);
  Array grad_input = empty(x.shape(), x.dtype());
  Array grad_weight = full({C}, 0, DType::float32);
  if (x.count())
    kernels().activation.prelu_backward(g.raw(), x.raw(), w.data<float>(), grad_input.raw(),
                                        grad_weight.data<float>(), x.count() / C, C, x.dtype());
  if (weight.size(0) == 1) grad_weight = sum(grad_weight, {0});
  return {grad_input, astype(grad_weight, weight.dtype())};
}

Array maxout(const Array& input, int64_t pool) {
  check_floating("maxout", "input", input);
  Array y = empty(pooled_shape(input, pool), input.dtype());
  const Array x = canonical(input);
  kernels().activation.maxout(x.raw(), y.raw(), y.count(), pool, x.dtype());
  return y;
}

Array maxout_backward(const Array& grad_output, const Array& input, int64_t pool) {
  const Dims shape = pooled_shape(input, pool);
  check(grad_output.shape() == shape, "maxout: grad_output expects shape ", shape, ", got ",
        grad_output.shape());
  const Array x = canonical(input), g = canonical(astype(grad_output, x.dtype()));
  Array grad_input = empty(x.shape(), x.dtype());
  kernels().activation.maxout_backward(g.raw(), x.raw(), grad_input.raw(), g.count(), pool,
                                       x.dtype());
  return grad_input;
}

}  // namespace fastnn::ops
