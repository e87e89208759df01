// Where the sums of a gradient of a weight end.
#pragma once

#include "cpu/simd/vec.h"
#include "ops/conv.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kFarGradient = 1 << 20;  // bytes; nobody reads it before the optimizer

// The gradient of a weight as it is stored: in float32 under autocast, whatever the operands are.
struct WeightGradient {
  void* at;
  DType dtype;
  Route route;  // of whole vectors of float32, and pairs of them as bfloat16

  FASTNN_INLINED inline WeightGradient(const ConvParams& p, void* grad_weight)
      : at(grad_weight), dtype(p.grad_dtype), route(Route::through) {
    if (p.OC * p.KH * p.KW * p.group_inputs() * 4 >= kFarGradient) route = Route::around;
  }
  // Value 0 of which is value i of this one.
  FASTNN_INLINED inline WeightGradient from(int64_t i) const {
    WeightGradient rest = *this;
    rest.at = static_cast<char*>(at) + i * item_size(dtype);
    return rest;
  }
  FASTNN_INLINED inline void store(int64_t i, vfloat v, int n) const {
    if (dtype == DType::float32)
      store_any(static_cast<float*>(at) + i, v, n, route);
    else
      store_any(static_cast<bfloat16*>(at) + i, v, n);
  }
  // m rows of a tile of sums, n values each, to every `row`th value from i on.
  FASTNN_INLINED inline void store(int64_t i, int64_t row, const float* tile, int64_t pitch,
                                   int64_t m, int64_t n) const {
    for (int64_t r = 0; r < m; ++r, i += row, tile += pitch)
      if (dtype == DType::bfloat16 && n == 2 * LANES)
        store_two(static_cast<bfloat16*>(at) + i, load(tile), load(tile + LANES), route);
      else
        vector_loop(0, n, [&](int64_t v, int lanes) FASTNN_INLINED {
          store(i + v, load_any(tile + v, lanes), lanes);
        });
  }
  FASTNN_INLINED inline void store(int64_t i, float v) const {
    if (dtype == DType::float32)
      static_cast<float*>(at)[i] = v;
    else
      from_float(static_cast<bfloat16*>(at)[i], v);
  }
};

// to = the sum of partial sums of `size` values each, in order.
inline void add_partials(const float* sums, int64_t partials, int64_t size, WeightGradient to) {
  parallel_ranges(size, kGrain / 4, [&](int64_t begin, int64_t end) {
    vector_loop(begin, end, [&](int64_t i, int n) {
      vfloat total = load_any(sums + i, n);
      for (int64_t r = 1; r < partials; ++r) total += load_any(sums + r * size + i, n);
      to.store(i, total, n);
    });
  });
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
