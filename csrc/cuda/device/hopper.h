// What sm_90a adds, as inline functions with host bodies, like device/ptx.h: barriers in shared
// memory that count arrivals and bytes, copies of boxes by the tensor memory accelerator, and
// asynchronous products of tiles in shared memory by a warpgroup, four warps side by side (PTX ISA
// 8.x, sections on mbarrier, cp.async.bulk.tensor and wgmma).
//
// Tiles in shared memory are rows of 128 bytes, 64 values of bfloat16 or 32 of TF32 (float32,
// rounded when copied), at multiples of 1024 bytes. The 16-byte parts of row r lie at part ^ (r %
// 8): the accelerator writes them so and the products read them so, and eight rows of a part fall
// into different banks.
//
// A turned tile, of bfloat16 only, has the terms running down: row r holds 64 rows, or columns, of
// the product for term r, and 64 more are a tile of their own behind it.
//
// A product's outputs: lane l of warp w, g = l / 4, t = l % 4, holds in d[4 j + i] the output
// (16 w + g + 8 (i / 2), 8 j + 2 t + i % 2).
#pragma once

#include "cuda/device/ptx.h"
#include "cuda/tensor_map.h"

namespace fastnn::cuda {

constexpr int kWarpgroup = 128;
constexpr int kBoxBytes = 128;  // of a row in shared memory
template <class T>
constexpr int kBoxOf = kBoxBytes / sizeof(T);
constexpr int kBoxValues = kBoxOf<bfloat16>;

// From the terms of one product, 32 bytes of every row, to the next ones, in the units of tile
// addresses; and in a turned tile, where they are 16 rows.
constexpr uint64_t kTermsStep = 32 / 16, kTurnedStep = 16 * kBoxBytes / 16;
constexpr size_t kTileAlignment = 1024;

// Completes a phase, 0 then 1 then 0 ..., when as many arrivals as it was made for and all expected
// bytes are there.
using Barrier = uint64_t;

#if !defined(FASTNN_CUDA_EMULATE)

// One thread makes barriers of so many arrivals, and them known to the copies; a __syncthreads
// follows.
FASTNN_DEVICE void make_barriers(Barrier* b, int count, unsigned arrivals) {
#if __CUDA_ARCH__ >= 900
  for (int i = 0; i < count; ++i)
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b + i)),
                 "r"(arrivals)
                 : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  __trap();
#endif
}
// Arrives, and expects so many bytes of copies more.
FASTNN_DEVICE void barrier_expect(Barrier* b, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)),
               "r"(bytes)
               : "memory");
#else
  __trap();
#endif
}
FASTNN_DEVICE void barrier_arrive(Barrier* b) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
#else
  __trap();
#endif
}
// Whether the phase of this parity is complete; looks for some time.
FASTNN_DEVICE bool barrier_passed(Barrier* b, unsigned parity) {
  uint32_t done = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(done)
      : "r"(shared_address(b)), "r"(parity)
      : "memory");
#else
  __trap();
#endif
  return done;
}
// About microseconds, from an arbitrary start.
FASTNN_DEVICE uint32_t microseconds() {
  uint64_t nanoseconds;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(nanoseconds));
  return static_cast<uint32_t>(nanoseconds >> 10);
}
// Until the phase of this parity is complete; before the first phase, that of parity 1 is. What is
// not there after seconds will not come: an error, for a GPU that hangs is lost to everybody.
FASTNN_DEVICE void barrier_wait(Barrier* b, unsigned parity) {
  constexpr uint32_t kLongest = 10 << 20;
  if (barrier_passed(b, parity)) return;
  const uint32_t start = microseconds();
  while (!barrier_passed(b, parity))
    if (microseconds() - start > kLongest) __trap();
}

// The box of `map` at these coordinates, innermost first; zeros outside. One thread starts it.
FASTNN_DEVICE void load_box(void* shared, const TensorMap* map, Barrier* b, int x, int y, int z) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(b)), "r"(x), "r"(y), "r"(z)
      : "memory");
#else
  __trap();
#endif
}
// Pixels of `map`, one after the other from base pixel (across, down, image) on, each displaced by
// the tap's offsets (>= 0), from `channel` on.
FASTNN_DEVICE void load_pixels(void* shared, const TensorMap* map, Barrier* b, int channel,
                               int across, int down, int image, int tap_across, int tap_down) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(b)), "r"(channel), "r"(across), "r"(down), "r"(image),
      "h"(static_cast<uint16_t>(tap_across)), "h"(static_cast<uint16_t>(tap_down))
      : "memory");
#else
  __trap();
#endif
}

