// Convolution as a matrix product whose left operand is gathered (implicit GEMM): the forward pass,
// and the gradient of the input.
//
// Rows are output pixels, columns output channels, and the terms are (tap, channel) in vectors of
// 16 bytes. Each thread of a block fetches the same few rows at every step; for a tap it adds the
// tap's offset to each row's source pixel, and copies zeros where that falls outside the image.
// Weights are packed as [column][tap][channel], channels padded to whole vectors, so they are read
// in order. Cost: rows x columns x terms multiply-adds; the left operand is read once per 64 or 128
// columns and tap, from L2 after the first.
#pragma once

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

  __host__ __device__ int64_t rows() const { return images * phase.down * phase.across; }
};

// A row's image and pixel.
struct GatherRow {
  int64_t image;
  int64_t i, j;
  __device__ GatherRow(const Gather& p, int64_t row) {
    j = row % p.phase.across;
    i = row / p.phase.across % p.phase.down;
    image = row / p.phase.across / p.phase.down;
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

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 512 / Tile::kThreads) gather_kernel(Gather p) {
  using T = typename Tile::T;
  using A = Stage<Tile, Tile::kRows, false>;
  using B = Stage<Tile, Tile::kColumns, false>;
  constexpr int kRowStep = Tile::kThreads / 4;
  constexpr int kMine = Tile::kRows / kRowStep, kMineAcross = Tile::kColumns / kRowStep;
  T* const memory = reinterpret_cast<T*>(dynamic_shared());
  p.phase = p.phases[blockIdx.z];
  const int64_t column_tiles = (p.columns + Tile::kColumns - 1) / Tile::kColumns;
  const int64_t row0 = blockIdx.x / column_tiles * Tile::kRows,
                column0 = blockIdx.x % column_tiles * Tile::kColumns;
  if (row0 >= p.rows()) return;  // another phase has more rows
  const int group = static_cast<int>(blockIdx.y);
  const int vector = static_cast<int>(threadIdx.x) % 4, first = static_cast<int>(threadIdx.x) / 4;
  const T* const source =
      static_cast<const T*>(p.source) + int64_t{group} * p.vectors * Tile::kVector;
  const int64_t terms = int64_t{p.phase.tap_count} * p.vectors;
  const int64_t all_terms = int64_t{p.all_taps} * p.vectors;  // of a column
  const T* const weight =
      static_cast<const T*>(p.weight) +
      (group * p.columns * all_terms + int64_t{p.phase.first_tap} * p.vectors) * Tile::kVector;
  const Tap* const taps = p.taps + p.phase.first_tap;

  constexpr int kNowhere = -(1 << 30);  // an image row that no tap brings inside
  int64_t image[kMine];
  int down[kMine], across[kMine];
#pragma unroll
  for (int n = 0; n < kMine; ++n) {
    const int64_t row = row0 + first + n * kRowStep;
    const GatherRow at(p, row < p.rows() ? row : 0);
    image[n] = at.image * p.height * p.width;
    down[n] = row < p.rows() ? static_cast<int>(at.i) * p.step_down : kNowhere;
    across[n] = static_cast<int>(at.j) * p.step_across;
  }

  // The vector of the next step that this thread fetches: tap, and place among the tap's vectors.
  int tap = vector / p.vectors, place = vector % p.vectors;
  const auto load = [&](int64_t step, int stage) {
    const A a{memory + stage * (A::kElements + B::kElements)};
    const B b{a.data + A::kElements};
    const bool there = tap < p.phase.tap_count;
    const Tap offset = there ? taps[tap] : Tap{0, 0};
#pragma unroll
    for (int n = 0; n < kMine; ++n) {
      const int h = down[n] + offset.down, w = across[n] + offset.across;
      const bool inside = there && h >= 0 && h < p.height && w >= 0 && w < p.width;
      const T* const from =
          inside ? source + (image[n] + int64_t{h} * p.width + w) * p.stride + place * Tile::kVector
                 : source;
      copy_async(a.at(first + n * kRowStep, vector * Tile::kVector), from, inside);
    }
#pragma unroll
    for (int n = 0; n < kMineAcross; ++n) {
      const int64_t column = column0 + first + n * kRowStep;
      const bool inside = there && column < p.columns;
      const T* const from =
          inside ? weight + (column * all_terms + 4 * step + vector) * Tile::kVector : weight;
      copy_async(b.at(first + n * kRowStep, vector * Tile::kVector), from, inside);
    }
    for (place += 4; place >= p.vectors; place -= p.vectors) ++tap;
  };
  typename Tile::Sums sums = {};
  pipeline<Tile>((terms + 3) / 4, load, [&](int stage) {
    const A a{memory + stage * (A::kElements + B::kElements)};
    multiply<Tile>(a, B{a.data + A::kElements}, sums);
  });

  const typename Tile::Place at;
#pragma unroll
  for (int i = 0; i < Tile::kPiecesDown; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = row0 + at.row + 16 * i + at.g + 8 * half;
      if (row >= p.rows()) continue;
      finish_pixel<T, Tile::kPiecesAcross>(p, group, column0 + at.column + 2 * at.t,
                                           output_pixel(p, row),
                                           [&](int j) { return &sums[i][j][2 * half]; });
    }
  if (p.moments) keep_moments<Tile>(p, sums, row0, column0);
}

// Shared memory of a block.
template <class Tile>
constexpr size_t gather_memory() {
  return Tile::kStages * sizeof(typename Tile::T) *
         (Stage<Tile, Tile::kRows, false>::kElements +
          Stage<Tile, Tile::kColumns, false>::kElements);
}

// Runs `phases` phases, of which p.phase has the most rows.
template <class Tile>
void gather_with(Gather p, int64_t phases, ConvMoments* moments) {
  const int64_t down = (p.rows() + Tile::kRows - 1) / Tile::kRows;
  const int64_t tiles = down * ((p.columns + Tile::kColumns - 1) / Tile::kColumns);
  const ColumnMoments kept(p, moments, down);
  launch(gather_kernel<Tile>,
         dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(p.groups),
              static_cast<unsigned>(phases)),
         Tile::kThreads, gather_memory<Tile>(), p);
  kept.merge();
}

// Large tiles where they fill the device, and a block has the memory for them. `moments`, of the
// one group's one phase, may be null.
template <class T, Math math>
void gather_sized(const Gather& p, int64_t phases, ConvMoments* moments) {
  constexpr int64_t kMostGroups = 65535;  // a grid's second dimension
  if (p.groups > kMostGroups)
    return note_text("convolution: expected at most " + std::to_string(kMostGroups) +
                     " groups on a GPU, unless each has one channel and one filter, got " +
                     std::to_string(p.groups));
  using Large = Tile<T, math, 128, 128, 64, 32>;
  const int64_t large = (p.rows() + 127) / 128 * ((p.columns + 127) / 128) * p.groups * phases;
  if (p.columns > 64 && large >= multiprocessors() && has_shared(gather_memory<Large>()))
    gather_with<Large>(p, phases, moments);
  else
    gather_with<Tile<T, math, 64, 64, 32, 32>>(p, phases, moments);
}

}  // namespace fastnn::cuda
