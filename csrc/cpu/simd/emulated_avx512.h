// What the kernels use of AVX-512 and of its products of bfloat16 pairs, in loops over lanes, so
// that the levels above AVX2 can be checked on machines that end there (FASTNN_AVX512_EMULATE).
// Arithmetic on 16 lanes needs nothing of this: compilers make two vectors of one. Traps where the
// processor would refuse, at addresses that are not aligned, and where an instruction is asked for
// what no kernel asks of it yet. No speed.
#pragma once

#include <immintrin.h>

#include "core/dtype.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace emulated {

// Out of line: inlined into every loop, these would be most of what there is to compile.
#define FASTNN_APART __attribute__((noinline, unused)) static

FASTNN_INLINE void expect(bool fits) {
  if (!fits) __builtin_trap();
}
template <class Lane>
FASTNN_INLINE Lane lane_at(const void* from, int i) {
  Lane x;
  __builtin_memcpy(&x, static_cast<const char*>(from) + i * sizeof(Lane), sizeof(Lane));
  return x;
}
template <class Lane, class V>
FASTNN_INLINE Lane lane(const V& v, int i) {
  return lane_at<Lane>(&v, i);
}
// A vector whose lane i is of(i), where the mask has a bit for it, else zero.
template <class V, class Lane, class Of>
FASTNN_INLINE V lanes_of(uint64_t mask, const Of& of) {
  constexpr int kLanes = sizeof(V) / sizeof(Lane);
  Lane all[kLanes];
  for (int i = 0; i < kLanes; ++i) all[i] = mask >> i & 1 ? static_cast<Lane>(of(i)) : Lane{};
  V v;
  __builtin_memcpy(&v, all, sizeof(v));
  return v;
}
template <class V, class Lane, class Of>
FASTNN_INLINE V lanes_of(const Of& of) {
  return lanes_of<V, Lane>(~uint64_t{0}, of);
}

// Memory: what the mask leaves out is not touched.
template <class V, class Lane>
FASTNN_APART V load(uint64_t mask, const void* from) {
  return lanes_of<V, Lane>(mask, [&](int i) { return lane_at<Lane>(from, i); });
}
template <class Lane, class V>
FASTNN_APART void store(void* to, uint64_t mask, const V& v) {
  for (int i = 0; i < static_cast<int>(sizeof(V) / sizeof(Lane)); ++i) {
    if (!(mask >> i & 1)) continue;
    const Lane x = lane<Lane>(v, i);
    __builtin_memcpy(static_cast<char*>(to) + i * sizeof(Lane), &x, sizeof(Lane));
  }
}
template <class V>
FASTNN_INLINE V load_whole(const void* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}
template <class V>
FASTNN_INLINE void store_whole(void* to, const V& v) {
  __builtin_memcpy(to, &v, sizeof(v));
}
FASTNN_INLINE void expect_line(const void* p) { expect(reinterpret_cast<uintptr_t>(p) % 64 == 0); }
template <class V>
FASTNN_INLINE V load_line(const void* from) {
  expect_line(from);
  return load_whole<V>(from);
}
template <class V>
FASTNN_INLINE void store_line(void* to, const V& v) {
  expect_line(to);
  store_whole(to, v);
}

// Floats.
FASTNN_INLINE __m512 maximum(uint64_t mask, __m512 a, __m512 b) {
  expect(mask == 0xffff);
  return a > b ? a : b;
}
FASTNN_INLINE __m512 minimum(uint64_t mask, __m512 a, __m512 b) {
  expect(mask == 0xffff);
  return a < b ? a : b;
}
FASTNN_APART __m512 root(uint64_t mask, __m512 a) {
  return lanes_of<__m512, float>(mask, [&](int i) { return __builtin_sqrtf(a[i]); });
}
// As far from the quotient as the instruction may be: 14 bits.
FASTNN_APART __m512 reciprocal(uint64_t mask, __m512 a) {
  return lanes_of<__m512, uint32_t>(mask, [&](int i) {
    const float quotient = 1.0f / a[i];
    return (lane<uint32_t>(quotient, 0) + 0x200u) & ~0x3ffu;
  });
}
FASTNN_APART __m512 scaled(uint64_t mask, __m512 a, __m512 n) {
  return lanes_of<__m512, float>(mask, [&](int i) {
    if (n[i] != n[i]) return n[i];
    const float limited = n[i] < -400 ? -400 : n[i] > 400 ? 400 : n[i];
    return __builtin_ldexpf(a[i], static_cast<int>(__builtin_floorf(limited)));
  });
}
FASTNN_APART __mmask16 unordered(__m512 a, __m512 b, int predicate) {
  expect(predicate == _CMP_UNORD_Q);
  unsigned mask = 0;
  for (int i = 0; i < 16; ++i) mask |= unsigned{a[i] != a[i] || b[i] != b[i]} << i;
  return static_cast<__mmask16>(mask);
}

