#include "cuda/emulator/runtime.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "cuda/emulator/recorder.h"

// How much of streams' work is done, or has to be.
using Progress = std::map<const EmulatedStream*, uint64_t>;

using Work = std::function<void()>;

struct EmulatedGraph {
  std::shared_ptr<std::vector<Work>> work = std::make_shared<std::vector<Work>>();
  bool instantiated = false;
  Progress launched;  // until its last launch is done
};
struct EmulatedStream {
  int device;
  EmulatedGraph* capture = nullptr;
  bool valid = true;
  std::thread::id by;
  uint64_t queued = 0;       // pieces of work
  Progress after;            // what is done before its next
  std::deque<Work> waiting;  // the last of them
};
struct EmulatedEvent {
  int device;
  std::chrono::steady_clock::time_point at;
  Progress after;
};
struct EmulatedPool {
  size_t used = 0, highest = 0;
};

namespace fastnn::cuda::emulator {
namespace {

struct Block {
  size_t bytes;
  int device;
  bool pooled;  // made by cudaMallocAsync
};
struct Device {
  EmulatedPool pool;
  size_t used = 0;          // of the pool and besides
  EmulatedStream standard;  // cudaStreamLegacy and its like, which are numbers
};

struct Runtime {
  std::recursive_mutex mutex;
  std::string message;
  cudaError_t failure = cudaSuccess;
  std::map<void*, Block> blocks, pinned;
  std::set<EmulatedStream*> streams;
  std::vector<EmulatedStream*> captured;
  std::map<int, Device> devices;
  Progress done;  // that the host has waited for
};

Runtime& runtime() {
  static Runtime* const instance = new Runtime;
  return *instance;
}
using Lock = std::lock_guard<std::recursive_mutex>;

// FASTNN_EMULATED_DEVICES: how many there are.
int device_count() {
  const char* given = getenv("FASTNN_EMULATED_DEVICES");
  return given ? atoi(given) : 1;
}
bool is_device(int device) { return device >= 0 && device < device_count(); }

// FASTNN_EMULATED_MEMORY: bytes of each emulated device.
size_t memory() {
  const char* given = getenv("FASTNN_EMULATED_MEMORY");
  return given ? strtoull(given, nullptr, 10) : size_t{4} << 30;
}

// FASTNN_EMULATED_CAPABILITY: 90 for 9.0, 90a where its code is sm_90a's.
const char* architecture() {
  const char* given = getenv("FASTNN_EMULATED_CAPABILITY");
  return given ? given : "90a";
}
int capability() { return atoi(architecture()); }

// FASTNN_EMULATED_POOLS=0: a driver without stream-ordered memory.
bool has_pools() {
  const char* given = getenv("FASTNN_EMULATED_POOLS");
  return !given || atoi(given) != 0;
}

thread_local int current = 0;
thread_local cudaStreamCaptureMode mode = cudaStreamCaptureModeThreadLocal;

Device& device_at(int index) {
  Lock lock(runtime().mutex);
  Device& d = runtime().devices[index];
  d.standard.device = index;
  return d;
}

// Null for what is no stream.
EmulatedStream* known(cudaStream_t stream) {
  Lock lock(runtime().mutex);
  if (reinterpret_cast<uintptr_t>(stream) <= 2) return &device_at(current).standard;
  return runtime().streams.count(stream) ? stream : nullptr;
}
bool captures(cudaStream_t stream) {
  const EmulatedStream* const s = known(stream);
  return s && s->capture;
}

// The one of these that the pointer is into, or null.
const Block* block_at(const std::map<void*, Block>& blocks, const void* pointer) {
  const auto after = blocks.upper_bound(const_cast<void*>(pointer));
  if (after == blocks.begin()) return nullptr;
  const auto& [start, block] = *std::prev(after);
  return pointer < static_cast<char*>(start) + block.bytes ? &block : nullptr;
}

// Null for memory that is no device's.
const Block* block_at(const void* pointer) { return block_at(runtime().blocks, pointer); }
bool is_pinned(const void* pointer) { return block_at(runtime().pinned, pointer); }

// A kernel's failure, which stays.
cudaError_t broken() {
  const cudaError_t failure = runtime().failure;
  return failure == cudaErrorLaunchFailure ? failure : cudaSuccess;
}

// What this thread's recordings, or, `all`, all threads' of the current device do not survive.
cudaError_t unsafe(bool all = false) {
  Lock lock(runtime().mutex);
  if (broken()) return broken();
  bool hit = false;
  for (EmulatedStream* stream : runtime().captured) {
    const bool ours =
        stream->by == std::this_thread::get_id() && mode != cudaStreamCaptureModeRelaxed;
    if (ours || (all && stream->device == current)) stream->valid = false, hit = true;
  }
  return hit ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

void advance(Progress& to, const Progress& from) {
  for (const auto& [stream, count] : from) to[stream] = std::max(to[stream], count);
}
bool reached(const Progress& by, const Progress& aim) {
  for (const auto& [stream, count] : aim) {
    const auto found = by.find(stream);
    if (found == by.end() || found->second < count) return false;
  }
  return true;
}
// All that the stream has queued, and what that waits for.
Progress progress(const EmulatedStream& s) {
  Progress all = s.after;
  all[&s] = s.queued;
  return all;
}

// Does the stream's work up to this piece.
void work_until(EmulatedStream& stream, uint64_t piece) {
  const auto due = [&] {
    return !stream.waiting.empty() && stream.queued - stream.waiting.size() < piece;
  };
  if (!due()) return;
  const Access now;
  while (due()) {
    const Work work = std::move(stream.waiting.front());
    stream.waiting.pop_front();
    if (!broken()) work();
  }
}
void work_until(const Progress& all) {
  for (const auto& [stream, piece] : all) work_until(*const_cast<EmulatedStream*>(stream), piece);
}
// The host waits for it.
cudaError_t wait_for(const Progress& all) {
  work_until(all);
  advance(runtime().done, all);
  return broken();
}

// Whether it is done. If not, a piece of it is now: one may ask until it is.
cudaError_t query(const Progress& all) {
  if (const cudaError_t result = unsafe()) return result;
  for (const auto& [stream, piece] : all) {
    const uint64_t done = stream->queued - stream->waiting.size();
    if (done >= piece) continue;
    work_until(*const_cast<EmulatedStream*>(stream), done + 1);
    return cudaErrorNotReady;
  }
  return cudaSuccess;
}

constexpr uint64_t kMostWaiting = 256;  // what a stream holds before it begins by itself
void queue(EmulatedStream& stream, Work work) {
  Lock lock(runtime().mutex);
  if (stream.capture) return stream.capture->work->push_back(std::move(work));
  ++stream.queued;
  stream.waiting.push_back(std::move(work));
  if (stream.waiting.size() > kMostWaiting) work_until(stream, stream.queued - kMostWaiting / 2);
}

cudaError_t make_block(void** block, size_t bytes, int device, bool pooled) {
  Lock lock(runtime().mutex);
  Device& d = device_at(device);
  if (bytes > memory() - d.used) return cudaErrorMemoryAllocation;
  *block = make_memory(bytes);
  if (!*block) return cudaErrorMemoryAllocation;
  runtime().blocks[*block] = {bytes, device, pooled};
  d.used += bytes;
  if (!pooled) return cudaSuccess;
  d.pool.used += bytes;
  d.pool.highest = std::max(d.pool.highest, d.pool.used);
  return cudaSuccess;
}
cudaError_t end_block(void* block) {
  Lock lock(runtime().mutex);
  const auto found = runtime().blocks.find(block);
  if (found == runtime().blocks.end()) return cudaErrorInvalidValue;
  Device& d = device_at(found->second.device);
  d.used -= found->second.bytes;
  if (found->second.pooled) d.pool.used -= found->second.bytes;
  end_memory(block, found->second.bytes);
  runtime().blocks.erase(found);
  return cudaSuccess;
}

}  // namespace

bool is_sm_90a() { return strcmp(architecture(), "90a") == 0; }

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
  EmulatedStream* const s = known(stream);
  if (!s || s->device != current)
    report("invalid resource handle", cudaErrorInvalidResourceHandle);
  else
    queue(*s, std::move(work));
}

void report(const char* message, cudaError_t error) {
  Runtime& r = runtime();
  if (r.failure) return;
  r.message = message;
  r.failure = error;
}

}  // namespace fastnn::cuda::emulator

