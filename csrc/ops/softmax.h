// Softmax and its logarithm along one dimension.
#pragma once

#include "core/array.h"

namespace fastnn {

struct SoftmaxSlots {
  // Memory order (outer, D, inner); the reduction is over D.
  void (*forward)(const void* x, int64_t outer, int64_t D, int64_t inner, DType, bool log, void* y);
  void (*backward)(const void* g, const void* y, int64_t outer, int64_t D, int64_t inner, DType,
                   bool log, void* grad_x);
};

namespace ops {

// dim in [0, rank).
Array softmax(const Array& input, int64_t dim, bool log);
Array softmax_backward(const Array& grad_output, const Array& output, int64_t dim, bool log);

}  // namespace ops
}  // namespace fastnn
