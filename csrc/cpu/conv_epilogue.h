// What happens to finished sums: activation(value + bias + residual), stored.
#pragma once

#include "cpu/simd/vec.h"
#include "ops/conv.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// Channels c to c + n - 1 of an output, which will lie at `at`, before an activation.
template <class T>
FASTNN_INLINE vfloat with_terms(vfloat value, const ConvEpilogue& e, int64_t c, int64_t at, int n) {
  if (e.bias) value += load_any(e.bias + c, n);
  if (e.residual) value += load_any(static_cast<const T*>(e.residual) + at, n);
  return value;
}

// The same stored at y + at, all but a curve applied.
template <class T>
FASTNN_INLINE void finish_vector(vfloat value, const ConvEpilogue& e, int64_t c, int64_t at, int n,
                                 T* y, Route route) {
  value = with_terms<T>(value, e, c, at, n);
  const FusedRelu relu = e.activation.relu;
  if (relu) value = vclamp(value, vfloat{}, set1(relu.ceiling));
  store_any(y + at, value, n, route);
}

// Rows of sums, `pitch` apart, finished: channels `channel` to channel + count - 1, up to two
// vectors, of the pixels at y + where[row]. For what is rare, a curve or vectors that are not
// whole, so out of line; a curve is a call itself, for as many vectors as there is room for.
template <class T>
[[gnu::noinline]] void finish_rows(const float* sums, int64_t pitch, int rows, const int64_t* where,
                                   int64_t channel, int64_t count, const ConvEpilogue& e, T* y,
                                   Route route) {
  const FusedCurve& curve = e.activation.curve;
  if (!curve) {
    for (int r = 0; r < rows; ++r, sums += pitch)
      vector_loop(0, count, [&](int64_t c, int n) FASTNN_INLINED {
        finish_vector(load(sums + c), e, channel + c, where[r] + channel + c, n, y, route);
      });
    return;
  }
  constexpr int kVectors = 16;
  constexpr DType kStored = sizeof(T) == sizeof(float) ? DType::float32 : DType::bfloat16;
  const int64_t width = (count + LANES - 1) / LANES * LANES;
  const int most = static_cast<int>(kVectors * LANES / width);
  alignas(64) float values[kVectors * LANES];
  for (int first = 0; first < rows; first += most) {
    const int some = rows - first < most ? rows - first : most;
    for (int r = 0; r < some; ++r)
      vector_loop(0, count, [&](int64_t c, int n) FASTNN_INLINED {
        const vfloat sum = load(sums + (first + r) * pitch + c);
        store(values + r * width + c,
              with_terms<T>(sum, e, channel + c, where[first + r] + channel + c, n));
      });
    curve.apply(curve.kind, values, some * width, kStored);
    for (int r = 0; r < some; ++r)
      vector_loop(0, count, [&](int64_t c, int n) FASTNN_INLINED {
        store_any(y + where[first + r] + channel + c, load(values + r * width + c), n, route);
      });
  }
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
      : floor(set1(e.activation.relu ? 0 : -__builtin_inff())),
        ceiling(set1(e.activation.relu.ceiling)),
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
