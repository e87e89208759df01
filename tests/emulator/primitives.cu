// Every device primitive (csrc/cuda/device) on fixed operands, those of device/ptx.h by the kernels
// of csrc/cuda/self_check.cu; prints "name value value ..." per result. Built for the emulator and
// for a GPU, and compared with NumPy by tests/test_emulator.py.
#include <cstdio>
#include <vector>

#include "cuda/device/hopper.h"
#include "cuda/device/teams.h"
#include "cuda/self_check.h"

using namespace fastnn;
using namespace fastnn::cuda;

// Numbers that bfloat16 and TF32 hold exactly, so that only the order of sums may differ; no two
// rows or columns of them alike.
__host__ __device__ static float sample(uint32_t i) {
  return static_cast<float>(static_cast<int>(((i * 1103515245u + 12345u) >> 16) % 255) - 127) /
         16.0f;
}

__global__ void sums_kernel(float* y) {
  const float x = sample(threadIdx.x);
  const float total = block_sum(x), mine = warp_sum(x);
  y[threadIdx.x] = total;
  y[kThreads + threadIdx.x] = mine;
  y[2 * kThreads + threadIdx.x] = Team<kThreads>::largest(x);
}

// The value at (row, column) of a tile, as device/hopper.h says it lies.
__device__ static float tile_value_at(const bfloat16* tile, int row, int column) {
  const int byte = row * kBoxBytes + 2 * column;
  return to_float(tile[(byte ^ (row % 8 * 16)) / 2]);
}

// One box of each map, to y; twice, so that the barrier's phases take turns.
constexpr int kPixels = 64;
__global__ void boxes_kernel(const __grid_constant__ TensorMap boxes,
                             const __grid_constant__ TensorMap pixels, float* y) {
  auto* const tiles = reinterpret_cast<bfloat16*>(tiles_memory());
  using One = Barrier[1];
  FASTNN_SHARED(One, full);
  if (threadIdx.x == 0) make_barriers(full, 1, 1);
  __syncthreads();
  for (unsigned turn = 0; turn < 2; ++turn) {
    if (threadIdx.x == 0) {
      barrier_expect(full, turn ? kPixels * kBoxBytes : 8 * kBoxBytes);
      if (turn)
        load_pixels(tiles, &pixels, full, 16, 3, -2, 0, 2, 1);
      else
        load_box(tiles, &boxes, full, 16, 2, 1);
    }
    barrier_wait(full, turn);
    const int count = turn ? kPixels * kBoxValues : 8 * kBoxValues;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += 32)
      y[turn * 8 * kBoxValues + i] = tile_value_at(tiles, i / kBoxValues, i % kBoxValues);
    __syncthreads();
  }
}

// (64 x 64) times (N x 64) transposed, by a warpgroup; turned, the transpose of (64 x 64) times
// (64 x N), columns 64 and on in a box of their own.
template <int N, bool kTurned, class T = bfloat16>
__global__ void wgmma_kernel(const __grid_constant__ TensorMap a,
                             const __grid_constant__ TensorMap b, float* y) {
  auto* const tile_a = reinterpret_cast<bfloat16*>(tiles_memory());
  bfloat16* const tile_b = tile_a + 64 * kBoxValues;
  using One = Barrier[1];
  FASTNN_SHARED(One, full);
  if (threadIdx.x == 0) make_barriers(full, 1, 1);
  __syncthreads();
  if (threadIdx.x == 0) {
    barrier_expect(full, (64 + N) * kBoxBytes);
    load_box(tile_a, &a, full, 0, 0, 0);
    load_box(tile_b, &b, full, 0, 0, 0);
    if (kTurned && N > 64) load_box(tile_b + 64 * kBoxValues, &b, full, 64, 0, 0);
  }
  barrier_wait(full, 0);
  float sums[N / 2] = {};
  begin_products();
  for (int k = 0; k < 4; ++k)
    if (kTurned)
      multiply_async<T, true>(
          sums, turned_tile_at(tile_a) + k * kTurnedStep,
          turned_tile_at(tile_b, N > 64 ? 64 * kBoxBytes : 0) + k * kTurnedStep);
    else
      multiply_async<T>(sums, tile_at(tile_a) + k * kTermsStep, tile_at(tile_b) + k * kTermsStep);
  commit_products();
  wait_products<0>(sums);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  for (int i = 0; i < N / 2; ++i) {
    const int row = thread / 32 * 16 + lane / 4 + i % 4 / 2 * 8;
    y[row * N + i / 4 * 8 + 2 * (lane % 4) + i % 2] = sums[i];
  }
}

static TensorMap boxes_made(const void* data, DType dtype, const int64_t (&size)[3],
                            const int64_t (&box)[3]) {
  TensorMap map;
  if (!boxes_of(data, dtype, size, box, &map)) note_text("the driver makes no tensor map");
  return map;
}

static void print(const char* name, const std::vector<float>& values) {
  std::printf("%s", name);
  for (float v : values) std::printf(" %.9g", v);
  std::printf("\n");
  std::fflush(stdout);  // what comes next may hang, or end the process
}
static void print(const char* name, const Workspace& memory, int count) {
  std::vector<float> y(static_cast<size_t>(count));
  cuda::copy(y.data(), -1, memory.as<float>(), 0, count * 4);
  print(name, y);
}

