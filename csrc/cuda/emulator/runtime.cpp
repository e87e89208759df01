#include "cuda/emulator/runtime.h"

#include <stdlib.h>
#include <string.h>

#include <chrono>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/emulator/recorder.h"

struct EmulatedGraph {
  std::vector<std::function<void()>> work;
  bool instantiated = false;
};
struct EmulatedStream {
  EmulatedGraph* capture = nullptr;
};
struct EmulatedEvent {
  std::chrono::steady_clock::time_point at;
};

namespace fastnn::cuda::emulator {
namespace {

struct Runtime {
  std::recursive_mutex mutex;
  std::string message;
  bool failed = false;
  std::map<void*, size_t> blocks;
  size_t used = 0, highest = 0;
};

Runtime& runtime() {
  static Runtime* const instance = new Runtime;
  return *instance;
}

// FASTNN_EMULATED_MEMORY: bytes of the emulated device.
size_t memory() {
  const char* given = getenv("FASTNN_EMULATED_MEMORY");
  return given ? strtoull(given, nullptr, 10) : size_t{4} << 30;
}

}  // namespace

void enqueue(cudaStream_t stream, std::function<void()> work) {
  std::lock_guard<std::recursive_mutex> lock(runtime().mutex);
  if (stream && stream->capture)
    stream->capture->work.push_back(std::move(work));
  else
    work();
}

void report(const char* message) {
  Runtime& r = runtime();
  if (!r.failed) r.message = message;
  r.failed = true;
}

}  // namespace fastnn::cuda::emulator

using fastnn::cuda::emulator::enqueue;
using fastnn::cuda::emulator::memory;
using fastnn::cuda::emulator::runtime;

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  strcpy(properties->name, "emulated");
  properties->major = 9;
  properties->minor = 0;
  properties->multiProcessorCount = 4;
  properties->totalGlobalMem = memory();
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

cudaError_t cudaGetLastError() {
  const bool failed = runtime().failed;
  runtime().failed = false;
  return failed ? cudaErrorLaunchFailure : cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorLaunchFailure:
      return runtime().message.c_str();
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    default:
      return "invalid argument";
  }
}

// Blocks are exact-sized and start as NaN.
cudaError_t cudaMallocAsync(void** block, size_t bytes, cudaStream_t stream) {
  if (stream && stream->capture) return cudaErrorStreamCaptureUnsupported;
  std::lock_guard<std::recursive_mutex> lock(runtime().mutex);
  auto& r = runtime();
  if (bytes > memory() - r.used) return cudaErrorMemoryAllocation;
  if (posix_memalign(block, 256, bytes)) return cudaErrorMemoryAllocation;
  memset(*block, 0xff, bytes);
  r.blocks[*block] = bytes;
  r.used += bytes;
  if (r.used > r.highest) r.highest = r.used;
  return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* block, cudaStream_t stream) {
  if (stream && stream->capture) return cudaErrorStreamCaptureUnsupported;
  std::lock_guard<std::recursive_mutex> lock(runtime().mutex);
  auto& r = runtime();
  const auto found = r.blocks.find(block);
  if (found == r.blocks.end()) return cudaErrorInvalidValue;
  r.used -= found->second;
  r.blocks.erase(found);
  free(block);
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** block, size_t bytes) {
  return cudaMallocAsync(block, bytes, nullptr);
}
cudaError_t cudaFree(void* block) { return cudaFreeAsync(block, nullptr); }
cudaError_t cudaHostAlloc(void** block, size_t bytes, unsigned) {
  return posix_memalign(block, 256, bytes) ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFreeHost(void* block) {
  free(block);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = memory();
  *free = memory() - runtime().used;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  *pool = nullptr;
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr attribute, void*) {
  if (attribute == cudaMemPoolAttrUsedMemHigh) runtime().highest = runtime().used;
  return cudaSuccess;
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr attribute, void* value) {
  *static_cast<uint64_t*>(value) =
      attribute == cudaMemPoolAttrUsedMemHigh ? runtime().highest : runtime().used;
  return cudaSuccess;
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }

cudaError_t cudaMemcpyAsync(void* dst, const void* src, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  enqueue(stream, [=] { memcpy(dst, src, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* dst, int value, size_t bytes, cudaStream_t stream) {
  enqueue(stream, [=] { memset(dst, value, bytes); });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new EmulatedStream;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return stream && stream->capture ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (!stream || stream->capture) return cudaErrorInvalidValue;
  stream->capture = new EmulatedGraph;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (!stream || !stream->capture) return cudaErrorInvalidValue;
  *graph = stream->capture;
  stream->capture = nullptr;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new EmulatedEvent;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  event->at = std::chrono::steady_clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  *milliseconds = std::chrono::duration<float, std::milli>(to->at - from->at).count();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  graph->instantiated = true;
  *exec = graph;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
  std::lock_guard<std::recursive_mutex> lock(runtime().mutex);
  for (const auto& work : exec->work) work();
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  if (!graph->instantiated) return cudaGraphExecDestroy(graph);
  return cudaSuccess;
}
