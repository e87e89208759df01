// The loop nest of ../implicit_gemm.h on AMX tiles: bfloat16 in and out, float32 sums.
//
//   task = tile of grid points (conv_input.h) x range of blocks of 32 columns
//     for each block of 32 columns: B in pairs, [tap][step][half][depth / 2][16 columns][2]
//       for each slice of the reduction whose B fits L1 (kSliceSteps):
//         for each pair of pixel blocks: 2 x 2 tiles over the slice; sums wait in L2 between slices
//       epilogue of the block
//
// A pixel block is 16 (or fewer) grid points at one distance in memory: of a row, of a tile that is
// one long row, or the same point of 16 images. Blocks that do not divide their line overlap: some
// points are computed twice, alike.
#pragma once

#include "cpu/amx/tiles.h"
#include "cpu/implicit_gemm.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kTilePixels = 1024;
constexpr int64_t kInputValues = 256 << 10;  // under a tile of a pointwise grid
constexpr int64_t kPanelValues = 640 << 10;
constexpr int64_t kSliceSteps = 20;  // 40 KiB of B
constexpr int kColumns = 2 * kTile;  // of a block

// Bytes of packed B: `rows` values, padded to whole steps, for every column.
FASTNN_INLINE int64_t packed_bytes(int64_t rows, int64_t columns) {
  return ceil_div(columns, kTile) * kTile * rows * 2;
}

// How the values under the taps are cut into steps.
struct Steps {
  int64_t per_tap;
  int depth;
};
FASTNN_INLINE Steps steps_of(const InputTiles& t) {
  const int64_t steps = even_steps(t.k);
  return {steps, static_cast<int>(t.k / steps)};
}

// One pixel block pair times one slice of a column block. a, b of step s of tap t:
//   a + taps[t] + s * depth,  b + (t * steps + s) * NB * depth * 16
template <int MA, int NB>
void product(const bfloat16* a0, const bfloat16* a1, int64_t a_bytes, const int64_t* taps,
             int64_t tap_count, int64_t steps, int depth, const bfloat16* b, float* c, bool add) {
  load_sums<MA, NB>(c, add);
  const int64_t size = depth * kTile;
  for (int64_t t = 0; t < tap_count; ++t) {
    const bfloat16* x0 = a0 + taps[t];
    const bfloat16* x1 = a1 + taps[t];
    for (int64_t s = 0; s < steps; ++s, x0 += depth, x1 += depth, b += NB * size)
      multiply<MA, NB>(x0, x1, a_bytes, b, b + size);
  }
  store_sums<MA, NB>(c);
}
using Product = void (*)(const bfloat16*, const bfloat16*, int64_t, const int64_t*, int64_t,
                         int64_t, int, const bfloat16*, float*, bool);
constexpr Product kProducts[2][2] = {{product<1, 1>, product<1, 2>},
                                     {product<2, 1>, product<2, 2>}};

// The pixel blocks of one tile: `lines` of `length` points, each cut into `per_line` blocks.
struct PixelBlocks {
  int64_t lines, length, per_line, point_stride;
  int rows;  // points per block
  bool across;

  int64_t count() const { return lines * per_line; }
  int64_t start(int64_t block) const { return clamp(block % per_line * rows, 0, length - rows); }
};
inline PixelBlocks pixel_blocks(const InputTiles& t, const Tile& tile) {
  PixelBlocks p{};
  p.across = t.across;
  const bool joined = (tile.rows == 1 || t.row_stride == tile.cols * t.col_stride) &&
                      (tile.images == 1 || t.image_stride == tile.rows * tile.cols * t.col_stride);
  if (p.across)
    p.lines = tile.rows * tile.cols, p.length = tile.images, p.point_stride = t.image_stride;
  else if (joined)
    p.lines = 1, p.length = tile.images * tile.rows * tile.cols, p.point_stride = t.col_stride;
  else
    p.lines = tile.images * tile.rows, p.length = tile.cols, p.point_stride = t.col_stride;
  p.per_line = ceil_div(p.length, kTile);
  // One long line takes whole blocks, of which the last overlaps; short lines equal ones.
  p.rows =
      static_cast<int>(p.lines == 1 && p.length >= kTile ? kTile : ceil_div(p.length, p.per_line));
  return p;
}

