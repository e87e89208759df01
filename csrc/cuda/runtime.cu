#include "cuda/runtime.h"

#include "cuda/capture.h"
#include "cuda/device/device.h"
#include "cuda/self_check.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace fastnn::cuda {
namespace {

constexpr int kMaxDevices = 64;
constexpr size_t kMostStreams = 32;  // that new_stream() makes of a device, as in PyTorch

struct DeviceState {
  std::mutex mutex;
  std::atomic<bool> ready{false};
  cudaStream_t stream = nullptr;   // the one that threads start with
  cudaStream_t uploads = nullptr;  // never recorded
  std::vector<cudaStream_t> made;  // by new_stream(); the state's mutex guards these two
  size_t turn = 0;
  int multiprocessors = 1;
  int capability = 0;
  bool wgmma = false;         // the code is sm_90a's
  bool tensor_cores = false;  // there, and as their self-check expects
  std::string wrong;          // those of their instructions that are not
  size_t shared_memory = 0;
  Fault* fault = nullptr;
  uint64_t graph_bytes = 0;  // the state's mutex guards these two
  uint64_t highest = 0;      // that was allocated, graphs' memory included, up to its last change
};

struct State {
  std::mutex mutex;
  DeviceState devices[kMaxDevices];
  std::unordered_map<void*, cudaStream_t> owners;  // the stream of each block
  std::vector<std::string> fault_names;
};

// Never destroyed: arrays may outlive static destructors.
State& state() {
  static State* const instance = new State;
  return *instance;
}

thread_local int selected = 0;      // the driver's current device
thread_local int before_core = -1;  // what that was before fastnn._core selected one, or -1
thread_local cudaStream_t streams[kMaxDevices] = {};
thread_local std::string failure;
thread_local bool failed = false, no_memory = false;

// Whether this is sm_90a's code: sm_90's says 90, too, of what it was compiled for.
__global__ void probe_kernel(int* wgmma) {
#if defined(FASTNN_CUDA_EMULATE)
  *wgmma = emulator::is_sm_90a();
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
  *wgmma = 1;
#else
  *wgmma = 0;
#endif
}

// What grids are sized for: FASTNN_MULTIPROCESSORS, if fewer, so that small cases walk as large.
int counted(int multiprocessors) {
  const char* const asked = std::getenv("FASTNN_MULTIPROCESSORS");
  return asked ? std::clamp(std::atoi(asked), 1, multiprocessors) : multiprocessors;
}

// Asks the device whether its instructions do what the kernels take them to do (self_check.h).
// False where that could not be asked, or what every kernel needs does not; this is noted.
bool check_instructions(DeviceState& d, int device) {
  const std::vector<Primitive> basic = run_primitives(d.uploads, Primitives::basic);
  const std::string wrong = disagreeing(basic);
  if (!wrong.empty())
    note_text("CUDA: instructions that every kernel needs do not do on cuda:" +
              std::to_string(device) + " what they are expected to: " + wrong +
              "; update the driver, or compute on another GPU or the CPU");
  if (basic.empty() || !wrong.empty()) return false;
  if (d.capability < 80) return true;
  const std::vector<Primitive> products = run_primitives(d.uploads, Primitives::tensor_cores);
  d.wrong = disagreeing(products);
  d.tensor_cores = !products.empty() && d.wrong.empty();
  return !products.empty();
}

// Whether the device is ready; what failed is tried again by the next operator.
bool prepare(DeviceState& d, int device) {
  const Unrecorded outside;
  const auto fine = [](cudaError_t result, const char* what) {
    note(result, what);
    return result == cudaSuccess;
  };
  cudaDeviceProp properties;
  if (!fine(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties")) return false;
  int pools = 0;
  if (!fine(cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, device),
            "cudaDeviceGetAttribute"))
    return false;
  if (!pools) {
    note_text("CUDA: cuda:" + std::to_string(device) +
              ": this driver or GPU has no stream-ordered memory pools (cudaMallocAsync), which "
              "fastnn needs; update the driver, or compute on the CPU");
    return false;
  }
  d.multiprocessors = counted(properties.multiProcessorCount);
  d.shared_memory = properties.sharedMemPerBlockOptin;
  // What the kernels were compiled for: it may be older than the device.
  cudaFuncAttributes attributes;
  if (!fine(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&probe_kernel)),
            "this build's kernels on this GPU"))
    return false;
  d.capability = attributes.ptxVersion;
  for (cudaStream_t* stream : {&d.stream, &d.uploads})
    if (!*stream &&
        !fine(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking), "cudaStreamCreate"))
      return false;
  cudaMemPool_t pool;
  if (!fine(cudaDeviceGetDefaultMemPool(&pool, device), "cudaDeviceGetDefaultMemPool"))
    return false;
  uint64_t keep = UINT64_MAX;
  note(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep), "the memory pool");
  if (!check_instructions(d, device)) return false;
  void* fault = nullptr;
  if (!fine(cudaHostAlloc(&fault, sizeof(Fault), cudaHostAllocMapped), "cudaHostAlloc"))
    return false;
  d.fault = static_cast<Fault*>(fault);
  *d.fault = {};
  if (!fine(launch_on(d.uploads, probe_kernel, dim3(1), 1, 0, &d.fault->found),
            "this build's kernels on this GPU"))
    return false;
  if (!fine(cudaStreamSynchronize(d.uploads), "this build's kernels on this GPU")) return false;
  d.wgmma = d.fault->found != 0;
  *d.fault = {};
  return true;
}