// A turned tile in shared memory as the products take it, the next one of which is `apart` bytes on
// (products of 128 columns).
FASTNN_DEVICE uint64_t turned_tile_at(const void* p, uint64_t apart = 0) {
  constexpr uint64_t kEightRows = 8 * kBoxBytes, kSwizzle128 = 1;
  return (shared_address(p) & 0x3ffffu) >> 4 | apart >> 4 << 16 | kEightRows >> 4 << 32 |
         kSwizzle128 << 62;
}
// One that is not: all its rows follow each other, and 16 stands where that distance would.
FASTNN_DEVICE uint64_t tile_at(const void* p) { return turned_tile_at(p, 16); }

// Around products: before the first of a group; its end; until at most kLeft groups are under way.
FASTNN_DEVICE void begin_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  __trap();
#endif
}
FASTNN_DEVICE void commit_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  __trap();
#endif
}
template <int kLeft, int N>
FASTNN_DEVICE void wait_products(float (&d)[N]) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
  if constexpr (kLeft == 0)  // nothing that reads d moves before this
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
#else
  __trap();
#endif
}

// d += a b^T over 32 bytes of terms, 16 of bfloat16 or 8 of TF32: a has 64 rows, b as many as there
// are outputs for. Both tiles are turned, or neither.
#define FASTNN_EIGHT(i)                                                                       \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define FASTNN_SUMS_32 FASTNN_EIGHT(0), FASTNN_EIGHT(8), FASTNN_EIGHT(16), FASTNN_EIGHT(24)
#define FASTNN_SUMS_64 \
  FASTNN_SUMS_32, FASTNN_EIGHT(32), FASTNN_EIGHT(40), FASTNN_EIGHT(48), FASTNN_EIGHT(56)
#define FASTNN_NAMES_32                                                    \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FASTNN_NAMES_64                                                                \
  FASTNN_NAMES_32                                                                      \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
template <class T, bool kTurned = false>
FASTNN_DEVICE void multiply_async(float (&d)[32], uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (sizeof(T) == 2)
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" FASTNN_NAMES_32
                 "}, %32, %33, 1, 1, 1, %34, %34;"
                 : FASTNN_SUMS_32
                 : "l"(a), "l"(b), "n"(kTurned ? 1 : 0));
  else
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 {" FASTNN_NAMES_32
                 "}, %32, %33, 1, 1, 1;"
                 : FASTNN_SUMS_32
                 : "l"(a), "l"(b));
#else
  __trap();
#endif
}
template <class T, bool kTurned = false>
FASTNN_DEVICE void multiply_async(float (&d)[64], uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (sizeof(T) == 2)
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" FASTNN_NAMES_64
                 "}, %64, %65, 1, 1, 1, %66, %66;"
                 : FASTNN_SUMS_64
                 : "l"(a), "l"(b), "n"(kTurned ? 1 : 0));
  else
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k8.f32.tf32.tf32 {" FASTNN_NAMES_64
                 "}, %64, %65, 1, 1, 1;"
                 : FASTNN_SUMS_64
                 : "l"(a), "l"(b));
#else
  __trap();
#endif
}
#undef FASTNN_EIGHT
#undef FASTNN_SUMS_32
#undef FASTNN_SUMS_64
#undef FASTNN_NAMES_32
#undef FASTNN_NAMES_64

// A warpgroup's registers per thread: those that one gives up, others may take.
template <int kRegisters>
FASTNN_DEVICE void keep_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#else
  __trap();
#endif
}
template <int kRegisters>
FASTNN_DEVICE void take_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#else
  __trap();
#endif
}

#else

static inline void make_barriers(Barrier* b, int count, unsigned arrivals) {
  for (int i = 0; i < count; ++i) emulator::barrier_init(b + i, arrivals);
}
static inline void barrier_expect(Barrier* b, unsigned bytes) {
  emulator::barrier_arrive(b, bytes);
}
static inline void barrier_arrive(Barrier* b) { emulator::barrier_arrive(b, 0); }
static inline void barrier_wait(Barrier* b, unsigned parity) { emulator::barrier_wait(b, parity); }
static inline bool barrier_passed(Barrier* b, unsigned parity) {
  emulator::barrier_wait(b, parity);
  return true;
}

// Where byte `at` of a tile lies: parts of 16 bytes change places within eight rows.
static inline size_t swizzled(size_t at) { return at ^ (at / kBoxBytes % 8 * 16); }

// As the accelerator rounds to TF32: ties to even, Inf and NaN stay (triton-lang/triton#11751),
// where to_tf32() rounds ties away from zero.
static inline uint32_t copied_as_tf32(uint32_t bits) {
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
  return (bits + 0xfffu + (bits >> 13 & 1)) & 0xffffe000u;
}

