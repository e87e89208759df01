// The CUDA runtime under the kernels: devices, streams, memory, failures.
//
// One current device and stream per thread. Memory comes from the driver's stream-ordered pool,
// told to keep what is freed; a block goes back on the stream that it was allocated on, after what
// the thread that lets go of it has queued on its own. Failures are noted, the first one wins, and
// fastnn._core turns them into exceptions after each operator. Bad indices are found by kernels
// while the host is far ahead: they are reported when the host next waits for the device.
#pragma once

#if defined(FASTNN_CUDA_EMULATE)
#include "cuda/emulator/runtime.h"
#else
#include <cuda_runtime.h>
#endif

#include <atomic>
#include <cstdint>
#include <string>

namespace fastnn::cuda {

int device_count();
int current_device();
// Makes a device the thread's current one, ours and the driver's. Returns the driver's before,
// which other libraries go by, for leave().
int enter(int device);
void leave(int before);
// The same for fastnn._core, whose operators nest: -1 leaves them all.
void select(int device);
int multiprocessors();  // of the current device
// What the kernels that run on the current device were compiled for: 90 for 9.0.
int capability();
// Whether they are sm_90a's, which alone have warpgroup products (device/hopper.h).
bool has_wgmma();
bool has_shared(size_t bytes);  // whether a block may have so much shared memory

// Whether products of bfloat16 and TF32 use the tensor cores (mma.sync): the code has them, this
// GPU has passed their self-check (self_check.h), and nobody switched them off.
bool tensor_cores();
// The instructions that failed it on the current device, "mma_bf16, to_tf32"; empty if none did.
const std::string& wrong_primitives();
// The switch. On at first, unless FASTNN_TENSOR_CORES=0.
bool use_tensor_cores();
void set_use_tensor_cores(bool used);

// Whether float32 products may round their operands to TF32 (10 bits of fraction) for the tensor
// cores' sake. Off at first.
bool allow_tf32();
void set_allow_tf32(bool allowed);
// Whether convolutions in bfloat16 and TF32 use sm_90a's kernels (wgmma_gemm.h, wgmma_weight.h),
// which no GPU has run yet. Off at first, unless FASTNN_WGMMA=1.
bool use_wgmma();
void set_use_wgmma(bool used);
// Products that did.
std::atomic<int64_t>& wgmma_products();

// Kernels launched, or recorded to be, by all threads.
std::atomic<int64_t>& launches();

cudaStream_t current_stream();
void set_current_stream(cudaStream_t stream);  // of the current device, for this thread

// Remembers a failure, unless the result is cudaSuccess.
void note(cudaError_t result, const char* what);
void note_text(const std::string& message, bool out_of_memory = false);
// Whether one is noted: work that would depend on what failed is then not begun.
bool failing();
// The first failure since the last call, or null.
const char* take_error(bool* out_of_memory);

void* allocate(int device, int64_t bytes);
void deallocate(int device, void* block, int64_t bytes);
bool copy(void* dst, int dst_device, const void* src, int src_device, int64_t bytes,
          bool later = false);
// "`bytes` are not there on the device, so many are."
std::string no_memory_for(int device, int64_t bytes);
// What graphs hold besides the driver's pool is so much more from now on.
void count_graph_memory(int device, int64_t bytes);
// Bytes: graphs' memory counts as allocated.
struct MemoryUse {
  uint64_t allocated = 0, highest = 0, cached = 0;
  size_t free = 0, total = 0;
};
MemoryUse memory_use(int device);
void reset_highest(int device);
// Gives back to the driver what its pool has cached.
cudaError_t trim_pool(int device);
// The same after a wait for all of the device's streams: blocks freed on others, and fragments, may
// add up to enough.
cudaError_t gather_memory(int device);
// What call() returns: where memory has run out, the second time, with what the device's streams
// have freed.
template <class Call>
cudaError_t with_memory(const Call& call, int device) {
  cudaError_t result = call();
  if (result != cudaErrorMemoryAllocation) return result;
  cudaGetLastError();
  result = gather_memory(device);
  return result == cudaSuccess ? call() : result;
}
// What allocate(&block) makes, with memory. Null where there is none: noted after `whose`, or, of
// another failure, as that of `call`.
template <class Allocate>
void* allocate_by(const Allocate& allocate, int device, int64_t bytes, const char* call,
                  const char* whose = "") {
  void* block = nullptr;
  const cudaError_t result = with_memory([&] { return allocate(&block); }, device);
  if (result == cudaSuccess) return block;
  if (result == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    note_text(whose + no_memory_for(device, bytes), true);
  } else {
    note(result, call);
  }
  return nullptr;
}
// A copy on the current device, which no recording takes for its own; null where that failed, which
// is noted.
void* upload(const void* data, int64_t bytes);
// Memory that devices copy from and to without staging (pinned.cu).
void* pin(int64_t bytes);
void unpin(void* block);
// The stream copies from or to such memory from now on, if it is such memory.
void copied(const void* host, cudaStream_t stream);
// Gives back what is free of it.
void free_pinned();

// Waits for the current stream; false where something failed, which is noted.
bool synchronize();
bool synchronize(cudaEvent_t event);  // of the current device
// Waits for all of a device's streams; false where something failed, which is noted.
bool synchronize_device(int device);
// The same before memory is let go that other libraries know of, too: failures stay for the next
// operator to find.
void wait(int device);
// A stream of ours, for good: waits for the device wait for it. Of a device there are 32, handed
// out in turn.
cudaStream_t new_stream(int device);
// Later work on one stream follows what is queued on another by now.
void follow(cudaStream_t later, int later_device, cudaStream_t earlier, int earlier_device);
// The next user of a block follows what is queued on the default stream by now.
void used(int device, const void* block);

// What a kernel found wrong, written by the first thread that found anything.
struct Fault {
  static constexpr int kBegun = 1, kWritten = 2;
  int found;  // 0, kBegun, and kWritten when the rest is there
  int what;   // index into the messages' table
  int64_t value, position, limit;
};
// The current device's fault, in memory that both sides see.
Fault* fault();
// A number for `what`; of equal text, equal numbers.
int fault_name(const char* what);

// Another device for a while.
class Selected {
 public:
  explicit Selected(int device) : before_(enter(device)) {}
  ~Selected() { leave(before_); }
  Selected(const Selected&) = delete;
  Selected& operator=(const Selected&) = delete;

 private:
  int before_;
};

// Memory for the kernels launched from this scope, on the current stream.
class Workspace {
 public:
  explicit Workspace(int64_t bytes)
      : device_(current_device()),
        bytes_(bytes),
        data_(bytes ? allocate(device_, bytes) : nullptr) {}
  ~Workspace() {
    if (data_) deallocate(device_, data_, bytes_);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  int device_;
  int64_t bytes_;
  void* data_;
};

// A device copy of a small table, of equal contents the same (constants.cu). It stays as it is for
// what the thread launches until its operator ends, and for the graph that it records.
const void* constant(const void* data, int64_t bytes);
// The thread's operator has ended.
void let_go_of_constants();
// Frees those that nobody uses.
void free_constants(int device);
template <class T>
const T* constant_table(const T* data, int64_t count) {
  return static_cast<const T*>(constant(data, count * static_cast<int64_t>(sizeof(T))));
}

}  // namespace fastnn::cuda