using namespace fastnn::cuda::emulator;

cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_count();
  return cudaSuccess;
}
// A process that is forked after the first call has no GPU.
static bool forked() {
  static const pid_t user = getpid();
  return getpid() != user;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return forked() ? cudaErrorInitializationError : cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (!is_device(device)) return cudaErrorInvalidDevice;
  current = device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (!is_device(device)) return cudaErrorInvalidDevice;
  strcpy(properties->name, "emulated");
  properties->major = capability() / 10;
  properties->minor = capability() % 10;
  properties->multiProcessorCount = 4;
  properties->totalGlobalMem = memory();
  properties->sharedMemPerBlockOptin = shared_limit();
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device) {
  if (!is_device(device)) return cudaErrorInvalidDevice;
  *value = has_pools();
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  attributes->ptxVersion = capability();
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  Lock lock(runtime().mutex);
  const Block* const block = block_at(pointer);
  attributes->type = block ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  attributes->device = block ? block->device : -2;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  Lock lock(runtime().mutex);
  if (const cudaError_t result = unsafe(true)) return result;  // and nothing has been waited for
  wait_for(progress(device_at(current).standard));
  for (const EmulatedStream* stream : runtime().streams)
    if (stream->device == current) wait_for(progress(*stream));
  return broken();
}

