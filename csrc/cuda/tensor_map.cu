#include "cuda/tensor_map.h"

#include "cuda/device/device.h"

namespace fastnn::cuda {

#if defined(FASTNN_CUDA_EMULATE)

namespace {

// A dense tensor; sizes innermost first.
TensorMap dense(const void* data, DType dtype, const int64_t* size, int rank) {
  TensorMap m{};
  m.data = static_cast<const char*>(data);
  m.item = item_size(dtype);
  for (int i = 0; i < rank; ++i) {
    m.size[i] = size[i];
    m.stride[i] = i ? m.stride[i - 1] * size[i - 1] : m.item;
  }
  return m;
}

}  // namespace

bool boxes_of(const void* data, DType dtype, const int64_t (&size)[3], const int64_t (&box)[3],
              TensorMap* map) {
  *map = dense(data, dtype, size, 3);
  for (int i = 0; i < 3; ++i) map->box[i] = box[i];
  return true;
}

bool pixels_of(const void* data, DType dtype, const PixelGrid& grid, int64_t pixels,
               TensorMap* map) {
  const int64_t size[4] = {grid.channels, grid.width, grid.height, grid.images};
  *map = dense(data, dtype, size, 4);
  map->box[0] = 128 / map->item, map->box[1] = pixels;
  for (int i = 0; i < 2; ++i)
    map->lower[i] = grid.lower[i], map->upper[i] = grid.upper[i], map->step[i] = grid.step[i];
  return true;
}

#else

namespace {

template <class Function>
Function driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t result =
      cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &status);
#else
  const cudaError_t result = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &status);
#endif
  if (result != cudaSuccess) cudaGetLastError();
  const bool there = result == cudaSuccess && status == cudaDriverEntryPointSuccess;
  return there ? reinterpret_cast<Function>(found) : nullptr;
}

CUtensorMapDataType type_of(DType dtype) {
  return dtype == DType::bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                  : CU_TENSOR_MAP_DATA_TYPE_TFLOAT32;
}

constexpr auto kNoInterleave = CU_TENSOR_MAP_INTERLEAVE_NONE;
constexpr auto kSwizzle = CU_TENSOR_MAP_SWIZZLE_128B;
constexpr auto kPromotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
constexpr auto kZeros = CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;

}  // namespace

bool boxes_of(const void* data, DType dtype, const int64_t (&size)[3], const int64_t (&box)[3],
              TensorMap* map) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const auto encode = driver_function<Encode>("cuTensorMapEncodeTiled");
  if (!encode) return false;
  cuuint64_t sizes[3], strides[2];
  cuuint32_t boxes[3], steps[3] = {1, 1, 1};
  for (int i = 0; i < 3; ++i) {
    sizes[i] = static_cast<cuuint64_t>(size[i]);
    boxes[i] = static_cast<cuuint32_t>(box[i]);
  }
  const auto item = static_cast<cuuint64_t>(item_size(dtype));
  strides[0] = item * sizes[0], strides[1] = strides[0] * sizes[1];
  return encode(map, type_of(dtype), 3, const_cast<void*>(data), sizes, strides, boxes, steps,
                kNoInterleave, kSwizzle, kPromotion, kZeros) == CUDA_SUCCESS;
}

bool pixels_of(const void* data, DType dtype, const PixelGrid& grid, int64_t pixels,
               TensorMap* map) {
  using Encode = decltype(&cuTensorMapEncodeIm2col);
  static const auto encode = driver_function<Encode>("cuTensorMapEncodeIm2col");
  if (!encode) return false;
  const int64_t size[4] = {grid.channels, grid.width, grid.height, grid.images};
  const auto item = static_cast<cuuint64_t>(item_size(dtype));
  cuuint64_t sizes[4], strides[3];
  for (int i = 0; i < 4; ++i) {
    sizes[i] = static_cast<cuuint64_t>(size[i]);
    if (i) strides[i - 1] = i > 1 ? strides[i - 2] * sizes[i - 1] : item * sizes[0];
  }
  int lower[2], upper[2];
  cuuint32_t steps[4] = {1, 1, 1, 1};
  for (int i = 0; i < 2; ++i) {
    lower[i] = static_cast<int>(grid.lower[i]), upper[i] = static_cast<int>(grid.upper[i]);
    steps[i + 1] = static_cast<cuuint32_t>(grid.step[i]);
  }
  return encode(map, type_of(dtype), 4, const_cast<void*>(data), sizes, strides, lower, upper,
                static_cast<cuuint32_t>(128 / item), static_cast<cuuint32_t>(pixels), steps,
                kNoInterleave, kSwizzle, kPromotion, kZeros) == CUDA_SUCCESS;
}

#endif

}  // namespace fastnn::cuda
