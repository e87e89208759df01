// Rows of a few numbers, LANES rows at a time.
//
// A row of ten class scores fills no vector: taken by itself it costs two horizontal reductions and
// a logarithm of one lane, many times its arithmetic. So a block of LANES rows is turned, in
// squares of LANES by LANES numbers (simd/transpose.h), to one lane per row, [column][LANES], and
// back. Cost per number: log2(LANES) / LANES shuffles of a vector each way, a read and a write of
// it. Rows of two to four numbers are read and written as the vectors that LANES of them fill, and
// dealt out by C - 1 shuffles for each. Rejected: gathers that stride over the rows, four times as
// slow.
#pragma once

#include "cpu/simd/math.h"
#include "cpu/simd/transpose.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kFewColumns = 64;

// LANES rows of C numbers, one lane each.
struct alignas(64) Block {
  float values[kFewColumns * LANES];

  FASTNN_INLINED inline vfloat operator[](int64_t c) const { return load(values + c * LANES); }
  FASTNN_INLINED inline void set(int64_t c, vfloat v) { store(values + c * LANES, v); }
};

template <int C, class T>
FASTNN_INLINE void load_dense(const T* x, Block& to) {
  vfloat in[C], out[C];
#pragma GCC unroll 4
  for (int v = 0; v < C; ++v) in[v] = load_any(x + v * LANES, LANES);
  deal<C, true>(in, out);
#pragma GCC unroll 4
  for (int v = 0; v < C; ++v) to.set(v, out[v]);
}
template <int C, class T>
FASTNN_INLINE void store_dense(const Block& from, T* y) {
  vfloat in[C], out[C];
#pragma GCC unroll 4
  for (int v = 0; v < C; ++v) in[v] = from[v];
  deal<C, false>(in, out);
#pragma GCC unroll 4
  for (int v = 0; v < C; ++v) store_any(y + v * LANES, out[v], LANES);
}

// These fetch the block after the next: rows that straddle cache lines are not prefetched well.
template <class T>
FASTNN_INLINE void load_block(const T* x, int64_t C, Block& to) {
  if (C == 2) return load_dense<2>(x, to);
  if (C == 3) return load_dense<3>(x, to);
  if (C == 4) return load_dense<4>(x, to);
  const int64_t ahead = 2 * LANES * C;
  vector_loop(0, C, [&](int64_t c, int n) FASTNN_INLINED {
    vfloat square[LANES];
    const T* from = x + c;
#pragma GCC unroll 16
    for (int r = 0; r < LANES; ++r, from += C) {
      asm("" : "+r"(from));  // else GCC keeps an address of every row, and squares in memory
      square[r] = load_any(from, n);
      __builtin_prefetch(from + ahead);
    }
    transpose(square);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) to.set(c + i, square[i]);
  });
}
template <class T>
FASTNN_INLINE void store_block(const Block& from, int64_t C, T* y) {
  if (C == 2) return store_dense<2>(from, y);
  if (C == 3) return store_dense<3>(from, y);
  if (C == 4) return store_dense<4>(from, y);
  const int64_t ahead = 2 * LANES * C;
  vector_loop(0, C, [&](int64_t c, int n) FASTNN_INLINED {
    vfloat square[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) square[i] = from[c + i];
    transpose(square);
    T* to = y + c;
#pragma GCC unroll 16
    for (int r = 0; r < LANES; ++r, to += C) {
      asm("" : "+r"(to));
      store_any(to, square[r], n);
      __builtin_prefetch(to + ahead, 1);
    }
  });
}

// Of each row: its largest number, and the sum of exp(x - largest); e gets the exponentials.
struct RowExponents {
  vfloat highest, sum;
};
FASTNN_INLINE RowExponents exponents(const Block& x, int64_t C, Block& e) {
  vfloat highest = set1(-__builtin_inff()), sum{};
  for (int64_t c = 0; c < C; ++c) highest = vmax(highest, x[c]);
  for (int64_t c = 0; c < C; ++c) {
    const vfloat v = vexp_low(x[c] - highest);
    e.set(c, v);
    sum += v;
  }
  return {highest, sum};
}

// few_rows(first) for whole blocks of rows and one(row) for the rest of [0, rows), in parallel:
// blocks where C is small, else every row by itself.
template <class FewRows, class One>
FASTNN_INLINE void each_row(int64_t rows, int64_t C, const FewRows& few_rows, const One& one) {
  const bool blocks = C <= kFewColumns && rows >= LANES;
  const int64_t share = kGrain / (4 * C) + 1;
  const int64_t grain = (share + LANES - 1) / LANES * LANES;
  parallel_ranges(rows, blocks ? grain : share, [&](int64_t begin, int64_t end) {
    int64_t r = begin;
    for (; blocks && r + LANES <= end; r += LANES) few_rows(r);
    for (; r < end; ++r) one(r);
  });
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
