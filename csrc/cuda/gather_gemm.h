// Convolution as a matrix product whose left operand is gathered (implicit GEMM): the forward pass,
// and the gradient of the input.
//
// Rows are output pixels, columns output channels, and the terms are (tap, channel) in vectors of
// 16 bytes. Each thread of a block fetches the same few rows at every step; when it comes to a tap
// it finds which of their source pixels lie inside the image, and it copies zeros for the others.
// Weights are packed as [column][tap][channel], channels padded to whole vectors, so they are read
// in order. Cost: rows x columns x terms multiply-adds; the left operand is read once per 64 or 128
// columns and tap, from L2 after the first.
//
// Where tiles are half as many as multiprocessors or fewer, several blocks share a tile's terms,
// and a second kernel adds their sums in order: no atomics, the same bits every time.
#pragma once

#include <algorithm>

#include "cuda/conv_epilogue.h"
#include "cuda/conv_operands.h"
#include "cuda/device/columns.h"
#include "cuda/device/tile.h"
#include "ops/slots.h"

namespace fastnn::cuda {

// Rows that share their taps: output pixels (first_down + i * out_down, first_across + j *
// out_across).
struct GatherPhase {
  int64_t down, across, first_down, first_across;
  int first_tap, tap_count;
};

struct Gather {
  // Left operand: images x height x width pixels of `stride` elements, group g's channels at
  // g * vectors vectors.
  const void* source;
  int height, width;
  int64_t stride;
  int vectors;  // of a tap's channels in one group
  const Tap* taps;
  int64_t images;
  int step_down, step_across;
  // Right operand: [group][column][tap][vector], all_taps of them.
  const void* weight;
  int64_t columns;
  int all_taps;
  // Output: images of out_height x out_width pixels.
  void* output;
  int64_t out_height, out_width, out_down, out_across;
  const GatherPhase* phases;
  // The phase at hand. Rows: images x down x across, of source pixel (i * step_down, j *
  // step_across).
  GatherPhase phase;
  const float* bias;     // per column of every group, or null
  const void* residual;  // like the output, or null
  FusedRelu relu;
  Moments* moments;  // [row tile][column]: of the outputs as stored; null, or of one group
  bool pairs;        // whether outputs, residuals and biases are aligned two by two
  int groups;
  int splits;      // blocks that share a tile's terms
  float* partial;  // of more than one: [phase][split][group][tile] sums as their threads hold them

