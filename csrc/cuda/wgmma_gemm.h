// The gathered product of gather_gemm.h for sm_90a, bfloat16: operands come by the tensor memory
// accelerator, products are those of warpgroups (device/hopper.h).
//
// Left operand: base pixels are rows; the accelerator walks a box of 128 of them from any row on,
// of images with their padding, and a tap displaces the box. So neither the rows' pixels nor the
// image's edges cost an instruction. Right operand: boxes of [column][tap][channel].
//
//   a block, persistent, of 128 x kColumns outputs at a time, 64 terms a step, four stages:
//     warpgroup 0: one thread waits until a stage is empty and starts its two copies
//     warpgroups 1, 2: wait until it is full, multiply 64 rows each; a step behind, give it back
//   The copies run on into the next outputs while these are stored.
//
// Never run on a GPU: off unless asked for (use_wgmma).
#pragma once

#include <algorithm>

#include "cuda/device/hopper.h"
#include "cuda/gather_gemm.h"

namespace fastnn::cuda {

constexpr int kWgmmaRows = 128, kWgmmaStages = 4, kWgmmaThreads = 3 * kWarpgroup;
constexpr int kWgmmaConsumers = 2;

// Where row 0's base pixel lies in the source, and what is added per tap to reach its pixel: taps
// count from the base, which is at the least of their offsets.
struct BasePixels {
  int down, across;
};

template <int kColumns>
struct WgmmaStage {
  bfloat16 a[kWgmmaRows * kBoxValues], b[kColumns * kBoxValues];
};

template <int kColumns>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    wgmma_kernel(const __grid_constant__ TensorMap pixels, const __grid_constant__ TensorMap weight,
                 Gather p, BasePixels base, int64_t tiles) {
  using Stage = WgmmaStage<kColumns>;
  using Barriers = Barrier[kWgmmaStages];
  FASTNN_SHARED(Barriers, full);
  FASTNN_SHARED(Barriers, empty);
  // The tiles' swizzle wants 1024 bytes; there is room for the difference.
  unsigned char* const memory = dynamic_shared();
  auto* const stages =
      reinterpret_cast<Stage*>(memory + (1024 - shared_address(memory) % 1024) % 1024);
  if (threadIdx.x == 0) {
    make_barriers(full, kWgmmaStages, 1);
    make_barriers(empty, kWgmmaStages, kWgmmaConsumers);
  }
  __syncthreads();

  const int64_t column_tiles = (p.columns + kColumns - 1) / kColumns;
  const int channels = p.vectors * 8, parts = (channels + kBoxValues - 1) / kBoxValues;
  const int steps = p.phase.tap_count * parts;
  int stage = 0;
  unsigned parity = 0;  // of the stages' round
  const auto advance = [&] {
    if (++stage < kWgmmaStages) return;
    stage = 0;
    parity ^= 1;
  };
  const int warpgroup = static_cast<int>(threadIdx.x) / kWarpgroup;

  if (warpgroup == 0) {
    keep_registers<40>();
    if (threadIdx.x != 0) return;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const GatherRow first(p, tile / column_tiles * kWgmmaRows);
      const int column = static_cast<int>(tile % column_tiles) * kColumns;
      const int down = static_cast<int>(first.i) * p.step_down + base.down;
      const int across = static_cast<int>(first.j) * p.step_across + base.across;
      for (int t = 0; t < p.phase.tap_count; ++t) {
        const int tap = p.phase.first_tap + t;
        const Tap at = p.taps[tap];
        for (int part = 0; part < parts; ++part, advance()) {
          barrier_wait(&empty[stage], parity ^ 1);
          barrier_expect(&full[stage], sizeof(Stage));
          load_pixels(stages[stage].a, &pixels, &full[stage], part * kBoxValues, across, down,
                      static_cast<int>(first.image), at.across - base.across, at.down - base.down);
          load_box(stages[stage].b, &weight, &full[stage], part * kBoxValues, tap, column);
        }
      }
    }
    return;
  }

