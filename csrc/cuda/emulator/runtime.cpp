#include "cuda/emulator/runtime.h"

#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "cuda/emulator/recorder.h"

struct EmulatedGraph {
  std::vector<std::function<void()>> work;
  bool instantiated = false;
};
struct EmulatedStream {
  EmulatedGraph* capture = nullptr;
  bool valid = true;
  std::thread::id by;
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
  std::set<EmulatedStream*> streams;
  std::vector<EmulatedStream*> captured;
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

// FASTNN_EMULATED_CAPABILITY: 90 for 9.0.
int capability() {
  const char* given = getenv("FASTNN_EMULATED_CAPABILITY");
  return given ? atoi(given) : 90;
}

// Of our own; cudaStreamLegacy and its like are numbers.
bool is_stream(cudaStream_t stream) {
  std::lock_guard<std::recursive_mutex> lock(runtime().mutex);
  return reinterpret_cast<uintptr_t>(stream) <= 2 || runtime().streams.count(stream);
}
bool captures(cudaStream_t stream) {
  return reinterpret_cast<uintptr_t>(stream) > 2 && is_stream(stream) && stream->capture;
}

thread_local cudaStreamCaptureMode mode = cudaStreamCaptureModeThreadLocal;

// What this thread's recordings, or, `all`, those of all threads do not survive.
cudaError_t unsafe(bool all = false) {
  std::lock_guard<std::recursive_mutex> lock(runtime().mutex);
  bool hit = false;
  for (EmulatedStream* stream : runtime().captured)
    if (all || (stream->by == std::this_thread::get_id() && mode != cudaStreamCaptureModeRelaxed))
      stream->valid = false, hit = true;
  return hit ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

}  // namespace

// CUDA C++ programming guide, technical specifications per compute capability.
size_t shared_limit() {
  switch (capability()) {
    case 75:
      return size_t{64} << 10;
    case 80:
      return size_t{163} << 10;
    case 86:
    case 89:
      return size_t{99} << 10;
    default:
      return size_t{227} << 10;
  }
}

void enqueue(cudaStream_t stream, std::function<void()> work) {
  std::lock_guard<std::recursive_mutex> lock(runtime().mutex);
  if (!is_stream(stream))
    report("invalid resource handle");
  else if (captures(stream))
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

using fastnn::cuda::emulator::capability;
using fastnn::cuda::emulator::captures;
using fastnn::cuda::emulator::enqueue;
using fastnn::cuda::emulator::is_stream;
using fastnn::cuda::emulator::memory;
using fastnn::cuda::emulator::mode;
using fastnn::cuda::emulator::runtime;
using fastnn::cuda::emulator::shared_limit;
using fastnn::cuda::emulator::unsafe;

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
  properties->major = capability() / 10;
  properties->minor = capability() % 10;
  properties->multiProcessorCount = 4;
  properties->totalGlobalMem = memory();
  properties->sharedMemPerBlockOptin = shared_limit();
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  attributes->ptxVersion = capability();
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  std::lock_guard<std::recursive_mutex> lock(runtime().mutex);
  auto& blocks = runtime().blocks;
  auto block = blocks.upper_bound(const_cast<void*>(pointer));
  const bool ours =
      block != blocks.begin() && pointer < static_cast<char*>((--block)->first) + block->second;
  attributes->type = ours ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  attributes->device = ours ? 0 : -2;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return unsafe(true); }

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
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    default:
      return "invalid argument";
  }
}

// Blocks are exact-sized and start as NaN.
cudaError_t cudaMallocAsync(void** block, size_t bytes, cudaStream_t stream) {
  if (!is_stream(stream)) return cudaErrorInvalidResourceHandle;
  if (captures(stream)) return cudaErrorStreamCaptureUnsupported;
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
  if (!is_stream(stream)) return cudaErrorInvalidResourceHandle;
  if (captures(stream)) return cudaErrorStreamCaptureUnsupported;
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
  const cudaError_t result = unsafe();
  return result ? result : cudaMallocAsync(block, bytes, nullptr);
}
cudaError_t cudaFree(void* block) {
  const cudaError_t result = unsafe();
  return result ? result : cudaFreeAsync(block, nullptr);
}
cudaError_t cudaHostAlloc(void** block, size_t bytes, unsigned) {
  const cudaError_t result = unsafe();
  if (result) return result;
  return posix_memalign(block, 256, bytes) ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFreeHost(void* block) {
  const cudaError_t result = unsafe();
  if (!result) free(block);
  return result;
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
  if (!is_stream(stream)) return cudaErrorInvalidResourceHandle;
  enqueue(stream, [=] { memcpy(dst, src, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* dst, int value, size_t bytes, cudaStream_t stream) {
  if (!is_stream(stream)) return cudaErrorInvalidResourceHandle;
  enqueue(stream, [=] { memset(dst, value, bytes); });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new EmulatedStream;
  std::lock_guard<std::recursive_mutex> lock(runtime().mutex);
  runtime().streams.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  std::lock_guard<std::recursive_mutex> lock(runtime().mutex);
  if (!runtime().streams.erase(stream)) return cudaErrorInvalidResourceHandle;
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (!is_stream(stream)) return cudaErrorInvalidResourceHandle;
  if (!captures(stream)) return cudaSuccess;
  stream->valid = false;
  return cudaErrorStreamCaptureUnsupported;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t, unsigned) {
  return is_stream(stream) ? cudaSuccess : cudaErrorInvalidResourceHandle;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (!is_stream(stream)) return cudaErrorInvalidResourceHandle;
  if (reinterpret_cast<uintptr_t>(stream) <= 2 || stream->capture) return cudaErrorInvalidValue;
  std::lock_guard<std::recursive_mutex> lock(runtime().mutex);
  stream->capture = new EmulatedGraph;
  stream->valid = true;
  stream->by = std::this_thread::get_id();
  runtime().captured.push_back(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (!captures(stream) || stream->by != std::this_thread::get_id()) return cudaErrorInvalidValue;
  std::lock_guard<std::recursive_mutex> lock(runtime().mutex);
  auto& all = runtime().captured;
  all.erase(std::find(all.begin(), all.end(), stream));
  *graph = stream->capture;
  stream->capture = nullptr;
  if (stream->valid) return cudaSuccess;
  delete *graph;
  *graph = nullptr;
  return cudaErrorStreamCaptureInvalidated;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new EmulatedEvent;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (!is_stream(stream)) return cudaErrorInvalidResourceHandle;
  event->at = std::chrono::steady_clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return unsafe(); }
cudaError_t cudaEventQuery(cudaEvent_t) { return unsafe(); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  *milliseconds = std::chrono::duration<float, std::milli>(to->at - from->at).count();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  graph->instantiated = true;
  *exec = graph;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  if (captures(stream)) {
    stream->valid = false;
    return cudaErrorStreamCaptureUnsupported;
  }
  std::lock_guard<std::recursive_mutex> lock(runtime().mutex);
  for (const auto& work : exec->work) work();
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* other) {
  std::swap(*other, mode);
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  if (!graph->instantiated) return cudaGraphExecDestroy(graph);
  return cudaSuccess;
}
