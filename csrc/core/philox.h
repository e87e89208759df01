// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11).
//
// Counter based: word i of call `offset` under `seed` is a pure function of the three, so a mask
// can be regenerated anywhere and does not depend on device, ISA level or thread count.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace fastnn {

struct Philox4 {
  uint32_t word[4];
};
// Of the 8 halves of the words, the lower of each first.
FASTNN_INLINE uint32_t half(const Philox4& words, int i) {
  return words.word[i / 2] >> 16 * (i % 2) & 0xffff;
}

// Words 4 * block .. 4 * block + 3 of the stream (seed, offset).
FASTNN_INLINE Philox4 philox(uint64_t seed, uint64_t offset, uint64_t block) {
  uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32);
  uint32_t c2 = static_cast<uint32_t>(offset), c3 = static_cast<uint32_t>(offset >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = 0xD2511F53ull * c0;
    const uint64_t p1 = 0xCD9E8D57ull * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Dropout drops element i where half i of the stream is less than this; p in [0, 1].
constexpr uint32_t kDropAll = 1u << 16;
FASTNN_INLINE uint32_t drop_threshold(double p) {
  return static_cast<uint32_t>(p * kDropAll + 0.5);
}

}  // namespace fastnn
