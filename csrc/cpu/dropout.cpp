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
#if defined(FASTNN_ISA_avx512)
// Eight blocks at a time, one counter word per 64-bit lane: the multiplication reads the lower
// halves only, so that what the shifts leave in the upper ones does no harm. 6 instructions per
// round, each of which waits for the one before: kTurns times eight blocks take turns.
constexpr int kTurns = 4;
void words(uint64_t seed, uint64_t offset, int64_t first, uint32_t* out) {
  const auto all = [](uint64_t x) { return _mm512_set1_epi64(static_cast<int64_t>(x)); };
  const __m512i m0 = all(0xD2511F53u), m1 = all(0xCD9E8D57u), low = all(0xffffffffu);
  const __m512i lane = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
  const __m512i start = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  const __m512i end = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
  const auto high = [](__m512i x) { return _mm512_maskz_srli_epi64(0xff, x, 32); };
  const auto pair = [&](__m512i x, __m512i y) {
    return _mm512_or_si512(_mm512_and_si512(x, low), _mm512_maskz_slli_epi64(0xff, y, 32));
  };
  for (int64_t b = 0; b < kWords / 4; b += 8 * kTurns) {
    __m512i c0[kTurns], c1[kTurns], c2[kTurns], c3[kTurns];
#pragma GCC unroll 4
    for (int t = 0; t < kTurns; ++t) {
      c0[t] = _mm512_add_epi64(all(static_cast<uint64_t>(first / 4 + b + 8 * t)), lane);
      c1[t] = high(c0[t]), c2[t] = all(offset), c3[t] = high(c2[t]);
    }
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
      const __m512i key0 = all(k0), key1 = all(k1);
#pragma GCC unroll 4
      for (int t = 0; t < kTurns; ++t) {
        const __m512i p0 = _mm512_maskz_mul_epu32(0xff, m0, c0[t]);
        const __m512i p1 = _mm512_maskz_mul_epu32(0xff, m1, c2[t]);
        c0[t] = _mm512_ternarylogic_epi64(high(p1), c1[t], key0, 0x96);  // exclusive or of three
        c1[t] = p1;
        c2[t] = _mm512_ternarylogic_epi64(high(p0), c3[t], key1, 0x96);
        c3[t] = p0;
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTurns; ++t) {
      const __m512i first_two = pair(c0[t], c1[t]), last_two = pair(c2[t], c3[t]);
      uint32_t* const to = out + 4 * b + 32 * t;
      _mm512_storeu_si512(to, _mm512_permutex2var_epi64(first_two, start, last_two));
      _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi64(first_two, end, last_two));
    }
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
FASTNN_INLINE vuint load_halves(const uint32_t* words, int64_t i) {
  vhalf v;
  __builtin_memcpy(&v, reinterpret_cast<const uint16_t*>(words) + i, sizeof(v));
  return from_halves(v);
}

template <class T>
void elements_typed(const T* x, T* y, int64_t count, uint64_t seed, uint64_t offset,
                    uint32_t threshold, float scale) {
  const Route route = route_to(y, count);
  parallel_ranges(count, kGrain, [&](int64_t begin, int64_t end) {
    uint32_t buffer[kWords + LANES] = {};
    for (int64_t first = begin; first < end; first += 2 * kWords) {
      const int64_t last = first + 2 * kWords < end ? first + 2 * kWords : end;
      for (int64_t i = first; i < last; i += 64 / int64_t{sizeof(T)}) __builtin_prefetch(x + i);
      words(seed, offset, first / 2, buffer);
      vector_loop(first, last, [&](int64_t i, int n) {
        const vint keep = load_halves(buffer, i - first) >= threshold;
        store_any(y + i, select(keep, load_any(x + i, n) * scale, vfloat{}), n, route);
      });
    }
  });
}

template <class T>
void units_typed(const T* x, T* y, int64_t N, int64_t P, int64_t C, uint64_t seed, uint64_t offset,
                 uint32_t threshold, float scale) {
  auto kept = [&](int64_t unit) {
    return half(philox(seed, offset, static_cast<uint64_t>(unit / 8)), unit % 8) >= threshold;
  };
  const Route route = route_to(y, C == 1 ? P : C);
  if (C == 1) {  // whole samples
    parallel_for(N, [&](int64_t n) {
      if (kept(n))
        vector_loop(n * P, (n + 1) * P, [&](int64_t i, int l) {
          store_any(y + i, load_ahead(x + i, l) * scale, l, route);
        });
      else
        __builtin_memset(y + n * P, 0, sizeof(T) * static_cast<size_t>(P));
    });
    return;
  }
  parallel_for(N, [&](int64_t n) {
    float* factor = static_cast<float*>(thread_scratch(C * 4, 0));
    for (int64_t c = 0; c < C; ++c) factor[c] = kept(n * C + c) ? scale : 0.0f;
    for (int64_t pixel = n * P; pixel < (n + 1) * P; ++pixel)
      vector_loop(0, C, [&](int64_t c, int l) {
        const vfloat f = load_any(factor + c, l), v = load_ahead(x + pixel * C + c, l);
        store_any(y + pixel * C + c, select(f == 0, vfloat{}, v * f), l, route);
      });
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