  __host__ __device__ int64_t rows() const { return images * phase.down * phase.across; }
};

// A row's image and pixel.
struct GatherRow {
  int64_t image;
  int64_t i, j;
  __device__ GatherRow(const Gather& p, int64_t row) {
    const Divided across = divide(row, p.phase.across),
                  down = divide(across.quotient, p.phase.down);
    j = across.rest, i = down.rest, image = down.quotient;
  }
};
// Its output pixel.
FASTNN_DEVICE int64_t output_pixel(const Gather& p, int64_t row) {
  if (p.phase.down == p.out_height && p.phase.across == p.out_width) return row;
  const GatherRow r(p, row);
  return (r.image * p.out_height + p.phase.first_down + r.i * p.out_down) * p.out_width +
         p.phase.first_across + r.j * p.out_across;
}

// Outputs of a pixel in pairs 8 columns apart from `column` on, pair(j) being the j-th. All are at
// constant distances from one place, and one comparison tells whether all are columns.
template <class T, int kPairs, class Pair>
FASTNN_DEVICE void finish_pixel(const Gather& p, int group, int64_t column, int64_t pixel,
                                const Pair& pair) {
  const int64_t channel = group * p.columns + column, to = pixel * p.columns * p.groups + channel;
  T* const out = static_cast<T*>(p.output) + to;
  const T* const residual = p.residual ? static_cast<const T*>(p.residual) + to : nullptr;
  const float* const bias = p.bias ? p.bias + channel : nullptr;
  if (p.pairs && column + 8 * (kPairs - 1) < p.columns) {
#pragma unroll
    for (int j = 0; j < kPairs; ++j)
      finish(*reinterpret_cast<float (*)[2]>(pair(j)), bias ? bias + 8 * j : nullptr,
             residual ? residual + 8 * j : nullptr, p.relu, out + 8 * j);
    return;
  }
#pragma unroll
  for (int i = 0; i < 2 * kPairs; ++i) {
    const int at = i / 2 * 8 + i % 2;
    if (column + at < p.columns)
      finish(*reinterpret_cast<float (*)[1]>(pair(i / 2) + i % 2), bias ? bias + at : nullptr,
             residual ? residual + at : nullptr, p.relu, out + at);
  }
}

// Moments of 8 * kAcross columns of a warp's outputs, mean first, by shuffles. Lane 4 g + t holds
// value(i, j, n) of row 16 (i / 2) + 8 (i % 2) + g and column 8 j + 2 t + n; `left` rows count. The
// lanes of g = 0 get store(column, moments).
template <int kDown, int kAcross, class Value, class Store>
FASTNN_DEVICE void warp_moments(int64_t left, const Value& value, const Store& store) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const float rows = static_cast<float>(left < 0 ? 0 : left < 8 * kDown ? left : 8 * kDown);
  const auto across_rows = [](float x) {
    for (int bits = 4; bits < 32; bits *= 2) x += __shfl_xor_sync(0xffffffffu, x, bits);
    return x;
  };
#pragma unroll
  for (int j = 0; j < kAcross; ++j)
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      float total = 0, squares = 0;
#pragma unroll
      for (int i = 0; i < kDown; ++i)
        if (16 * (i / 2) + 8 * (i % 2) + g < left) total += value(i, j, n);
      total = across_rows(total);
      const float mean = rows > 0 ? total / rows : 0.0f;
#pragma unroll
      for (int i = 0; i < kDown; ++i) {
        const float away = value(i, j, n) - mean;
        if (16 * (i / 2) + 8 * (i % 2) + g < left) squares += away * away;
      }
      const float m2 = across_rows(squares);
      if (g > 0) continue;
      Moments of_column;
      of_column.n = rows, of_column.mean = mean, of_column.m2 = m2;
      store(8 * j + 2 * t + n, of_column);
    }
}

// Those of a tile's columns, whose parts lie [part][column], by Chan's formula: `thread` merges
// one column's.
template <int kParts, int kColumns>
FASTNN_DEVICE void merge_columns(const Gather& p, const Moments* parts, int thread,
                                 int64_t row_tile, int64_t column0) {
  if (thread >= kColumns || column0 + thread >= p.columns) return;
  Moments all = parts[thread];
  for (int i = 1; i < kParts; ++i) all.add(parts[i * kColumns + thread]);
  p.moments[row_tile * p.columns + column0 + thread] = all;
}

// Moments of the columns of a block's outputs, which `sums` holds as they were stored.
template <class Tile>
FASTNN_DEVICE void keep_moments(const Gather& p, const typename Tile::Sums& sums, int64_t row0,
                                int64_t column0) {
  constexpr int kDown = Tile::kThreads / 32 / Tile::kWarpsAcross, kWarpRows = Tile::kRows / kDown;
  auto* const shared = reinterpret_cast<Moments*>(dynamic_shared());  // [warp down][column]
  const typename Tile::Place at;
  __syncthreads();  // the stages are read
  warp_moments<2 * Tile::kPiecesDown, Tile::kPiecesAcross>(
      p.rows() - row0 - at.row, [&](int i, int j, int n) { return sums[i / 2][j][i % 2 * 2 + n]; },
      [&](int column, const Moments& m) {
        shared[at.row / kWarpRows * Tile::kColumns + at.column + column] = m;
      });
  __syncthreads();
  merge_columns<kDown, Tile::kColumns>(p, shared, static_cast<int>(threadIdx.x), row0 / Tile::kRows,
                                       column0);
}

// Memory for the moments of a product's columns, [row tile][column], and what merges them; nothing
// if they are not wanted.
class ColumnMoments {
 public:
  ColumnMoments(Gather& p, ConvMoments* moments, int64_t row_tiles)
      : moments_(moments),
        row_tiles_(row_tiles),
        columns_(p.columns),
        parts_(moments ? row_tiles * p.columns * int64_t{sizeof(Moments)} : 0) {
    p.moments = parts_.as<Moments>();
  }
  void merge() const {
    if (!moments_) return;
    combine_many_parts(parts_.as<Moments>(), row_tiles_, columns_,
                       MomentsWriter{moments_->mean, moments_->m2});
    moments_->filled = true;
  }

