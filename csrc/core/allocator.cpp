#include "core/allocator.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "core/error.h"

// Under AddressSanitizer a block's rounding and what is cached may not be touched.
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(block, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(block, bytes)
#endif

namespace fastnn {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

// Size classes: multiples of 64 bytes to 1 KiB, then eight steps per power of two (at most 12.5%
// waste), then whole huge pages. Equal sizes recur, so exact classes reuse blocks almost always.
int64_t size_class(int64_t bytes) {
  if (bytes <= 1024) return (bytes + 63) / 64 * 64;
  if (bytes >= kHugePage) return (bytes + kHugePage - 1) / kHugePage * kHugePage;
  int64_t step = 128;
  while (step * 16 < bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

struct FreeBlock {
  void* data;
  int64_t freed;  // when
};

struct Cache {
  std::mutex mutex;
  std::map<int64_t, std::vector<FreeBlock>> free_blocks;
  int64_t handed_out = 0;                     // bytes so far: the clock of `freed`
  std::map<const void*, int64_t> far_blocks;  // in use, not filled since: bytes since last use
  LeftCaches answer = LeftCaches::by_distance;
  std::atomic<bool> nothing_far{true};  // left_caches() says no, whatever the block
  MemoryStats stats{};

  void update() {
    nothing_far.store(far_blocks.empty() && answer == LeftCaches::by_distance,
                      std::memory_order_relaxed);
  }
};

// Never destroyed: arrays may outlive static destructors at interpreter exit.
Cache& cache() {
  static Cache* instance = new Cache;
  return *instance;
}

// What operators need while they run, if it is not much: a stack for each thread, warm, without a
// lock.
constexpr int64_t kStackBytes = 256 << 10;
struct ScratchStack {
  char* memory = static_cast<char*>(std::aligned_alloc(4096, kStackBytes));
  int64_t used = 0;
  ScratchStack() { ASAN_POISON_MEMORY_REGION(memory, kStackBytes); }
  ~ScratchStack() {
    ASAN_UNPOISON_MEMORY_REGION(memory, kStackBytes);
    std::free(memory);
  }
};
ScratchStack& scratch_stack() {
  static thread_local ScratchStack stack;
  return stack;
}
int64_t rounded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

int64_t physical_memory() {
  static const int64_t bytes =
      static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<int64_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

void* from_system(int64_t bytes) {
  if (bytes < kHugePage) return std::aligned_alloc(64, static_cast<size_t>(bytes));
  // Map one huge page more than asked and trim both ends to a 2 MiB boundary.
  const size_t span = static_cast<size_t>(bytes + kHugePage);
  void* raw = mmap(nullptr, span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  char* const begin = static_cast<char*>(raw);
  const auto address = reinterpret_cast<uintptr_t>(begin);
  char* const aligned = begin + (kHugePage - address % kHugePage) % kHugePage;
  const size_t head = static_cast<size_t>(aligned - begin);
  const size_t tail = span - head - static_cast<size_t>(bytes);
  if (head) munmap(begin, head);
  if (tail) munmap(aligned + bytes, tail);
#ifdef MADV_HUGEPAGE
  madvise(aligned, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
  return aligned;
}

void to_system(void* block, int64_t bytes) {
  ASAN_UNPOISON_MEMORY_REGION(block, bytes);
  if (bytes < kHugePage)
    std::free(block);
  else
    munmap(block, static_cast<size_t>(bytes));
}

void release_all(Cache& c) {
  for (auto& [bytes, blocks] : c.free_blocks)
    for (const FreeBlock& block : blocks) to_system(block.data, bytes);
  c.free_blocks.clear();
  c.stats.cached = 0;
}

}  // namespace

void* allocate(int64_t bytes) {
  Cache& c = cache();
  std::lock_guard<std::mutex> lock(c.mutex);
  const bool absurd = bytes > physical_memory();
  const int64_t size = absurd ? bytes : size_class(bytes > 0 ? bytes : 1);
  ++c.stats.allocations;
  void* block = nullptr;
  auto found = c.free_blocks.find(size);
  if (!absurd && found != c.free_blocks.end() && !found->second.empty()) {
    block = found->second.back().data;
    // Its own size counts: by the time its end was used, its start was that far away.
    const int64_t distance = c.handed_out - found->second.back().freed + size;
    // Nobody counts on less than products do.
    if (size >= kHugePage && distance > kCachedOfProducts) {
      c.far_blocks[block] = distance;
      c.update();
    }
    found->second.pop_back();
    c.stats.cached -= size;
    ++c.stats.cache_hits;
  } else if (!absurd) {
    // Cached blocks of other sizes must not push the process out of memory.
    if (c.stats.allocated + c.stats.cached + size > physical_memory() / 10 * 9) release_all(c);
    block = from_system(size);
    if (!block) {
      release_all(c);
      block = from_system(size);
    }
  }
  check<MemoryError>(block != nullptr, "cannot allocate ", bytes, " bytes: ", c.stats.allocated,
                     " bytes are in use, ", c.stats.cached, " cached, and this machine has ",
                     physical_memory());
  ASAN_POISON_MEMORY_REGION(block, size);
  ASAN_UNPOISON_MEMORY_REGION(block, bytes);
  c.handed_out += size;
  c.stats.allocated += size;
  if (c.stats.allocated > c.stats.peak_allocated) c.stats.peak_allocated = c.stats.allocated;
  return block;
}

void deallocate(void* block, int64_t bytes) noexcept {
  Cache& c = cache();
  const int64_t size = size_class(bytes > 0 ? bytes : 1);
  std::lock_guard<std::mutex> lock(c.mutex);
  c.stats.allocated -= size;
  if (size >= kHugePage && c.far_blocks.erase(block)) c.update();
  ASAN_POISON_MEMORY_REGION(block, size);
  try {
    c.free_blocks[size].push_back({block, c.handed_out});
    c.stats.cached += size;
  } catch (...) {
    to_system(block, size);
  }
}

bool left_caches(const void* block, int64_t cached) {
  Cache& c = cache();
  if (c.nothing_far.load(std::memory_order_relaxed)) return false;
  std::lock_guard<std::mutex> lock(c.mutex);
  const auto found = c.far_blocks.find(block);
  const bool far = found != c.far_blocks.end() && found->second > cached;
  if (found != c.far_blocks.end()) {
    c.far_blocks.erase(found);
    c.update();
  }
  const bool left = c.answer == LeftCaches::by_distance ? far : c.answer == LeftCaches::always;
  c.stats.streamed += left;
  return left;
}

void assume_left_caches(LeftCaches answer) {
  Cache& c = cache();
  std::lock_guard<std::mutex> lock(c.mutex);
  c.answer = answer;
  c.update();
}

MemoryStats memory_stats() {
  Cache& c = cache();
  std::lock_guard<std::mutex> lock(c.mutex);
  return c.stats;
}

void reset_peak_memory_stats() {
  Cache& c = cache();
  std::lock_guard<std::mutex> lock(c.mutex);
  c.stats.peak_allocated = c.stats.allocated;
}

void empty_cache() {
  Cache& c = cache();
  std::lock_guard<std::mutex> lock(c.mutex);
  release_all(c);
}

void* push_scratch(int64_t bytes) {
  ScratchStack& s = scratch_stack();
  if (!s.memory || s.used + rounded(bytes) > kStackBytes) return allocate(bytes);
  char* const data = s.memory + s.used;
  s.used += rounded(bytes);
  ASAN_UNPOISON_MEMORY_REGION(data, bytes);
  return data;
}

void pop_scratch(void* data, int64_t bytes) noexcept {
  ScratchStack& s = scratch_stack();
  char* const top = s.memory + s.used - rounded(bytes);
  if (!s.memory || data != top) return deallocate(data, bytes);
  s.used -= rounded(bytes);
  ASAN_POISON_MEMORY_REGION(data, rounded(bytes));
}

Workspace::Workspace(int64_t bytes) : data_(push_scratch(bytes)), bytes_(bytes) {}

Workspace::~Workspace() { pop_scratch(data_, bytes_); }

}  // namespace fastnn
