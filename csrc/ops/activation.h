// Activations: y = f(x) elementwise, and maxout over groups of channels.
#pragma once

#include "core/array.h"

namespace fastnn {

enum class Activation : int {
  leaky_relu,  // a: slope below zero
  elu,         // a: alpha, b: scale (selu is elu with fixed constants)
  gelu,
  gelu_tanh,
  silu,
  sigmoid,
  tanh,
  softplus,  // a: beta, b: threshold
  hardswish,
  hardsigmoid,
  hardtanh,  // a: lowest, b: highest (relu6 is that of 0 and 6)
};

// The ReLU that an operator applies to its result before storing it: to [0, ceiling].
struct FusedRelu {
  bool on = false;
  float ceiling = __builtin_inff();

  explicit operator bool() const { return on; }
  bool capped() const { return ceiling < __builtin_inff(); }
};

// Another activation that a batch norm applies likewise, one without settings: to float32 values on
// their way to an output of type `stored`, a few hundred at a time, by functions of the level that
// computes them.
struct FusedCurve {
  using Call = void (*)(Activation, float* values, int64_t count, DType stored);

  Activation kind = Activation::silu;
  Call apply = nullptr;  // values become the activation's
  Call slope = nullptr;  // values become its slopes there

  explicit operator bool() const { return apply; }
};

// At most one of them.
struct FusedActivation {
  FusedRelu relu = {};
  FusedCurve curve = {};

  explicit operator bool() const { return relu || curve; }
};

struct ActivationSlots {
  // Operands are dense arrays of `count` elements of one floating dtype, in the same order.
  void (*relu)(const void* input, void* output, int64_t count, DType dtype);
  void (*relu_backward)(const void* grad_output, const void* output, void* grad_input,
                        int64_t count, DType dtype);
  void (*forward)(Activation, float a, float b, const void* x, void* y, int64_t count, DType);
  void (*backward)(Activation, float a, float b, const void* g, const void* x, void* grad_x,
                   int64_t count, DType);
  // weight[c] * x where x < 0; pixels of C channels.
  void (*prelu)(const void* x, const float* weight, void* y, int64_t pixels, int64_t C, DType);
  void (*prelu_backward)(const void* g, const void* x, const float* weight, void* grad_x,
                         float* grad_weight, int64_t pixels, int64_t C, DType);
  // Largest of each `pool` neighbouring values; the gradient goes to the first largest.
  void (*maxout)(const void* x, void* y, int64_t count, int64_t pool, DType);
  void (*maxout_backward)(const void* g, const void* x, void* grad_x, int64_t count, int64_t pool,
                          DType);
};

namespace ops {

// max(x, 0); NaN stays NaN.
Array relu(const Array& input);
// grad_output where output > 0 or is NaN, else 0.
Array relu_backward(const Array& grad_output, const Array& output);

// Of `activation`: "", "relu" or "relu6".
FusedRelu fused_relu(const char* op, const std::string& activation);
// Or a member of Activation without settings.
FusedActivation fused_activation(const char* op, const std::string& activation);

// `name` is a member of Activation; a and b as noted there.
// `asked_by` is the public name, for messages.
Array activation(const std::string& name, const Array& input, double a, double b,
                 const std::string& asked_by);
Array activation_backward(const std::string& name, const Array& grad_output, const Array& input,
                          double a, double b);

// input (N, C) or (N, C, H, W), weight (1,) or (C,).
Array prelu(const Array& input, const Array& weight);
// Gradients of input and weight.
std::pair<Array, Array> prelu_backward(const Array& grad_output, const Array& input,
                                       const Array& weight);

// (N, C, ...) -> (N, C / pool, ...), rank 2 or 4.
Array maxout(const Array& input, int64_t pool);
Array maxout_backward(const Array& grad_output, const Array& input, int64_t pool);

}  // namespace ops
}  // namespace fastnn
