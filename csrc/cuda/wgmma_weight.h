// The gradient of the weight for sm_90a, bfloat16: device/warpgroups.h over pixels.
//
// Both operands lie with their channels running on, as they are in memory: boxes of 64 pixels by 64
// channels, which the products turn. Of grad_output, boxes of neighbouring pixels; of the input,
// those that the accelerator finds under a tap (pixel_walk.h). The columns of a tile are boxes too,
// (tap, 64 channels) each, so that layers of 64 channels fill tiles with several taps.
//
//   more than 64 outputs: 128 x 128, each multiplier 64 rows of all columns
//   up to 64 outputs:      64 x 256, each multiplier half of the columns
//
// The splits' sums are added in order afterwards, as in conv_backward_weight.cu. Blocks that run at
// the same time work on the same pixels, of which L2 holds one copy.
//
// TF32's products cannot turn their operands: float32 stays with conv_backward_weight.cu.
//
// Never run on a GPU: off unless asked for (use_wgmma).
#pragma once

#include "cuda/device/warpgroups.h"
#include "cuda/pixel_walk.h"
#include "cuda/weight_gradient.h"

namespace fastnn::cuda {

constexpr int kBoxPixels = 64;

template <int kRowBoxes>
struct WeightStage {
  using Box = bfloat16[kBoxPixels * kBoxValues];
  static constexpr int kColumnBoxes = 4 / kRowBoxes;
  Box rows[kRowBoxes], columns[kColumnBoxes];
};

// Of one work item: the first boxes of its rows and columns, and its pixels.
template <int kRowBoxes>
struct WeightTile {
  int64_t row_box, column_box, begin, end;
  __device__ WeightTile(const WeightGradient& p, int64_t tiles, int64_t column_tiles,
                        int64_t item) {
    const int64_t tile = item % tiles;
    row_box = tile / column_tiles * kRowBoxes;
    column_box = tile % column_tiles * WeightStage<kRowBoxes>::kColumnBoxes;
    begin = item / tiles * p.split;
    end = begin + p.split < p.pixels ? begin + p.split : p.pixels;
  }
};

template <int kRowBoxes>
__global__ void __launch_bounds__(kWarpgroupsThreads, 1)
    wgmma_weight_kernel(const __grid_constant__ TensorMap grads,
                        const __grid_constant__ TensorMap pixels, WeightGradient p, BasePixels base,
                        int64_t tiles, int64_t column_tiles, int64_t items) {
  using Stage = WeightStage<kRowBoxes>;
  using Tile = WeightTile<kRowBoxes>;
  constexpr int kMine = 2;  // column boxes of a multiplier
  const int channels = p.input_vectors * 8, parts = (channels + kBoxValues - 1) / kBoxValues;
  const int boxes = p.tap_count * parts;
  const auto tile_of = [&](int64_t item) { return Tile(p, tiles, column_tiles, item); };

  const auto steps = [&](int64_t item) {
    const Tile tile = tile_of(item);
    return static_cast<int>((tile.end - tile.begin + kBoxPixels - 1) / kBoxPixels);
  };
  const auto copies = [&](int64_t item) {
    return [&, tile = tile_of(item)](int step, Stage& to, Barrier* full) {
      const int64_t pixel = tile.begin + int64_t{step} * kBoxPixels, row = pixel / p.across;
      const int image = static_cast<int>(row / p.down);
      const int down = static_cast<int>(row % p.down) * p.step_down + base.down;
      const int across = static_cast<int>(pixel % p.across) * p.step_across + base.across;
      const int64_t left = boxes - tile.column_box;
      const int count = static_cast<int>(left < Stage::kColumnBoxes ? left : Stage::kColumnBoxes);
      barrier_expect(full,
                     static_cast<unsigned>((kRowBoxes + count) * sizeof(typename Stage::Box)));
      for (int i = 0; i < kRowBoxes; ++i)
        load_box(to.rows[i], &grads, full, static_cast<int>(tile.row_box + i) * kBoxValues,
                 static_cast<int>(pixel), 0);
      for (int i = 0; i < count; ++i) {
        const int box = static_cast<int>(tile.column_box) + i;
        const Tap at = p.taps[box / parts];
        load_pixels(to.columns[i], &pixels, full, box % parts * kBoxValues, across, down, image,
                    at.across - base.across, at.down - base.down);
      }
    };
  };
  const auto multiply = [&](Stage& from, int multiplier, float (&sums)[kMine* kBoxValues / 2]) {
    const uint64_t a = turned_tile_at(from.rows[kRowBoxes > 1 ? multiplier : 0]);
    const uint64_t b = turned_tile_at(from.columns[kRowBoxes > 1 ? 0 : kMine * multiplier],
                                      sizeof(typename Stage::Box));
#pragma unroll
    for (int k = 0; k < kBoxPixels / 16; ++k)
      multiply_async<bfloat16, true>(sums, a + k * kTurnedStep, b + k * kTurnedStep);
  };
  const auto finish = [&](int64_t item, int multiplier, int thread,
                          const float (&sums)[kMine* kBoxValues / 2]) {
    const Tile tile = tile_of(item);
    const int lane = thread % 32;
    const int64_t row0 = (tile.row_box + (kRowBoxes > 1 ? multiplier : 0)) * kBoxValues +
                         thread / 32 * 16 + lane / 4;
    const int64_t box0 = tile.column_box + (kRowBoxes > 1 ? 0 : kMine * multiplier);
    const int64_t out = item / tiles * p.count();
#pragma unroll
    for (int i = 0; i < kMine * kBoxValues / 2; ++i) {
      const int64_t row = row0 + i % 4 / 2 * 8;
      const int column = i / 4 * 8 + 2 * (lane % 4) + i % 2;
      const int64_t box = box0 + column / kBoxValues;
      const int64_t tap = box / parts, channel = box % parts * kBoxValues + column % kBoxValues;
      if (row < p.outputs && tap < p.tap_count && channel < p.inputs)
        p.store(out + (row * p.tap_count + tap) * p.inputs + channel, sums[i]);
    }
  };
  run_warpgroups<Stage, kMine * kBoxValues / 2>(items, steps, copies, multiply, finish);
}

template <int kRowBoxes>
bool wgmma_weight_with(WeightGradient p, const PixelWalk& walk, DType grad_dtype,
                       void* grad_weight) {
  using Stage = WeightStage<kRowBoxes>;
  TensorMap grads, pixels;
  if (!boxes_of(p.grad, kElement<bfloat16>, {int64_t{p.grad_vectors} * 8, p.pixels, 1},
                {kBoxValues, kBoxPixels, 1}, &grads) ||
      !pixels_of(p.input, kElement<bfloat16>, walk.grid, kBoxPixels, &pixels))
    return false;
  const auto boxes = [](int64_t n, int64_t each) { return (n + each - 1) / each; };
  const int64_t column_boxes = p.tap_count * boxes(int64_t{p.input_vectors} * 8, kBoxValues);
  const int64_t column_tiles = boxes(column_boxes, Stage::kColumnBoxes);
  const int64_t tiles = boxes(p.outputs, kRowBoxes * kBoxValues) * column_tiles;
  const int64_t splits = set_splits(p, boxes(2 * multiprocessors(), tiles), kBoxPixels);
  const SplitSums sums(p, splits, grad_dtype, grad_weight);
  const int64_t items = tiles * splits;
  launch(wgmma_weight_kernel<kRowBoxes>,
         dim3(static_cast<unsigned>(std::min<int64_t>(items, multiprocessors()))),
         kWarpgroupsThreads, warpgroups_memory<Stage>(), grads, pixels, p, walk.base, tiles,
         column_tiles, items);
  sums.add();
  ++wgmma_products();
  return true;
}

// Whether these kernels can do it; if so, does it. `taps` are p.taps on the host.
inline bool try_wgmma_weight(const WeightGradient& p, const Tap* taps, DType grad_dtype,
                             void* grad_weight) {
  if (!use_wgmma() || !tensor_cores() || !has_wgmma() || p.groups != 1 || p.input_vectors < 4 ||
      p.grad_vectors < 4 || p.pixels == 0 || p.pixels >= int64_t{1} << 31)
    return false;
  PixelGrid grid{};
  grid.images = p.pixels / p.down / p.across;
  grid.height = p.height, grid.width = p.width;
  grid.channels = int64_t{p.input_vectors} * 8;
  grid.step[0] = p.step_across, grid.step[1] = p.step_down;
  PixelWalk walk;
  if (!find_walk(grid, p.down, p.across, taps, p.tap_count, &walk)) return false;
  return p.outputs > kBoxValues ? wgmma_weight_with<2>(p, walk, grad_dtype, grad_weight)
                                : wgmma_weight_with<1>(p, walk, grad_dtype, grad_weight);
}

}  // namespace fastnn::cuda
