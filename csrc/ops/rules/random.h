// Random numbers from the words of a block (core/philox.h), written once for every device: in
// double, so that every ISA level gives the same bits. (A GPU's logarithm and angles may differ in
// double's last place, which one float32 in some hundred millions shows.)
#pragma once

#include <cmath>

#include "core/philox.h"

namespace fastnn {

// Four in [low, high), of 24 random bits each.
FASTNN_INLINE void uniform_rule(const Philox4& words, double low, double high, float* y) {
  for (int i = 0; i < 4; ++i) {
    const double unit = (words.word[i] >> 8) * (1.0 / 16777216.0);
    y[i] = static_cast<float>(low + (high - low) * unit);
  }
}

// Four normal ones (Box and Muller, "A note on the generation of random normal deviates", 1958).
FASTNN_INLINE void normal_rule(const Philox4& words, double mean, double std, float* y) {
  for (int i = 0; i < 4; i += 2) {
    const double unit = (words.word[i] + 1.0) * (1.0 / 4294967296.0);  // (0, 1]
    const double radius = std * sqrt(-2.0 * log(unit));
#if defined(__CUDA_ARCH__)
    double sine, cosine;  // without what reduces large angles, which takes local memory
    sincospi(words.word[i + 1] * (2.0 / 4294967296.0), &sine, &cosine);
#else
    const double angle = words.word[i + 1] * (6.283185307179586 / 4294967296.0);
    const double sine = sin(angle), cosine = cos(angle);
#endif
    y[i] = static_cast<float>(mean + radius * cosine);
    y[i + 1] = static_cast<float>(mean + radius * sine);
  }
}

// Two from low on, of `range` values (0: all of 64 bits): the upper half of a product with 64
// random bits, each as likely as any other but for `range` in 2^64.
FASTNN_INLINE void integer_rule(const Philox4& words, int64_t low, uint64_t range, int64_t* y) {
  for (int i = 0; i < 2; ++i) {
    const uint64_t bits = words.word[2 * i] | static_cast<uint64_t>(words.word[2 * i + 1]) << 32;
    const auto product = static_cast<unsigned __int128>(bits) * range;
    const uint64_t at = range ? static_cast<uint64_t>(product >> 64) : bits;
    y[i] = static_cast<int64_t>(static_cast<uint64_t>(low) + at);
  }
}

}  // namespace fastnn
