// The tile instructions in vectors of AVX-512, so that the kernels of this folder can be checked on
// machines without tiles (FASTNN_AMX_EMULATE): the same order of sums, and a trap where the
// processor would refuse, at shapes that do not fit and tiles without one. No speed.
#pragma once

#include "cpu/simd/vec.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

struct TileRegisters {
  uint8_t bytes[8][16][64];
  uint8_t rows[8];    // none: no shape was loaded
  uint16_t width[8];  // bytes of a row

  void load_shapes(const void* config) {
    const auto* const at = static_cast<const uint8_t*>(config);
    __builtin_memcpy(width, at + 16, sizeof(width));
    __builtin_memcpy(rows, at + 48, sizeof(rows));
    __builtin_memset(bytes, 0, sizeof(bytes));
  }
  void release() { __builtin_memset(rows, 0, sizeof(rows)); }
  static void expect(bool fits) {
    if (!fits) __builtin_trap();
  }
  void clear(int t) {
    expect(rows[t]);
    __builtin_memset(bytes[t], 0, sizeof(bytes[t]));
  }
  void load(int t, const void* from, int64_t pitch) {
    clear(t);
    for (int r = 0; r < rows[t]; ++r)
      __builtin_memcpy(bytes[t][r], static_cast<const char*>(from) + r * pitch, width[t]);
  }
  void store(int t, void* to, int64_t pitch) const {
    expect(rows[t]);
    for (int r = 0; r < rows[t]; ++r)
      __builtin_memcpy(static_cast<char*>(to) + r * pitch, bytes[t][r], width[t]);
  }
  void multiply(int c, int a, int b) {
    expect(rows[c] && rows[a] == rows[c] && width[a] == 4 * rows[b] && width[b] == width[c]);
    for (int r = 0; r < rows[c]; ++r) {
      __m512 sums = _mm512_loadu_ps(bytes[c][r]);
      for (int pair = 0; pair < width[a] / 4; ++pair) {
        int32_t factor;
        __builtin_memcpy(&factor, bytes[a][r] + 4 * pair, sizeof(factor));
        sums = _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(_mm512_set1_epi32(factor)),
                                reinterpret_cast<__m512bh>(_mm512_loadu_si512(bytes[b][pair])));
      }
      _mm512_storeu_ps(bytes[c][r], sums);
    }
  }
};
thread_local TileRegisters tile_registers;

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) tile_registers.load_shapes(config)
#define _tile_release() tile_registers.release()
#define _tile_loadd(t, from, pitch) tile_registers.load(t, from, pitch)
#define _tile_stored(t, to, pitch) tile_registers.store(t, to, pitch)
#define _tile_zero(t) tile_registers.clear(t)
#define _tile_dpbf16ps(c, a, b) tile_registers.multiply(c, a, b)
