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

  __attribute__((noinline)) void finish(int64_t n) {
    for (const int end = static_cast<int>(clamp(row + n, 0, rows)); row < end;) {
      const int block = row >= block_rows, at = row - block * block_rows;
      const int stop = block || end < block_rows ? end : block_rows;
      finish_block(block, at, stop - row);
      row = stop;
    }
  }
  // n rows of a pixel block.
  inline void finish_block(int block, int at, int n) {
    const float* from = sums + row * kColumns;
    const int64_t* to = where + row;
    if (lines > 0 && route == Route::through)
      for (int i = 0; i < n; ++i) _mm_prefetch(y + channel + to[2 * block_rows + i], _MM_HINT_T1);
    if (count % kTile) return store_tile(from, kColumns, n, to, channel, count, epilogue, y, route);
    const Rows<bfloat16> out(epilogue, channel, count, y, route);
    const int uncounted = static_cast<int>(clamp(repeated[block] - at, 0, n));
    if (moments && count == kColumns) return finish_counted(out, from, to, n, uncounted);
    if (moments) count_half_rows(from + uncounted * kColumns, n - uncounted);
    if (count == kColumns) {
      for (int i = 0; i < n; ++i, from += kColumns)
        out.store(load(from), load(from + kTile), to[i]);
      return;
    }
    for (int i = 0; i < n; ++i, from += kColumns)
      // A whole line, so that every line is written around the caches or none of it.
      if (i + 1 < n && to[i + 1] == to[i] + kTile && streams(out.y + to[i], 64, Route::around))
        out.store(load(from), load(from + kColumns), to[i]), ++i, from += kColumns;
      else
        finish_vector(load(from), epilogue, channel, to[i] + channel, LANES, y, route);
  }
  inline void count_half_rows(const float* from, int n) {
    if (n == 0) return;
    const vfloat bias = epilogue.bias ? load(epilogue.bias + channel) : vfloat{};
    const auto row = [&](int i) FASTNN_INLINED {
      return as_stored<bfloat16>(load(from + i * kColumns) + bias);
    };
    CountedVector counted = opens ? CountedVector(row(0)) : CountedVector(*moments, 0);
    for (int i = 0; i < n; ++i) counted.add(row(i));
    counted.keep(*moments, 0);
    opens = false;
  }
  // n rows of 32, counted but for the first few.
  inline void finish_counted(const Rows<bfloat16>& out, const float* from, const int64_t* to, int n,
                             int uncounted) {
    CountedVector low(*moments, 0), high(*moments, LANES);
    bool opening = opens;
    for (int i = 0; i < n; ++i) {
      const __m512i stored =
          out.store(load(from + i * kColumns), load(from + i * kColumns + kTile), to[i]);
      if (i < uncounted) continue;
      const vfloat first = low_half(stored), second = high_half(stored);
      if (opening) low = CountedVector(first), high = CountedVector(second), opening = false;
      low.add(first);
      high.add(second);
    }
    opens = opening;
    low.keep(*moments, 0);
    high.keep(*moments, LANES);
  }
  FASTNN_INLINED inline void fetch() {
    input.fetch();
    output.fetch();
  }
};

// How a product finishes the pair before: any rows, from memory to memory,
struct AnyRows {
  Meanwhile& meanwhile;
  FASTNN_INLINED explicit inline AnyRows(Meanwhile& of) : meanwhile(of) {}
  FASTNN_INLINED inline void finish(int64_t n) { meanwhile.finish(n); }
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
  CountedVector low{vfloat{}}, high{vfloat{}};

  FASTNN_INLINED explicit inline UniformRows(Meanwhile& of)
      : meanwhile(of),
        out(of.epilogue, of.channel, kWidth, of.y, of.route),
        from(of.sums + of.row * kColumns),
        to(of.where + of.row),
        end(of.where + of.rows) {
    if (!kCounted) return;
    low = CountedVector(*of.moments, 0);
    if (kWidth == kColumns) high = CountedVector(*of.moments, LANES);
  }
  FASTNN_INLINED inline void finish(int64_t n) {
    while (n > 0 && to < end) {
      const int rows = kWidth == kColumns ? finish_row() : finish_half();
      n -= rows, to += rows, from += rows * kColumns;
    }
  }
  FASTNN_INLINED inline int finish_row() {
    const __m512i stored = out.store(load(from), load(from + kTile), *to);
    if (kCounted) low.add(low_half(stored)), high.add(high_half(stored));
    bring();
    return 1;
  }
  // Two, where they are neighbouring pixels that make a line.
  FASTNN_INLINED inline int finish_half() {
    bring();
    if (to + 1 < end && to[1] == *to + kTile && streams(out.y + *to, 64, Route::around)) {
      const __m512i stored = out.store(load(from), load(from + kColumns), *to);
      if (kCounted) low.add(low_half(stored)), low.add(high_half(stored));
      return 2;
    }
    out.store(load(from), *to);
    if (kCounted) low.add(as_stored<bfloat16>(load(from) + out.bias[0]));
    return 1;
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
  }
};

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
