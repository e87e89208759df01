// Gathering rows by index, and its gradient. Everything else that only moves elements (cat, pad,
// slices) is views and copies.
#pragma once

#include "core/array.h"

namespace fastnn {

struct ShapeSlots {
  // out[i] = x[positions[i]] for `rows` rows of `bytes` bytes.
  void (*take)(const void* x, int64_t rows, const int64_t* positions, int64_t count, int64_t bytes,
               void* out);
  // grad_x[positions[i]] += g[i] for `rows` rows of `width` elements, in order of i; grad_x is
  // float32.
  void (*take_backward)(const void* g, DType, const int64_t* positions, int64_t count, int64_t rows,
                        int64_t width, float* grad_x);
  // Position of the first index that is neither in [0, limit) nor `ignored`; -1 if there is none.
  // On a device whose results come later: -1, and a fault that names `what` when they are asked
  // for.
  int64_t (*first_outside)(const int64_t* index, int64_t count, int64_t limit, int64_t ignored,
                           const char* what);
};

namespace ops {

// x is dense and seen as rows of `width` elements in memory order. The result has `shape`, in
// canonical memory if `canonical_rows` (whole images of a canonical batch), else row-major.
// Positions are checked.
Array take(const Array& x, const Array& positions, int64_t width, const Dims& shape,
           bool canonical_rows);
// The gradient of x, of `shape` in canonical memory if `canonical_rows`, else row-major.
Array take_backward(const Array& grad_output, const Array& positions, int64_t width,
                    const Dims& shape, bool canonical_rows);

}  // namespace ops
}  // namespace fastnn
