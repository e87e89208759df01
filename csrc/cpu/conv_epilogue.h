// What happens to a vector of finished sums: relu(value + bias + residual), stored.
#pragma once

#include "cpu/simd/vec.h"
#include "ops/conv.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// Channels c to c + n - 1 of an output, which lie at y + at.
template <class T>
FASTNN_INLINE void finish_vector(vfloat value, const ConvEpilogue& e, int64_t c, int64_t at, int n,
                                 T* y, Route route) {
  if (e.bias) value += load_any(e.bias + c, n);
  if (e.residual) value += load_any(static_cast<const T*>(e.residual) + at, n);
  if (e.relu) value = vmax(vfloat{}, value);  // NaN stays
  store_any(y + at, value, n, route);
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
