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

#include "cuda/device/tile.h"
#include "ops/slots.h"

namespace fastnn::cuda {

// Where a tap's source pixel lies from the row's.
struct Tap {
  int down, across;
};

struct Gather {
  // Left operand: images x height x width pixels of `stride` elements, group g's channels at
  // g * vectors vectors.
  const void* source;
  int height, width;
  int64_t stride;
  int vectors;  // of a tap's channels in one group
  const Tap* taps;
  int tap_count;
  // Rows: images x down x across, of source pixel (i * step_down, j * step_across).
  int64_t images, down, across;
  int step_down, step_across;
  // Right operand: [group][column][tap][vector].
  const void* weight;
  int64_t columns;
  // Output: row (n, i, j) is pixel (first_down + i * out_down, first_across + j * out_across) of an
  // image of out_height x out_width.
  void* output;
  int64_t out_height, out_width, first_down, first_across, out_down, out_across;
  const float* bias;     // per column of every group, or null
  const void* residual;  // like the output, or null
  bool relu;
  bool pairs;  // whether outputs are aligned two by two
  int groups;

  __host__ __device__ int64_t rows() const { return images * down * across; }
};

// A row's image and pixel.
struct GatherRow {
  int64_t image;
  int64_t i, j;
  __device__ GatherRow(const Gather& p, int64_t row) {
    j = row % p.across;
    i = row / p.across % p.down;
    image = row / p.across / p.down;
  }
};

// N neighbouring outputs: bias, residual, relu, store.
template <class T, int N>
FASTNN_DEVICE void finish(const Gather& p, const float (&sums)[N], int64_t channel, int64_t to) {
  float y[N], r[N] = {};
  if (p.residual) load_floats(static_cast<const T*>(p.residual) + to, r);
  for (int n = 0; n < N; ++n) {
    y[n] = sums[n] + (p.bias ? p.bias[channel + n] : 0.0f) + r[n];
    if (p.relu) y[n] = y[n] < 0 ? 0.0f : y[n];  // a NaN stays
  }
  store_floats(static_cast<T*>(p.output) + to, y);
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 512 / Tile::kThreads) gather_kernel(Gather p) {
  using T = typename Tile::T;
  using A = Stage<Tile, Tile::kRows, false>;
  using B = Stage<Tile, Tile::kColumns, false>;
  constexpr int kRowStep = Tile::kThreads / 4;
  constexpr int kMine = Tile::kRows / kRowStep, kMineAcross = Tile::kColumns / kRowStep;
  T* const memory = reinterpret_cast<T*>(dynamic_shared());
  const int64_t column_tiles = (p.columns + Tile::kColumns - 1) / Tile::kColumns;
  const int64_t row0 = blockIdx.x / column_tiles * Tile::kRows,
                column0 = blockIdx.x % column_tiles * Tile::kColumns;
  const int group = static_cast<int>(blockIdx.y);
  const int vector = static_cast<int>(threadIdx.x) % 4, first = static_cast<int>(threadIdx.x) / 4;
  const T* const source =
      static_cast<const T*>(p.source) + int64_t{group} * p.vectors * Tile::kVector;
  const int64_t terms = int64_t{p.tap_count} * p.vectors;
  const T* const weight =
      static_cast<const T*>(p.weight) + group * p.columns * terms * Tile::kVector;

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
    const bool there = tap < p.tap_count;
    const Tap offset = there ? p.taps[tap] : Tap{0, 0};
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
          inside ? weight + (column * terms + 4 * step + vector) * Tile::kVector : weight;
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
  const int64_t channels = p.columns * p.groups;
#pragma unroll
  for (int i = 0; i < Tile::kPiecesDown; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = row0 + at.row + 16 * i + at.g + 8 * half;
      if (row >= p.rows()) continue;
      const GatherRow r(p, row);
      const int64_t pixel =
          (r.image * p.out_height + p.first_down + r.i * p.out_down) * p.out_width +
          p.first_across + r.j * p.out_across;
#pragma unroll
      for (int j = 0; j < Tile::kPiecesAcross; ++j) {
        const int64_t column = column0 + at.column + 8 * j + 2 * at.t;
        const float pair[2] = {sums[i][j][2 * half], sums[i][j][2 * half + 1]};
        const int64_t channel = group * p.columns + column, to = pixel * channels + channel;
        if (p.pairs && column < p.columns)
          finish<T, 2>(p, pair, channel, to);
        else
          for (int n = 0; n < 2; ++n)
            if (column + n < p.columns) finish<T, 1>(p, {pair[n]}, channel + n, to + n);
      }
    }
}

template <class Tile>
void gather_with(const Gather& p) {
  using A = Stage<Tile, Tile::kRows, false>;
  using B = Stage<Tile, Tile::kColumns, false>;
  const int64_t tiles = (p.rows() + Tile::kRows - 1) / Tile::kRows *
                        ((p.columns + Tile::kColumns - 1) / Tile::kColumns);
  launch(gather_kernel<Tile>, dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(p.groups)),
         Tile::kThreads, Tile::kStages * (A::kElements + B::kElements) * sizeof(typename Tile::T),
         p);
}

// Large tiles where they fill the device.
template <class T, Math math>
void gather_sized(const Gather& p) {
  const int64_t large = (p.rows() + 127) / 128 * ((p.columns + 127) / 128) * p.groups;
  if (p.columns > 64 && large >= multiprocessors())
    gather_with<Tile<T, math, 128, 128, 64, 32>>(p);
  else
    gather_with<Tile<T, math, 64, 64, 32, 32>>(p);
}

}  // namespace fastnn::cuda