DeviceState& prepared(int device) {
  DeviceState& d = state().devices[device];
  if (d.ready.load(std::memory_order_acquire)) return d;
  std::lock_guard<std::mutex> lock(d.mutex);
  if (!d.ready.load()) d.ready.store(prepare(d, device), std::memory_order_release);
  return d;
}

void report_fault() {
  Fault* const f = fault();
  // What a kernel on another stream is writing is for the next wait.
  if (!f || __atomic_load_n(&f->found, __ATOMIC_ACQUIRE) != Fault::kWritten) return;
  const Fault seen = *f;
  __atomic_store_n(&f->found, 0, __ATOMIC_RELEASE);
  std::lock_guard<std::mutex> lock(state().mutex);
  note_text(state().fault_names[static_cast<size_t>(seen.what)] + ": expected indices from 0 to " +
            std::to_string(seen.limit - 1) + ", got " + std::to_string(seen.value) +
            " at flat position " + std::to_string(seen.position) +
            " (found on the GPU; results since then are not valid)");
}

}  // namespace

int device_count() {
  // Once: it asks the driver, and each device's name is looked up by it.
  static int count = 0;
  static const cudaError_t result = cudaGetDeviceCount(&count);
  note(result, "looking for GPUs");
  if (result != cudaSuccess) return 0;
  return count < kMaxDevices ? count : kMaxDevices;
}

int current_device() { return selected; }

int enter(int device) {
  int before = selected;
  note(cudaGetDevice(&before), "cudaGetDevice");
  const cudaError_t result = before == device ? cudaSuccess : cudaSetDevice(device);
  note(result, "cudaSetDevice");
  if (result != cudaSuccess) return before;
  selected = device;
  prepared(device);
  return before;
}

void leave(int before) {
  if (before != selected && cudaSetDevice(before) != cudaSuccess) cudaGetLastError();
  selected = before;
}

void select(int device) {
  if (device < 0) {
    let_go_of_constants();
    leave(before_core);
    before_core = -1;
    return;
  }
  const int before = enter(device);
  if (before_core < 0) before_core = before;
}

int multiprocessors() { return prepared(selected).multiprocessors; }
int capability() { return prepared(selected).capability; }
bool has_wgmma() { return prepared(selected).wgmma; }
bool has_shared(size_t bytes) { return bytes <= prepared(selected).shared_memory; }

// A switch that the environment sets at first: "1" or "0", or else `otherwise`.
static bool asked(const char* name, bool otherwise) {
  const char* const value = std::getenv(name);
  if (value && std::strcmp(value, otherwise ? "0" : "1") == 0) return !otherwise;
  return otherwise;
}

static std::atomic<bool>& tensor_core_switch() {
  static std::atomic<bool> used{asked("FASTNN_TENSOR_CORES", true)};
  return used;
}
bool use_tensor_cores() { return tensor_core_switch().load(std::memory_order_relaxed); }
void set_use_tensor_cores(bool used) {
  tensor_core_switch().store(used, std::memory_order_relaxed);
}
bool tensor_cores() { return prepared(selected).tensor_cores && use_tensor_cores(); }
const std::string& wrong_primitives() { return prepared(selected).wrong; }

static std::atomic<bool> tf32{false};
bool allow_tf32() { return tf32.load(std::memory_order_relaxed); }
void set_allow_tf32(bool allowed) { tf32.store(allowed, std::memory_order_relaxed); }

