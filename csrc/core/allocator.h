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
  int64_t streamed;        // outputs written around the caches, see left_caches()
};

// Throws MemoryError (bytes asked, in use and cached) if the memory cannot be had.
void* allocate(int64_t bytes);
void deallocate(void* block, int64_t bytes) noexcept;

// Of L2 and a shared last-level cache, what one process may count on while others use it: for loops
// that read and write each value once, and for products, whose other operands are there as well.
// Measured: blocks that come back after 25 MB are written at 53 GB/s if nothing else runs, after
// 200 MB at 18. Without streaming stores networks train 3 to 10% slower. With 32 MB of cache and
// outputs of 13 MB in a loop, convolutions are 5% slower with 16 MB than with 12; forward passes of
// activations are 10 to 15% faster with 24 than with 12, and networks up to 2%.
constexpr int64_t kCached = int64_t{24} << 20;
constexpr int64_t kCachedOfProducts = int64_t{12} << 20;
// Whether the caches, of which the caller counts on `cached` bytes, have most likely lost what they
// held of a block of 2 MiB or more, because much else was handed out since its last use. True at
// most once per hand-out: whoever asks is about to fill it.
bool left_caches(const void* block, int64_t cached);
// For tests: every answer from now on, or (by_distance) the one above.
enum class LeftCaches { by_distance, never, always };
void assume_left_caches(LeftCaches answer);

MemoryStats memory_stats();
void reset_peak_memory_stats();
// Returns cached blocks to the operating system.
void empty_cache();

// Memory until the same thread gives it back, last taken first; any thread may use it. Most comes
// from a stack of the thread. Throws as allocate() does.
void* push_scratch(int64_t bytes);
void pop_scratch(void* data, int64_t bytes) noexcept;

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

// What kernels computed from one array alone, such as packed weights, kept with its storage until
// the storage changes. Used for weights that are known to stay (fastnn.compile).
class KeptWorkspaces;

// A Workspace that may have been kept from an earlier call. Without a `kept` to look in, an
// ordinary one. `key` tells its contents and layout; see hash().
class KeptWorkspace {
 public:
  KeptWorkspace(KeptWorkspaces* kept, uint64_t key, int64_t bytes);
  ~KeptWorkspace();  // keeps it, filled by now, for later calls
  KeptWorkspace(const KeptWorkspace&) = delete;
  KeptWorkspace& operator=(const KeptWorkspace&) = delete;
  bool filled() const __attribute__((always_inline)) { return filled_; }
  float* floats() const __attribute__((always_inline)) { return static_cast<float*>(data_); }

 private:
  KeptWorkspaces* kept_;
  void* block_;  // its owner, out of line; null: scratch memory
  void* data_;
  int64_t bytes_;
  uint64_t key_;
  bool filled_;
};

// A key from a few numbers (FNV-1a).
template <class... Numbers>
static inline uint64_t hash(Numbers... numbers) {
  uint64_t h = 0xcbf29ce484222325u;
  ((h = (h ^ static_cast<uint64_t>(numbers)) * 0x100000001b3u), ...);
  return h;
}

}  // namespace fastnn
