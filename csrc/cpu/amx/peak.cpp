// The peak of ../peak.cpp in bfloat16, on tiles. Their values are random: tiles of zeros multiply
// a third faster (Emerald Rapids), which no product of a network does.
#include "core/dtype.h"
#include "cpu/amx/tiles.h"

namespace fastnn::cpu::avx512 {
double multiply_adds(DType dtype, int64_t rounds);
}

namespace fastnn::cpu::FASTNN_ISA {

double multiply_adds(DType dtype, int64_t rounds) {
  if (dtype != DType::bfloat16) return avx512::multiply_adds(dtype, rounds);
  constexpr int64_t kValues = 2 * kTileFloats;  // of a tile of bfloat16
  alignas(64) bfloat16 values[4 * kValues];
  uint32_t random = 1;
  for (bfloat16& value : values) {  // of either sign, between 1/2 and 2
    random = random * 1664525 + 1013904223;
    value.bits = static_cast<uint16_t>(0x3f00 | (random >> 16 & 0x80ff));
  }
  alignas(64) float sums[4 * kTileFloats];
  shape_tiles(kTile, 2 * kTile);
  load_sums<2, 2>(sums, false);
  asm volatile("" : : "r"(values) : "memory");
  _tile_loadd(4, values, 64);
  _tile_loadd(5, values + kValues, 64);
  _tile_loadd(6, values + 2 * kValues, 64);
  _tile_loadd(7, values + 3 * kValues, 64);
  for (int64_t i = 0; i < rounds; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
  store_sums<2, 2>(sums);
  release_tiles();
  return 2.0 * static_cast<double>(rounds * 4 * kTile * kTileFloats * 2);
}

}  // namespace fastnn::cpu::FASTNN_ISA
