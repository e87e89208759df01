#include "core/parallel.h"

#include <omp.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#include <pthread.h>

#include <atomic>
#include <cstdlib>
#include <exception>
#include <new>
#include <thread>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "core/error.h"

namespace fastnn {
namespace {

int default_threads() {
  if (const char* text = std::getenv("FASTNN_NUM_THREADS")) {
    const int value = std::atoi(text);
    if (value > 0) return value;
  }
  return omp_get_max_threads();
}

std::atomic<int>& thread_count() {
  static std::atomic<int> count{default_threads()};
  return count;
}

// libgomp's pool does not survive fork(): a child that enters a parallel region waits for threads
// that no longer exist. A forked child therefore computes on one thread.
std::atomic<bool> forked_child{false};
std::atomic<bool> pool_started{false};
[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] {
  if (pool_started.load()) forked_child.store(true);
});

// What a thread sets up around kernels. Subnormal inputs and results are treated as zero inside
// them: arithmetic on them is a hundred times slower. The caller's floating-point mode is restored,
// and what was stored around the caches (cpu/simd/vec.h) is there for whoever comes next.
struct KernelScope {
#if defined(__x86_64__)
  unsigned saved = _mm_getcsr();
  KernelScope() { _mm_setcsr(saved | 0x8040u); }
  ~KernelScope() {
    _mm_setcsr(saved);
    _mm_sfence();
  }
#elif defined(__aarch64__)
  uint64_t saved;
  KernelScope() {
    asm volatile("mrs %0, fpcr" : "=r"(saved));
    asm volatile("msr fpcr, %0" ::"r"(saved | (1ull << 24)));
  }
  ~KernelScope() { asm volatile("msr fpcr, %0" ::"r"(saved)); }
#endif
};

thread_local bool inside_region = false;

int threads_for(int64_t chunks) {
  if (chunks <= 1 || inside_region || forked_child.load(std::memory_order_relaxed)) return 1;
  const int allowed = thread_count().load(std::memory_order_relaxed);
  return static_cast<int>(chunks < allowed ? chunks : allowed);
}

// No exception may leave a parallel region: the first one is kept for the thread that entered it.
class Failure {
 public:
  template <class Body>
  void keep_from(const Body& body) {
    try {
      body();
    } catch (...) {
      if (!failed_.exchange(true)) first_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (first_) std::rethrow_exception(first_);
  }

 private:
  std::atomic<bool> failed_{false};
  std::exception_ptr first_;
};

void run_serial(int64_t chunks, void (*body)(void*, int64_t), void* context) {
  KernelScope scope;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) body(context, chunk);
}

struct Scratch {
  void* data[4] = {};
  int64_t bytes[4] = {};
  ~Scratch() {
    for (void* block : data) std::free(block);
  }
};

}  // namespace

void set_serial(bool serial) { inside_region = serial; }

int get_num_threads() { return thread_count().load(); }

void set_num_threads(int count) {
  check(count >= 1 && count <= 4096, "set_num_threads: expected 1 to 4096 threads, got ", count);
  thread_count().store(count);
}

void run_chunks(int64_t chunks, void (*body)(void*, int64_t), void* context) {
  const int threads = threads_for(chunks);
  if (threads <= 1) return run_serial(chunks, body, context);
  pool_started.store(true);
  Failure failure;
#pragma omp parallel num_threads(threads)
  {
    KernelScope scope;
    inside_region = true;
    // The runtime may grant fewer threads than asked for.
    const int64_t team = omp_get_num_threads();
    const int64_t id = omp_get_thread_num();
    failure.keep_from([&] {
      for (int64_t chunk = chunks * id / team; chunk < chunks * (id + 1) / team; ++chunk)
        body(context, chunk);
    });
    inside_region = false;
  }
  failure.rethrow();
}

void run_chunks_dynamic(int64_t chunks, void (*body)(void*, int64_t), void* context) {
  const int threads = threads_for(chunks);
  if (threads <= 1) return run_serial(chunks, body, context);
  pool_started.store(true);
  // A range of chunks for each thread, the same for every call of that many: what a thread wrote in
  // one operator it reads in the next from its own cache. Whoever is done helps the others.
  constexpr int kMostRanges = 64;
  struct alignas(64) Range {
    std::atomic<int64_t> next;
    int64_t end;
  } ranges[kMostRanges];
  const int count = threads < kMostRanges ? threads : kMostRanges;
  for (int64_t i = 0; i < count; ++i) {
    ranges[i].next.store(chunks * i / count, std::memory_order_relaxed);
    ranges[i].end = chunks * (i + 1) / count;
  }
  Failure failure;
#pragma omp parallel num_threads(threads)
  {
    KernelScope scope;
    inside_region = true;
    const int id = omp_get_thread_num();
    failure.keep_from([&] {
      for (int i = 0; i < count; ++i) {
        Range& range = ranges[(id + i) % count];
        for (int64_t chunk;
             (chunk = range.next.fetch_add(1, std::memory_order_relaxed)) < range.end;)
          body(context, chunk);
      }
    });
    inside_region = false;
  }
  failure.rethrow();
}

void* thread_scratch(int64_t bytes, int slot) {
  static thread_local Scratch scratch;
  if (scratch.bytes[slot] < bytes) {
    std::free(std::exchange(scratch.data[slot], nullptr));
    scratch.bytes[slot] = 0;
    // Panels are walked in strides of a page and more: offer huge pages from a quarter of one on.
    const int64_t page = bytes >= (1 << 19) ? 1 << 21 : 4096;
    const int64_t rounded = (bytes + page - 1) / page * page;
    scratch.data[slot] =
        std::aligned_alloc(static_cast<size_t>(page), static_cast<size_t>(rounded));
#if defined(__linux__)
    if (page > 4096 && scratch.data[slot])
      madvise(scratch.data[slot], static_cast<size_t>(rounded), MADV_HUGEPAGE);
#endif
    if (!scratch.data[slot])
      throw MemoryError(text("cannot allocate ", rounded, " bytes of scratch memory"));
    scratch.bytes[slot] = rounded;
  }
  return scratch.data[slot];
}

int64_t new_call() {
  static std::atomic<uint64_t> calls{1};
  return static_cast<int64_t>(calls.fetch_add(0x9e3779b97f4a7c15u, std::memory_order_relaxed));
}

}  // namespace fastnn
