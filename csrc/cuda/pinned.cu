// Ordinary memory that a device copies from and to without staging. Getting it takes the driver up
// to milliseconds, so blocks are kept and used again; copies may still be under way when a block is
// let go, so it waits for them, as an event on each of their streams, and nobody else does.
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "cuda/capture.h"
#include "cuda/runtime.h"

namespace fastnn::cuda {
namespace {

constexpr int64_t kPage = 4096;

// A copy's end; default streams have the same handle on every device.
struct Copy {
  int device;
  cudaStream_t stream;
  cudaEvent_t end;
};

struct Pinned {
  void* data;
  int64_t bytes;
  std::vector<Copy> copies;
};

struct Pins {
  std::mutex mutex;
  std::map<const char*, std::shared_ptr<Pinned>> used;  // by their first byte
  std::vector<std::unique_ptr<Pinned>> leaving;         // let go, maybe with copies under way
  std::multimap<int64_t, void*> free;
};
Pins& pins() {
  static Pins* const instance = new Pins;  // arrays may outlive static destructors
  return *instance;
}

// When the last owner is gone, an array or a graph.
void let_go(Pinned* block) {
  std::lock_guard<std::mutex> lock(pins().mutex);
  pins().leaving.emplace_back(block);
}

// Makes those free whose copies are done. The caller holds the mutex.
void collect(Pins& all) {
  const Unrecorded outside;
  auto kept = all.leaving.begin();
  for (auto& block : all.leaving) {
    auto& copies = block->copies;
    while (!copies.empty() && cudaEventQuery(copies.back().end) != cudaErrorNotReady) {
      cudaEventDestroy(copies.back().end);
      copies.pop_back();
    }
    cudaGetLastError();
    if (copies.empty())
      all.free.emplace(block->bytes, block->data);
    else
      *kept++ = std::move(block);
  }
  all.leaving.erase(kept, all.leaving.end());
}

// Gives back those that are free. The caller holds the mutex.
void release(Pins& all) {
  for (const auto& [bytes, data] : all.free)
    if (cudaFreeHost(data) != cudaSuccess) cudaGetLastError();
  all.free.clear();
}

}  // namespace

void* pin(int64_t bytes) {
  const int64_t size = bytes < 1 ? kPage : (bytes + kPage - 1) / kPage * kPage;
  Pins& all = pins();
  std::lock_guard<std::mutex> lock(all.mutex);
  collect(all);
  int64_t found = size;
  void* data = nullptr;
  const auto fit = all.free.lower_bound(size);
  if (fit != all.free.end() && fit->first <= 2 * size) {
    found = fit->first, data = fit->second;
    all.free.erase(fit);
  } else {
    const Unrecorded outside;
    cudaError_t result = cudaHostAlloc(&data, static_cast<size_t>(size), 0);
    if (result == cudaErrorMemoryAllocation && !all.free.empty()) {
      cudaGetLastError();
      release(all);
      result = cudaHostAlloc(&data, static_cast<size_t>(size), 0);
    }
    if (result == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      note_text("pin_memory: cannot pin " + std::to_string(bytes) + " bytes", true);
    } else {
      note(result, "pinning memory");
    }
    if (result != cudaSuccess) return nullptr;
  }
  all.used.emplace(static_cast<const char*>(data),
                   std::shared_ptr<Pinned>(new Pinned{data, found, {}}, let_go));
  return data;
}

void unpin(void* data) {
  std::shared_ptr<Pinned> last;  // declared before the lock: its end takes the mutex too
  Pins& all = pins();
  std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.used.find(static_cast<const char*>(data));
  if (found == all.used.end()) return;
  last = std::move(found->second);
  all.used.erase(found);
}

void copied(const void* host, cudaStream_t stream) {
  Pins& all = pins();
  std::lock_guard<std::mutex> lock(all.mutex);
  auto found = all.used.upper_bound(static_cast<const char*>(host));
  if (found == all.used.begin()) return;
  const std::shared_ptr<Pinned>& block = (--found)->second;
  if (static_cast<const char*>(host) >= found->first + block->bytes) return;
  if (recorded_graph()) return keep_with_graph(block);
  for (const Copy& copy : block->copies)
    if (copy.stream == stream && copy.device == current_device())
      return note(cudaEventRecord(copy.end, stream), "a copy's end");
  cudaEvent_t event = nullptr;
  if (cudaEventCreateWithFlags(&event, cudaEventDisableTiming) != cudaSuccess)
    return note(cudaStreamSynchronize(stream), "a copy's end");
  note(cudaEventRecord(event, stream), "a copy's end");
  block->copies.push_back({current_device(), stream, event});
}

void free_pinned() {
  Pins& all = pins();
  std::lock_guard<std::mutex> lock(all.mutex);
  collect(all);
  release(all);
}

}  // namespace fastnn::cuda
