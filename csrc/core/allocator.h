// Caching allocator: blocks are 64-byte aligned, come from warm pages, and go back to free lists.
//
// Why: touching fresh pages costs more than most kernels (measured 0.5 GB/s against 21 GB/s of
// reads), and a training step asks for the same sizes again and again. Blocks of 2 MiB and more are
// mapped at 2 MiB boundaries and offered to the kernel as huge pages.
#pragma once

#include <cstdint>

namespace fastnn {

struct MemoryStats {
  int64_t allocated;       // bytes handed out and not yet returned
  int64_t peak_allocated;  // largest value of `allocated` since the last reset
  int64_t cached;          // bytes kept on free lists
  int64_t allocations;     // calls to allocate()
  int64_t cache_hits;      // of which served from a free list
};

// Throws MemoryError (bytes asked, in use and cached) if the memory cannot be had.
void* allocate(int64_t bytes);
void deallocate(void* block, int64_t bytes) noexcept;

MemoryStats memory_stats();
void reset_peak_memory_stats();
// Returns cached blocks to the operating system.
void empty_cache();

// Scratch memory of one operator call. Members are defined out of line: kernels include this.
class Workspace {
 public:
  explicit Workspace(int64_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  float* floats() const __attribute__((always_inline)) { return static_cast<float*>(data_); }

 private:
  void* data_;
  int64_t bytes_;
};

}  // namespace fastnn
