// Dropout: one read and one write per element; the mask costs ten rounds of integer arithmetic per
// eight elements, half a cycle for each on AVX-512: below the time of the traffic where that is
// with memory, so nothing is stored for the backward.
#include "core/philox.h"
#include "cpu/simd/vec.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kWords = 1024;  // generated at a time, into L1

// Words first .. first + kWords - 1 of the stream; first is a multiple of 4.
#if defined(FASTNN_ISA_avx2) || defined(FASTNN_ISA_avx512)
// LANES / 2 blocks at a time, one counter word per 64-bit lane: the multiplication reads the lower
// halves only, so that what the shifts leave in the upper ones does no harm. 6 instructions per
// round (AVX2: 8), each of which waits for the one before: kTurns times as many blocks take turns.
typedef uint64_t vlong __attribute__((vector_size(4 * LANES)));
#if defined(FASTNN_ISA_avx512)
constexpr int kTurns = 4;
FASTNN_INLINE vlong multiply_lower(vlong a, vlong b) {
  return reinterpret_cast<vlong>(
      _mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
FASTNN_INLINE vlong exclusive_or(vlong a, vlong b, vlong c) {
  return reinterpret_cast<vlong>(_mm512_ternarylogic_epi64(reinterpret_cast<__m512i>(a),
                                                           reinterpret_cast<__m512i>(b),
                                                           reinterpret_cast<__m512i>(c), 0x96));
}
#else
constexpr int kTurns = 2;  // of 16 registers
FASTNN_INLINE vlong multiply_lower(vlong a, vlong b) {
  return reinterpret_cast<vlong>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
FASTNN_INLINE vlong exclusive_or(vlong a, vlong b, vlong c) { return a ^ b ^ c; }
#endif
// Words 0 and 1 of the blocks, and their words 2 and 3, as they follow each other in the stream.
FASTNN_INLINE void store_blocks(uint32_t* to, vlong first_two, vlong last_two) {
#if defined(FASTNN_ISA_avx512)
  const vlong low = __builtin_shufflevector(first_two, last_two, 0, 8, 1, 9, 2, 10, 3, 11);
  const vlong high = __builtin_shufflevector(first_two, last_two, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  const vlong low = __builtin_shufflevector(first_two, last_two, 0, 4, 1, 5);
  const vlong high = __builtin_shufflevector(first_two, last_two, 2, 6, 3, 7);
#endif
  __builtin_memcpy(to, &low, sizeof(low));
  __builtin_memcpy(to + LANES, &high, sizeof(high));
}

void words(uint64_t seed, uint64_t offset, int64_t first, uint32_t* out) {
  constexpr int kBlocks = LANES / 2;
  const vlong m0 = vlong{} + 0xD2511F53u, m1 = vlong{} + 0xCD9E8D57u;
  vlong lane;
  for (int i = 0; i < kBlocks; ++i) lane[i] = static_cast<uint64_t>(i);
  for (int64_t b = 0; b < kWords / 4; b += kBlocks * kTurns) {
    vlong c0[kTurns], c1[kTurns], c2[kTurns], c3[kTurns];
#pragma GCC unroll 4
    for (int t = 0; t < kTurns; ++t) {
      c0[t] = lane + static_cast<uint64_t>(first / 4 + b + kBlocks * t);
      c1[t] = c0[t] >> 32, c2[t] = vlong{} + offset, c3[t] = c2[t] >> 32;
    }
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
      const vlong key0 = vlong{} + k0, key1 = vlong{} + k1;
#pragma GCC unroll 4
      for (int t = 0; t < kTurns; ++t) {
        const vlong p0 = multiply_lower(m0, c0[t]), p1 = multiply_lower(m1, c2[t]);
        c0[t] = exclusive_or(p1 >> 32, c1[t], key0);
        c1[t] = p1;
        c2[t] = exclusive_or(p0 >> 32, c3[t], key1);
        c3[t] = p0;
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTurns; ++t)
      store_blocks(out + 4 * b + 2 * LANES * t, (c0[t] & 0xffffffffu) | c1[t] << 32,
                   (c2[t] & 0xffffffffu) | c3[t] << 32);
  }
}
#else
// The loop over blocks is written so that the compiler runs LANES of them at once.
void words(uint64_t seed, uint64_t offset, int64_t first, uint32_t* out) {
  for (int64_t b = 0; b < kWords / 4; ++b) {
    const Philox4 four = philox(seed, offset, static_cast<uint64_t>(first / 4 + b));
    for (int w = 0; w < 4; ++w) out[4 * b + w] = four.word[w];
  }
}
#endif

// Halves i to i + LANES - 1 of the words.
FASTNN_INLINE vint load_halves(const uint32_t* words, int64_t i) {
  vhalf v;
  __builtin_memcpy(&v, reinterpret_cast<const uint16_t*>(words) + i, sizeof(v));
  return reinterpret_cast<vint>(from_halves(v));
}
// As many more, in the order of load_mixed() for values of T.
struct TwoHalves {
  vint first, second;
};
template <class T>
FASTNN_INLINE TwoHalves load_mixed_halves(const uint32_t* words, int64_t i) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return {load_halves(words, i), load_halves(words, i + LANES)};
  } else {
    vuint both;
    __builtin_memcpy(&both, words + i / 2, sizeof(both));
    return {reinterpret_cast<vint>(both & 0xffffu), reinterpret_cast<vint>(both >> 16)};
  }
}

template <class T>
void elements_typed(const T* x, T* y, int64_t count, uint64_t seed, uint64_t offset,
                    uint32_t threshold, float scale) {
  const Route route = route_to(y, count);
  const auto least = static_cast<int32_t>(threshold);
  const auto kept = [=](vint half, vfloat v)
                        FASTNN_INLINED { return select(half >= least, v * scale, vfloat{}); };
  parallel_ranges(count, kGrain, [&](int64_t begin, int64_t end) {
    uint32_t buffer[kWords + LANES] = {};
    for (int64_t first = begin; first < end; first += 2 * kWords) {
      const int64_t last = first + 2 * kWords < end ? first + 2 * kWords : end;
      for (int64_t i = first; i < last; i += 64 / int64_t{sizeof(T)}) __builtin_prefetch(x + i);
      words(seed, offset, first / 2, buffer);
      vectors_loop<2>(first, last, [&](int64_t i, auto vectors, int n) FASTNN_INLINED {
        if constexpr (decltype(vectors)::count == 2) {
          const TwoHalves half = load_mixed_halves<T>(buffer, i - first);
          const TwoVectors v = load_mixed(x + i);
          store_mixed(y + i, {kept(half.first, v.first), kept(half.second, v.second)}, route);
        } else {
          store_any(y + i, kept(load_halves(buffer, i - first), load_any(x + i, n)), n, route);
        }
      });
    }
  });
}

template <class T>
void units_typed(const T* x, T* y, int64_t N, int64_t P, int64_t C, uint64_t seed, uint64_t offset,
                 uint32_t threshold, float scale) {
  // Eight units in a row share their words.
  const auto factors = [=](int64_t first, int64_t count, float* to) {
    Philox4 block{};
    for (int64_t i = 0, unit = first; i < count; ++i, ++unit) {
      if (i == 0 || unit % 8 == 0) block = philox(seed, offset, static_cast<uint64_t>(unit / 8));
      to[i] = half(block, static_cast<int>(unit % 8)) >= threshold ? scale : 0.0f;
    }
  };
  if (C == 1) {  // whole samples
    const Route route = route_to(y, P);
    parallel_for(N, [&](int64_t n) {
      float factor;
      factors(n, 1, &factor);
      if (factor != 0)
        vector_loop(n * P, (n + 1) * P, [&](int64_t i, int l) {
          store_any(y + i, load_ahead(x + i, l) * factor, l, route);
        });
      else
        __builtin_memset(y + n * P, 0, sizeof(T) * static_cast<size_t>(P));
    });
    return;
  }
  // Pixels are taken together where one is short or no whole vectors.
  constexpr int64_t kShort = 256;
  const int64_t enough = C < kShort ? (1 + kShort / C / LANES) * LANES : 1;
  const int64_t together = enough < P ? enough : P;
  const Route route = route_to(y, P * C % LANES ? P * C % LANES : together * C);
  parallel_for(N, [&](int64_t n) {
    auto* const factor = static_cast<float*>(thread_scratch(together * C * int64_t{4}, 0));
    factors(n * C, C, factor);
    for (int64_t i = C; i < together * C; ++i) factor[i] = factor[i - C];
    for (int64_t first = n * P * C, end = first + P * C; first < end; first += together * C) {
      const int64_t some = end - first < together * C ? end - first : together * C;
      vectors_loop<2>(0, some, [&](int64_t i, auto vectors, int l) FASTNN_INLINED {
#pragma GCC unroll 2
        for (int64_t at = i; at < i + decltype(vectors)::count * LANES; at += LANES) {
          const vfloat f = load_any(factor + at, l), v = load_ahead(x + first + at, l);
          store_any(y + first + at, select(f == 0, vfloat{}, v * f), l, route);
        }
      });
    }
  });
}

void elements(const void* x, void* y, int64_t count, DType dtype, uint64_t seed, uint64_t offset,
              uint32_t threshold, float scale) {
  if (dtype == DType::float32)
    elements_typed(static_cast<const float*>(x), static_cast<float*>(y), count, seed, offset,
                   threshold, scale);
  else
    elements_typed(static_cast<const bfloat16*>(x), static_cast<bfloat16*>(y), count, seed, offset,
                   threshold, scale);
}

void units(const void* x, void* y, int64_t N, int64_t P, int64_t C, DType dtype, uint64_t seed,
           uint64_t offset, uint32_t threshold, float scale) {
  if (dtype == DType::float32)
    units_typed(static_cast<const float*>(x), static_cast<float*>(y), N, P, C, seed, offset,
                threshold, scale);
  else
    units_typed(static_cast<const bfloat16*>(x), static_cast<bfloat16*>(y), N, P, C, seed, offset,
                threshold, scale);
}

}  // namespace

void fill_dropout(Slots& slots) { slots.dropout = {elements, units}; }

}  // namespace fastnn::cpu::FASTNN_ISA
