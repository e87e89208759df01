// What the other units of the core do while the tiles multiply, some of it after every step: finish
// the rows of the pair of pixel blocks before, and bring into L2 what is written and read next, the
// input of a later task among it.
//
// A store that misses L2 takes a hundred nanoseconds or more, and the tiles' own stores wait behind
// it: a row's output is brought when the same row of the pair before is finished.
#pragma once

#include "cpu/amx/tiles.h"
#include "cpu/conv_moments.h"
#include "cpu/implicit_gemm.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int kColumns = NR;  // of a block: two tiles
static_assert(kColumns == 2 * kTile);

// 16 of 32 values that were stored.
FASTNN_INLINE vfloat low_half(__m512i stored) {
  return widen(reinterpret_cast<vhalf>(_mm512_maskz_extracti64x4_epi64(0xf, stored, 0)));
}
FASTNN_INLINE vfloat high_half(__m512i stored) {
  return widen(reinterpret_cast<vhalf>(_mm512_maskz_extracti64x4_epi64(0xf, stored, 1)));
}

// Its members are set one by one, as NextRows' are.
struct Meanwhile {
  const ConvEpilogue& epilogue;
  bfloat16* y;
  Route route;
  int block_rows;  // of a pixel block
  NextRows input{}, output{};
  // The pair:
  const float* sums = nullptr;
  const int64_t* where = nullptr;  // of each row, and of as many that come after them
  int64_t channel = 0, count = 0;
  int row = 0, rows = 0;  // row: the first that is not finished
  TileMoments* moments = nullptr;
  bool opens = false;    // whether the tile's first point is among these rows
  int repeated[2] = {};  // rows at the start of each block that the block before has, too

  // Lines of the rows after the pair's that are brought into L2, of an output that is not written
  // around the caches and of a residual.
  int lines = 0;

  FASTNN_INLINED inline void fetch() {
    input.fetch();
    output.fetch();
  }
};

// How a product finishes the pair before: rows of a block that is cut off within a tile, or none;
struct CutRows {
  Meanwhile& meanwhile;
  FASTNN_INLINED explicit inline CutRows(Meanwhile& of) : meanwhile(of) {}
  __attribute__((noinline)) void finish(int64_t n) {
    Meanwhile& m = meanwhile;
    const int count = static_cast<int>(clamp(n, 0, m.rows - m.row));
    const int64_t* const to = m.where + m.row;
    if (m.lines > 0 && m.route == Route::through)
      for (int i = 0; i < count; ++i)
        _mm_prefetch(m.y + m.channel + to[2 * m.block_rows + i], _MM_HINT_T1);
    store_tile(m.sums + m.row * kColumns, kColumns, count, to, m.channel, m.count, m.epilogue, m.y,
               m.route);
    m.row += count;
  }
  FASTNN_INLINED inline void keep() {}
};
// or rows of 32 or 16, counted or not, of which all that they share stays in registers from step to
// step.
template <bool kCounted, int kWidth>
struct UniformRows {
  Meanwhile& meanwhile;
  const Rows<bfloat16> out;
  const float* from;
  const int64_t *to, *const end;
  const bool repeats;  // whether some rows are not counted
  CountedVector low{vfloat{}}, high{vfloat{}};

  FASTNN_INLINED explicit inline UniformRows(Meanwhile& of)
      : meanwhile(of),
        out(of.epilogue, of.channel, kWidth, of.y, of.route),
        from(of.sums + of.row * kColumns),
        to(of.where + of.row),
        end(of.where + of.rows),
        repeats(of.repeated[0] || of.repeated[1]) {
    if (!kCounted) return;
    low = counted(0);
    if (kWidth == kColumns) high = counted(1);
  }
  FASTNN_INLINED inline CountedVector counted(int half) const {
    if (!meanwhile.opens) return CountedVector(*meanwhile.moments, half * LANES);
    return CountedVector(as_stored<bfloat16>(load(from + half * kTile) + out.bias[half]));
  }
  FASTNN_INLINED inline void finish(int64_t n) {
    while (n > 0 && to < end) {
      const int rows = kWidth == kColumns ? finish_row() : finish_half();
      n -= rows, to += rows, from += rows * kColumns;
    }
  }
  FASTNN_INLINED inline int finish_row() {
    const __m512i stored = out.store(load(from), load(from + kTile), *to);
    if (kCounted && counts(0)) low.add(low_half(stored)), high.add(high_half(stored));
    bring();
    return 1;
  }
  // Two, where they are neighbouring pixels that make a line: every line is written around the
  // caches whole, or not around them.
  FASTNN_INLINED inline int finish_half() {
    bring();
    if (to + 1 < end && to[1] == *to + kTile && streams(out.y + *to, 64, Route::around)) {
      const __m512i stored = out.store(load(from), load(from + kColumns), *to);
      if (kCounted && counts(0)) low.add(low_half(stored));
      if (kCounted && counts(1)) low.add(high_half(stored));
      return 2;
    }
    out.store(load(from), *to);
    if (kCounted && counts(0)) low.add(as_stored<bfloat16>(load(from) + out.bias[0]));
    return 1;
  }
  // Whether the row so many on is one that the block before does not have.
  FASTNN_INLINED inline bool counts(int later) const {
    if (!repeats) return true;
    const auto row = static_cast<int>(to + later - meanwhile.where);
    const int block = row >= meanwhile.block_rows;
    return row - block * meanwhile.block_rows >= meanwhile.repeated[block];
  }
  FASTNN_INLINED inline void bring() const {
    if (meanwhile.lines == 0) return;
    const int64_t next = to[2 * meanwhile.block_rows];
    if (out.route == Route::through) bring(out.y + next);
    if (out.residual) bring(out.residual + next);
  }
  // The columns beside these are the next block's, which brings none then.
  FASTNN_INLINED inline void bring(const bfloat16* next) const {
    _mm_prefetch(next, _MM_HINT_T1);
    if (meanwhile.lines > 1) _mm_prefetch(next + kColumns, _MM_HINT_T1);
  }
  FASTNN_INLINED inline void keep() {
    meanwhile.row = static_cast<int>(to - meanwhile.where);
    if (!kCounted) return;
    low.keep(*meanwhile.moments, 0);
    if (kWidth == kColumns) high.keep(*meanwhile.moments, LANES);
    meanwhile.opens = false;
  }
};

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
