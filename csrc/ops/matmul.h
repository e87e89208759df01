// Matrix products. A product is a 1x1 convolution over M pixels, and its two gradients are that
// convolution's (cpu/matmul.h holds the kernels of both), but for a few rows by a large matrix.
#pragma once

#include "core/array.h"

namespace fastnn {

struct MatmulParams {
  int64_t rows, inner, columns;  // of a: rows x inner; of the product: rows x columns
  DType dtype;                   // of all three matrices; sums are float32
};

// Of a, for which MatmulSlots::outer writes the gradient of the other operand.
constexpr int64_t kOuterRows = 8;

struct MatmulSlots {  // on a CPU alone
  // Whether a serves so few rows that these are faster than a convolution, whose weights are packed
  // first. `turned`: which of the two.
  bool (*takes)(const MatmulParams&, bool turned);
  // out = a w^T + bias (if not null), w (columns, inner).
  void (*rows)(const MatmulParams&, const void* a, const void* w, const float* bias, void* out);
  // out = a w, w (inner, columns).
  void (*rows_turned)(const MatmulParams&, const void* a, const void* w, void* out);
  // out (inner, columns), of `dtype`, = a^T g for the product's gradient g and up to kOuterRows
  // rows.
  void (*outer)(const MatmulParams&, const void* a, const void* g, DType dtype, void* out);
};

namespace ops {

// (M, K) x (K, N) -> (M, N), or (B, M, K) x (B, K, N) -> (B, M, N).
Array matmul(const Array& a, const Array& b);
// Gradients of the two operands: grad_output b^T and a^T grad_output.
Array matmul_backward_a(const Array& grad_output, const Array& b);
Array matmul_backward_b(const Array& grad_output, const Array& a);

// x w^T + bias over the last dimension: (M, in) x (out, in) -> (M, out). keep_packed: see conv.h.
Array linear(const Array& input, const Array& weight, const Array* bias, bool keep_packed = false);
Array linear_backward_input(const Array& grad_output, const Array& weight);
// In `dtype`: the input's, or float32.
Array linear_backward_weight(const Array& grad_output, const Array& input, DType dtype);

}  // namespace ops
}  // namespace fastnn
