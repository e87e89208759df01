#include "cuda/capture.h"

#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "cuda/device/device.h"

namespace fastnn::cuda {

constexpr int64_t kLiveBytes = 64 << 10;
constexpr int64_t kLiveAlignment = 16;
constexpr int64_t kFirstValue = kLiveAlignment;  // after what has come to the random state
static_assert(sizeof(LaterRandom) <= kFirstValue);
constexpr int64_t kSentBytes = 2048;  // of live values, by one kernel's arguments

struct Pool;

namespace {

struct Block {
  std::shared_ptr<Pool> pool;
  cudaStream_t stream;
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

// Memory of the driver's that no stream orders.
struct Piece {
  void* data;
  int device;
  int64_t bytes;
};

// What an array's memory holds: replays change what the recording changed.
struct Contents {
  std::weak_ptr<void> owner;
  int64_t version;  // when the recording came to it
  bool made;        // by the graph, and so written by every replay
};

// The memory of one graph; lives until the graph is destroyed and no array uses it.
struct Pool {
  std::map<cudaStream_t, std::multimap<int64_t, void*>> unused;  // blocks()' mutex guards it
  std::vector<Piece> all;
  ~Pool();
};

struct Graph {
  cudaGraphExec_t exec = nullptr;
  uintptr_t number;
  int device;
  cudaStream_t stream = nullptr;  // it is recorded on
  cudaStream_t before;            // this thread's stream outside the recording
  cudaStream_t last = nullptr;    // that it was replayed on
  std::shared_ptr<Pool> pool = std::make_shared<Pool>();
  // What has come to the random state, then live values one after the other; on the device, and
  // what it gets next.
  char* live = nullptr;
  std::vector<char> next = std::vector<char>(kLiveBytes);
  int64_t used = kFirstValue;
  std::vector<std::pair<int, void*>> freed;        // after the recording; of which device
  std::unordered_set<std::shared_ptr<void>> kept;  // what it uses and did not make
  // Memory that it uses, by the version of its contents; after the recording, what it writes.
  std::unordered_map<std::atomic<int64_t>*, Contents> contents;
};

namespace {

thread_local Graph* recording = nullptr;
thread_local Graph* rehearsed = nullptr;
thread_local int64_t rehearsed_bytes = kFirstValue;

int64_t aligned_size(int64_t size) {
  return (size + kLiveAlignment - 1) / kLiveAlignment * kLiveAlignment;
}

// On the current device, for as long as the pool lives; no part of a recording, for it is there
// before and after it. Null where that failed, which is noted.
void* add_piece(Pool& pool, int64_t bytes) {
  const Unrecorded outside;
  const int device = current_device();
  void* const data =
      allocate_by([=](void** made) { return cudaMalloc(made, static_cast<size_t>(bytes)); }, device,
                  bytes, "memory of a graph", "memory of a graph: ");
  if (!data) return nullptr;
  pool.all.push_back({data, device, bytes});
  count_graph_memory(device, bytes);
  return data;
}

void free_pieces(const std::vector<Piece>& all) {
  for (const Piece& piece : all) {
    if (cudaFree(piece.data) != cudaSuccess) cudaGetLastError();
    count_graph_memory(piece.device, -piece.bytes);
  }
}

// Recordings of all threads. Their streams are used again, and for nothing else: what other threads
// queue on the streams that they share is not recorded.
struct Recordings {
  std::mutex mutex;
  std::map<int, std::vector<cudaStream_t>> streams;  // free ones, of each device
  int count = 0;
  std::vector<Piece> left;  // by graphs that ended meanwhile
};
Recordings& all_recordings() {
  static Recordings* const instance = new Recordings;
  return *instance;
}
cudaStream_t take_stream(int device) {
  std::lock_guard<std::mutex> lock(all_recordings().mutex);
  auto& free = all_recordings().streams[device];
  cudaStream_t stream = nullptr;
  if (free.empty())
    note(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream to record on");
  else
    stream = free.back(), free.pop_back();
  if (stream) ++all_recordings().count;
  return stream;
}
// The last one frees what graphs have left: cudaFree waits for the device, which a recording does
// not survive. So none begins meanwhile.
void give_back(int device, cudaStream_t stream) {
  std::lock_guard<std::mutex> lock(all_recordings().mutex);
  all_recordings().streams[device].push_back(stream);
  if (--all_recordings().count > 0) return;
  free_pieces(all_recordings().left);
  all_recordings().left.clear();
}

struct Sent {
  alignas(16) unsigned char at[kSentBytes];
};

__global__ void __launch_bounds__(kThreads) send_kernel(unsigned char* to, Sent values, int bytes) {
  const int i = static_cast<int>(threadIdx.x) * 8;
  if (i < bytes)
    *reinterpret_cast<uint64_t*>(to + i) = *reinterpret_cast<const uint64_t*>(values.at + i);
}

}  // namespace

Pool::~Pool() {
  std::lock_guard<std::mutex> lock(all_recordings().mutex);
  auto& left = all_recordings().left;
  if (all_recordings().count > 0)
    left.insert(left.end(), all.begin(), all.end());
  else
    free_pieces(all);
}

Unrecorded::Unrecorded() { cudaThreadExchangeStreamCaptureMode(&mode_); }
Unrecorded::~Unrecorded() { cudaThreadExchangeStreamCaptureMode(&mode_); }

const void* recorded_graph() {
  return recording ? reinterpret_cast<const void*>(recording->number) : nullptr;
}

NoRecordings::NoRecordings() {
  all_recordings().mutex.lock();
  none_ = all_recordings().count == 0;
  if (!none_) all_recordings().mutex.unlock();
}
NoRecordings::~NoRecordings() {
  if (none_) all_recordings().mutex.unlock();
}

cudaStream_t stream_outside() {
  return is_recorded(current_stream()) ? recording->before : current_stream();
}

bool is_recorded(cudaStream_t stream) { return recording && recording->stream == stream; }

bool left_out(int device) {
  if (!recording || recording->device == device) return false;
  const std::string one = std::to_string(recording->device), other = std::to_string(device);
  note_text("a graph of cuda:" + one + " is being recorded, of which work on cuda:" + other +
            " would be no part: do this before it, or record on cuda:" + other +
            " (fastnn.cuda.set_device(" + other + ") before)");
  return true;
}

void begin_capture(int device) {
  static std::atomic<uintptr_t> numbers{0};
  if (recording) return note_text("graph: this thread is recording one already");
  const Selected there(device);
  auto graph = std::make_unique<Graph>();
  graph->number = ++numbers;
  graph->device = device;
  graph->before = current_stream();
  // What the pool has cached is of no use to the graph, which has a pool of its own.
  if (!synchronize()) return;
  note(trim_pool(device), "the memory pool");
  graph->live = static_cast<char*>(add_piece(*graph->pool, kLiveBytes));
  if (failing()) return;
  graph->stream = take_stream(device);
  if (!graph->stream) return;
  const cudaError_t result =
      cudaStreamBeginCapture(graph->stream, cudaStreamCaptureModeThreadLocal);
  note(result, "beginning a recording");
  if (result != cudaSuccess) return give_back(device, graph->stream);
  set_current_stream(graph->stream);
  recording = graph.release();
}

// Null, or not valid, where *result is a failure.
static cudaGraph_t end_recording(cudaError_t* result) {
  Graph* const graph = recording;
  const Selected there(graph->device);
  cudaGraph_t recorded = nullptr;
  *result = cudaStreamEndCapture(graph->stream, &recorded);
  if (*result != cudaSuccess) cudaGetLastError();
  recording = nullptr;
  set_current_stream(graph->before);
  for (const auto& [device, block] : graph->freed) deallocate(device, block, 0);
  graph->freed.clear();
  give_back(graph->device, graph->stream);
  return recorded;
}

// What is read only, or gone, is no more of interest.
static void end_of_versions(Graph& graph) {
  auto& all = graph.contents;
  for (auto at = all.begin(); at != all.end();) {
    const auto one = at++;
    const std::shared_ptr<void> alive = one->second.owner.lock();
    if (!alive || !(one->second.made || *one->first != one->second.version)) all.erase(one);
  }
}

Graph* end_capture() {
  if (!recording) return nullptr;
  Graph* const graph = recording;
  cudaError_t result;
  cudaGraph_t const recorded = end_recording(&result);
  note(result, "ending a recording");
  if (result == cudaSuccess) {
    result =
        with_memory([&] { return cudaGraphInstantiate(&graph->exec, recorded, 0); }, graph->device);
    note(result, "preparing a graph");
    cudaGraphDestroy(recorded);
  }
  end_of_versions(*graph);
  if (result == cudaSuccess) return graph;
  destroy(graph);
  return nullptr;
}

void abandon_capture() {
  if (!recording) return;
  Graph* const graph = recording;
  cudaError_t result;
  if (cudaGraph_t const recorded = end_recording(&result)) cudaGraphDestroy(recorded);
  destroy(graph);
}

void replay(Graph* graph, const LaterRandom& later) {
  if (recording)
    return note_text("replay: a graph is being recorded, of which no other can be part");
  const Selected there(graph->device);
  // What is sent, and the recorded work, would meet the replay before at its memory.
  if (graph->last) follow(current_stream(), graph->device, graph->last, graph->device);
  std::memcpy(graph->next.data(), &later, sizeof(later));
  // As arguments of kernels: a copy from ordinary memory would wait for the stream.
  for (int64_t at = 0; at < graph->used; at += kSentBytes) {
    const int64_t bytes = graph->used - at < kSentBytes ? graph->used - at : kSentBytes;
    Sent values;
    std::memcpy(values.at, graph->next.data() + at, static_cast<size_t>(bytes));
    launch(send_kernel, dim3(1), kThreads, 0, reinterpret_cast<unsigned char*>(graph->live) + at,
           values, static_cast<int>(bytes));
  }
  graph->last = current_stream();
  note(cudaGraphLaunch(graph->exec, current_stream()), "replaying a graph");
  for (const auto& [version, contents] : graph->contents)
    if (const std::shared_ptr<void> alive = contents.owner.lock()) ++*version;
}

void destroy(Graph* graph) {
  const Unrecorded outside;
  const Selected there(graph->device);
  if (graph->last && !graph->kept.empty())  // which its work may still be using
    if (cudaStreamSynchronize(graph->last) != cudaSuccess) cudaGetLastError();
  if (graph->exec && cudaGraphExecDestroy(graph->exec) != cudaSuccess) cudaGetLastError();
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

const LaterRandom* later_random() {
  return recording ? reinterpret_cast<const LaterRandom*>(recording->live) : nullptr;
}

bool rehearsing() { return rehearsed != nullptr; }

void begin_rehearsal(Graph* graph) {
  rehearsed = graph;
  rehearsed_bytes = kFirstValue;
}

bool end_rehearsal() {
  const Graph* const graph = rehearsed;
  rehearsed = nullptr;
  return rehearsed_bytes == graph->used;
}

void keep_with_graph(std::shared_ptr<void> used) { recording->kept.insert(std::move(used)); }

void keep_storage(const void* block, std::shared_ptr<void> owner, std::atomic<int64_t>* version) {
  if (!recording) return;
  bool made = false;
  {
    std::lock_guard<std::mutex> lock(blocks().mutex);
    const auto found = blocks().held.find(const_cast<void*>(block));
    made = found != blocks().held.end() && found->second.pool == recording->pool;
  }
  Contents& contents = recording->contents[version];  // another's, where that is gone
  if (contents.owner.expired()) contents = {owner, *version, made};
  if (!made) keep_with_graph(std::move(owner));
}

WorkPlace here() {
  WorkPlace place;
  if (recording) place.number = recording->number;
  place.recording = recording;
  place.rehearsed = rehearsed;
  place.stream = current_stream();
  return place;
}

WorkPlace move_to(const WorkPlace& place) {
  WorkPlace before = here();
  before.mode = place.mode;
  cudaThreadExchangeStreamCaptureMode(&before.mode);
  recording = place.recording;
  rehearsed = place.rehearsed;
  set_current_stream(place.stream);
  return before;
}

void* capture_allocate(int64_t bytes) {
  if (!recording || left_out(current_device())) return nullptr;
  Pool& pool = *recording->pool;
  cudaStream_t const stream = current_stream();
  const int64_t size = (bytes + 511) / 512 * 512;
  std::lock_guard<std::mutex> lock(blocks().mutex);
  auto& unused = pool.unused[stream];
  void* block = nullptr;
  int64_t found = size;
  const auto fit = unused.lower_bound(size);
  if (fit != unused.end() && fit->first <= 2 * size) {
    found = fit->first;
    block = fit->second;
    unused.erase(fit);
  } else {
    block = add_piece(pool, size);
    if (!block) return nullptr;
  }
  blocks().held.emplace(block, Block{recording->pool, stream, found});
  return block;
}

bool capture_deallocate(int device, void* block) {
  std::shared_ptr<Pool> last;  // destroyed after the lock
  {
    std::lock_guard<std::mutex> lock(blocks().mutex);
    const auto found = blocks().held.find(block);
    if (found != blocks().held.end()) {
      last = found->second.pool;
      last->unused[found->second.stream].emplace(found->second.bytes, block);
      blocks().held.erase(found);
      return true;
    }
  }
  if (!recording) return false;
  recording->freed.emplace_back(device, block);
  return true;
}

}  // namespace fastnn::cuda
