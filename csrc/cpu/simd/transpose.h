// Shuffles of vectors of four bytes per lane.
//
// transpose() turns LANES vectors of LANES values: r[j][i] = r[i][j]. A round shuffles each vector
// of the first half into one of the second, like two halves of a deck of cards; place i of 2^n, in
// binary, moves by one bit to the left. After log2(LANES) rounds rows and columns have changed
// places. LANES log2(LANES) shuffles of two vectors, no memory.
#pragma once

#include "cpu/simd/vec.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

#if defined(FASTNN_ISA_avx512)
#define FASTNN_EACH(a, b, c, d) \
  a, b, c, d, a + 4, b + 4, c + 4, d + 4, a + 8, b + 8, c + 8, d + 8, a + 12, b + 12, c + 12, d + 12
#define FASTNN_LOW_CARDS 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define FASTNN_HIGH_CARDS 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif defined(FASTNN_ISA_avx2)
#define FASTNN_EACH(a, b, c, d) a, b, c, d, a + 4, b + 4, c + 4, d + 4
#define FASTNN_LOW_CARDS 0, 8, 1, 9, 2, 10, 3, 11
#define FASTNN_HIGH_CARDS 4, 12, 5, 13, 6, 14, 7, 15
#else
#define FASTNN_EACH(a, b, c, d) a, b, c, d
#define FASTNN_LOW_CARDS 0, 4, 1, 5
#define FASTNN_HIGH_CARDS 2, 6, 3, 7
#endif

template <class Vector>
FASTNN_INLINE void transpose(Vector (&r)[LANES]) {
#pragma GCC unroll 4
  for (int round = 1; round < LANES; round *= 2) {
    Vector shuffled[LANES];
#pragma GCC unroll 8
    for (int i = 0; i < LANES / 2; ++i) {
      shuffled[2 * i] = __builtin_shufflevector(r[i], r[i + LANES / 2], FASTNN_LOW_CARDS);
      shuffled[2 * i + 1] = __builtin_shufflevector(r[i], r[i + LANES / 2], FASTNN_HIGH_CARDS);
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) r[i] = shuffled[i];
  }
}

// The sum of r[i]'s lanes in lane i: each round of the above, added up, leaves half as many
// vectors.
template <int N>
FASTNN_INLINE vfloat sum_lanes(const vfloat (&r)[N]) {
  if constexpr (N == 1) {
    return r[0];
  } else {
    vfloat sums[N / 2];
#pragma GCC unroll 8
    for (int i = 0; i < N / 2; ++i)
      sums[i] = __builtin_shufflevector(r[i], r[i + N / 2], FASTNN_LOW_CARDS) +
                __builtin_shufflevector(r[i], r[i + N / 2], FASTNN_HIGH_CARDS);
    return sum_lanes(sums);
  }
}

// Of every four lanes, the first two, or last two, of both vectors: a0 b0 a1 b1, a2 b2 a3 b3. One
// instruction each, where order over the whole vector would take more.
FASTNN_INLINE vfloat interleave_low(vfloat a, vfloat b) {
  return __builtin_shufflevector(a, b, FASTNN_EACH(0, LANES, 1, LANES + 1));
}
FASTNN_INLINE vfloat interleave_high(vfloat a, vfloat b) {
  return __builtin_shufflevector(a, b, FASTNN_EACH(2, LANES + 2, 3, LANES + 3));
}
// a + b of what these two made.
FASTNN_INLINE vfloat add_interleaved(vfloat low, vfloat high) {
  return __builtin_shufflevector(low, high, FASTNN_EACH(0, 2, LANES, LANES + 2)) +
         __builtin_shufflevector(low, high, FASTNN_EACH(1, 3, LANES + 1, LANES + 3));
}

// deal() turns the C vectors that LANES rows of C numbers fill into one vector for each of the C,
// `dealing`, or back. Where lane i of vector v comes from, which is number v * LANES + i of rows of
// C numbers or, `dealing`, number v of row i: in step k, from what there is (lanes from 0 on) or,
// if it is in vector k, from that (lanes from LANES on).
constexpr int few_lane(int C, bool dealing, int v, int k, int i) {
  const int at = dealing ? i * C + v : v * LANES + i;
  const int source = dealing ? at / LANES : at % C, lane = dealing ? at % LANES : at / C;
  return source == k ? LANES + lane : k == 1 && source == 0 ? lane : i;
}
template <int... I>
struct Lanes {};
template <int C, bool dealing, int v, int k = 1, int... I>
FASTNN_INLINE vfloat dealt(const vfloat (&x)[C], vfloat made, Lanes<I...> lanes) {
  made = __builtin_shufflevector(made, x[k], few_lane(C, dealing, v, k, I)...);
  if constexpr (k + 1 < C)
    return dealt<C, dealing, v, k + 1>(x, made, lanes);
  else
    return made;
}
template <int C, bool dealing, int v = 0>
FASTNN_INLINE void deal(const vfloat (&x)[C], vfloat (&y)[C]) {
  y[v] = dealt<C, dealing, v>(x, x[0], Lanes<FASTNN_EACH(0, 1, 2, 3)>{});
  if constexpr (v + 1 < C) deal<C, dealing, v + 1>(x, y);
}

#undef FASTNN_EACH
#undef FASTNN_LOW_CARDS
#undef FASTNN_HIGH_CARDS

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
