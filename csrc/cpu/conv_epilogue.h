// What happens to finished sums: relu(value + bias + residual), stored.
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
  if (e.relu) value = vclamp(value, vfloat{}, set1(e.relu.ceiling));
  store_any(y + at, value, n, route);
}

// Two vectors of sums at a time: of a row of two vectors of columns from `channel` on, or, `count`
// being one vector, of two rows whose outputs touch. What all rows share is in registers.
template <class T>
struct Rows {
  vfloat bias[2] = {}, floor, ceiling;
  const T* residual;
  T* y;
  Route route;

  FASTNN_INLINED inline Rows(const ConvEpilogue& e, int64_t channel, int64_t count, T* to,
                             Route way)
      : floor(set1(e.relu ? 0 : -__builtin_inff())),
        ceiling(set1(e.relu.ceiling)),
        residual(e.residual ? static_cast<const T*>(e.residual) + channel : nullptr),
        y(to + channel),
        route(way) {
    if (!e.bias) return;
    bias[0] = load(e.bias + channel);
    bias[1] = load(e.bias + channel + (count > LANES ? LANES : 0));
  }
  // Returns what store_two does.
  FASTNN_INLINED inline auto store(vfloat low, vfloat high, int64_t at) const {
    low += bias[0], high += bias[1];
    if (residual) low += load(residual + at), high += load(residual + at + LANES);
    return store_two(y + at, vclamp(low, floor, ceiling), vclamp(high, floor, ceiling), route);
  }
  FASTNN_INLINED inline void store(vfloat value, int64_t at) const {
    value += bias[0];
    if (residual) value += load(residual + at);
    store_any(y + at, vclamp(value, floor, ceiling), LANES, route);
  }
};

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
