// The register-blocked kernels that convolution, linear and matmul loop over.
//
// product: C[m][n] = sum over taps t and k of rows[m][taps[t] + k] * B[t][k][n]
//   A tile of M rows by V vectors of accumulators stays in registers over the whole reduction,
//   which may run over several taps (a batch-reduce GEMM): a convolution's output is written once.
//   Rows are separate pointers, so a tile may hold any pixels: no row-end remainder, no im2col.
//
//            n: V * LANES columns of packed B, one row per k ->
//       row0 [ acc acc ]      per k: V loads of B, M broadcasts of A, M * V multiply-adds
//       row1 [ acc acc ]      AVX-512: M = 14, V = 2: 28 accumulators, 16 loads per 28 FMAs
//       ...                   AVX2:    M = 6,  V = 2: 12 accumulators,  8 loads per 12 FMAs
//
// Operands are float32, or, on avx512_bf16, bfloat16, two values along k at a time: one instruction
// adds both products, so that a step of 4 bytes of A and B does twice the work.
//
// outer: C[m][n] (+)= sum over pixels p of g[p][m] * x[p][n]
//   The weight gradient: the same tile, the reduction over a strip of pixels. x is read as it lies,
//   g from a packed panel; rows of C are rows of the weight, so nothing is transposed.
#pragma once

#include "cpu/simd/steps.h"
#include "ops/conv.h"

namespace fastnn::cpu::FASTNN_ISA {

#if defined(FASTNN_ISA_avx512)
constexpr int MR = 14;
#else
constexpr int MR = 6;
#endif
constexpr int NV = 2;
constexpr int NR = NV * LANES;

// Memory that a kernel brings into L2 while it multiplies: a prefetch per two steps of its
// reduction.
struct Ahead {
  const void* from;
  int64_t step;  // bytes
  static Ahead nothing(const void* cached) { return {cached, 0}; }
};

// Memory under the pixels that a weight gradient adds next, of the input and of the output's
// gradient, a share for each kernel call; none if it has no bytes.
struct NextPixels {
  const char *x, *g;
  int64_t x_bytes, g_bytes, share;
  Ahead piece(int64_t call, int64_t step) const {
    const int64_t at = call * share;
    return {at < x_bytes ? x + at : g + (at - x_bytes), share ? step : 0};
  }
};

// What a product sums up: k values from each tap on. B has `pitch` rows for a tap, of which the
// first k are read. Of an odd k in pairs, at least 3, the last pair begins with the value that ends
// the pair before: B has half its factor in both, a row more.
struct Terms {
  const int64_t* taps;
  int64_t tap_count, k, pitch;
};

// Writes an M x (V * LANES) tile with row pitch V * LANES. B is packed [tap][k][V * LANES], or, in
// pairs, [tap][k / 2][V * LANES][2].
template <class P>
using ProductKernel = void (*)(const P* const* rows, const Terms& terms, const P* b, float* tile,
                               Ahead ahead);

// The same for whole vectors of columns, finished: row r of the tile, from `channel` on, goes to
// y + where[r].
template <class T>
struct Output {
  const ConvEpilogue& epilogue;
  int64_t channel;
  T* y;
  const int64_t* where;
  bool around;  // the caches
};
template <class P, class T>
using FinishedKernel = void (*)(const P* const* rows, const Terms& terms, const P* b,
                                const Output<T>& to, Ahead ahead);

// A strip of pixels: x[image][row][col] + n by strides, g[pixel][M] dense in the same order but for
// g_rest values between images, or [pair of pixels of a row][M][2], with zeros behind the last
// pixel of an odd row. The tile has row pitch `pitch` and `last` columns in its last vector (x is
// read in whole vectors); `add` keeps what the tile holds.
template <class P>
struct OuterStrip {
  const P* x;
  int64_t x_image, x_row, x_col;
  const P* g;
  int64_t g_next;  // values from one pixel, or pair, to the next
  int64_t g_rest;
  int64_t images, rows, cols;
  Ahead ahead;
};
template <class P>
using OuterKernel = void (*)(const OuterStrip<P>& strip, float* tile, int64_t pitch, int last,
                             bool add);

// Indexed [M - 1][V - 1]; defined in matmul.cpp.
template <class P>
struct Kernels {
  static const ProductKernel<P> product[MR][NV];
  static const OuterKernel<P> outer[MR][NV];
};
template <class P, class T>
struct Finished {
  static const FinishedKernel<P, T> product[MR][NV];
};
extern const OuterKernel<float> outer_square;  // LANES rows of one vector

// Cuts n rows into blocks of nearly equal size, at most `most`; returns the size of the first.
FASTNN_INLINE int even_block(int64_t n, int64_t most = MR) {
  const int64_t blocks = (n + most - 1) / most;
  return static_cast<int>((n + blocks - 1) / blocks);
}

// As many rows of A that are far apart (vec.h) stay in the first cache, beside B.
constexpr int kMostFarRows = MR < 11 ? MR : 11;

// Columns are cut into blocks of NR; the last one is a single vector wide where that is enough.
// Packed B holds block after block, each k-row padded with zeros to the block's width.
FASTNN_INLINE int64_t block_count(int64_t columns) { return (columns + NR - 1) / NR; }
FASTNN_INLINE int block_vectors(int64_t columns, int64_t block) {
  return columns - block * NR > LANES ? NV : 1;
}
FASTNN_INLINE int64_t packed_columns(int64_t columns) {
  return columns == 0 ? 0 : (columns + LANES - 1) / LANES * LANES;
}

}  // namespace fastnn::cpu::FASTNN_ISA
