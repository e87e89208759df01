// What of a convolution's sums lies inside the image, for kernel calls on a padded panel.
//
// A tap that leaves the image under every pixel of a kernel call adds nothing, and is left out:
// with 3x3 taps and an image of 7x7, that can be 18% of all products. Weight gradients sum up, for
// each tap, the rows that it reaches. For the other passes a tile is multiplied in pieces:
//
//   1 1 1 1 1
//   2 3 3 3 4    2 and 4 only where the taps of a kernel row are neighbours in the panel: they are
//   2 3 3 3 4    one longer tap then (InputTiles::run), cut at one end
//   5 5 5 5 5
//
// Taps that are copied pixel by pixel, the far ones of a dilated kernel, are cut so in every row.
// An edge of too few pixels for a kernel call of its own stays with what is next to it.
#pragma once

#include "cpu/conv_input.h"
#include "cpu/matmul.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// Of `count` grid points along one axis, from `first` on: those before `begin` have taps before the
// image, those from `end` on behind it. An edge of less than `least` points has none.
struct Middle {
  int64_t begin, end;
};
FASTNN_INLINE Middle middle(int64_t first, int64_t count, int64_t step, int64_t low, int64_t high,
                            int64_t size, int64_t least) {
  const int64_t begin = clamp(ceil_div(-low, step) - first, 0, count);
  const int64_t end = clamp(ceil_div(size - high, step) - first, begin, count);
  return {begin < least ? 0 : begin, count - end < least ? count : end};
}

// Taps of a kernel row that are one.
FASTNN_INLINE int64_t joined_taps(const InputTiles& t) { return t.in.tap_count / t.tap_count; }

// Whether each tap, after merging, is of one kernel row, so that it can be left out.
FASTNN_INLINE bool taps_are_of_rows(const InputTiles& t) {
  return t.source == Source::padded || (t.source == Source::gathered && t.tap_count > 1);
}

// The rows of a tile under which a tap lies inside the image.
FASTNN_INLINE Middle rows_inside(const InputTiles& t, const Tile& tile, int64_t tap) {
  if (t.source != Source::padded) return {0, tile.rows};
  const int64_t dh = t.in.dh[tap * joined_taps(t)];
  return middle(tile.row, tile.rows, t.in.step_h, dh, dh, t.in.H, 1);
}

// Pixels of a tile, those of all its images, and the terms that reach into the image from some of
// them: `skipped` values of each tap are left out at its start, and packed B begins at b_row.
struct Piece {
  int64_t row, rows, col, cols;
  Terms terms;
  int64_t skipped, b_row;
};
struct Pieces {
  Piece piece[9];
  int count = 0;
  const Piece* begin() const { return piece; }
  const Piece* end() const { return piece + count; }
};

FASTNN_INLINE void add_piece(Pieces& to, const InputTiles& t, const Tile& tile, int64_t row,
                             int64_t row_end, int64_t col, int64_t col_end) {
  if (row == row_end || col == col_end) return;
  const InputGrid& in = t.in;
  const int64_t joined = joined_taps(t);
  int64_t first = 0, end = t.tap_count, left = 0, right = joined;
  if (taps_are_of_rows(t)) {
    const auto is_above_or_below = [&](int64_t tap) {
      const int64_t dh = in.dh[tap * joined];
      return (tile.row + row_end - 1) * in.step_h + dh < 0 ||
             (tile.row + row) * in.step_h + dh >= in.H;
    };
    const auto is_beside = [&](int64_t tap) {
      return joined > 1 && !in.odd &&
             ((tile.col + col_end - 1) * in.step_w + in.dw[tap] < 0 ||
              (tile.col + col) * in.step_w + in.dw[tap] >= in.W);
    };
    while (first < end && is_above_or_below(first)) ++first;
    while (first < end && is_above_or_below(end - 1)) --end;
    while (left < right && is_beside(left)) ++left;
    while (left < right && is_beside(right - 1)) --right;
  }
  const int64_t skipped = left * in.K, k = t.k - (joined - right + left) * in.K;
  const int64_t pitch = t.packed_k();
  to.piece[to.count++] = {
      row,     row_end - row,          col, col_end - col, {t.taps + first, end - first, k, pitch},
      skipped, first * pitch + skipped};
}

FASTNN_INLINE Pieces pieces_of(const InputTiles& t, const Tile& tile) {
  const InputGrid& in = t.in;
  const auto least = [&](int64_t pixels) { return ceil_div(MR / 2, pixels * tile.images); };
  const auto edges = [&](int64_t first, int64_t count, int64_t step, int64_t low, int64_t high,
                         int64_t size, int64_t least_of) {
    const Middle m = middle(first, count, step, low, high, size, least_of);
    // Far taps leave the image before and behind under the same points: a middle of those.
    const int64_t behind = clamp(ceil_div(size - high, step) - first, 0, m.begin);
    return m.end == m.begin && behind >= least_of ? Middle{behind, m.begin} : m;
  };
  const bool rows = taps_are_of_rows(t), columns = rows && joined_taps(t) > 1 && !in.odd;
  Middle down{0, tile.rows};
  if (rows) down = edges(tile.row, tile.rows, in.step_h, t.low_h, t.high_h, in.H, least(tile.cols));
  Pieces all;
  const int64_t cuts[] = {0, down.begin, down.end, tile.rows};
  for (int i = 0; i < 3; ++i) {
    const int64_t begin = cuts[i], end = cuts[i + 1];
    Middle across{0, tile.cols};
    if (columns && begin < end && (i == 1 || t.source == Source::gathered))
      across = edges(tile.col, tile.cols, in.step_w, t.low_w, t.high_w, in.W, least(end - begin));
    add_piece(all, t, tile, begin, end, 0, across.begin);
    add_piece(all, t, tile, begin, end, across.begin, across.end);
    add_piece(all, t, tile, begin, end, across.end, tile.cols);
  }
  return all;
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
