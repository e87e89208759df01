// Turns LANES vectors of LANES values of four bytes: r[j][i] = r[i][j].
//
// A round shuffles each vector of the first half into one of the second, like two halves of a deck
// of cards; place i of 2^n, in binary, moves by one bit to the left. After log2(LANES) rounds rows
// and columns have changed places. LANES log2(LANES) shuffles of two vectors, no memory.
#pragma once

#include "cpu/simd/vec.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

#if defined(FASTNN_ISA_avx512)
#define FASTNN_LOW_CARDS 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define FASTNN_HIGH_CARDS 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif defined(FASTNN_ISA_avx2)
#define FASTNN_LOW_CARDS 0, 8, 1, 9, 2, 10, 3, 11
#define FASTNN_HIGH_CARDS 4, 12, 5, 13, 6, 14, 7, 15
#else
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

#undef FASTNN_LOW_CARDS
#undef FASTNN_HIGH_CARDS

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