static std::atomic<bool>& wgmma() {
  static std::atomic<bool> used{asked("FASTNN_WGMMA", false)};
  return used;
}
bool use_wgmma() { return wgmma().load(std::memory_order_relaxed); }
void set_use_wgmma(bool used) { wgmma().store(used, std::memory_order_relaxed); }
std::atomic<int64_t>& wgmma_products() {
  static std::atomic<int64_t> count{0};
  return count;
}

std::atomic<int64_t>& launches() {
  static std::atomic<int64_t> count{0};
  return count;
}

cudaStream_t current_stream() {
  cudaStream_t& stream = streams[selected];
  if (!stream) stream = prepared(selected).stream;
  return stream;
}

void set_current_stream(cudaStream_t stream) { streams[selected] = stream; }

// What there is to do about it, if anything.
static const char* advice(cudaError_t result) {
  switch (result) {
    case cudaErrorStreamCaptureUnsupported:
      return recorded_graph() ? "; a graph is being recorded, which cannot wait for the device: do "
                                "this before it"
                              : "";
    case cudaErrorInitializationError:
      return "; if this process was forked from one that had used a GPU, it cannot use it: start "
             "it by spawning (multiprocessing's \"spawn\")";
    // The driver reports these with whatever is called next, and then for good.
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
      return " (in this kernel or an earlier one; this process can use the GPU no more: start "
             "another)";
    default:
      return "";
  }
}

void note(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  cudaGetLastError();
  const std::string message =
      std::string("CUDA: ") + what + ": " + cudaGetErrorString(result) + advice(result);
  note_text(message, result == cudaErrorMemoryAllocation);
}

void note_text(const std::string& message, bool out_of_memory) {
  if (failed) return;
  failure = message;
  failed = true;
  no_memory = out_of_memory;
}

bool failing() { return failed; }

const char* take_error(bool* out_of_memory) {
  if (!failed) return nullptr;
  failed = false;
  *out_of_memory = no_memory;
  return failure.c_str();
}

// Of the driver's pool.
static uint64_t pool_bytes(int device, cudaMemPoolAttr which) {
  uint64_t bytes = 0;
  cudaMemPool_t pool;
  cudaError_t result = cudaDeviceGetDefaultMemPool(&pool, device);
  if (result == cudaSuccess) result = cudaMemPoolGetAttribute(pool, which, &bytes);
  note(result, "the memory pool");
  return bytes;
}
// The driver's count of the highest starts anew.
static void reset_pool(int device) {
  uint64_t zero = 0;
  cudaMemPool_t pool;
  cudaError_t result = cudaDeviceGetDefaultMemPool(&pool, device);
  if (result == cudaSuccess)
    result = cudaMemPoolSetAttribute(pool, cudaMemPoolAttrUsedMemHigh, &zero);
  note(result, "the memory pool");
}
cudaError_t trim_pool(int device) {
  cudaMemPool_t pool;
  const cudaError_t result = cudaDeviceGetDefaultMemPool(&pool, device);
  return result == cudaSuccess ? cudaMemPoolTrimTo(pool, 0) : result;
}
// With the state's mutex held.
static uint64_t highest(int device) {
  const DeviceState& d = state().devices[device];
  const uint64_t of_pool = std::max(pool_bytes(device, cudaMemPoolAttrUsedMemHigh),
                                    pool_bytes(device, cudaMemPoolAttrUsedMemCurrent));
  return std::max(d.highest, of_pool + d.graph_bytes);
}

MemoryUse memory_use(int device) {
  const Unrecorded outside;
  const Selected there(device);
  MemoryUse use;
  const uint64_t used = pool_bytes(device, cudaMemPoolAttrUsedMemCurrent);
  // Another thread may have freed and trimmed in between.
  use.cached = std::max(pool_bytes(device, cudaMemPoolAttrReservedMemCurrent), used) - used;
  note(cudaMemGetInfo(&use.free, &use.total), "the free memory");
  std::lock_guard<std::mutex> lock(state().mutex);
  use.allocated = used + state().devices[device].graph_bytes;
  use.highest = highest(device);
  return use;
}

void reset_highest(int device) {
  const Unrecorded outside;
  const Selected there(device);
  std::lock_guard<std::mutex> lock(state().mutex);
  reset_pool(device);
  state().devices[device].highest = 0;
}

