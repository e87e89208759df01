// Steps of a reduction, of 4 bytes of both operands: a value of float32, or, on avx512_bf16, a pair
// of bfloat16, whose products one instruction adds.
#pragma once

#include "cpu/simd/vec.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// The type P that values of type T are multiplied in, and how many of them a step takes.
#if defined(FASTNN_ISA_avx512_bf16)
template <class T>
using Operand = T;
#else
template <class T>
using Operand = float;
#endif
template <class P>
constexpr int64_t kStep = static_cast<int64_t>(sizeof(float) / sizeof(P));
FASTNN_INLINE int64_t step_of(DType dtype) {
  return dtype == DType::bfloat16 ? kStep<Operand<bfloat16>> : 1;
}

// One step in all lanes, two in turns, and LANES steps; of the first n values, the rest zeros. A
// last argument tells the type that is multiplied.
FASTNN_INLINE vfloat set1_step(const float* p) { return set1(*p); }
FASTNN_INLINE vfloat set1_two(const void* p) {
  typedef int64_t Longs __attribute__((vector_size(sizeof(vfloat))));
  int64_t two;
  __builtin_memcpy(&two, p, sizeof(two));
  return reinterpret_cast<vfloat>(two - Longs{});
}
FASTNN_INLINE vfloat load_steps(const float* p) { return load(p); }
template <class T>
FASTNN_INLINE vfloat load_steps_any(const T* p, int64_t n, float) {
  return load_any(p, static_cast<int>(n));
}
FASTNN_INLINE void add_step(vfloat& sum, vfloat a, vfloat b, float) { sum += a * b; }
// n values of `first` in pairs with those of `second`, or with zeros if there is none.
FASTNN_INLINE void copy_pairs(const bfloat16* first, const bfloat16* second, int64_t n,
                              bfloat16* to) {
#if defined(FASTNN_ISA_avx512_bf16)
  const auto copy = [&](int64_t i, int lanes) FASTNN_INLINED {
    const auto mask = static_cast<__mmask16>((1u << lanes) - 1);
    const auto lower = [&](const bfloat16* p) FASTNN_INLINED {
      return from_halves(reinterpret_cast<vhalf>(_mm256_maskz_loadu_epi16(mask, p + i)));
    };
    const vuint upper = second ? lower(second) << 16 : vuint{};
    _mm512_mask_storeu_ps(to + 2 * i, mask, as_float(lower(first) | upper));
  };
  if (n <= LANES) return copy(0, static_cast<int>(n));  // a mask that a caller's loop keeps
  vector_loop(0, n, copy);
#else
  vector_loop(0, n, [&](int64_t i, int lanes) {
    const vfloat other = second ? load_any(second + i, lanes) : vfloat{};
    store_any(reinterpret_cast<float*>(to + 2 * i), paired(load_any(first + i, lanes), other),
              lanes);
  });
#endif
}

#if defined(FASTNN_ISA_avx512_bf16)
FASTNN_INLINE vfloat set1_step(const bfloat16* p) {
  int32_t pair;
  __builtin_memcpy(&pair, p, sizeof(pair));
  return as_float(pair - vint{});
}
FASTNN_INLINE vfloat load_steps(const bfloat16* p) {
  return load(reinterpret_cast<const float*>(p));
}
FASTNN_INLINE vfloat load_steps_any(const bfloat16* p, int64_t n, bfloat16) {
  if (n == 2 * LANES) return load_steps(p);
  const auto mask = static_cast<__mmask32>((uint64_t{1} << n) - 1);
  return reinterpret_cast<vfloat>(_mm512_maskz_loadu_epi16(mask, p));
}
FASTNN_INLINE void add_step(vfloat& sum, vfloat a, vfloat b, bfloat16) {
  sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
#endif

// The channels of a pixel that a vector of sums is of, as steps: LANES, or LANES / 2 pairs.
template <class T>
FASTNN_INLINE vfloat load_pixel(const T* p, float) {
  return load(p);
}
#if defined(FASTNN_ISA_avx512_bf16)
FASTNN_INLINE vfloat load_pixel(const bfloat16* p, bfloat16) {
  return reinterpret_cast<vfloat>(_mm512_maskz_loadu_epi32(0xff, p));
}
#endif

// For sums over pixels, or rows of a matrix: V vectors of the columns of a pixel, or of it and the
// next one, `next` values on, in pairs (`both`: there is one); of the last vector, n columns if V
// is 1. Two vectors of pairs are made by interleaving, which leaves every other four columns in
// each: in_order() gives the vectors of sums that were added over them.
template <int V, class T>
FASTNN_INLINE void load_columns(const T* x, int64_t, bool, int n, vfloat (&column)[V], float) {
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) column[v] = V == 1 ? load_any(x, n) : load(x + v * LANES);
}
template <int V>
FASTNN_INLINE void in_order(vfloat (&)[V], float) {}
#if defined(FASTNN_ISA_avx512_bf16)
FASTNN_INLINE void load_columns(const bfloat16* x, int64_t next, bool both, int n,
                                vfloat (&column)[1], bfloat16) {
  column[0] = paired(load_any(x, n), both ? load_any(x + next, n) : vfloat{});
}
FASTNN_INLINE void load_columns(const bfloat16* x, int64_t next, bool both, int,
                                vfloat (&column)[2], bfloat16) {
  const __m512i a = _mm512_loadu_si512(x);
  const __m512i b = both ? _mm512_loadu_si512(x + next) : _mm512_setzero_si512();
  column[0] = reinterpret_cast<vfloat>(_mm512_unpacklo_epi16(a, b));
  column[1] = reinterpret_cast<vfloat>(_mm512_unpackhi_epi16(a, b));
}
FASTNN_INLINE void in_order(vfloat (&)[1], bfloat16) {}
FASTNN_INLINE void in_order(vfloat (&sum)[2], bfloat16) {
  const vfloat a = sum[0], b = sum[1];
  sum[0] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  sum[1] =
      __builtin_shufflevector(a, b, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
}
#endif

// Writes these sums, of a type P multiplied, in order: `last` columns of the last vector; `add` to
// what is there.
template <class P, int V>
FASTNN_INLINE void write_sums(vfloat (&sum)[V], float* to, int last, bool add) {
  in_order(sum, P{});
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    float* const at = to + v * LANES;
    const int n = v < V - 1 ? LANES : last;
    store_any(at, add ? load_any(at, n) + sum[v] : sum[v], n);
  }
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
