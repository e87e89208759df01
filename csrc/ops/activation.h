// Activations: y = f(x) elementwise.
#pragma once

#include "core/array.h"

namespace fastnn {

struct ActivationSlots {
  // Operands are canonical arrays of `count` elements of one floating dtype.
  void (*relu)(const void* input, void* output, int64_t count, DType dtype);
  void (*relu_backward)(const void* grad_output, const void* output, void* grad_input,
                        int64_t count, DType dtype);
};

namespace ops {

// max(x, 0); NaN stays NaN.
Array relu(const Array& input);
// grad_output where output > 0 or is NaN, else 0.
Array relu_backward(const Array& grad_output, const Array& output);

}  // namespace ops
}  // namespace fastnn