// The driver's highest is of its pool alone, so what it was with graphs' memory is known as long as
// that does not change.
void count_graph_memory(int device, int64_t bytes) {
  const Unrecorded outside;
  std::lock_guard<std::mutex> lock(state().mutex);
  DeviceState& d = state().devices[device];
  d.highest = highest(device);
  d.graph_bytes += static_cast<uint64_t>(bytes);
  reset_pool(device);
}

std::string no_memory_for(int device, int64_t bytes) {
  const MemoryUse use = memory_use(device);
  return "cannot allocate " + std::to_string(bytes) + " bytes on cuda:" + std::to_string(device) +
         ": " + std::to_string(use.free) + " of " + std::to_string(use.total) +
         " bytes are free, fastnn uses " + std::to_string(use.allocated) + " and caches " +
         std::to_string(use.cached);
}

// All streams of the selected device. Recordings, which do not survive a wait for the device, do
// survive one for the streams that are known: ours, this thread's, and the default one.
static cudaError_t wait_for_streams() {
  if (const NoRecordings none{}) return cudaDeviceSynchronize();
  DeviceState& d = prepared(selected);
  std::vector<cudaStream_t> all{d.stream, d.uploads, cudaStreamLegacy, stream_outside()};
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    all.insert(all.end(), d.made.begin(), d.made.end());
  }
  const Unrecorded outside;
  cudaError_t result = cudaSuccess;
  for (cudaStream_t stream : all) {
    const cudaError_t one = cudaStreamSynchronize(stream);
    if (one != cudaSuccess) result = one;
  }
  return result;
}

cudaError_t gather_memory(int device) {
  const Unrecorded outside;
  const Selected there(device);
  // Another library's recording forbids the wait, not the rest. What stays, the driver says again.
  if (wait_for_streams() != cudaSuccess) cudaGetLastError();
  return trim_pool(device);
}

// Of the pool, in a stream's order.
static void* allocate_on(cudaStream_t stream, int device, int64_t bytes) {
  void* const block = allocate_by(
      [=](void** made) { return cudaMallocAsync(made, static_cast<size_t>(bytes), stream); },
      device, bytes, "cudaMallocAsync");
  if (!block) return nullptr;
  std::lock_guard<std::mutex> lock(state().mutex);
  state().owners[block] = stream;
  return block;
}

void* allocate(int device, int64_t bytes) {
  if (bytes < 1) bytes = 1;
  if (void* block = capture_allocate(bytes)) return block;
  return failed ? nullptr : allocate_on(current_stream(), device, bytes);
}

// cudaStreamLegacy and its like are numbers, of streams of the current device.
static bool is_default(cudaStream_t stream) { return reinterpret_cast<uintptr_t>(stream) <= 2; }

static cudaError_t order(cudaStream_t later, int later_device, cudaStream_t earlier,
                         int earlier_device) {
  cudaEvent_t event = nullptr;
  cudaError_t result;
  {
    const Selected there(earlier_device);  // an event's, and its stream's
    result = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    if (result == cudaSuccess) result = cudaEventRecord(event, earlier);
  }
  const Selected there(later_device);
  if (result == cudaSuccess) result = cudaStreamWaitEvent(later, event, 0);
  if (event) cudaEventDestroy(event);
  return result;
}

// A block's owner follows what another stream has queued, which may use the block.
static void hold(cudaStream_t owner, cudaStream_t user, int device) {
  if (order(owner, device, user, device) == cudaSuccess) return;
  cudaGetLastError();
  wait(device);
}

// Whether work on the stream is another library's to record: nobody may wait for it.
static bool is_captured(cudaStream_t stream, int device) {
  const Selected there(device);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream, &status) == cudaSuccess)
    return status != cudaStreamCaptureStatusNone;
  cudaGetLastError();
  return true;
}

void deallocate(int device, void* block, int64_t) {
  if (capture_deallocate(device, block)) return;
  cudaStream_t stream;
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    const auto found = state().owners.find(block);
    if (found == state().owners.end()) return;
    stream = found->second;
    state().owners.erase(found);
  }
  // This thread may have used it on another stream: a backward pass on what the forward pass kept.
  cudaStream_t const user = streams[device];
  if (user && user != stream && !is_captured(user, device)) hold(stream, user, device);
  const auto free = [&] {
    if (cudaFreeAsync(block, stream) != cudaSuccess) cudaGetLastError();
  };
  if (!is_default(stream)) return free();
  const Selected there(device);
  free();
}

