// AMX tile registers: eight of 16 rows by 64 bytes. One instruction multiplies a tile of A (up to
// 16 rows of up to 32 bfloat16 values) with a tile of B (the same values in pairs: row j holds, for
// each of 16 columns, values 2j and 2j + 1) and adds to a 16 x 16 float32 tile, in 16 cycles: 1024
// flops per cycle and core, 16 times those of AVX-512.
//
//                B 6    B 7
//        A 4    C 0    C 1      four products per four tile loads; a load takes 8 cycles from L1,
//        A 5    C 2    C 3      so the multiplier sees no gap while operands are there
//
// Products are exact, sums float32 rounded to nearest, subnormals count as zero.
// Intel, "Intel Architecture Instruction Set Extensions Programming Reference", chapter 3.
#pragma once

#include "cpu/simd/transpose.h"
#include "cpu/simd/vec.h"
#ifdef FASTNN_AMX_EMULATE
#include "cpu/amx/emulated_tiles.h"
#endif

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int kTile = 16;                // rows of A, columns of B
constexpr int kTileFloats = 16 * kTile;  // of a C tile

// The shapes of this thread's tiles; loading it clears them.
struct TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// The next two are barriers for the compiler too: the intrinsics do not say that they read memory.
// `rows` of A and C, `depth` (even, up to 32) values per row of A.
FASTNN_INLINE void shape_tiles(int rows, int depth) {
  alignas(64) TileShapes shapes;
  for (int i = 0; i < 8; ++i) {
    shapes.rows[i] = static_cast<uint8_t>(i < 6 ? rows : depth / 2);
    shapes.bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? 2 * depth : 64);
  }
  asm volatile("" ::: "memory");
  _tile_loadconfig(&shapes);
}
FASTNN_INLINE void release_tiles() { _tile_release(); }

// Sets C to zero, or to what c holds; and back. c is 2 x 2 tiles of `rows`, row pitch 2 * kTile
// floats.
template <int MA, int NB>
FASTNN_INLINE void load_sums(const float* c, bool add, int64_t rows = kTile) {
  constexpr int64_t kPitch = 2 * kTile * 4;
  const float* const below = c + 2 * kTile * rows;
  asm volatile("" ::: "memory");
  if (add) {
    _tile_loadd(0, c, kPitch);
    if (NB == 2) _tile_loadd(1, c + kTile, kPitch);
    if (MA == 2) _tile_loadd(2, below, kPitch);
    if (MA == 2 && NB == 2) _tile_loadd(3, below + kTile, kPitch);
  } else {
    _tile_zero(0);
    if (NB == 2) _tile_zero(1);
    if (MA == 2) _tile_zero(2);
    if (MA == 2 && NB == 2) _tile_zero(3);
  }
}
template <int MA, int NB>
FASTNN_INLINE void store_sums(float* c, int64_t rows = kTile) {
  constexpr int64_t kPitch = 2 * kTile * 4;
  float* const below = c + 2 * kTile * rows;
  _tile_stored(0, c, kPitch);
  if (NB == 2) _tile_stored(1, c + kTile, kPitch);
  if (MA == 2) _tile_stored(2, below, kPitch);
  if (MA == 2 && NB == 2) _tile_stored(3, below + kTile, kPitch);
  asm volatile("" ::: "memory");
}

// One step: C += A B. b1 of NB = 1 and a1 of MA = 1 are not touched.
template <int MA, int NB>
FASTNN_INLINE void multiply(const bfloat16* a0, const bfloat16* a1, int64_t a_bytes,
                            const bfloat16* b0, const bfloat16* b1) {
  _tile_loadd(6, b0, 64);
  _tile_loadd(4, a0, a_bytes);
  _tile_dpbf16ps(0, 4, 6);
  if (MA == 2) {
    _tile_loadd(5, a1, a_bytes);
    _tile_dpbf16ps(2, 5, 6);
  }
  if (NB == 2) {
    _tile_loadd(7, b1, 64);
    _tile_dpbf16ps(1, 4, 7);
    if (MA == 2) _tile_dpbf16ps(3, 5, 7);
  }
}

// Two rows of 32 values as a row of pairs for each 16 columns; the second half is not written where
// `high` is null.
FASTNN_INLINE void store_pairs(__m512i even, __m512i odd, bfloat16* low, bfloat16* high) {
  const vuint lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const auto first = reinterpret_cast<__m512i>(((lane + 32) << 16) | lane);
  const auto second = reinterpret_cast<__m512i>(((lane + 48) << 16) | (lane + 16));
  _mm512_storeu_si512(low, _mm512_permutex2var_epi16(even, first, odd));
  if (high) _mm512_storeu_si512(high, _mm512_permutex2var_epi16(even, second, odd));
}

// 16 rows of a matrix as a tile of B: their values in pairs, [pair][16 rows][2]; zeros for rows
// from `count` on. `mask` has a bit for each value that exists. The rows `ahead` values on are
// fetched.
FASTNN_INLINE void turn_rows(const bfloat16* from, int64_t pitch, int64_t count, __mmask32 mask,
                             int depth, int64_t ahead, bfloat16* to) {
  vuint pairs[kTile];
  for (int64_t i = 0; i < kTile; ++i, from += pitch) {
    _mm_prefetch(from + ahead, _MM_HINT_T0);
    pairs[i] = i < count ? reinterpret_cast<vuint>(_mm512_maskz_loadu_epi16(mask, from)) : vuint{};
  }
  transpose(pairs);
  for (int j = 0; j < depth / 2; ++j)
    __builtin_memcpy(to + 2 * kTile * j, &pairs[j], sizeof(vuint));
}

// Rows of memory that are needed later, brought into L2 in their order, some lines per step.
struct NextRows {
  const bfloat16* at;
  int64_t pitch, columns, rows, per_step, column;
  // `columns` values of each row, within so many steps. Sets member by member: a copy of the whole
  // would be read in wider pieces than it was written, which waits for all that the tiles store.
  FASTNN_INLINED inline void bring(const bfloat16* from, int64_t distance, int64_t of_each,
                                   int64_t count, int64_t steps) {
    at = from, pitch = distance, columns = of_each, rows = count, column = 0;
    per_step = rows * ceil_div(columns, 32) / steps + 1;
  }
  FASTNN_INLINED inline void fetch() {
    for (int64_t i = 0; i < per_step && rows > 0; ++i) {
      _mm_prefetch(at + column, _MM_HINT_T1);
      column += 32;
      if (column >= columns) column = 0, at += pitch, --rows;
    }
  }
};

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
