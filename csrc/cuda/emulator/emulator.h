// CUDA on the host, for tests on machines without a GPU: the kernel sources of csrc/cuda compiled
// as plain C++.
//
// A block's threads are fibers, run one at a time in an order that differs from launch to launch.
// They change places at barriers and warp collectives only, so a value that is read before it was
// written is stale in some order: shared memory starts as NaN. Barriers count their arrivals, and a
// thread that leaves while others wait is an error. Copies started with cp.async, or by the tensor
// memory accelerator, arrive only when they are waited for; until then their destination is NaN, as
// are the sums of a product of wgmma, which reads its operands as late. Device memory is the
// kernels' alone (memory.cpp), or exact-sized heap blocks, so that AddressSanitizer sees every
// access outside them. Cost: about 15 ns per change of thread, and the kernel's own arithmetic at
// scalar speed.
//
// The part of the CUDA runtime that csrc/cuda uses is in emulator/runtime.h.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <functional>

#include "cuda/emulator/runtime.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __grid_constant__

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  dim3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

// Of the thread that runs. Launches are serial.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace fastnn::cuda::emulator {

// Has every block of a launch run on the stream; the first error ends it, and is a launch failure.
void launch(cudaStream_t stream, dim3 grid, unsigned threads, size_t shared_bytes,
            std::function<void()> thread);

// Ends the launch with an error.
[[noreturn]] void fail(const char* message);

void block_barrier();
// All 32 lanes of the warp put in `bytes` bytes; the result is lane 0's, followed by lane 1's ...,
// and stays until the warp's next exchange but one.
const void* warp_exchange(const void* value, size_t bytes);
int lane();

// Storage shared by the threads of a block, the same for the same key.
void* shared(size_t bytes, const void* key);
// Behind the block's other storage: not where a multiple of 1024 bytes begins.
constexpr size_t kDynamicAt = 128;
void* dynamic_shared();

void async_copy(void* dst, const void* src, size_t bytes, size_t src_bytes);
void async_commit();
void async_wait(int groups_left);

// Barriers of sm_90 (device/hopper.h), known by address. A wait that nothing can end is an error.
void barrier_init(const void* barrier, unsigned arrivals);
void barrier_arrive(const void* barrier, unsigned expected_bytes);
void barrier_wait(const void* barrier, unsigned parity);
// `copy` fills `bytes` at dst by the time of a wait for the barrier.
void bulk_copy(void* dst, size_t bytes, const void* barrier, std::function<void()> copy);

// `product` adds to the `count` numbers of d when the thread waits for its group.
void later_product(float* d, int count, std::function<void(float*)> product);
void commit_products();
void wait_products(int groups_left);

}  // namespace fastnn::cuda::emulator

static inline void __syncthreads() { fastnn::cuda::emulator::block_barrier(); }
static inline void __syncwarp(unsigned = 0xffffffffu) {
  const int nothing = 0;
  fastnn::cuda::emulator::warp_exchange(&nothing, sizeof(nothing));
}
template <class T>
static inline T __shfl_sync(unsigned, T value, int from) {
  const T* const all =
      static_cast<const T*>(fastnn::cuda::emulator::warp_exchange(&value, sizeof(T)));
  return all[from & 31];
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return __shfl_sync(mask, value, fastnn::cuda::emulator::lane() ^ bits);
}
static inline int __float_as_int(float x) {
  int bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}
static inline float __int_as_float(int bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}
static inline uint32_t __umulhi(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
// Threads change places at barriers only.
static inline void __threadfence_system() {}
static inline int atomicCAS(int* at, int expected, int value) {
  const int before = *at;
  if (before == expected) *at = value;
  return before;
}