// bfloat16: subnormals count as zero; products are exact, and each sum is rounded.
FASTNN_INLINE uint16_t rounded(float x) {
  return to_bfloat16(__builtin_fabsf(x) < __FLT_MIN__ ? __builtin_copysignf(0, x) : x).bits;
}
FASTNN_APART __m256bh narrowed(__m512 a) {
  return lanes_of<__m256bh, uint16_t>([&](int i) { return rounded(a[i]); });
}
FASTNN_APART __m512bh narrowed(__m512 high, __m512 low) {
  return lanes_of<__m512bh, uint16_t>(
      [&](int i) { return rounded(i < 16 ? low[i] : high[i - 16]); });
}
FASTNN_INLINE __m512 add_products(__m512 sum, __m512bh a, __m512bh b) {
  typedef uint32_t Pairs __attribute__((vector_size(64)));
  const auto x = reinterpret_cast<Pairs>(a), y = reinterpret_cast<Pairs>(b);
  const auto value = [](Pairs bits) { return reinterpret_cast<__m512>(bits); };
  sum = value(x & 0xffff0000u) * value(y & 0xffff0000u) + sum;
  return value(x << 16) * value(y << 16) + sum;
}

// Integers.
template <class To, class Wide, class Narrow, class From>
FASTNN_APART To converted(uint64_t mask, const From& from) {
  return lanes_of<To, Wide>(mask, [&](int i) { return lane<Narrow>(from, i); });
}
template <class Lane, class V>
FASTNN_APART V permuted(uint64_t mask, __m512i order, const V& v) {
  constexpr int kLanes = 64 / sizeof(Lane);
  return lanes_of<V, Lane>(
      mask, [&](int i) { return lane<Lane>(v, static_cast<int>(lane<Lane>(order, i) % kLanes)); });
}
FASTNN_APART __m512i permuted_two(__m512i a, __m512i order, __m512i b) {
  return lanes_of<__m512i, uint16_t>([&](int i) {
    const int at = lane<uint16_t>(order, i) % 64;
    return lane<uint16_t>(at < 32 ? a : b, at % 32);
  });
}
// Of every 16 bytes the lower or upper half, a and b in turns.
FASTNN_APART __m512i interleaved(__m512i a, __m512i b, int half) {
  return lanes_of<__m512i, uint16_t>(
      [&](int i) { return lane<uint16_t>(i % 2 ? b : a, i / 8 * 8 + half * 4 + i % 8 / 2); });
}
template <class Half, class Lane, class V>
FASTNN_INLINE Half half(uint64_t mask, const V& v, int which) {
  constexpr int kLanes = sizeof(Half) / sizeof(Lane);
  return lanes_of<Half, Lane>(mask, [&](int i) { return lane<Lane>(v, kLanes * which + i); });
}
FASTNN_APART __m512i products(uint64_t mask, __m512i a, __m512i b) {
  return lanes_of<__m512i, uint64_t>(
      mask, [&](int i) { return uint64_t{lane<uint32_t>(a, 2 * i)} * lane<uint32_t>(b, 2 * i); });
}
FASTNN_INLINE __m512i exclusive_or(__m512i a, __m512i b, __m512i c, int table) {
  expect(table == 0x96);
  return a ^ b ^ c;
}

}  // namespace emulated
}  // namespace fastnn::cpu::FASTNN_ISA

