// The loop nest of ../implicit_gemm.h on AMX tiles: bfloat16 in and out, float32 sums.
//
//   task = tile of grid points (conv_input.h) x group x range of blocks of 32 columns
//     for each block of 32 columns: B in pairs, [tap][step][half][depth / 2][16 columns][2]
//       for each slice of the reduction whose B stays close (kSliceSteps):
//         for each pair of pixel blocks: 2 x 2 tiles over the slice; sums wait in L2 between slices
//
// Of many channels (kPlaneChannels) a pixel's values leave L1 before the next tap wants them. Their
// panel is cut into planes of one step's channels, and B lies as [step][tap]: all taps of a step
// find the same few lines.
//
// A step of 2 x 2 tiles takes the multiplier 64 cycles and the core eight instructions. In the rest
// of them it finishes the pair of pixel blocks before, row by row, and prefetches the next task.
//
// A pixel block is 16 (or fewer) grid points at one distance in memory: of a row, of a tile that is
// one long row, or the same point of 16 images. Blocks that do not divide their line overlap: some
// points are computed twice, alike.
#pragma once

#include "core/allocator.h"
#include "cpu/amx/meanwhile.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kTilePixels = 1024;
constexpr int64_t kInputValues = 96 << 10;   // under a tile of one tap
constexpr int64_t kOutputValues = 64 << 10;  // and of all its columns
constexpr int64_t kFarWeights = 384 << 10;   // of one tap: more than L2 holds beside the rest;
constexpr int64_t kFarInput = 512 << 10;     // more pixels then go through each of them
constexpr int64_t kPanelValues = 640 << 10;
constexpr int64_t kNextInput = 256 << 10;  // of the next tile, beside this one's
constexpr int64_t kSliceSteps = 80;        // 160 KiB of B
constexpr int64_t kPlaneChannels = 256;    // whose pixels leave L1 between one tap and the next

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

// Whether the panel is cut into planes of one step's channels: then all taps of a step come before
// the next step, and find the pixels of the tap before in L1.
FASTNN_INLINE bool by_planes(const InputTiles& t) { return t.width < t.in.K; }
// The tap that step `index` of the reduction, and of B, belongs to, and which of its steps it is.
struct StepOf {
  int64_t tap, step;
};
FASTNN_INLINE StepOf step_at(const InputTiles& t, const Steps& steps, int64_t index) {
  if (by_planes(t)) return {index % t.tap_count, index / t.tap_count};
  return {index / steps.per_tap, index % steps.per_tap};
}

// A run of the reduction's steps.
struct Slice {
  const int64_t* offset;  // of each step, from a point's first value
  int64_t steps, before;  // how many, and how many there are before
  int depth;
  int64_t finished;  // rows of the pair before, per step
  bool last;
};

// A pair of pixel blocks times a slice of a column block. Step s multiplies what lies at
// a + offset[s] and at b + s * NB * depth * 16.
template <int MA, int NB, class Before>
void product(const Slice& slice, const bfloat16* a0, const bfloat16* a1, int64_t a_bytes,
             const bfloat16* b, float* sums, Meanwhile& meanwhile) {
  const int64_t rows = meanwhile.block_rows;
  load_sums<MA, NB>(sums, slice.before > 0, rows);
  Before before(meanwhile);
  const int64_t size = slice.depth * kTile, finished = slice.finished;
  const int64_t* const end = slice.offset + slice.steps;
  for (const int64_t* offset = slice.offset; offset < end; ++offset, b += NB * size) {
    multiply<MA, NB>(a0 + *offset, a1 + *offset, a_bytes, b, b + size);
    meanwhile.fetch();
    before.finish(finished);
  }
  store_sums<MA, NB>(sums, rows);
  before.keep();
}
using Product = void (*)(const Slice&, const bfloat16*, const bfloat16*, int64_t, const bfloat16*,
                         float*, Meanwhile&);
// By how the pair before is finished: the products, and what finishes it without one.
struct Finishing {
  Product products[2][2];
  void (*rest)(Meanwhile&);
};
template <class Before>
void finish_rest(Meanwhile& meanwhile) {
  Before before(meanwhile);
  before.finish(meanwhile.rows);
  before.keep();
}
template <class Before>
constexpr Finishing kFinishing{{{product<1, 1, Before>, product<1, 2, Before>},
                                {product<2, 1, Before>, product<2, 2, Before>}},
                               finish_rest<Before>};
