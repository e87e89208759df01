// Rows of a few numbers, LANES rows at a time.
//
// A row of ten class scores fills no vector: taken by itself it costs two horizontal reductions and
// a logarithm of one lane, many times its arithmetic. So a block of LANES rows is reduced with one
// lane per row, from gathers that stride over the rows (they hit L1), and written as the C whole
// vectors that it is in memory, each lane fetching its row's result by a permutation. No tails.
// Cost per number: one gather, the arithmetic, and a read and a write of it.
#pragma once

#include "cpu/simd/math.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kFewColumns = 64;

struct FewColumns {
  int64_t C;
  vint start;                               // where each lane's row starts
  int32_t row[kFewColumns * LANES];         // of each number of a block
  mutable float wide[kFewColumns * LANES];  // a block of bfloat16 numbers

  explicit FewColumns(int64_t columns) : C(columns) {
    start = lanes() * static_cast<int32_t>(columns);
    int64_t at = 0;
    for (int32_t r = 0; r < LANES; ++r)
      for (int64_t c = 0; c < C; ++c) row[at++] = r;
  }

  // One block as floats.
  const float* block(const float* x) const { return x; }
  const float* block(const bfloat16* x) const {
    for (int64_t i = 0; i < C; ++i) store(wide + i * LANES, load(x + i * LANES));
    return wide;
  }

  // Column c, one lane per row.
  __attribute__((always_inline)) vfloat column(const float* x, int64_t c) const {
    return gather(x + c, start);
  }

  // Of the numbers at [i, i + LANES): what `per_row` has for each one's row.
  __attribute__((always_inline)) vfloat spread(vfloat per_row, int64_t i) const {
    vint rows;
    __builtin_memcpy(&rows, row + i, sizeof(rows));
    return permuted(per_row, rows);
  }

  // body(i) for each vector of a block.
  template <class Body>
  __attribute__((always_inline)) void each(const Body& body) const {
    for (int64_t i = 0; i < C * LANES; i += LANES) body(i);
  }
};

// Of each row: its largest number, and the sum of exp(x - largest).
struct RowExponents {
  vfloat highest, sum;
};

FASTNN_INLINE RowExponents exponents(const FewColumns& few, const float* x) {
  alignas(64) float columns[kFewColumns * LANES];
  vfloat highest = set1(-__builtin_inff()), sum{};
  for (int64_t c = 0; c < few.C; ++c) {
    const vfloat v = few.column(x, c);
    store(columns + c * LANES, v);
    highest = vmax(highest, v);
  }
  for (int64_t c = 0; c < few.C; ++c) sum += vexp(load(columns + c * LANES) - highest);
  return {highest, sum};
}

// few_rows(first, block) for whole blocks of rows and one(row) for the rest of [0, rows), in
// parallel: `few` where C is small, else every row by itself.
template <class Block, class One>
FASTNN_INLINE void each_row(int64_t rows, int64_t C, const Block& few_rows, const One& one) {
  const bool blocks = C <= kFewColumns && rows >= LANES;
  const int64_t share = kGrain / (4 * C) + 1;
  const int64_t grain = (share + LANES - 1) / LANES * LANES;
  parallel_ranges(rows, blocks ? grain : share, [&](int64_t begin, int64_t end) {
    int64_t r = begin;
    if (blocks) {
      const FewColumns few(C);
      for (; r + LANES <= end; r += LANES) few_rows(few, r);
    }
    for (; r < end; ++r) one(r);
  });
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