#define FASTNN_EMULATED ::fastnn::cpu::FASTNN_ISA::emulated::
// Loads and stores.
#define _mm512_loadu_ps(from) FASTNN_EMULATED load_whole<__m512>(from)
#define _mm512_loadu_si512(from) FASTNN_EMULATED load_whole<__m512i>(from)
#define _mm512_load_si512(from) FASTNN_EMULATED load_line<__m512i>(from)
#define _mm512_maskz_loadu_ps(mask, from) FASTNN_EMULATED load<__m512, float>(mask, from)
#define _mm512_maskz_loadu_epi32(mask, from) FASTNN_EMULATED load<__m512i, int32_t>(mask, from)
#define _mm512_maskz_loadu_epi16(mask, from) FASTNN_EMULATED load<__m512i, int16_t>(mask, from)
#define _mm256_maskz_loadu_epi16(mask, from) FASTNN_EMULATED load<__m256i, int16_t>(mask, from)
#define _mm_maskz_loadu_epi8(mask, from) FASTNN_EMULATED load<__m128i, int8_t>(mask, from)
#define _mm512_storeu_ps(to, v) FASTNN_EMULATED store_whole(to, v)
#define _mm512_storeu_si512(to, v) FASTNN_EMULATED store_whole(to, v)
#define _mm512_stream_ps(to, v) FASTNN_EMULATED store_line(to, v)
#define _mm512_stream_si512(to, v) FASTNN_EMULATED store_line(to, v)
#define _mm512_mask_storeu_ps(to, mask, v) FASTNN_EMULATED store<float>(to, mask, v)
#define _mm512_mask_storeu_epi16(to, mask, v) FASTNN_EMULATED store<int16_t>(to, mask, v)
#define _mm256_mask_storeu_epi16(to, mask, v) FASTNN_EMULATED store<int16_t>(to, mask, v)
#define _mm_mask_storeu_epi8(to, mask, v) FASTNN_EMULATED store<int8_t>(to, mask, v)
// Floats.
#define _mm512_maskz_max_ps FASTNN_EMULATED maximum
#define _mm512_maskz_min_ps FASTNN_EMULATED minimum
#define _mm512_maskz_sqrt_ps FASTNN_EMULATED root
#define _mm512_maskz_rcp14_ps FASTNN_EMULATED reciprocal
#define _mm512_maskz_scalef_ps FASTNN_EMULATED scaled
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask FASTNN_EMULATED unordered
#define _mm512_cvtneps_pbh FASTNN_EMULATED narrowed
#define _mm512_cvtne2ps_pbh FASTNN_EMULATED narrowed
#define _mm512_dpbf16_ps FASTNN_EMULATED add_products
// Integers, and lanes of anything.
#define _mm512_setzero_si512() (__m512i{})
#define _mm512_set1_epi32(x) FASTNN_EMULATED lanes_of<__m512i, int32_t>([&](int) { return x; })
#define _mm512_maskz_mul_epu32 FASTNN_EMULATED products
#undef _mm512_ternarylogic_epi64
#define _mm512_ternarylogic_epi64 FASTNN_EMULATED exclusive_or
#define _mm512_maskz_cvtepu8_epi32 FASTNN_EMULATED converted<__m512i, int32_t, uint8_t>
#define _mm512_maskz_cvtepu16_epi32 FASTNN_EMULATED converted<__m512i, int32_t, uint16_t>
#define _mm512_maskz_cvtepi32_epi8 FASTNN_EMULATED converted<__m128i, uint8_t, uint32_t>
#define _mm512_maskz_cvtepi32_epi16 FASTNN_EMULATED converted<__m256i, uint16_t, uint32_t>
#define _mm512_maskz_permutexvar_ps FASTNN_EMULATED permuted<uint32_t>
#define _mm512_maskz_permutexvar_epi16 FASTNN_EMULATED permuted<uint16_t>
#define _mm512_permutex2var_epi16 FASTNN_EMULATED permuted_two
#define _mm512_unpacklo_epi16(a, b) FASTNN_EMULATED interleaved(a, b, 0)
#define _mm512_unpackhi_epi16(a, b) FASTNN_EMULATED interleaved(a, b, 1)
#undef _mm512_maskz_extractf32x8_ps
#define _mm512_maskz_extractf32x8_ps FASTNN_EMULATED half<__m256, float>
#undef _mm512_maskz_extracti64x4_epi64
#define _mm512_maskz_extracti64x4_epi64 FASTNN_EMULATED half<__m256i, int64_t>