 private:
  ConvMoments* moments_;
  int64_t row_tiles_, columns_;
  Workspace parts_;
};

// A block's tile.
template <class Tile>
struct GatherTile {
  int group, down, across;
  __device__ explicit GatherTile(const Gather& p) : group(static_cast<int>(blockIdx.y)) {
    const Divided at = divide(blockIdx.x, (p.columns + Tile::kColumns - 1) / Tile::kColumns);
    down = static_cast<int>(at.quotient), across = static_cast<int>(at.rest);
  }
  FASTNN_MEMBER int64_t row0() const { return int64_t{down} * Tile::kRows; }
  FASTNN_MEMBER int64_t column0() const { return int64_t{across} * Tile::kColumns; }
};

template <class Tile>
FASTNN_DEVICE void finish_tile(const Gather& p, const GatherTile<Tile>& tile,
                               typename Tile::Sums& sums) {
  const typename Tile::Place at;
#pragma unroll
  for (int i = 0; i < Tile::kPiecesDown; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = tile.row0() + at.row + 16 * i + at.g + 8 * half;
      if (row >= p.rows()) continue;
      finish_pixel<typename Tile::T, Tile::kPiecesAcross>(
          p, tile.group, tile.column0() + at.column + 2 * at.t, output_pixel(p, row),
          [&](int j) { return &sums[i][j][2 * half]; });
    }
  if (p.moments) keep_moments<Tile>(p, sums, tile.row0(), tile.column0());
}

