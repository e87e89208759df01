// The instructions that CUDA C++ has no name for, as inline functions: whole stores, rounding,
// asynchronous copies, matrix loads and the tensor cores' products (PTX ISA 8.x, sections on
// cp.async, ldmatrix and mma). Each has a host body for the emulator, written from the fragment
// layouts in that document:
//   lane l, g = l / 4, t = l % 4
//   bf16 m16n8k16: a[i] holds A(g + 8 (i % 2), 2t + 8 (i / 2)) and its right neighbour,
//                  b[i] holds B(2t + 8 i, g) and the one below
//   tf32 m16n8k8:  a[i] holds A(g + 8 (i % 2), t + 4 (i / 2)), b[i] holds B(t + 4 i, g)
//   both:          d[i] holds D(g + 8 (i / 2), 2t + i % 2)
#pragma once

#include "cuda/device/device.h"

namespace fastnn::cuda {

#if !defined(FASTNN_CUDA_EMULATE)

FASTNN_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 8 or 16 bytes to global memory at once.
template <class Words>
FASTNN_DEVICE void store_words(void* global, const Words& words) {
  uint32_t w[sizeof(Words) / 4];
  memcpy(w, &words, sizeof(Words));
  const size_t to = __cvta_generic_to_global(global);
  if constexpr (sizeof(Words) == 16)
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(w[0]), "r"(w[1]),
                 "r"(w[2]), "r"(w[3])
                 : "memory");
  else
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(w[0]), "r"(w[1]) : "memory");
}

// Tensor cores' instructions in code that was compiled for a GPU without them trap: a fault, which
// is reported, instead of zeros.

// Two floats rounded to bfloat16, ties to even; the first in the lower half.
FASTNN_DEVICE uint32_t round_two(float first, float second) {
#if __CUDA_ARCH__ >= 800
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  return bits;
#else
  return to_bfloat16(first).bits | static_cast<uint32_t>(to_bfloat16(second).bits) << 16;
#endif
}

// 16 bytes from global to shared memory; if not `valid` zeros, whatever the address. There after
// wait_copies().
FASTNN_DEVICE void copy_async(void* shared, const void* global, bool valid) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
#else
  *static_cast<uint4*>(shared) = valid ? *static_cast<const uint4*>(global) : uint4{0, 0, 0, 0};
#endif
}
// Ends a group of copies.
FASTNN_DEVICE void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until at most kLeft of this thread's last groups are under way.
template <int kLeft>
FASTNN_DEVICE void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

// Four 8x8 matrices of 16-bit elements; lane 8 i + r gives the address of row r of matrix i.
FASTNN_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
FASTNN_DEVICE void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += a b
FASTNN_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}
FASTNN_DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}
// The nearest number with 10 bits of fraction, ties away from zero.
FASTNN_DEVICE uint32_t to_tf32(float x) {
  uint32_t bits = 0;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
#else
  __trap();
#endif
  return bits;
}

#else

template <class Words>
static inline void store_words(void* global, const Words& words) {
  if (reinterpret_cast<uintptr_t>(global) % sizeof(Words))
    emulator::fail("a store of several words is not aligned to its size");
  memcpy(global, &words, sizeof(Words));
}

static inline uint32_t round_two(float first, float second) {
  return to_bfloat16(first).bits | static_cast<uint32_t>(to_bfloat16(second).bits) << 16;
}

static inline void copy_async(void* shared, const void* global, bool valid) {
  emulator::async_copy(shared, global, 16, valid ? 16 : 0);
}
static inline void commit_copies() { emulator::async_commit(); }
template <int kLeft>
static inline void wait_copies() {
  emulator::async_wait(kLeft);
}

static inline void load_matrices_as(uint32_t (&r)[4], const void* row, bool transposed) {
  const auto* const rows =
      static_cast<const uint16_t* const*>(emulator::warp_exchange(&row, sizeof(row)));
  const int g = emulator::lane() / 4, t = emulator::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const uint16_t low = transposed ? rows[8 * i + 2 * t][g] : rows[8 * i + g][2 * t];
    const uint16_t high = transposed ? rows[8 * i + 2 * t + 1][g] : rows[8 * i + g][2 * t + 1];
    r[i] = low | static_cast<uint32_t>(high) << 16;
  }
  __syncwarp();  // no lane changes the matrices before all have read them
}
static inline void load_matrices(uint32_t (&r)[4], const void* row) {
  load_matrices_as(r, row, false);
}
static inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  load_matrices_as(r, row, true);
}

struct MmaOperands {
  uint32_t a[4], b[2];
};
// Every lane's operands, in order of lanes.
static inline const MmaOperands* all_operands(const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const MmaOperands mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  return static_cast<const MmaOperands*>(emulator::warp_exchange(&mine, sizeof(mine)));
}
static inline float half_of(uint32_t pair, int which) {
  return to_float(bfloat16{static_cast<uint16_t>(which ? pair >> 16 : pair)});
}
static inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const MmaOperands* const lanes = all_operands(a, b);
  const int g = emulator::lane() / 4, t = emulator::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = i / 2, column = 2 * t + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int holder = k % 8 / 2, half = k / 8;
      d[i] += half_of(lanes[4 * g + holder].a[row + 2 * half], k % 2) *
              half_of(lanes[4 * column + holder].b[half], k % 2);
    }
  }
}
static inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const MmaOperands* const lanes = all_operands(a, b);
  const int g = emulator::lane() / 4, t = emulator::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = i / 2, column = 2 * t + i % 2;
    for (int k = 0; k < 8; ++k)
      d[i] += __int_as_float(static_cast<int>(lanes[4 * g + k % 4].a[row + 2 * (k / 4)])) *
              __int_as_float(static_cast<int>(lanes[4 * column + k % 4].b[k / 4]));
  }
}
static inline uint32_t to_tf32(float x) {
  const auto bits = static_cast<uint32_t>(__float_as_int(x));
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
  return (bits + 0x1000u) & 0xffffe000u;
}

#endif

}  // namespace fastnn::cuda