cudaError_t cudaGetLastError() {
  const cudaError_t failure = runtime().failure;
  if (!broken()) runtime().failure = cudaSuccess;
  return failure;
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorLaunchFailure:
    case cudaErrorInvalidConfiguration:
      return runtime().message.c_str();
    case cudaErrorInitializationError:
      return "initialization error";
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

cudaError_t cudaMallocAsync(void** block, size_t bytes, cudaStream_t stream) {
  const EmulatedStream* const s = known(stream);
  if (!s) return cudaErrorInvalidResourceHandle;
  if (s->capture) return cudaErrorStreamCaptureUnsupported;
  if (broken()) return broken();
  return make_block(block, bytes, s->device, true);
}
cudaError_t cudaFreeAsync(void* block, cudaStream_t stream) {
  Lock lock(runtime().mutex);
  EmulatedStream* const s = known(stream);
  if (!s) return cudaErrorInvalidResourceHandle;
  if (s->capture) return cudaErrorStreamCaptureUnsupported;
  const auto found = runtime().blocks.find(block);
  if (found == runtime().blocks.end()) return cudaErrorInvalidValue;
  if (!found->second.pooled || found->second.device != s->device) return cudaErrorInvalidValue;
  queue(*s, [=] { end_block(block); });
  return broken();
}
cudaError_t cudaMalloc(void** block, size_t bytes) {
  const cudaError_t result = unsafe();
  return result ? result : make_block(block, bytes, current, false);
}
cudaError_t cudaFree(void* block) {
  const cudaError_t result = unsafe();
  Lock lock(runtime().mutex);
  for (const auto& [index, device] : runtime().devices) work_until(progress(device.standard));
  for (const EmulatedStream* stream : runtime().streams) work_until(progress(*stream));
  return result ? result : end_block(block);
}
cudaError_t cudaHostAlloc(void** block, size_t bytes, unsigned) {
  if (forked()) return cudaErrorInitializationError;
  const cudaError_t result = unsafe();
  if (result) return result;
  if (posix_memalign(block, 256, bytes)) return cudaErrorMemoryAllocation;
  Lock lock(runtime().mutex);
  runtime().pinned[*block] = {bytes, -1, false};
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* block) {
  const cudaError_t result = unsafe();
  if (result) return result;
  Lock lock(runtime().mutex);
  runtime().pinned.erase(block);
  free(block);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = memory();
  *free = memory() - device_at(current).used;
  return unsafe();
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
  if (!is_device(device)) return cudaErrorInvalidDevice;
  if (!has_pools()) return cudaErrorNotSupported;
  *pool = &device_at(device).pool;
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void*) {
  Lock lock(runtime().mutex);
  if (attribute == cudaMemPoolAttrUsedMemHigh) pool->highest = pool->used;
  return unsafe();
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value) {
  Lock lock(runtime().mutex);
  *static_cast<uint64_t*>(value) =
      attribute == cudaMemPoolAttrUsedMemHigh ? pool->highest : pool->used;
  return unsafe();
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return unsafe(); }

// Pools of two devices do not see each other: nobody has given them access. Ordinary memory is read
// at once, and written by the time that the call returns.
cudaError_t cudaMemcpyAsync(void* dst, const void* src, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  Lock lock(runtime().mutex);
  EmulatedStream* const s = known(stream);
  if (!s) return cudaErrorInvalidResourceHandle;
  const Block *const to = block_at(dst), *const from = block_at(src);
  if (to && from && to->device != from->device && (to->pooled || from->pooled))
    return cudaErrorInvalidValue;
  if (from || s->capture || is_pinned(src))
    queue(*s, [=] { memcpy(dst, src, bytes); });
  else
    queue(*s, [dst, staged = std::string(static_cast<const char*>(src), bytes)] {
      memcpy(dst, staged.data(), staged.size());
    });
  if (!to && !s->capture && !is_pinned(dst)) wait_for(progress(*s));
  return broken();
}
cudaError_t cudaMemcpyPeerAsync(void* dst, int dst_device, const void* src, int src_device,
                                size_t bytes, cudaStream_t stream) {
  Lock lock(runtime().mutex);
  EmulatedStream* const s = known(stream);
  if (!s) return cudaErrorInvalidResourceHandle;
  const Block *const to = block_at(dst), *const from = block_at(src);
  if (!to || !from || to->device != dst_device || from->device != src_device)
    return cudaErrorInvalidValue;
  queue(*s, [=] { memcpy(dst, src, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* dst, int value, size_t bytes, cudaStream_t stream) {
  EmulatedStream* const s = known(stream);
  if (!s || s->device != current) return cudaErrorInvalidResourceHandle;
  queue(*s, [=] { memset(dst, value, bytes); });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const cudaError_t result = unsafe();
  if (result) return result;
  *stream = new EmulatedStream{};
  (*stream)->device = current;
  Lock lock(runtime().mutex);
  runtime().streams.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  Lock lock(runtime().mutex);
  if (!runtime().streams.erase(stream)) return cudaErrorInvalidResourceHandle;
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  Lock lock(runtime().mutex);
  EmulatedStream* const s = known(stream);
  if (!s) return cudaErrorInvalidResourceHandle;
  if (!s->capture) return wait_for(progress(*s));
  s->valid = false;
  return cudaErrorStreamCaptureUnsupported;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  Lock lock(runtime().mutex);
  EmulatedStream* const s = known(stream);
  if (!s || s->capture) return cudaErrorInvalidResourceHandle;
  return query(progress(*s));
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = captures(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return known(stream) ? cudaSuccess : cudaErrorInvalidResourceHandle;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  Lock lock(runtime().mutex);
  EmulatedStream* const s = known(stream);
  if (!s) return cudaErrorInvalidResourceHandle;
  advance(s->after, event->after);
  if (!s->capture) queue(*s, [before = event->after] { work_until(before); });
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  Lock lock(runtime().mutex);
  if (!known(stream)) return cudaErrorInvalidResourceHandle;
  if (reinterpret_cast<uintptr_t>(stream) <= 2 || stream->capture) return cudaErrorInvalidValue;
  stream->capture = new EmulatedGraph;
  stream->valid = true;
  stream->by = std::this_thread::get_id();
  runtime().captured.push_back(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (!captures(stream) || stream->by != std::this_thread::get_id()) return cudaErrorInvalidValue;
  Lock lock(runtime().mutex);
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
  *event = new EmulatedEvent{current, {}, {}};
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  Lock lock(runtime().mutex);
  const EmulatedStream* const s = known(stream);
  if (!s || s->device != event->device) return cudaErrorInvalidResourceHandle;
  event->at = std::chrono::steady_clock::now();
  event->after = progress(*s);
  return broken();
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  Lock lock(runtime().mutex);
  wait_for(event->after);
  return unsafe();
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  Lock lock(runtime().mutex);
  return query(event->after);
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  if (from->device != to->device) return cudaErrorInvalidResourceHandle;
  for (cudaEvent_t event : {from, to})
    if (const cudaError_t result = cudaEventQuery(event)) return result;
  *milliseconds = std::chrono::duration<float, std::milli>(to->at - from->at).count();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  graph->instantiated = true;
  *exec = graph;
  return cudaSuccess;
}
// A GPU would order the launches of a graph, but not what else is queued with each: we order both.
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  Lock lock(runtime().mutex);
  EmulatedStream* const s = known(stream);
  if (!s) return cudaErrorInvalidResourceHandle;
  if (s->capture) {
    s->valid = false;
    return cudaErrorStreamCaptureUnsupported;
  }
  Progress before = progress(*s);
  advance(before, runtime().done);
  if (!reached(before, exec->launched)) {
    report("a graph is launched while another stream may be running it", cudaErrorLaunchFailure);
    return cudaErrorLaunchFailure;
  }
  queue(*s, [all = exec->work] {
    for (const Work& work : *all) work();
  });
  exec->launched = {{s, s->queued}};
  return broken();
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