// Where this thread's sums of a phase's split lie, a piece's every 4 * kThreads.
template <class Tile>
FASTNN_DEVICE float* partial_sums(const Gather& p, int64_t phase_split) {
  const int64_t block = (phase_split * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  return p.partial + block * Tile::kRows * Tile::kColumns + 4 * threadIdx.x;
}

// Blocks that a multiprocessor has the registers for.
template <class Tile>
constexpr int kGatherBlocks = Tile::kThreads > 128 ? 2
                              : Tile::kRows > 64   ? 3
                                                   : 4;

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, kGatherBlocks<Tile>) gather_kernel(Gather p) {
  using T = typename Tile::T;
  using A = Stage<Tile, Tile::kRows, false>;
  using B = Stage<Tile, Tile::kColumns, false>;
  constexpr int kRowStep = Tile::kThreads / 4;
  constexpr int kMine = Tile::kRows / kRowStep, kMineAcross = Tile::kColumns / kRowStep;
  T* const memory = reinterpret_cast<T*>(dynamic_shared());
  const int phase = static_cast<int>(blockIdx.z) / p.splits,
            split = static_cast<int>(blockIdx.z) - phase * p.splits;
  p.phase = p.phases[phase];
  const GatherTile<Tile> tile(p);
  if (tile.row0() >= p.rows()) return;  // another phase has more rows
  const int vector = static_cast<int>(threadIdx.x) % 4, first = static_cast<int>(threadIdx.x) / 4;
  const int64_t steps = (int64_t{p.phase.tap_count} * p.vectors + 3) / 4,
                of_each = (steps + p.splits - 1) / p.splits, begin = split * of_each,
                left = steps - begin;

  // The vector of the next step that this thread fetches: tap, and place among the tap's vectors.
  const Divided start = divide(4 * begin + vector, p.vectors);
  int tap = static_cast<int>(start.quotient), place = static_cast<int>(start.rest);

  constexpr int kNowhere = -(1 << 30);  // an image row that no tap brings inside
  const T* row[kMine];                  // the source pixel of no offset
  int down[kMine], across[kMine];
#pragma unroll
  for (int n = 0; n < kMine; ++n) {
    const int64_t number = tile.row0() + first + n * kRowStep;
    const bool there = number < p.rows();
    const GatherRow at(p, there ? number : 0);
    const int64_t h = at.i * p.step_down, w = at.j * p.step_across;
    row[n] = static_cast<const T*>(p.source) +
             ((at.image * p.height + h) * p.width + w) * p.stride +
             int64_t{tile.group} * p.vectors * Tile::kVector;
    down[n] = there ? static_cast<int>(h) : kNowhere;
    across[n] = static_cast<int>(w);
  }
  const int64_t all_terms = int64_t{p.all_taps} * p.vectors;  // of a column
  const T* column = static_cast<const T*>(p.weight) +
                    ((tile.group * p.columns + tile.column0() + first) * all_terms +
                     int64_t{p.phase.first_tap} * p.vectors + 4 * begin + vector) *
                        Tile::kVector;

  // Of the tap: from a row's pixel to the vector, and bits: which of the rows' pixels are inside,
  // and, from kMine on, which columns there are.
  int64_t offset = 0;
  unsigned inside = 0;
  const auto find_tap = [&] {
    inside = 0;
    if (tap >= p.phase.tap_count) return;
    const Tap at = p.taps[p.phase.first_tap + tap];
    offset = (int64_t{at.down} * p.width + at.across) * p.stride + place * Tile::kVector;
#pragma unroll
    for (int n = 0; n < kMine; ++n)
      if (static_cast<unsigned>(down[n] + at.down) < static_cast<unsigned>(p.height) &&
          static_cast<unsigned>(across[n] + at.across) < static_cast<unsigned>(p.width))
        inside |= 1u << n;
#pragma unroll
    for (int n = 0; n < kMineAcross; ++n)
      if (tile.column0() + first + n * kRowStep < p.columns) inside |= 1u << (kMine + n);
  };
  find_tap();
  const auto stage_at = [&](int stage) { return memory + stage * (A::kElements + B::kElements); };
  const auto load = [&](int64_t, int stage) {
    const A a{stage_at(stage)};
    const B b{a.data + A::kElements};
#pragma unroll
    for (int n = 0; n < kMine; ++n)
      copy_async(a.at(first + n * kRowStep, vector * Tile::kVector), row[n] + offset,
                 inside >> n & 1);
#pragma unroll
    for (int n = 0; n < kMineAcross; ++n)
      copy_async(b.at(first + n * kRowStep, vector * Tile::kVector),
                 column + n * kRowStep * all_terms * Tile::kVector, inside >> (kMine + n) & 1);
    column += 4 * Tile::kVector;
    offset += 4 * Tile::kVector;
    place += 4;
    if (place < p.vectors) return;
    for (; place >= p.vectors; place -= p.vectors) ++tap;
    find_tap();
  };
  const auto arrived = [&](int stage) {
    if constexpr (Tile::kMath == Math::tensor && sizeof(T) == 4) {
      const A a{stage_at(stage)};
      const B b{a.data + A::kElements};
#pragma unroll
      for (int n = 0; n < kMine; ++n) round_terms(a.at(first + n * kRowStep, vector * 4));
#pragma unroll
      for (int n = 0; n < kMineAcross; ++n) round_terms(b.at(first + n * kRowStep, vector * 4));
    }
  };
  typename Tile::Sums sums = {};
  pipeline<Tile>(left < of_each ? left : of_each, load, arrived, [&](int stage) {
    const A a{stage_at(stage)};
    multiply<Tile>(a, B{a.data + A::kElements}, sums);
  });

  p.phase = p.phases[phase];  // again: the loop leaves no registers to keep it in
  if (p.splits == 1) return finish_tile(p, tile, sums);
  float* to = partial_sums<Tile>(p, blockIdx.z);
#pragma unroll
  for (int i = 0; i < Tile::kPiecesDown; ++i)
#pragma unroll
    for (int j = 0; j < Tile::kPiecesAcross; ++j, to += 4 * Tile::kThreads)
      store_floats(to, sums[i][j]);
}

// Blocks (tile, group, phase) of the same threads: adds up what the splits' blocks left.
template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads) gather_parts_kernel(Gather p) {
  const int64_t phase = blockIdx.z;
  p.phase = p.phases[phase];
  const GatherTile<Tile> tile(p);
  if (tile.row0() >= p.rows()) return;
  typename Tile::Sums sums = {};
#pragma unroll 2
  for (int split = 0; split < p.splits; ++split) {
    const float* from = partial_sums<Tile>(p, phase * p.splits + split);
#pragma unroll
    for (int i = 0; i < Tile::kPiecesDown; ++i)
#pragma unroll
      for (int j = 0; j < Tile::kPiecesAcross; ++j, from += 4 * Tile::kThreads) {
        float part[4];
        load_floats(from, part);
        for (int n = 0; n < 4; ++n) sums[i][j][n] += part[n];
      }
  }
  finish_tile(p, tile, sums);
}

