// Weights turned so that vectors run over outputs: in squares of LANES outputs by LANES values.
#pragma once

#include "cpu/simd/transpose.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// to[row][width] = w[output][row] for rows from begin to end of LANES outputs, of which `outputs`
// are there. A pair of bfloat16 is turned as a float of its bits.
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

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
