// Graphs: work recorded once and replayed, on a stream of the recording thread's own.
//
// A graph keeps the addresses that it was recorded with, so what is allocated meanwhile comes from
// a pool of the graph's own, whose blocks go back to it and not to the driver; what is freed
// meanwhile but was made before, is freed after. Numbers that change from replay to replay live in
// device memory: the settings of optimizer steps, and how far the random state has moved on.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "cuda/runtime.h"

namespace fastnn::cuda {

struct Graph;  // with its memory

// Records this thread's work on the device until end_capture(). Null where that failed (the reason
// is noted).
void begin_capture(int device);
Graph* end_capture();
const void* recorded_graph();   // a number that no other has, of what this thread records, or null
cudaStream_t stream_outside();  // this thread's current one, but for the recording's own
bool is_recorded(cudaStream_t stream);  // by this thread
// Whether this thread records, and work on the device would be no part of that; this is noted.
bool left_out(int device);
// While it lives, no thread begins a recording, if none is under way: what recordings of any thread
// do not survive may then be called.
class NoRecordings {
 public:
  NoRecordings();
  ~NoRecordings();
  NoRecordings(const NoRecordings&) = delete;
  NoRecordings& operator=(const NoRecordings&) = delete;
  explicit operator bool() const { return none_; }

 private:
  bool none_;
};
// Gives up what is being recorded.
void abandon_capture();
// What has come to the random seed and offset since the recording, as differences.
struct LaterRandom {
  uint64_t seed = 0, offset = 0;
};
void replay(Graph* graph, const LaterRandom& later);
void destroy(Graph* graph);

// As long as it lives, the thread may call what it must not while it records, and what that does is
// no part of the recording.
class Unrecorded {
 public:
  Unrecorded();
  ~Unrecorded();
  Unrecorded(const Unrecorded&) = delete;
  Unrecorded& operator=(const Unrecorded&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// What the recorded work uses lives as long as the graph.
void keep_with_graph(std::shared_ptr<void> used);
// The same for whose memory the block is, but for the graph's own, which its work may use again.
// Replays raise its version where the recording writes it.
void keep_storage(const void* block, std::shared_ptr<void> owner, std::atomic<int64_t>* version);

// Where this thread's work on the selected device goes.
struct WorkPlace {
  uintptr_t number = 0;  // of what is recorded there, or 0
  Graph* recording = nullptr;
  Graph* rehearsed = nullptr;  // where nothing is run
  cudaStream_t stream = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  bool operator==(const WorkPlace& other) const {
    return number == other.number && rehearsed == other.rehearsed && stream == other.stream;
  }
};
WorkPlace here();
// Returns the place before, to go back to.
WorkPlace move_to(const WorkPlace& place);

// A device copy of `size` bytes that every replay can renew, if this thread is recording; else
// null.
const void* live_value(const void* value, int64_t size);
// The device's, if this thread is recording; else null.
const LaterRandom* later_random();

// While rehearsing, kernels are not run and live_value() only takes note of the values, in order,
// for the graph's next replay.
bool rehearsing();
void begin_rehearsal(Graph* graph);
// False if other values came than were recorded.
bool end_rehearsal();

// Memory while recording: a block of the graph's pool, or null if this thread is not recording.
void* capture_allocate(int64_t bytes);
// Whether the block is a graph's, or its end has to wait for the end of the recording.
bool capture_deallocate(int device, void* block);

}  // namespace fastnn::cuda
