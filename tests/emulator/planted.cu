// Kernels with one planted mistake each, and what a correct one does, for tests/test_emulator.py:
// `planted NAME` runs one and exits with 0 if the result is right.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "cuda/device/hopper.h"
#include "cuda/device/ptx.h"
#include "cuda/device/teams.h"

using namespace fastnn;
using namespace fastnn::cuda;

constexpr int kN = 256;

// Reverses kN numbers through shared memory; without the barrier, threads read what is not there
// yet.
template <bool kBarrier>
__global__ void reverse_kernel(const float* x, float* y) {
  using Buffer = float[kN];
  FASTNN_SHARED(Buffer, buffer);
  buffer[threadIdx.x] = x[threadIdx.x];
  if (kBarrier) __syncthreads();
  y[threadIdx.x] = buffer[kN - 1 - threadIdx.x];
}

// Each thread adds its right neighbour; the last one reads past the end.
__global__ void neighbour_kernel(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x] + x[threadIdx.x + 1];
}

// Writes past the end of shared memory.
__global__ void overrun_kernel(float* y) {
  using Buffer = float[kN];
  FASTNN_SHARED(Buffer, buffer);
  buffer[threadIdx.x + 1] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = buffer[threadIdx.x];
}

// Half of the threads leave before the barrier, or reach another number of them.
__global__ void early_exit_kernel(float* y) {
  if (threadIdx.x >= kN / 2) return;
  __syncthreads();
  y[threadIdx.x] = 1.0f;
}
__global__ void uneven_kernel(float* y) {
  y[threadIdx.x] = 1.0f;
  __syncthreads();
  if (threadIdx.x < 32) __syncthreads();
}
__global__ void lone_shuffle_kernel(float* y) {
  if (threadIdx.x % 2 == 0) y[threadIdx.x] = warp_sum(1.0f);
}

// Copies through shared memory asynchronously; without waiting, the copy has not arrived.
template <bool kWait>
__global__ void copy_kernel(const float* x, float* y) {
  using Buffer = float[kN];
  FASTNN_SHARED(Buffer, buffer);
  if (threadIdx.x < kN / 4) copy_async(&buffer[4 * threadIdx.x], x + 4 * threadIdx.x, true);
  commit_copies();
  if (kWait) wait_copies<0>();
  __syncthreads();
  y[threadIdx.x] = buffer[threadIdx.x];
  wait_copies<0>();
}

// Adds neighbouring warps' sums without a barrier between writing and reading them.
template <bool kBarrier>
__global__ void sums_kernel(float* y) {
  using Parts = float[kN / 32];
  FASTNN_SHARED(Parts, parts);
  const float sum = warp_sum(1.0f);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
  if (kBarrier) __syncthreads();
  float total = 0;
  for (int w = 0; w < kN / 32; ++w) total += parts[w];
  y[threadIdx.x] = total;
}

// The sums of 64 x 64 ones times 64 x 64 ones, by a warpgroup: 64 each.
enum class Mistake {
  none,
  product_not_waited_for,
  copy_not_waited_for,
  tile_reused,
  too_few_bytes
};
template <Mistake kMistake>
__global__ void wgmma_kernel(const __grid_constant__ TensorMap ones, float* y) {
  auto* const tile = reinterpret_cast<bfloat16*>(tiles_memory());
  using One = Barrier[1];
  FASTNN_SHARED(One, full);
  if (threadIdx.x == 0) make_barriers(full, 1, 1);
  __syncthreads();
  if (threadIdx.x == 0) {
    barrier_expect(full, (kMistake == Mistake::too_few_bytes ? 65 : 64) * kBoxBytes);
    load_box(tile, &ones, full, 0, 0, 0);
  }
  if (kMistake != Mistake::copy_not_waited_for) barrier_wait(full, 0);
  float sums[32] = {};
  begin_products();
  for (int k = 0; k < 4; ++k)
    multiply_async<bfloat16>(sums, tile_at(tile) + k * kTermsStep, tile_at(tile) + k * kTermsStep);
  commit_products();
  if (kMistake == Mistake::tile_reused) {
    __syncthreads();
    if (threadIdx.x == 0) {
      barrier_expect(full, 64 * kBoxBytes);
      load_box(tile, &ones, full, 0, 0, 0);
    }
  }
  if (kMistake != Mistake::product_not_waited_for) wait_products<0>(sums);
  y[threadIdx.x] = y[kWarpgroup + threadIdx.x] = sums[5];
  if (kMistake == Mistake::copy_not_waited_for || kMistake == Mistake::tile_reused)
    barrier_wait(full, kMistake == Mistake::tile_reused);
  wait_products<0>(sums);
}