// One finished block of 32 columns, as store_tile() but with whole cache lines.
FASTNN_INLINE void store_lines(const float* sums, int rows, const int64_t* where, int64_t channel,
                               const ConvEpilogue& e, bfloat16* y) {
  vfloat b0{}, b1{};
  if (e.bias) b0 = load(e.bias + channel), b1 = load(e.bias + channel + LANES);
  const auto* residual = static_cast<const bfloat16*>(e.residual);
  for (int r = 0; r < rows; ++r) {
    const int64_t at = where[r] + channel;
    vfloat low = load(sums + r * kColumns) + b0, high = load(sums + r * kColumns + LANES) + b1;
    if (residual) low += load(residual + at), high += load(residual + at + LANES);
    if (e.relu) low = select(low < 0, vfloat{}, low), high = select(high < 0, vfloat{}, high);
    const auto line = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    _mm512_storeu_si512(y + at, line);
  }
}

// Where the points of every pixel block are: the first in the panel, all of them in the output.
inline void place_blocks(const TapGrid& g, const InputTiles& t, const Tile& tile,
                         const PixelBlocks& p, const bfloat16* panel, const bfloat16** at,
                         int64_t* where) {
  const int64_t image_step = output_offset(g, tile, 1, 0, 0) - output_offset(g, tile, 0, 0, 0);
  const int64_t col_step = g.y_col_step * g.y_pixel;
  for (int64_t line = 0; line < p.lines; ++line)
    for (int64_t b = 0; b < p.per_line; ++b, ++at, where += kTile) {
      const int64_t start = p.start(b);
      int64_t image = 0, row = 0, col = 0;
      if (p.across)
        image = start, row = line / tile.cols, col = line % tile.cols;
      else if (p.lines > 1)
        image = line / tile.rows, row = line % tile.rows, col = start;
      else
        image = start / (tile.rows * tile.cols), row = start / tile.cols % tile.rows,
        col = start % tile.cols;
      *at = panel + image * t.image_stride + row * t.row_stride + col * t.col_stride;
      int64_t to = output_offset(g, tile, image, row, col);
      for (int r = 0; r < p.rows; ++r) {
        where[r] = to;
        to += p.across ? image_step : col_step;
        if (p.across || ++col < tile.cols) continue;
        col = 0;
        if (++row == tile.rows) row = 0, ++image;
        to = output_offset(g, tile, image, row, col);
      }
    }
}

struct Task {
  const TapGrid& g;
  const InputTiles& t;
  Tile tile;
  PixelBlocks p;
  const bfloat16** at;  // per pixel block, its first point
  int64_t* where;       // per point of each block, its output
  float* sums;          // per pixel block, 16 x 32
};

// Brings the next two pixel blocks, `values` of each row, where the tensor itself is read for the
// first time: rows of a tile are too far apart for the processor to foresee.
inline void fetch_rows(const Task& k, int64_t block, int64_t offset, int64_t values) {
  const int64_t end = clamp(k.p.count(), 0, block + 2);
  for (; block < end; ++block)
    for (int r = 0; r < k.p.rows; ++r) {
      const bfloat16* row = k.at[block] + r * k.p.point_stride + offset;
      for (int64_t i = 0; i < values; i += 32) __builtin_prefetch(row + i);
    }
}

