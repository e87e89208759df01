// What happens to finished sums: relu(value + bias + residual), rounded and stored.
#pragma once

#include "cuda/device/packs.h"
#include "ops/activation.h"

namespace fastnn::cuda {

// N neighbouring outputs, whose bias and residual, or null, lie at the pointers; y becomes what is
// stored.
template <class T, int N>
FASTNN_DEVICE void finish(float (&y)[N], const float* bias, const T* residual, FusedRelu relu,
                          T* out) {
  float more[N];
  if (bias) {
    load_terms(bias, more);
    for (int n = 0; n < N; ++n) y[n] += more[n];
  }
  if (residual) {
    load_floats(residual, more);
    for (int n = 0; n < N; ++n) y[n] += more[n];
  }
  if (relu.on)
    for (int n = 0; n < N; ++n) y[n] = clamped(y[n], 0.0f, relu.ceiling);
  const Pack<T, N> stored = to_pack<T>(y);
  store_pack(out, stored);
  to_floats(stored, y);
}

}  // namespace fastnn::cuda