// One row of a box: its values from element `at` of the tensor on.
template <int kRank>
static inline void copy_box_row(const TensorMap& m, int64_t (&at)[kRank], void* shared,
                                int64_t row) {
  for (int64_t i = 0; i < m.box[0]; ++i, ++at[0]) {
    const auto item = static_cast<size_t>(m.item);
    uint32_t value = 0;
    if (m.holds(at, kRank)) memcpy(&value, m.address(at, kRank), item);
    if (item == 4) value = copied_as_tf32(value);
    memcpy(static_cast<char*>(shared) + swizzled(static_cast<size_t>(row * kBoxBytes + m.item * i)),
           &value, item);
  }
}
static inline void load_box(void* shared, const TensorMap* map, Barrier* b, int x, int y, int z) {
  const TensorMap m = *map;
  const int64_t rows = m.box[1] * m.box[2];
  emulator::bulk_copy(shared, static_cast<size_t>(rows) * kBoxBytes, b, [=] {
    for (int64_t row = 0; row < rows; ++row) {
      int64_t at[3] = {x, y + row % m.box[1], z + row / m.box[1]};
      copy_box_row(m, at, shared, row);
    }
  });
}
static inline void load_pixels(void* shared, const TensorMap* map, Barrier* b, int channel,
                               int across, int down, int image, int tap_across, int tap_down) {
  const TensorMap m = *map;
  if (tap_across < 0 || tap_down < 0 || tap_across > 255 || tap_down > 255)
    emulator::fail("a tap's offset outside 0 to 255");
  emulator::bulk_copy(shared, static_cast<size_t>(m.box[1]) * kBoxBytes, b, [=] {
    int64_t w = across, h = down, n = image;
    for (int64_t row = 0; row < m.box[1]; ++row) {
      int64_t at[4] = {channel, w + tap_across, h + tap_down, n};
      copy_box_row(m, at, shared, row);
      // On to the next base pixel, within the corners.
      if ((w += m.step[0]) <= m.size[1] - 1 + m.upper[0]) continue;
      w = m.lower[0];
      if ((h += m.step[1]) <= m.size[2] - 1 + m.upper[1]) continue;
      h = m.lower[1];
      ++n;
    }
  });
}

// Within the block's dynamic shared memory.
static inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - dynamic_shared() +
                               emulator::kDynamicAt);
}
static inline uint64_t tile_at(const void* p) {
  const uint64_t at = shared_address(p);
  if (at % kTileAlignment) emulator::fail("a tile that does not begin at a multiple of 1024 bytes");
  return at >> 4;
}
static inline uint64_t turned_tile_at(const void* p, uint64_t apart = 0) {
  return tile_at(p) | apart >> 4 << 16;
}
template <class T, bool kTurned>
static inline float tile_value(uint64_t tile, int row, int k) {
  const auto start = static_cast<size_t>((tile & 0xffff) << 4);
  const auto apart = static_cast<size_t>(tile >> 16 << 4);
  constexpr int kItem = sizeof(T);
  if (kTurned && row >= kBoxValues && apart == 0)
    emulator::fail("a turned tile without a next one");
  const size_t at = kTurned ? start + static_cast<size_t>(row / kBoxValues) * apart +
                                  static_cast<size_t>(k * kBoxBytes + row % kBoxValues * kItem)
                            : start + static_cast<size_t>(row * kBoxBytes + kItem * k);
  T value;
  memcpy(&value, dynamic_shared() + swizzled(at) - emulator::kDynamicAt, sizeof(T));
  return to_float(value);
}

static inline void begin_products() {}
static inline void commit_products() { emulator::commit_products(); }
template <int kLeft, int N>
static inline void wait_products(float (&)[N]) {
  emulator::wait_products(kLeft);
}
// Of 32 lanes, all have to ask for the same product; d is NaN until it is waited for.
template <class T, bool kTurned = false, int N>
static inline void multiply_async(float (&d)[N], uint64_t a, uint64_t b) {
  const uint64_t mine[2] = {a, b};
  const auto* const all = static_cast<const uint64_t*>(emulator::warp_exchange(mine, sizeof(mine)));
  if (all[0] != a || all[1] != b) emulator::fail("lanes of a warp multiply different tiles");
  const int first = static_cast<int>(threadIdx.x) % kWarpgroup / 32 * 16 + emulator::lane() / 4;
  const int column = 2 * (emulator::lane() % 4);
  emulator::later_product(d, N, [=](float* sums) {
    for (int i = 0; i < N; ++i)
      for (int k = 0; k < int{32 / sizeof(T)}; ++k)
        sums[i] += tile_value<T, kTurned>(a, first + i % 4 / 2 * 8, k) *
                   tile_value<T, kTurned>(b, i / 4 * 8 + column + i % 2, k);
  });
}
template <int kRegisters>
static inline void keep_registers() {}
template <int kRegisters>
static inline void take_registers() {}

#endif

// The block's dynamic shared memory from where a tile may begin; launches ask for kTileAlignment
// bytes more than are used.
FASTNN_DEVICE unsigned char* tiles_memory() {
  unsigned char* const memory = dynamic_shared();
  return memory + (kTileAlignment - shared_address(memory) % kTileAlignment) % kTileAlignment;
}

}  // namespace fastnn::cuda
