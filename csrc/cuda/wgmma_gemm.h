// The gathered product of gather_gemm.h for sm_90a, bfloat16 or TF32: device/warpgroups.h over
// taps.
//
// Left operand: boxes of 128 base pixels under a tap (pixel_walk.h) by 128 bytes of channels. Right
// operand: boxes of [column][tap][128 bytes of channels]. 128 x kColumns outputs at a time, each
// multiplier 64 rows.
//
// Never run on a GPU: off unless asked for (use_wgmma).
#pragma once

#include "cuda/device/warpgroups.h"
#include "cuda/gather_gemm.h"
#include "cuda/pixel_walk.h"

namespace fastnn::cuda {

constexpr int kWgmmaRows = 128;

template <class T, int kColumns>
struct WgmmaStage {
  T a[kWgmmaRows * kBoxOf<T>], b[kColumns * kBoxOf<T>];
};

template <class T, int kColumns>
__global__ void __launch_bounds__(kWarpgroupsThreads, 1)
    wgmma_kernel(const __grid_constant__ TensorMap pixels, const __grid_constant__ TensorMap weight,
                 Gather p, BasePixels base, int64_t tiles) {
  using Stage = WgmmaStage<T, kColumns>;
  constexpr int kBox = kBoxOf<T>;
  const int64_t column_tiles = (p.columns + kColumns - 1) / kColumns;
  const int channels = p.vectors * kPack<T>, parts = (channels + kBox - 1) / kBox;

  constexpr int kWarps = kMultipliers * kWarpgroup / 32;
  // Moments of the warps' rows, of this tile and the one before, which may still be read.
  using Words = float[2 * kWarps * kColumns * sizeof(Moments) / sizeof(float)];
  FASTNN_SHARED(Words, words);
  FASTNN_SHARED(Barrier, there);
  if (threadIdx.x == 0) make_barriers(&there, 1, kMultipliers * kWarpgroup);
  unsigned turn = 0;

  const auto steps = [&](int64_t) { return p.phase.tap_count * parts; };
  const auto copies = [&](int64_t tile) {
    const GatherRow first(p, tile / column_tiles * kWgmmaRows);
    const int column = static_cast<int>(tile % column_tiles) * kColumns;
    const int image = static_cast<int>(first.image);
    const int down = static_cast<int>(first.i) * p.step_down + base.down;
    const int across = static_cast<int>(first.j) * p.step_across + base.across;
    return [=, &p, &pixels, &weight](int step, Stage& to, Barrier* full) {
      const int tap = p.phase.first_tap + step / parts, channel = step % parts * kBox;
      const Tap at = p.taps[tap];
      barrier_expect(full, sizeof(Stage));
      load_pixels(to.a, &pixels, full, channel, across, down, image, at.across - base.across,
                  at.down - base.down);
      load_box(to.b, &weight, full, channel, tap, column);
    };
  };
  const auto multiply = [](Stage& from, int multiplier, float (&sums)[kColumns / 2]) {
    const uint64_t a = tile_at(from.a + multiplier * 64 * kBox), b = tile_at(from.b);
#pragma unroll
    for (int k = 0; k < kBoxBytes / 32; ++k)
      multiply_async<T>(sums, a + k * kTermsStep, b + k * kTermsStep);
  };
  const auto finish = [&](int64_t tile, int multiplier, int thread, float (&sums)[kColumns / 2]) {
    const int lane = thread % 32;
    const int64_t row0 =
        tile / column_tiles * kWgmmaRows + multiplier * 64 + thread / 32 * 16 + lane / 4;
    const int64_t column0 = tile % column_tiles * kColumns + 2 * (lane % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = row0 + 8 * half;
      if (row >= p.rows()) continue;
      const int64_t pixel = output_pixel(p, row);
#pragma unroll
      for (int first = 0; first < kColumns / 8; first += 4)
        finish_pixel<T, 4>(p, 0, column0 + 8 * first, pixel,
                           [&](int j) { return &sums[4 * (first + j) + 2 * half]; });
    }
    if (!p.moments) return;
    const int warp = multiplier * (kWarpgroup / 32) + thread / 32;
    Moments* const moments = reinterpret_cast<Moments*>(words) + turn * kWarps * kColumns;
    warp_moments<2, kColumns / 8>(
        p.rows() - row0 + lane / 4, [&](int i, int j, int n) { return sums[4 * j + 2 * i + n]; },
        [&](int column, const Moments& m) { moments[warp * kColumns + column] = m; });
    barrier_arrive(&there);
    barrier_wait(&there, turn);
    turn ^= 1;
    merge_columns<kWarps, kColumns>(p, moments, multiplier * kWarpgroup + thread,
                                    tile / column_tiles, tile % column_tiles * kColumns);
  };
  run_warpgroups<Stage, kColumns / 2>(tiles, steps, copies, multiply, finish);
}

template <class T, int kColumns>
bool wgmma_with(Gather p, const TensorMap& pixels, BasePixels base, ConvMoments* moments) {
  const int64_t channels = int64_t{p.vectors} * kPack<T>;
  TensorMap weight;
  if (!boxes_of(p.weight, kElement<T>, {channels, p.all_taps, p.columns}, {kBoxOf<T>, 1, kColumns},
                &weight))
    return false;
  const int64_t down = (p.rows() + kWgmmaRows - 1) / kWgmmaRows;
  const int64_t tiles = down * ((p.columns + kColumns - 1) / kColumns);
  const ColumnMoments kept(p, moments, down);
  const int64_t blocks = std::min<int64_t>(tiles, multiprocessors());
  launch(wgmma_kernel<T, kColumns>, dim3(static_cast<unsigned>(blocks)), kWarpgroupsThreads,
         warpgroups_memory<WgmmaStage<T, kColumns>>(), pixels, weight, p, base, tiles);
  kept.merge();
  ++wgmma_products();
  return true;
}

// Whether the accelerator can walk the operand of p.phase; if so, runs the product. `taps` are
// p.taps on the host; `moments`, of the one phase, may be null.
template <class T>
bool try_wgmma(const Gather& p, const Tap* taps, ConvMoments* moments) {
  if (!use_wgmma() || !tensor_cores() || !has_wgmma() || p.groups != 1 || p.vectors < 4 ||
      p.phase.tap_count == 0)
    return false;
  PixelGrid grid{};
  grid.images = p.images, grid.height = p.height, grid.width = p.width;
  grid.channels = int64_t{p.vectors} * kPack<T>;
  grid.step[0] = p.step_across, grid.step[1] = p.step_down;
  PixelWalk walk;
  if (!find_walk(grid, p.phase.down, p.phase.across, taps + p.phase.first_tap, p.phase.tap_count,
                 &walk))
    return false;
  if (p.rows() >= int64_t{1} << 31 || p.columns >= int64_t{1} << 31) return false;
  TensorMap pixels;
  if (!pixels_of(p.source, kElement<T>, walk.grid, kWgmmaRows, &pixels)) return false;
  return p.columns > 64 ? wgmma_with<T, 128>(p, pixels, walk.base, moments)
                        : wgmma_with<T, 64>(p, pixels, walk.base, moments);
}

}  // namespace fastnn::cuda
