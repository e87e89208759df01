// What kernel sources include: the CUDA language, or its emulation on the host (cuda/emulator), and
// launches. Instructions that CUDA C++ has no name for are in device/ptx.h
// and device/hopper.h.
#pragma once

#if defined(FASTNN_CUDA_EMULATE)
#include "cuda/emulator/emulator.h"
#include "cuda/emulator/recorder.h"
#else
#include <cuda_runtime.h>
#endif

#include "core/dtype.h"
#include "cuda/capture.h"
#include "cuda/runtime.h"

#define FASTNN_DEVICE static __device__ __forceinline__
#define FASTNN_MEMBER __device__ __forceinline__

namespace fastnn::cuda {

// A variable in the block's shared memory: FASTNN_SHARED(Tile, tile) with Tile a plain type.
#if defined(FASTNN_CUDA_EMULATE)
#define FASTNN_SHARED(Type, name)   \
  static const char name##_key = 0; \
  Type& name = *static_cast<Type*>(::fastnn::cuda::emulator::shared(sizeof(Type), &name##_key))
static inline unsigned char* dynamic_shared() {
  return static_cast<unsigned char*>(emulator::dynamic_shared());
}
#else
#define FASTNN_SHARED(Type, name) __shared__ __align__(16) Type name
FASTNN_DEVICE unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char fastnn_dynamic_shared[];
  return fastnn_dynamic_shared;
}
#endif

constexpr size_t kStaticShared = 48 << 10;  // more has to be asked for

// kernel<<<grid, threads, shared>>>(arguments...) on a stream.
template <class... Parameters, class... Arguments>
cudaError_t launch_on(cudaStream_t stream, void (*kernel)(Parameters...), dim3 grid,
                      unsigned threads, size_t shared, const Arguments&... arguments) {
  ++launches();
#if defined(FASTNN_CUDA_EMULATE)
  emulator::launch(stream, grid, threads, shared,
                   [=] { kernel(static_cast<Parameters>(arguments)...); });
#else
  if (shared > kStaticShared)
    note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(shared)),
         "asking for shared memory");
  // clang-format off
  kernel<<<grid, threads, shared, stream>>>(static_cast<Parameters>(arguments)...);
  // clang-format on
#endif
  return cudaGetLastError();
}
// The same on the current stream, unless what it would depend on has failed, or this thread records
// on another device.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared,
            const Arguments&... arguments) {
  if (failing() || rehearsing() || left_out(current_device())) return;
  // A kernel's code is loaded when it is first run.
  const auto run = [&] {
    return launch_on(current_stream(), kernel, grid, threads, shared, arguments...);
  };
  note(with_memory(run, current_device()), "a kernel could not be run");
}

constexpr unsigned kThreads = 256;

// Enough blocks of kThreads to fill the device a few times over; kernels step on by the grid.
static inline unsigned blocks_for(int64_t threads) {
  const int64_t wanted = (threads + kThreads - 1) / kThreads;
  const int64_t most = int64_t{multiprocessors()} * 16;
  return static_cast<unsigned>(wanted < 1 ? 1 : wanted < most ? wanted : most);
}

FASTNN_DEVICE int64_t first_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
FASTNN_DEVICE int64_t all_threads() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

template <class F>
__global__ void __launch_bounds__(kThreads, 4) each_kernel(int64_t count, F f) {
  for (int64_t i = first_thread(); i < count; i += all_threads()) f(i);
}

// f(i) for i in [0, count), f a device lambda or functor.
template <class F>
void each(int64_t count, const F& f) {
  if (count) launch(each_kernel<F>, dim3(blocks_for(count)), kThreads, 0, count, f);
}

// i / size and i % size, i and size >= 0: of 32 bits where they are enough, for a division of 64 is
// some hundred instructions, five times as many.
struct Divided {
  int64_t quotient, rest;
};
FASTNN_DEVICE Divided divide(int64_t i, int64_t size) {
  if (static_cast<uint64_t>(i | size) >> 32) return {i / size, i % size};
  const auto small = static_cast<uint32_t>(i), by = static_cast<uint32_t>(size);
  const uint32_t quotient = small / by;
  return {quotient, small - quotient * by};
}
// For dimensions d from the last to the first: element i's index along d, which i is divided by.
FASTNN_DEVICE int64_t take_index(int64_t& i, const int64_t* shape, int d) {
  const Divided at = d ? divide(i, shape[d]) : Divided{0, i};
  i = at.quotient;
  return at.rest;
}

// Calls f with a value of T for a floating dtype: the kernel's element type.
template <class F>
void with_type(DType dtype, const F& f) {
  if (dtype == DType::float32)
    f(float{});
  else
    f(bfloat16{});
}

// Sums over the warp and over the block, in a fixed tree; every thread gets the result.
template <class T>
FASTNN_DEVICE T warp_sum(T x) {
  for (int bits = 16; bits; bits >>= 1) x += __shfl_xor_sync(0xffffffffu, x, bits);
  return x;
}
template <class T>
FASTNN_DEVICE T block_sum(T x) {
  using Parts = T[32];
  FASTNN_SHARED(Parts, parts);
  x = warp_sum(x);
  __syncthreads();  // an earlier sum's parts are read
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  T total = T{};
  for (unsigned w = 0; w < blockDim.x / 32; ++w) total += parts[w];
  return total;
}

}  // namespace fastnn::cuda