// Shared memory of a block.
template <class Tile>
constexpr size_t gather_memory() {
  return Tile::kStages * sizeof(typename Tile::T) *
         (Stage<Tile, Tile::kRows, false>::kElements +
          Stage<Tile, Tile::kColumns, false>::kElements);
}

// What a product is cut into: p.phase has the most rows of its phases.
template <class Tile>
struct GatherGrid {
  int64_t down, tiles, groups, phases;
  GatherGrid(const Gather& p, int64_t phases_)
      : down((p.rows() + Tile::kRows - 1) / Tile::kRows),
        tiles(down * ((p.columns + Tile::kColumns - 1) / Tile::kColumns)),
        groups(p.groups),
        phases(phases_) {}
  int64_t blocks() const { return tiles * groups * phases; }
  dim3 of(int64_t splits) const {
    return dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(groups),
                static_cast<unsigned>(phases * splits));
  }
  // Whether there are eight warps for every multiprocessor, with the memory that a block needs.
  bool fills() const {
    return blocks() * Tile::kThreads >= int64_t{multiprocessors()} * 256 &&
           has_shared(gather_memory<Tile>());
  }
};

template <class Tile>
void gather_with(Gather p, int64_t phases, ConvMoments* moments) {
  const GatherGrid<Tile> grid(p, phases);
  const ColumnMoments kept(p, moments, grid.down);
  p.splits = 1;
  launch(gather_kernel<Tile>, grid.of(1), Tile::kThreads, gather_memory<Tile>(), p);
  kept.merge();
}

// The same with several blocks to a tile, until there are two for every multiprocessor; each has 16
// steps or more, for its sums are written and read again. False where tiles or steps do not allow
// it.
template <class Tile>
bool gather_split(Gather p, int64_t phases, int64_t most_steps, ConvMoments* moments) {
  const GatherGrid<Tile> grid(p, phases);
  const int64_t blocks = grid.blocks(), wanted = 2 * int64_t{multiprocessors()} / blocks;
  const int64_t splits = std::min(wanted, most_steps / 16);
  if (2 * blocks > multiprocessors() || splits < 2) return false;
  const ColumnMoments kept(p, moments, grid.down);
  const Workspace partial(splits * blocks * Tile::kRows * Tile::kColumns * 4);
  p.splits = static_cast<int>(splits), p.partial = partial.as<float>();
  launch(gather_kernel<Tile>, grid.of(splits), Tile::kThreads, gather_memory<Tile>(), p);
  launch(gather_parts_kernel<Tile>, grid.of(1), Tile::kThreads, gather_memory<Tile>(), p);
  kept.merge();
  return true;
}

// Large tiles where they fill the device, and a block has the memory for them. `most_taps` are
// those of a phase; `moments`, of the one group's one phase, may be null.
template <class T, Math math>
void gather_sized(const Gather& p, int64_t phases, int64_t most_taps, ConvMoments* moments) {
  constexpr int64_t kMostGroups = 65535;  // a grid's second dimension
  if (p.groups > kMostGroups)
    return note_text("convolution: expected at most " + std::to_string(kMostGroups) +
                     " groups on a GPU, unless each has one channel and one filter, got " +
                     std::to_string(p.groups));
  using Large = Tile<T, math, 128, 128, 64, 32>;
  using Tall = Tile<T, math, 128, 64, 64, 32>;
  using Small = Tile<T, math, 64, 64, 32, 32>;
  if (p.columns > 64 && GatherGrid<Large>(p, phases).fills())
    gather_with<Large>(p, phases, moments);
  else if (p.columns <= 64 && GatherGrid<Tall>(p, phases).fills())
    gather_with<Tall>(p, phases, moments);
  else if (!gather_split<Small>(p, phases, most_taps * p.vectors / 4, moments))
    gather_with<Small>(p, phases, moments);
}

}  // namespace fastnn::cuda