// At first there is no pair.
FASTNN_INLINE const Finishing& finishing_of(const Meanwhile& m) {
  if (m.rows == 0 || m.count % kTile) return kFinishing<CutRows>;
  if (m.count == kColumns)
    return m.moments ? kFinishing<UniformRows<true, kColumns>>
                     : kFinishing<UniformRows<false, kColumns>>;
  return m.moments ? kFinishing<UniformRows<true, kTile>> : kFinishing<UniformRows<false, kTile>>;
}

// The pixel blocks of one tile: `lines` of `length` points, each cut into `per_line` blocks.
struct PixelBlocks {
  int64_t lines, length, per_line, point_stride;
  int rows;  // points per block
  bool across;

  int64_t count() const { return lines * per_line; }
  int64_t start(int64_t block) const { return clamp(block % per_line * rows, 0, length - rows); }
  // Points at its start that the block before has, too.
  int64_t repeated(int64_t block) const { return block % per_line * rows - start(block); }
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

// Where the points of every pixel block are: the first in the panel, all of them in the output.
inline void place_blocks(const TapGrid& g, const InputTiles& t, const Tile& tile,
                         const PixelBlocks& p, const bfloat16* panel, const bfloat16** at,
                         int64_t* where) {
  const int64_t image_step = output_offset(g, tile, 1, 0, 0) - output_offset(g, tile, 0, 0, 0);
  const int64_t col_step = g.y_col_step * g.y_pixel;
  for (int64_t line = 0; line < p.lines; ++line)
    for (int64_t b = 0; b < p.per_line; ++b, ++at, where += p.rows) {
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
  Steps steps;
  const int64_t* offset;  // of each step
  Tile tile;
  PixelBlocks p;
  const bfloat16** at;   // per pixel block, its first point
  int64_t* where;        // per point of each block, its output
  float* sums;           // per pixel block, 16 x 32
  TileMoments* moments;  // per column block, if wanted
};

// The pixel block pair i times a slice of a block of up to 32 columns; the epilogue after the last.
// `kept` floats of sums wait per pixel block.
FASTNN_INLINE void run_pair(const Task& k, const Slice& slice, int64_t block, int64_t i,
                            int64_t kept, int lines, Meanwhile& meanwhile) {
  const TapGrid& g = k.g;
  const int64_t left = g.columns - block * kColumns, count = left < kColumns ? left : kColumns;
  const int halves = count > kTile ? 2 : 1, two = i + 1 < k.p.count();
  const bfloat16* const b = static_cast<const bfloat16*>(g.b) +
                            block * kColumns * k.t.k * k.t.tap_count +
                            slice.before * halves * slice.depth * kTile;
  // Sums of the pair before are still being read.
  float* const sums = k.sums + (kept ? i * kept : meanwhile.sums == k.sums ? 4 * kTileFloats : 0);
  finishing_of(meanwhile).products[two][halves - 1](slice, k.at[i], k.at[i + two],
                                                    k.p.point_stride * 2, b, sums, meanwhile);
  if (!slice.last) return;
  meanwhile.sums = sums, meanwhile.where = k.where + i * k.p.rows;
  meanwhile.channel = g.y_channel + block * kColumns, meanwhile.count = count;
  meanwhile.row = 0, meanwhile.rows = (1 + two) * k.p.rows;
  meanwhile.lines = lines;
  if (!k.moments) return;
  meanwhile.moments = k.moments + block;
  meanwhile.moments->count = static_cast<float>(k.tile.images * k.tile.rows * k.tile.cols);
  meanwhile.opens = i == 0;
  for (int64_t j = 0; j <= two; ++j) meanwhile.repeated[j] = static_cast<int>(k.p.repeated(i + j));
}

// Column blocks [begin, end). As many as have little B together take turns, so that lines of the
// output that lie side by side are written together; one whose B is larger is cut into slices.
inline void run_columns(const Task& k, int64_t begin, int64_t end, Meanwhile& meanwhile) {
  // Slices are runs of taps, or of steps where these come first or there is a single tap.
  const Steps& steps = k.steps;
  const bool by_step = k.t.tap_count == 1 || by_planes(k.t);
  const int64_t units = by_step ? steps.per_tap : k.t.tap_count;
  const int64_t unit = by_step ? k.t.tap_count : steps.per_tap;
  const int64_t most = by_planes(k.t) ? 2 * kSliceSteps : kSliceSteps;
  const int64_t slices = clamp(ceil_div(units * unit, most), 1, units);
  const int64_t per_slice = ceil_div(units, slices);
  const int64_t kept = per_slice < units ? 2 * kTileFloats : 0;  // sums of one pixel block
  const int64_t together = kept ? 1 : clamp(kSliceSteps / (units * unit), 1, end - begin);
  // After the last pair come, most likely, the next columns of the first, or the next task's.
  const int64_t rows = k.p.count() * k.p.rows;
  for (int64_t i = 0; i < 2 * k.p.rows; ++i)
    k.where[rows + i] = together < end - begin && i < rows ? k.where[i] + together * kColumns
                                                           : k.where[rows + i - 1] + k.g.y_pixel;
  for (int64_t group = begin; group < end; group += together)
    for (int64_t first = 0; first < units; first += per_slice) {
      const int64_t n = clamp(units - first, 1, per_slice) * unit;
      const int64_t last = clamp(end, 0, group + together);
      const Slice slice{
          k.offset + first * unit,   n, first * unit, steps.depth, ceil_div(2 * k.p.rows, n),
          first + per_slice >= units};
      for (int64_t i = 0; i < k.p.count(); i += 2)
        for (int64_t block = group; block < last; ++block) {
          const int lines = (block - group) % 2 ? 0 : block + 1 < last ? 2 : 1;
          run_pair(k, slice, block, i, kept, lines, meanwhile);
        }
    }
  finishing_of(meanwhile).rest(meanwhile);
}

// Where each step's values lie, from a point's first.
inline void place_steps(const InputTiles& t, const Steps& steps, int64_t* offset) {
  for (int64_t i = 0; i < steps.per_tap * t.tap_count; ++i) {
    const StepOf at = step_at(t, steps, i);
    offset[i] = t.taps[at.tap] + at.step * (by_planes(t) ? t.plane : steps.depth);
  }
}

// The grid's tiles; B has to be packed for the steps that they give.
inline InputTiles plan_tiles(TapGrid& g) {
  flatten(g);
  InputTiles t;
  t.in = g.in;
  const bool strided = g.in.step_h * g.in.step_w * g.y_row_step * g.y_col_step > 1;
  int64_t pixels = strided && g.in.K >= 64 ? kTilePixels / 2 : kTilePixels;
  if (g.in.tap_count == 1) {
    const bool far = g.in.K * g.columns > kFarWeights;
    const int64_t input = (far ? kFarInput : kInputValues) / g.in.K;
    const int64_t output = far ? pixels : kOutputValues / g.columns;
    pixels = clamp((input < output ? input : output) / 32 * 32, 64, pixels);
  }
  // All of a pixel's channels wait in L2 for their group's turn, those of the next tile too; but
  // for small maps, of which many images make a tile. Strided tiles share a quarter of their rows.
  if (g.groups > 1) {
    const int64_t down = clamp(g.in.step_h, 1, g.in.GH), across = clamp(g.in.step_w, 1, g.in.GW);
    const int64_t per_point = g.in.a_pixel * down * across;
    const int64_t values = g.in.GW < 12 ? 3 * kNextInput : kNextInput;
    pixels = clamp((down > 1 ? values * 3 / 4 : values) / per_point, 64, pixels);
  }
  const bool planes = g.in.tap_count > 1 && g.in.K >= kPlaneChannels && g.in.K % 32 == 0;
  plan_input<bfloat16, bfloat16>(t, pixels, kPanelValues, !planes, true, planes ? 32 : 0);
  return t;
}

// The input under a tile, of all groups, where it lies in one piece that L2 has room for.
struct Span {
  const bfloat16* from;
  int64_t count;
};
inline Span input_under(const InputTiles& t, const Tile& tile) {
  const InputGrid& in = t.in;
  const int64_t first = clamp(tile.row * in.step_h + t.low_h, 0, in.H);
  const int64_t rows = tile.images > 1 ? tile.images * in.H : clamp(in.H - first, 0, t.panel_rows);
  // Of a single row, the columns.
  const int64_t pixel = in.H == 1 ? tile.col * in.step_w : first * in.W;
  const int64_t count = in.H == 1 ? clamp(in.W - pixel, 0, t.panel_cols) : rows * in.W;
  if ((in.H > 1 && t.segments > 1) || count * in.a_pixel > kNextInput) return {nullptr, 0};
  return {static_cast<const bfloat16*>(in.a) + (tile.image * in.H * in.W + pixel) * in.a_pixel,
          count * in.a_pixel};
}

// What later tasks read and write, within so many steps. A tile of little input: all of it, while
// the tile before is worked on, a share with each group. A larger one of whole images: what is the
// group's of every pixel, in the input and in the output, a task for each thread ahead.
inline void bring_later(const TapGrid& g, const InputTiles& t, int64_t index, int64_t group,
                        int64_t steps, Meanwhile& meanwhile) {
  const InputGrid& in = t.in;
  if (index + 1 < t.count())
    if (const Span next = input_under(t, t.tile(index + 1)); next.count) {
      const int64_t share = next.count / g.groups;
      return meanwhile.input.bring(next.from + group * share, 0, share, 1, steps);
    }
  const int64_t later = index * g.groups + group + get_num_threads();
  if (g.groups == 1 || t.count() == 1 || later / g.groups >= t.count()) return;
  const Tile tile = t.tile(later / g.groups);
  if (tile.rows < in.GH || tile.cols < in.GW) return;
  group = later % g.groups;
  const auto* const x = static_cast<const bfloat16*>(in.a) + in.channel_of(group);
  meanwhile.input.bring(x + tile.image * in.H * in.W * in.a_pixel, in.a_pixel, in.K,
                        tile.images * in.H * in.W, steps);
  if (g.route == Route::around || g.y_row_step * g.y_col_step > 1) return;
  const auto* const y = static_cast<const bfloat16*>(g.y) + g.columns * group;
  meanwhile.output.bring(y + tile.image * g.YH * g.YW * g.y_pixel, g.y_pixel, g.columns,
                         tile.images * g.YH * g.YW, steps);
}

inline void run_tiles(const TapGrid& g, const InputTiles& t) {
  const int64_t tiles = t.count(), blocks = ceil_div(g.columns, kColumns);
  int64_t parts = 1;
  const int64_t call = new_call(), threads = get_num_threads();
  while (tiles * g.groups * parts < 4 * threads && parts * 2 <= blocks) parts *= 2;
  const bool counted = is_counted(g);
  Workspace room(counted ? tiles * blocks * int64_t{sizeof(TileMoments)} : 0);
  auto* const moments = counted ? reinterpret_cast<TileMoments*>(room.floats()) : nullptr;
  const Steps steps = steps_of(t);
  const int64_t step_count = steps.per_tap * t.tap_count;
  Workspace offsets(step_count * int64_t{sizeof(int64_t)});
  auto* const offset = reinterpret_cast<int64_t*>(offsets.floats());
  place_steps(t, steps, offset);
  parallel_for_dynamic(tiles * g.groups * parts, [&](int64_t task) {
    const int64_t part = task % parts, group = task / parts % g.groups;
    const int64_t index = task / parts / g.groups;
    const TapGrid own = g.of_group(group);
    const Tile tile = t.tile(index, group);
    const bfloat16* const panel = tile_input<bfloat16, bfloat16>(t, tile, task / parts, call);
    const PixelBlocks p = pixel_blocks(t, tile);
    const int64_t per_block = 2 * kTileFloats * 4 + kTile * 8 + 8;
    auto* const sums = static_cast<float*>(thread_scratch((p.count() + 3) * per_block, 1));
    auto* const where = reinterpret_cast<int64_t*>(sums + (p.count() + 3) * 2 * kTileFloats);
    auto* const at = reinterpret_cast<const bfloat16**>(where + (p.count() + 2) * kTile);
    place_blocks(own, t, tile, p, panel, at, where);
    const Task k{own, t,  steps, offset, tile,
                 p,   at, where, sums,   moments ? moments + index * blocks : nullptr};
    shape_tiles(p.rows, steps.depth);
    const int64_t first = blocks * part / parts, last = blocks * (part + 1) / parts;
    Meanwhile meanwhile{g.epilogue, static_cast<bfloat16*>(g.y), g.route, p.rows};
    if (part + 1 == parts)
      bring_later(g, t, index, group, (last - first) * ceil_div(p.count(), 2) * step_count,
                  meanwhile);
    run_columns(k, first, last, meanwhile);
    release_tiles();
  });
  if (counted) merge_moments(moments, tiles, g.columns, *g.epilogue.moments);
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