  take_registers<232>();
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup, lane = thread % 32;
  const int my_row = (warpgroup - 1) * 64 + thread / 32 * 16 + lane / 4, my_column = 2 * (lane % 4);
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    float sums[kColumns / 2] = {};
    int before = -1;  // the stage of the step before, still being read
    for (int step = 0; step < steps; ++step, advance()) {
      barrier_wait(&full[stage], parity);
      const uint64_t a = tile_at(stages[stage].a + (warpgroup - 1) * 64 * kBoxValues);
      const uint64_t b = tile_at(stages[stage].b);
      begin_products();
#pragma unroll
      for (int k = 0; k < kBoxValues / 16; ++k)  // 32 bytes on, in units of 16
        multiply_async(sums, a + 2 * k, b + 2 * k);
      commit_products();
      wait_products<1>(sums);
      if (before >= 0 && thread == 0) barrier_arrive(&empty[before]);
      before = stage;
    }
    wait_products<0>(sums);
    if (before >= 0 && thread == 0) barrier_arrive(&empty[before]);

    const int64_t row0 = tile / column_tiles * kWgmmaRows + my_row;
    const int64_t column0 = tile % column_tiles * kColumns + my_column;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = row0 + 8 * half;
      if (row >= p.rows()) continue;
      const int64_t pixel = output_pixel(p, row);
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j)
        finish_pair<bfloat16>(p, &sums[4 * j + 2 * half], 0, column0 + 8 * j, pixel);
    }
  }
}

template <int kColumns>
void wgmma_with(const Gather& p, const TensorMap& pixels, BasePixels base) {
  const int64_t channels = int64_t{p.vectors} * 8;
  const TensorMap weight =
      boxes_of(p.weight, {channels, p.all_taps, p.columns}, {kBoxValues, 1, kColumns});
  const int64_t tiles =
      (p.rows() + kWgmmaRows - 1) / kWgmmaRows * ((p.columns + kColumns - 1) / kColumns);
  const int64_t blocks = std::min<int64_t>(tiles, multiprocessors());
  launch(wgmma_kernel<kColumns>, dim3(static_cast<unsigned>(blocks)), kWgmmaThreads,
         kWgmmaStages * sizeof(WgmmaStage<kColumns>) + 1024, pixels, weight, p, base, tiles);
}

// Whether the accelerator can walk the operand of p.phase; if so, runs the product. `taps` are
// p.taps on the host.
inline bool try_wgmma(const Gather& p, const Tap* taps) {
  if (!use_wgmma() || capability() != 90 || p.groups != 1 || p.vectors < 4 ||
      p.phase.tap_count == 0)
    return false;
  taps += p.phase.first_tap;
  BasePixels base{taps[0].down, taps[0].across};
  BasePixels most = base;
  for (int t = 1; t < p.phase.tap_count; ++t) {
    base = {std::min(base.down, taps[t].down), std::min(base.across, taps[t].across)};
    most = {std::max(most.down, taps[t].down), std::max(most.across, taps[t].across)};
  }
  PixelGrid grid{p.images,
                 p.height,
                 p.width,
                 int64_t{p.vectors} * 8,
                 {base.across, base.down},
                 {base.across + (p.phase.across - 1) * p.step_across - (p.width - 1),
                  base.down + (p.phase.down - 1) * p.step_down - (p.height - 1)},
                 {p.step_across, p.step_down}};
  const auto corner = [](int64_t x) { return x >= -128 && x <= 127; };
  for (int i = 0; i < 2; ++i)
    if (!corner(grid.lower[i]) || !corner(grid.upper[i]) || grid.step[i] > 8) return false;
  if (most.down - base.down > 255 || most.across - base.across > 255) return false;
  if (p.rows() >= int64_t{1} << 31 || p.columns >= int64_t{1} << 31) return false;
  ++wgmma_products();
  const TensorMap pixels = pixels_of(p.source, grid, kWgmmaRows);
  if (p.columns > 64)
    wgmma_with<128>(p, pixels, base);
  else
    wgmma_with<64>(p, pixels, base);
  return true;
}

}  // namespace fastnn::cuda
