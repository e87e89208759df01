// Weights turned so that vectors run over outputs: in squares of LANES outputs by LANES values.
#pragma once

#include "cpu/simd/transpose.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// to[row][width] = w[output][row] for rows from begin to end of LANES outputs, of which `outputs`
// are there.
template <class T>
FASTNN_INLINE void turn_outputs(const T* w, int64_t outputs, int64_t rows, int64_t begin,
                                int64_t end, float* to, int64_t width) {
  for (int64_t row = begin; row < end; row += LANES) {
    const int count = static_cast<int>(end - row < LANES ? end - row : LANES);
    vfloat square[LANES];
#pragma GCC unroll 16
    for (int n = 0; n < LANES; ++n)
      square[n] = n < outputs ? load_any(w + n * rows + row, count) : vfloat{};
    transpose(square);
    for (int r = 0; r < count; ++r) store(to + (row + r) * width, square[r]);
  }
}

// The same in pairs, to[row / 2][width][2]: a pair is turned as a float of its bits.
FASTNN_INLINE void turn_outputs(const bfloat16* w, int64_t outputs, int64_t rows, int64_t begin,
                                int64_t end, bfloat16* to, int64_t width) {
  turn_outputs(reinterpret_cast<const float*>(w), outputs, rows / 2, begin / 2, end / 2,
               reinterpret_cast<float*>(to), width);
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
