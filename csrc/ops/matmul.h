// Matrix products. A product is a 1x1 convolution over M pixels, and its two gradients are that
// convolution's (cpu/matmul.h holds the kernels of both), but for a few rows by a large matrix.
#pragma once

#include "core/array.h"

namespace fastnn {

// Rows of a in a product with a matrix too large to be worth packing.
constexpr int64_t kFewRows = 32;

struct FewRows {
  int64_t rows, inner, columns;  // of a: rows x inner; of the product: rows x columns
  DType dtype;                   // of all three matrices; sums are float32
};

struct MatmulSlots {  // on a CPU alone
  // out = a w^T + bias (if not null), w (columns, inner).
  void (*few_rows)(const FewRows&, const void* a, const void* w, const float* bias, void* out);
  // out = a w, w (inner, columns).
  void (*few_rows_turned)(const FewRows&, const void* a, const void* w, void* out);
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
