// Whether the tensor memory accelerator can walk a convolution's pixels, and from where: it brings
// a row of base pixels at a time, of images with their padding, and a tap displaces all of them. So
// neither the rows' pixels nor the images' edges cost an instruction.
#pragma once

#include <algorithm>

#include "cuda/conv_operands.h"
#include "cuda/tensor_map.h"

namespace fastnn::cuda {

// Where row 0's base pixel lies in the source, and what is added per tap to reach its pixel: taps
// count from the base, which is at the least of their offsets.
struct BasePixels {
  int down, across;
};

struct PixelWalk {
  PixelGrid grid;
  BasePixels base;
};

// For down x across rows per image, `taps` on the host. `grid` has sizes and steps; its corners are
// set. False where they are out of the accelerator's range.
inline bool find_walk(PixelGrid grid, int64_t down, int64_t across, const Tap* taps, int count,
                      PixelWalk* found) {
  BasePixels base{taps[0].down, taps[0].across};
  BasePixels most = base;
  for (int t = 1; t < count; ++t) {
    base = {std::min(base.down, taps[t].down), std::min(base.across, taps[t].across)};
    most = {std::max(most.down, taps[t].down), std::max(most.across, taps[t].across)};
  }
  const int64_t lower[2] = {base.across, base.down};
  const int64_t last[2] = {(across - 1) * grid.step[0], (down - 1) * grid.step[1]};
  const int64_t size[2] = {grid.width, grid.height};
  const auto corner = [](int64_t x) { return x >= -128 && x <= 127; };
  for (int i = 0; i < 2; ++i) {
    grid.lower[i] = lower[i], grid.upper[i] = lower[i] + last[i] - (size[i] - 1);
    if (!corner(grid.lower[i]) || !corner(grid.upper[i]) || grid.step[i] > 8) return false;
  }
  if (most.down - base.down > 255 || most.across - base.across > 255) return false;
  *found = {grid, base};
  return true;
}

}  // namespace fastnn::cuda
