#include "cuda/capture.h"

#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "cuda/runtime.h"

namespace fastnn::cuda {

constexpr int64_t kLiveBytes = 64 << 10;
constexpr int64_t kLiveAlignment = 16;
constexpr int64_t kFirstValue = kLiveAlignment;  // after the random offset

// The memory of one graph; lives until the graph is destroyed and no array uses it.
struct Pool {
  std::multimap<int64_t, void*> unused;
  std::vector<void*> all;
  ~Pool() {
    for (void* block : all)
      if (cudaFree(block) != cudaSuccess) cudaGetLastError();
  }
};

namespace {

struct Block {
  std::shared_ptr<Pool> pool;
  int64_t bytes;
};

// Blocks that arrays hold, of all graphs.
struct Blocks {
  std::mutex mutex;
  std::unordered_map<void*, Block> held;
};
Blocks& blocks() {
  static Blocks* const instance = new Blocks;
  return *instance;
}

}  // namespace

struct Graph {
  cudaGraphExec_t exec = nullptr;
  int device = 0;
  std::shared_ptr<Pool> pool = std::make_shared<Pool>();
  // The random offset, then live values one after the other; on the device, and what it gets next.
  char* live = nullptr;
  std::vector<char> next;
  int64_t used = kFirstValue;
  std::vector<void*> freed;  // after the recording
};

namespace {

thread_local Graph* recording = nullptr;
thread_local Graph* rehearsed = nullptr;
thread_local int64_t rehearsed_bytes = kFirstValue;

int64_t aligned_size(int64_t size) {
  return (size + kLiveAlignment - 1) / kLiveAlignment * kLiveAlignment;
}

}  // namespace

const void* recorded_graph() { return recording; }

void begin_capture() {
  if (recording) return note_text("graph: this thread is recording one already");
  auto graph = std::make_unique<Graph>();
  graph->device = current_device();
  graph->live = static_cast<char*>(allocate(current_device(), kLiveBytes));
  if (!graph->live) return;
  graph->next.resize(kLiveBytes);
  const cudaError_t result =
      cudaStreamBeginCapture(current_stream(), cudaStreamCaptureModeThreadLocal);
  note(result, "beginning a recording");
  if (result == cudaSuccess)
    recording = graph.release();
  else
    deallocate(current_device(), graph->live, 0);
}

static void end_recording(Graph* graph) {
  recording = nullptr;
  for (void* block : graph->freed) deallocate(graph->device, block, 0);
  graph->freed.clear();
}

Graph* end_capture() {
  if (!recording) return nullptr;
  Graph* const graph = recording;
  cudaGraph_t recorded = nullptr;
  cudaError_t result = cudaStreamEndCapture(current_stream(), &recorded);
  end_recording(graph);
  note(result, "ending a recording");
  if (result == cudaSuccess) {
    result = cudaGraphInstantiate(&graph->exec, recorded, 0);
    note(result, "preparing a graph");
    cudaGraphDestroy(recorded);
  }
  if (result == cudaSuccess) return graph;
  destroy(graph);
  return nullptr;
}

void abandon_capture() {
  if (!recording) return;
  Graph* const graph = recording;
  cudaGraph_t recorded = nullptr;
  if (cudaStreamEndCapture(current_stream(), &recorded) == cudaSuccess && recorded)
    cudaGraphDestroy(recorded);
  cudaGetLastError();
  end_recording(graph);
  destroy(graph);
}

void replay(Graph* graph) {
  note(cudaMemcpyAsync(graph->live, graph->next.data(), static_cast<size_t>(graph->used),
                       cudaMemcpyDefault, current_stream()),
       "renewing a graph's values");
  note(cudaGraphLaunch(graph->exec, current_stream()), "replaying a graph");
}

void destroy(Graph* graph) {
  if (graph->exec && cudaGraphExecDestroy(graph->exec) != cudaSuccess) cudaGetLastError();
  deallocate(graph->device, graph->live, 0);
  delete graph;
}

const void* live_value(const void* value, int64_t size) {
  Graph* const graph = rehearsed ? rehearsed : recording;
  if (!graph) return nullptr;
  int64_t& at = rehearsed ? rehearsed_bytes : graph->used;
  const int64_t here = at;
  at += aligned_size(size);
  if (at > kLiveBytes) {
    note_text("graph: too many optimizer steps in one recording");
    return nullptr;
  }
  std::memcpy(graph->next.data() + here, value, static_cast<size_t>(size));
  return graph->live + here;
}

const uint64_t* later_offset() {
  return recording ? reinterpret_cast<const uint64_t*>(recording->live) : nullptr;
}

bool rehearsing() { return rehearsed != nullptr; }

void begin_rehearsal(Graph* graph) {
  rehearsed = graph;
  rehearsed_bytes = kFirstValue;
}

bool end_rehearsal(uint64_t later) {
  Graph* const graph = rehearsed;
  rehearsed = nullptr;
  std::memcpy(graph->next.data(), &later, sizeof(later));
  return rehearsed_bytes == graph->used;
}

void* capture_allocate(int64_t bytes) {
  if (!recording) return nullptr;
  Pool& pool = *recording->pool;
  const int64_t size = (bytes + 511) / 512 * 512;
  void* block = nullptr;
  int64_t found = size;
  const auto fit = pool.unused.lower_bound(size);
  if (fit != pool.unused.end() && fit->first <= 2 * size) {
    found = fit->first;
    block = fit->second;
    pool.unused.erase(fit);
  } else {
    // Not part of the recording: the block is there before and after it.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&mode);
    const cudaError_t result = cudaMalloc(&block, static_cast<size_t>(size));
    cudaThreadExchangeStreamCaptureMode(&mode);
    if (result != cudaSuccess) {
      note(result, "memory of a graph");
      return nullptr;
    }
    pool.all.push_back(block);
  }
  std::lock_guard<std::mutex> lock(blocks().mutex);
  blocks().held.emplace(block, Block{recording->pool, found});
  return block;
}

bool capture_deallocate(void* block) {
  std::shared_ptr<Pool> last;  // destroyed after the lock
  {
    std::lock_guard<std::mutex> lock(blocks().mutex);
    const auto found = blocks().held.find(block);
    if (found != blocks().held.end()) {
      last = found->second.pool;
      last->unused.emplace(found->second.bytes, block);
      blocks().held.erase(found);
      return true;
    }
  }
  if (!recording) return false;
  recording->freed.push_back(block);
  return true;
}

}  // namespace fastnn::cuda
