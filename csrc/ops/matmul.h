// Matrix products. They have no kernel slots of their own: a product is a 1x1 convolution over M
// pixels, and its two gradients are that convolution's (cpu/matmul.h holds the kernels of both).
#pragma once

#include "core/array.h"

namespace fastnn::ops {

// (M, K) x (K, N) -> (M, N), or (B, M, K) x (B, K, N) -> (B, M, N).
Array matmul(const Array& a, const Array& b);
// Gradients of the two operands: grad_output b^T and a^T grad_output.
Array matmul_backward_a(const Array& grad_output, const Array& b);
Array matmul_backward_b(const Array& grad_output, const Array& a);

// x w^T + bias over the last dimension: (M, in) x (out, in) -> (M, out). keep_packed: see conv.h.
Array linear(const Array& input, const Array& weight, const Array* bias, bool keep_packed = false);
Array linear_backward_input(const Array& grad_output, const Array& weight);
Array linear_backward_weight(const Array& grad_output, const Array& input);

}  // namespace fastnn::ops