// One block of up to 32 columns. `fetch`: the input is not in the cache yet.
inline void run_columns(const Task& k, int64_t block, bool fetch) {
  const TapGrid& g = k.g;
  const Steps steps = steps_of(k.t);
  const int64_t left = g.columns - block * kColumns, count = clamp(left, 1, kColumns);
  const int halves = count > kTile ? 2 : 1;
  const int64_t step_size = halves * steps.depth * kTile, a_bytes = k.p.point_stride * 2;
  const bfloat16* b = static_cast<const bfloat16*>(g.b) +
                      block * kColumns * steps.depth * steps.per_tap * k.t.tap_count;
  const int64_t blocks = k.p.count();
  // Slices are runs of taps, or of steps where there is a single tap.
  const bool single = k.t.tap_count == 1;
  const int64_t units = single ? steps.per_tap : k.t.tap_count, unit = single ? 1 : steps.per_tap;
  const int64_t slices = ceil_div(units * unit, kSliceSteps);
  const int64_t per_slice = ceil_div(units, clamp(slices, 1, units));
  const int64_t kept = per_slice < units ? 2 * kTileFloats : 0;  // sums of one pixel block
  for (int64_t first = 0; first < units; first += per_slice) {
    const int64_t n = clamp(units - first, 1, per_slice);
    const int64_t* const taps = single ? k.t.taps : k.t.taps + first;
    const bfloat16* const slice = b + first * unit * step_size;
    const int64_t offset = single ? first * steps.depth : 0;
    for (int64_t i = 0; i < blocks; i += 2) {
      if (fetch) fetch_rows(k, i + 2, offset, n * unit * steps.depth);
      const int two = i + 1 < blocks;
      kProducts[two][halves - 1](k.at[i] + offset, k.at[i + two] + offset, a_bytes, taps,
                                 single ? 1 : n, single ? n : steps.per_tap, steps.depth, slice,
                                 k.sums + i * kept, first > 0);
      if (first + per_slice < units) continue;
      if (count == kColumns) {
        for (int64_t j = i; j <= i + two; ++j)
          store_lines(k.sums + (kept ? j : j - i) * 2 * kTileFloats, k.p.rows, k.where + j * kTile,
                      g.y_channel + block * kColumns, g.epilogue, static_cast<bfloat16*>(g.y));
        continue;
      }
      for (int64_t j = i; j <= i + two; ++j)
        store_tile(k.sums + (kept ? j : j - i) * 2 * kTileFloats, kColumns, k.p.rows,
                   k.where + j * kTile, g.y_channel + block * kColumns, count, g.epilogue,
                   static_cast<bfloat16*>(g.y));
    }
  }
}

// The grid's tiles; B has to be packed for the steps that they give.
inline InputTiles plan_tiles(TapGrid& g) {
  flatten(g);
  InputTiles t;
  t.in = g.in;
  // More and smaller tiles of deep inputs, rather than several threads on the columns of one.
  const int64_t pixels =
      g.in.tap_count > 1 ? kTilePixels : clamp(kInputValues / g.in.K, 128, kTilePixels);
  plan_input<bfloat16, bfloat16>(t, pixels, kPanelValues, true, true);
  return t;
}

inline void run_tiles(const TapGrid& g, const InputTiles& t) {
  const int64_t tiles = t.count(), blocks = ceil_div(g.columns, kColumns);
  int64_t parts = 1;
  while (tiles * parts < 16 && parts * 2 <= blocks) parts *= 2;
  const int64_t call = new_call();
  parallel_for_dynamic(tiles * parts, [&](int64_t task) {
    const int64_t part = task % parts;
    const Tile tile = t.tile(task / parts);
    const bfloat16* const panel = tile_input<bfloat16, bfloat16>(t, task / parts, call);
    const PixelBlocks p = pixel_blocks(t, tile);
    const int64_t per_block = 2 * kTileFloats * 4 + kTile * 8 + 8;
    auto* const sums = static_cast<float*>(thread_scratch((p.count() + 1) * per_block, 1));
    auto* const where = reinterpret_cast<int64_t*>(sums + (p.count() + 1) * 2 * kTileFloats);
    auto* const at = reinterpret_cast<const bfloat16**>(where + p.count() * kTile);
    place_blocks(g, t, tile, p, panel, at, where);
    shape_tiles(p.rows, steps_of(t).depth);
    const Task k{g, t, tile, p, at, where, sums};
    const int64_t first = blocks * part / parts, last = blocks * (part + 1) / parts;
    const bool fetch = t.source == Source::direct && t.tap_count == 1;
    for (int64_t block = first; block < last; ++block)
      run_columns(k, block, fetch && block == first);
    release_tiles();
  });
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