// What failed so far, to stderr.
static bool told() {
  bool out_of_memory = false;
  const char* const message = take_error(&out_of_memory);
  if (message) std::fprintf(stderr, "%s\n", message);
  return message;
}

// On a stream of their own: a device that fails the first of them is refused (cuda/runtime.cu).
static bool print_self_check() {
  cudaStream_t stream;
  cudaFuncAttributes attributes;
  note(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  note(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&sums_kernel)),
       "this build's kernels on this GPU");
  if (told()) return false;
  for (const Primitive& p : run_primitives(stream, Primitives::basic)) print(p.name, p.found);
  bool fine = !told();
  if (attributes.ptxVersion < 80) return fine;
  for (const Primitive& p : run_primitives(stream, Primitives::tensor_cores))
    print(p.name, p.found);
  return !told() && fine;
}

int main() {
  const bool fine = print_self_check();
  const dim3 one(1);
  Workspace y(64 << 10);
  if (told()) return 1;
  launch(sums_kernel, one, kThreads, 0, y.as<float>());
  print("sums", y, 3 * kThreads);
  if (has_wgmma()) {
    constexpr int kCount = 1 << 15;
    constexpr DType half = kElement<bfloat16>, whole = kElement<float>;
    std::vector<bfloat16> values(kCount);
    for (uint32_t i = 0; i < kCount; ++i) values[i] = to_bfloat16(sample(i));
    Workspace data(kCount * 2);
    cuda::copy(data.as<float>(), 0, values.data(), -1, kCount * 2);
    const TensorMap boxes = boxes_made(data.as<char>(), half, {72, 4, 5}, {kBoxValues, 1, 8});
    TensorMap pixels;
    if (!pixels_of(data.as<char>(), half, {3, 5, 6, 72, {-1, -2}, {-2, -1}, {2, 1}}, kPixels,
                   &pixels))
      note_text("the driver makes no tensor map of pixels");
    launch(boxes_kernel, one, 32, kPixels * kBoxBytes + kTileAlignment, boxes, pixels,
           y.as<float>());
    print("load_box_and_pixels", y, (8 + kPixels) * kBoxValues);
    const TensorMap a = boxes_made(data.as<char>(), half, {64, 64, 1}, {kBoxValues, 64, 1});
    const TensorMap b =
        boxes_made(data.as<bfloat16>() + 4096, half, {64, 128, 1}, {kBoxValues, 64, 1});
    const TensorMap c =
        boxes_made(data.as<bfloat16>() + 4096, half, {64, 128, 1}, {kBoxValues, 128, 1});
    launch(wgmma_kernel<64, false>, one, kWarpgroup, 128 * kBoxBytes + kTileAlignment, a, b,
           y.as<float>());
    print("wgmma_64", y, 64 * 64);
    launch(wgmma_kernel<128, false>, one, kWarpgroup, 192 * kBoxBytes + kTileAlignment, a, c,
           y.as<float>());
    print("wgmma_128", y, 64 * 128);
    const TensorMap d =
        boxes_made(data.as<bfloat16>() + 4096, half, {128, 64, 1}, {kBoxValues, 64, 1});
    launch(wgmma_kernel<64, true>, one, kWarpgroup, 128 * kBoxBytes + kTileAlignment, a, d,
           y.as<float>());
    print("wgmma_64_turned", y, 64 * 64);
    launch(wgmma_kernel<128, true>, one, kWarpgroup, 192 * kBoxBytes + kTileAlignment, a, d,
           y.as<float>());
    print("wgmma_128_turned", y, 64 * 128);
    // TF32: the left operand is rounded, from halfway too; sums are exact nevertheless.
    std::vector<float> fine(6144);
    for (uint32_t i = 0; i < 6144; ++i)
      fine[i] = i < 2048 ? 1.0f + static_cast<float>(i * i * 37 % 8191) / 8192.0f : sample(i);
    Workspace floats(6144 * 4);
    cuda::copy(floats.as<float>(), 0, fine.data(), -1, 6144 * 4);
    const float* const second = floats.as<float>() + 2048;
    const TensorMap e = boxes_made(floats.as<float>(), whole, {32, 64, 1}, {32, 64, 1});
    const TensorMap f = boxes_made(second, whole, {32, 128, 1}, {32, 64, 1});
    const TensorMap g = boxes_made(second, whole, {32, 128, 1}, {32, 128, 1});
    launch(wgmma_kernel<64, false, float>, one, kWarpgroup, 128 * kBoxBytes + kTileAlignment, e, f,
           y.as<float>());
    print("wgmma_tf32_64", y, 64 * 64);
    launch(wgmma_kernel<128, false, float>, one, kWarpgroup, 192 * kBoxBytes + kTileAlignment, e, g,
           y.as<float>());
    print("wgmma_tf32_128", y, 64 * 128);
  }
  return !told() && fine ? 0 : 1;
}