// Of no work, recorded on the stream.
cudaGraphExec_t empty_graph(cudaStream_t stream) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  cudaStreamEndCapture(stream, &graph);
  cudaGraphInstantiate(&exec, graph, 0);
  return exec;
}

int main(int, char** argv) {
  const char* const name = argv[1];
  const auto is = [&](const char* other) { return std::strcmp(name, other) == 0; };
  std::vector<float> x(kN), expected(kN), y(kN);
  for (int i = 0; i < kN; ++i) x[i] = expected[i] = static_cast<float>(i);
  Workspace source(kN * 4), result(kN * 4);
  float* const in = source.as<float>();
  float* const out = result.as<float>();
  cuda::copy(in, 0, x.data(), -1, kN * 4);
  const dim3 one(1);
  std::vector<bfloat16> ones(64 * 64, to_bfloat16(1.0f));
  Workspace matrix(64 * 64 * 2);
  cuda::copy(matrix.as<float>(), 0, ones.data(), -1, 64 * 64 * 2);
  TensorMap map;
  boxes_of(matrix.as<char>(), kElement<bfloat16>, {64, 64, 1}, {64, 64, 1}, &map);
  const auto wgmma = [&](auto kernel) {
    launch(kernel, one, kWarpgroup, 64 * kBoxBytes + kTileAlignment, map, out);
    expected.assign(kN, 64.0f);
  };
  if (is("reverse")) launch(reverse_kernel<true>, one, kN, 0, in, out);
  if (is("reverse-without-barrier")) launch(reverse_kernel<false>, one, kN, 0, in, out);
  if (is("read-past-the-end")) launch(neighbour_kernel, one, kN, 0, in, out);
  if (is("write-past-shared")) launch(overrun_kernel, one, kN, 0, out);
  if (is("early-exit")) launch(early_exit_kernel, one, kN, 0, out);
  if (is("uneven-barriers")) launch(uneven_kernel, one, kN, 0, out);
  if (is("lone-shuffle")) launch(lone_shuffle_kernel, one, kN, 0, out);
  if (is("copy")) launch(copy_kernel<true>, one, kN, 0, in, out);
  if (is("copy-without-waiting")) launch(copy_kernel<false>, one, kN, 0, in, out);
  if (is("sums")) launch(sums_kernel<true>, one, kN, 0, out);
  if (is("sums-without-barrier")) launch(sums_kernel<false>, one, kN, 0, out);
  if (is("wgmma")) wgmma(wgmma_kernel<Mistake::none>);
  if (is("product-without-waiting")) wgmma(wgmma_kernel<Mistake::product_not_waited_for>);
  if (is("box-without-waiting")) wgmma(wgmma_kernel<Mistake::copy_not_waited_for>);
  if (is("tile-reused-too-early")) wgmma(wgmma_kernel<Mistake::tile_reused>);
  if (is("wait-for-too-many-bytes")) wgmma(wgmma_kernel<Mistake::too_few_bytes>);
  if (is("too-many-threads")) launch(reverse_kernel<true>, one, 2048, 0, in, out);
  if (is("graph-in-a-recording")) {
    cudaStream_t const stream = new_stream(0);
    cudaGraphExec_t const exec = empty_graph(stream);
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    note(cudaGraphLaunch(exec, stream), "a graph");
  }
  if (is("graph-on-two-streams")) {
    cudaStream_t const stream = new_stream(0);
    cudaGraphExec_t const exec = empty_graph(stream);
    note(cudaGraphLaunch(exec, stream), "the first launch");
    note(cudaGraphLaunch(exec, new_stream(0)), "the second launch");
  }
  if (is("host-reads-the-device")) std::printf("%g\n", in[0]);
  if (is("streams-without-order"))
    launch_on(new_stream(0), reverse_kernel<true>, one, kN, 0, in, out);
  if (is("read-after-free")) {
    Workspace gone(kN * 4);
    cuda::copy(gone.as<float>(), 0, x.data(), -1, kN * 4);
    launch(reverse_kernel<true>, one, kN, 0, gone.as<float>(), out);
    deallocate(0, gone.as<float>(), kN * 4);
    launch(reverse_kernel<true>, one, kN, 0, gone.as<float>(), out);
  }
  if (is("reverse-on-the-default-stream")) {  // cudaFree waits for it
    void* block = nullptr;
    cudaMalloc(&block, kN * 4);
    cuda::copy(block, 0, x.data(), -1, kN * 4);
    launch_on(cudaStreamLegacy, reverse_kernel<true>, one, kN, 0, static_cast<float*>(block), out);
    cudaFree(block);
  }
  // Another library records on the device, which cannot be waited for meanwhile.
  if (std::strstr(name, "while-another-records"))
    std::thread([] {
      cudaStream_t theirs;
      cudaStreamCreateWithFlags(&theirs, cudaStreamNonBlocking);
      cudaStreamBeginCapture(theirs, cudaStreamCaptureModeThreadLocal);
    }).join();
  if (is("reverse-a-table-while-another-records")) {
    const float* const table = constant_table(x.data(), kN);
    launch(reverse_kernel<true>, one, kN, 0, table, out);
    let_go_of_constants();
    free_constants(0);
    constant_table(x.data(), 1);  // waits for the stream on which tables are freed
    if (constant_table(x.data(), kN) != table) return 5;
  }
  if (is("allocate-while-another-records")) allocate(0, int64_t{1} << 40);
  if (is("after-a-failed-kernel")) {
    launch(uneven_kernel, one, kN, 0, out);
    bool out_of_memory = false;
    const auto say = [&](const char* what, bool failed) {
      const char* const message = take_error(&out_of_memory);
      std::fprintf(stderr, "%s %d: %s\n", what, failed, message ? message : "nothing");
    };
    say("wait", !synchronize());
    launch(reverse_kernel<true>, one, kN, 0, in, out);
    say("launch", true);
    say("allocate", !allocate(0, 4));
    say("copy", !cuda::copy(out, 0, x.data(), -1, kN * 4));
    say("wait for all", !synchronize_device(0));
    return out_of_memory ? 0 : 4;
  }
  // Streams, events and pools of two devices, with the first one current.
  if (is("stream-of-another-device"))
    note(launch_on(new_stream(1), reverse_kernel<true>, one, kN, 0, in, out),
         "a kernel could not be run");
  if (is("event-of-another-device")) {
    cudaEvent_t event;
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    note(cudaEventRecord(event, new_stream(1)), "an event");
  }
  if (is("copy-between-pools")) {
    void* there;
    cudaMallocAsync(&there, kN * 4, new_stream(1));
    note(cudaMemcpyAsync(out, there, kN * 4, cudaMemcpyDefault, new_stream(0)), "a copy");
  }
  if (std::strncmp(name, "reverse", 7) == 0)
    for (int i = 0; i < kN; ++i) expected[i] = x[kN - 1 - i];
  if (std::strncmp(name, "sums", 4) == 0)
    for (int i = 0; i < kN; ++i) expected[i] = kN;
  bool out_of_memory = false;
  cuda::copy(y.data(), -1, out, 0, kN * 4);
  if (const char* message = take_error(&out_of_memory)) {
    std::fprintf(stderr, "%s\n", message);
    return 2;
  }
  for (int i = 0; i < kN; ++i)
    if (y[i] != expected[i]) {
      std::fprintf(stderr, "wrong result at %d: %g\n", i, y[i]);
      return 3;
    }
  return 0;
}