bool copy(void* dst, int dst_device, const void* src, int src_device, int64_t bytes, bool later) {
  const bool host = dst_device < 0 || src_device < 0;
  const int device = dst_device < 0 ? src_device : dst_device;
  const bool between = !host && dst_device != src_device;
  // A recording would not have what another device does, or draw its stream in.
  if (left_out(device) || (between && left_out(src_device))) return false;
  cudaStream_t theirs = nullptr;
  if (between) {
    const Selected there(src_device);
    theirs = current_stream();
  }
  const Selected here(device);
  cudaStream_t const stream = current_stream();
  if (between) follow(stream, device, theirs, src_device);
  if (host && !later && recorded_graph()) {
    note_text(
        std::string(dst_device < 0 ? "values copied to the CPU (item(), cpu(), printing)"
                                   : "values copied from the CPU") +
        " are waited for, and a graph is being recorded, which cannot wait: do this before it");
    return false;
  }
  // Pools of two devices do not see each other's memory; cudaMemcpyPeerAsync goes by way of the
  // host where the devices do not either.
  const auto size = static_cast<size_t>(bytes);
  const cudaError_t result =
      between ? cudaMemcpyPeerAsync(dst, dst_device, src, src_device, size, stream)
              : cudaMemcpyAsync(dst, src, size, cudaMemcpyDefault, stream);
  note(result, "a copy between devices");
  bool ok = result == cudaSuccess;
  if (between) follow(theirs, src_device, stream, device);
  if (ok && host && later) copied(dst_device < 0 ? dst : src, stream);
  if (ok && host && !later) ok = synchronize();
  return ok && !failed;
}

bool synchronize(cudaEvent_t event) {
  note(cudaEventSynchronize(event), "waiting for an event");
  report_fault();
  return !failed;
}

bool synchronize() {
  note(cudaStreamSynchronize(current_stream()), "waiting for the device");
  report_fault();
  return !failed;
}

cudaStream_t new_stream(int device) {
  const Unrecorded outside;
  const Selected there(device);
  DeviceState& d = prepared(device);
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    if (d.made.size() >= kMostStreams) return d.made[d.turn++ % d.made.size()];
  }
  cudaStream_t stream = nullptr;
  note(with_memory([&] { return cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking); },
                   device),
       "making a stream");
  if (!stream) return nullptr;
  std::lock_guard<std::mutex> lock(state().mutex);
  d.made.push_back(stream);
  return stream;
}

bool synchronize_device(int device) {
  const Selected there(device);
  // This thread's recording is not to go on as if nothing had been asked; other threads' are.
  if (!left_out(device))
    note(recorded_graph() ? cudaStreamSynchronize(current_stream()) : wait_for_streams(),
         "waiting for the device");
  report_fault();
  return !failed;
}

void wait(int device) {
  const Selected there(device);
  if (wait_for_streams() != cudaSuccess) cudaGetLastError();
}

void used(int device, const void* block) {
  cudaStream_t owner;
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    const auto found = state().owners.find(const_cast<void*>(block));
    if (found == state().owners.end()) return;
    owner = found->second;
  }
  hold(owner, cudaStreamLegacy, device);
}

void follow(cudaStream_t later, int later_device, cudaStream_t earlier, int earlier_device) {
  if (later == earlier && later_device == earlier_device) return;
  note(order(later, later_device, earlier, earlier_device), "ordering two streams");
}

Fault* fault() { return prepared(selected).fault; }

int fault_name(const char* what) {
  std::lock_guard<std::mutex> lock(state().mutex);
  auto& names = state().fault_names;
  for (size_t i = 0; i < names.size(); ++i)
    if (names[i] == what) return static_cast<int>(i);
  names.emplace_back(what);
  return static_cast<int>(names.size()) - 1;
}

void* upload(const void* data, int64_t bytes) {
  DeviceState& d = prepared(selected);
  const Unrecorded outside;
  void* const block = allocate_on(d.uploads, selected, bytes);
  if (!block) return nullptr;
  cudaError_t result =
      cudaMemcpyAsync(block, data, static_cast<size_t>(bytes), cudaMemcpyDefault, d.uploads);
  if (result == cudaSuccess) result = cudaStreamSynchronize(d.uploads);
  note(result, "copying a table to the device");
  if (result == cudaSuccess) return block;
  deallocate(selected, block, bytes);
  return nullptr;
}

}  // namespace fastnn::cuda
