// parallel_for: the one way to use more than one core.
//
// Work is cut into chunks by its shape alone; threads take chunks, and no result depends on which
// thread took which. That makes every kernel give the same bits for any number of threads.
// Included by kernels: no STL; the template is instantiated with lambdas of anonymous namespaces.
#pragma once

#include <cstdint>

namespace fastnn {

int get_num_threads();
void set_num_threads(int count);

// Whether kernels called from the calling thread run on it alone: for callers that spread whole
// programs over threads of their own.
void set_serial(bool serial);

// Runs body(context, chunk) for chunk in [0, chunks), in parallel where more than one thread is
// allowed. Chunks are dealt in contiguous, fixed ranges. If bodies throw (memory that a kernel
// works in may run out), the first exception reaches the caller once all threads are done.
void run_chunks(int64_t chunks, void (*body)(void* context, int64_t chunk), void* context);

// As run_chunks, but a thread that has done its range takes chunks of the others': for chunks of
// uneven cost. A chunk is likely to be followed by the next one on the same thread.
void run_chunks_dynamic(int64_t chunks, void (*body)(void* context, int64_t chunk), void* context);

template <class Body>
static inline void parallel_for(int64_t chunks, const Body& body) {
  run_chunks(
      chunks, [](void* context, int64_t chunk) { (*static_cast<const Body*>(context))(chunk); },
      const_cast<Body*>(&body));
}

template <class Body>
static inline void parallel_for_dynamic(int64_t chunks, const Body& body) {
  run_chunks_dynamic(
      chunks, [](void* context, int64_t chunk) { (*static_cast<const Body*>(context))(chunk); },
      const_cast<Body*>(&body));
}

// body(begin, end) over [0, n) in chunks of `grain` items.
template <class Body>
static inline void parallel_ranges(int64_t n, int64_t grain, const Body& body) {
  parallel_for((n + grain - 1) / grain, [&](int64_t chunk) {
    const int64_t begin = chunk * grain;
    const int64_t end = begin + grain < n ? begin + grain : n;
    body(begin, end);
  });
}

// Per-thread scratch memory, 64-byte aligned, kept between calls and grown as needed. One block per
// thread and slot: a kernel that needs two buffers at once asks for slots 0 and 1.
void* thread_scratch(int64_t bytes, int slot = 0);

// A number that no earlier call has given and that no other contents of scratch memory will equal:
// a kernel marks with it what a thread keeps there from one of its chunks to the next.
int64_t new_call();

}  // namespace fastnn
