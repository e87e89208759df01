// Element types. Included by kernels, so every function here has internal linkage and no STL.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FASTNN_INLINE static __host__ __device__ inline __attribute__((always_inline, unused))
#else
#define FASTNN_INLINE static inline __attribute__((always_inline, unused))
#endif

namespace fastnn {

enum class DType : uint8_t { float32, bfloat16, int64, int32, uint8, boolean };

// Storage type of bfloat16: the upper half of a float32. Arithmetic is done in float.
struct bfloat16 {
  uint16_t bits;
};

FASTNN_INLINE float to_float(float x) { return x; }
FASTNN_INLINE float to_float(bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float out;
  __builtin_memcpy(&out, &bits, sizeof(out));
  return out;
}

// Round to nearest, ties to even; NaN stays a (quiet) NaN.
FASTNN_INLINE bfloat16 to_bfloat16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// from_float(y, x): y = x in y's type, rounded once.
FASTNN_INLINE void from_float(float& y, float x) { y = x; }
FASTNN_INLINE void from_float(bfloat16& y, float x) { y = to_bfloat16(x); }

FASTNN_INLINE int64_t item_size(DType dtype) {
  switch (dtype) {
    case DType::float32:
    case DType::int32:
      return 4;
    case DType::bfloat16:
      return 2;
    case DType::int64:
      return 8;
    default:
      return 1;
  }
}

FASTNN_INLINE bool is_floating(DType dtype) {
  return dtype == DType::float32 || dtype == DType::bfloat16;
}

FASTNN_INLINE const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::bfloat16:
      return "bfloat16";
    case DType::int64:
      return "int64";
    case DType::int32:
      return "int32";
    case DType::uint8:
      return "uint8";
    default:
      return "bool";
  }
}

}  // namespace fastnn
