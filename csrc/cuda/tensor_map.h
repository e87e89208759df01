// What the tensor memory accelerator of sm_90 has to know of a tensor in global memory: sizes,
// strides, and the box that one copy brings. Made by the driver, whose functions are looked up when
// first needed (nothing links to it); a plain struct in the emulator.
#pragma once

#include <cstdint>

#include "core/dtype.h"

#if !defined(FASTNN_CUDA_EMULATE)
#include <cuda.h>
#endif

namespace fastnn::cuda {

#if defined(FASTNN_CUDA_EMULATE)
struct TensorMap {
  const char* data;
  int64_t item;                         // bytes of an element
  int64_t size[4], stride[4];           // innermost first; strides in bytes
  int64_t box[3];                       // of pixels: channels, pixels
  int64_t lower[2], upper[2], step[2];  // of pixels: across, down

  bool holds(const int64_t* at, int rank) const {
    for (int i = 0; i < rank; ++i)
      if (at[i] < 0 || at[i] >= size[i]) return false;
    return true;
  }
  const char* address(const int64_t* at, int rank) const {
    const char* p = data;
    for (int i = 0; i < rank; ++i) p += at[i] * stride[i];
    return p;
  }
};
#else
using TensorMap = CUtensorMap;
#endif

// Boxes of a dense tensor of rank 3, sizes innermost first: bfloat16, or float32, which is rounded
// to TF32 on its way. `data` and rows are multiples of 16 bytes; boxes of up to 256 elements each
// way, innermost 128 bytes. False where the driver makes none.
bool boxes_of(const void* data, DType dtype, const int64_t (&size)[3], const int64_t (&box)[3],
              TensorMap* map);

template <class T>
constexpr DType kElement = sizeof(T) == 2 ? DType::bfloat16 : DType::float32;

// The base pixels of a convolution over images x height x width pixels of `channels`
// values: from `lower` on in steps, up to size - 1 + `upper`. Across comes before down.
struct PixelGrid {
  int64_t images, height, width, channels;
  int64_t lower[2], upper[2], step[2];
};
// Boxes of `pixels` base pixels, in order, by 128 bytes of channels. False as above.
bool pixels_of(const void* data, DType dtype, const PixelGrid& grid, int64_t pixels,
               TensorMap* map);

}  // namespace fastnn::cuda
