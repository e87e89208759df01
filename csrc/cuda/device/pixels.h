// Pixels: a thread for a pack of neighbouring channels of one pixel of NHWC images.
//
// Lanes run over the packs, lines over the pixels of a row; rows and images are those of the grid.
// So no index is divided: a division of 64 bits takes about as many instructions as a tap of a
// pooling window.
#pragma once

#include "cuda/device/packs.h"

namespace fastnn::cuda {

struct Place {
  int64_t image, h, w, pack;
  // The pack's number among those of images of height x width pixels of `packs` packs.
  FASTNN_MEMBER int64_t at(int64_t height, int64_t width, int64_t packs) const {
    return ((image * height + h) * width + w) * packs + pack;
  }
};

template <class F, int kBlocks>
__global__ void __launch_bounds__(kThreads, kBlocks)
    places_kernel(int64_t images, int64_t height, int64_t width, int64_t packs, int lane_bits,
                  F f) {
  const int lanes = 1 << lane_bits, thread = static_cast<int>(threadIdx.x);
  const int64_t lines = kThreads >> lane_bits, w = blockIdx.x * lines + (thread >> lane_bits);
  if (w >= width) return;
  for (int64_t image = blockIdx.z; image < images; image += gridDim.z)
    for (int64_t h = blockIdx.y; h < height; h += gridDim.y)
      for (int64_t pack = thread & (lanes - 1); pack < packs; pack += lanes)
        f(Place{image, h, w, pack});
}

// f(place) for every pack. A multiprocessor can hold kBlocks blocks at least.
template <int kBlocks = 4, class F>
void each_place(int64_t images, int64_t height, int64_t width, int64_t packs, const F& f) {
  if (images == 0 || height == 0 || width == 0 || packs == 0) return;
  int bits = 0;
  while (1 << bits < static_cast<int>(kThreads) && 1 << bits < packs) ++bits;
  const int64_t lines = kThreads >> bits, most = 65535;  // of a grid's second and third dimension
  launch(places_kernel<F, kBlocks>,
         dim3(static_cast<unsigned>((width + lines - 1) / lines),
              static_cast<unsigned>(height < most ? height : most),
              static_cast<unsigned>(images < most ? images : most)),
         kThreads, 0, images, height, width, packs, bits, f);
}

}  // namespace fastnn::cuda
