// The vector type kernels are written in: GCC/Clang vector extensions, so that one source serves
// every ISA level (4, 8 or 16 float lanes). Arithmetic operators work elementwise; a * b + c
// contracts to a fused multiply-add where the ISA has one. The only intrinsics are masked tails.
//
// The level avx512_bf16 compiles some of the sources only, and amx those in cpu/amx; they take the
// rest of their kernels from the levels below.
//
// Every kernel source has this shape, which keeps the levels apart without any macro but
// FASTNN_ISA:
//
//   namespace fastnn::cpu::FASTNN_ISA {
//   namespace { ... kernels ... }
//   void fill_<stem>(Slots& slots) { slots.<family>.<entry> = ...; }
//   }
//
// No STL here or in any kernel source: an inline STL function compiled with AVX-512 flags could be
// the copy that the linker keeps for the whole module.
#pragma once

#include <cstdint>

#include "core/allocator.h"
#include "core/dtype.h"
#include "core/parallel.h"

#if defined(FASTNN_ISA_avx2) || defined(FASTNN_ISA_avx512)
#include <immintrin.h>
#endif
#if defined(FASTNN_ISA_avx512) && defined(FASTNN_AVX512_EMULATE)
#include "cpu/simd/emulated_avx512.h"
#endif

namespace fastnn::cpu::FASTNN_ISA {
namespace {

#if defined(FASTNN_ISA_avx512)
constexpr int LANES = 16;
#elif defined(FASTNN_ISA_avx2)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vfloat __attribute__((vector_size(4 * LANES)));
typedef int32_t vint __attribute__((vector_size(4 * LANES)));
typedef uint32_t vuint __attribute__((vector_size(4 * LANES)));
typedef uint16_t vhalf __attribute__((vector_size(2 * LANES)));

FASTNN_INLINE vfloat set1(float x) { return x - vfloat{}; }
FASTNN_INLINE vint as_int(vfloat x) { return reinterpret_cast<vint>(x); }
FASTNN_INLINE vuint as_uint(vfloat x) { return reinterpret_cast<vuint>(x); }
FASTNN_INLINE vfloat as_float(vint x) { return reinterpret_cast<vfloat>(x); }
FASTNN_INLINE vfloat as_float(vuint x) { return reinterpret_cast<vfloat>(x); }

// Bytes and halves to and from integer lanes: GCC 12 makes moves lane by lane, or half by half, of
// __builtin_convertvector here.
typedef uint8_t vbyte __attribute__((vector_size(LANES)));
FASTNN_INLINE vint from_bytes(vbyte b) {
#if defined(FASTNN_ISA_avx512)
  return reinterpret_cast<vint>(_mm512_maskz_cvtepu8_epi32(0xffff, reinterpret_cast<__m128i>(b)));
#elif defined(FASTNN_ISA_avx2)
  return reinterpret_cast<vint>(
      _mm256_cvtepu8_epi32(_mm_set_epi64x(0, reinterpret_cast<int64_t>(b))));
#else
  return __builtin_convertvector(b, vint);
#endif
}
FASTNN_INLINE vbyte to_bytes(vint v) {
#if defined(FASTNN_ISA_avx512)
  return reinterpret_cast<vbyte>(_mm512_maskz_cvtepi32_epi8(0xffff, reinterpret_cast<__m512i>(v)));
#else
  return __builtin_convertvector(v, vbyte);
#endif
}

// The first n bytes at p, zeros behind them. A call of memcpy takes longer than all the rest.
#if defined(FASTNN_ISA_avx512)
FASTNN_INLINE vbyte load_bytes(const uint8_t* p, int n) {
  return reinterpret_cast<vbyte>(_mm_maskz_loadu_epi8(static_cast<__mmask16>((1u << n) - 1), p));
}
FASTNN_INLINE void store_bytes(uint8_t* p, vbyte b, int n) {
  _mm_mask_storeu_epi8(p, static_cast<__mmask16>((1u << n) - 1), reinterpret_cast<__m128i>(b));
}
#else
FASTNN_INLINE vbyte load_bytes(const uint8_t* p, int n) {
  vbyte b;
  if (n == LANES) return __builtin_memcpy(&b, p, sizeof(b)), b;
  uint64_t bits = 0;
#pragma GCC unroll 4
  for (int piece = 1; piece < LANES; piece *= 2) {  // from the last to the first
    if (!(n & piece)) continue;
    uint64_t some = 0;
    __builtin_memcpy(&some, p + (n & ~(2 * piece - 1)), static_cast<size_t>(piece));
    bits = bits << 8 * piece | some;
  }
  return __builtin_memcpy(&b, &bits, sizeof(b)), b;
}
FASTNN_INLINE void store_bytes(uint8_t* p, vbyte b, int n) {
  if (n == LANES) return (void)__builtin_memcpy(p, &b, sizeof(b));
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &b, sizeof(b));
#pragma GCC unroll 4
  for (int piece = LANES / 2; piece > 0; piece /= 2) {
    if (!(n & piece)) continue;
    __builtin_memcpy(p, &bits, static_cast<size_t>(piece));
    p += piece, bits >>= 8 * piece;
  }
}
#endif

FASTNN_INLINE vuint from_halves(vhalf h) {
#if defined(FASTNN_ISA_avx512)
  return reinterpret_cast<vuint>(_mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(h)));
#elif defined(FASTNN_ISA_avx2)
  return reinterpret_cast<vuint>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(h)));
#else
  return __builtin_convertvector(h, vuint);
#endif
}
FASTNN_INLINE vhalf to_halves(vuint v) {
#if defined(FASTNN_ISA_avx512)
  return reinterpret_cast<vhalf>(_mm512_maskz_cvtepi32_epi16(0xffff, reinterpret_cast<__m512i>(v)));
#else
  return __builtin_convertvector(v, vhalf);
#endif
}

// Comparisons of vfloat give vint lanes of 0 or -1; select picks a where the mask is set.
FASTNN_INLINE vfloat select(vint mask, vfloat a, vfloat b) { return mask ? a : b; }
// std::max's semantics: b where the comparison is false, so a NaN in b survives. The instructions
// do just that; compilers make two of a comparison and a choice.
FASTNN_INLINE vfloat vmax(vfloat a, vfloat b) {
#if defined(FASTNN_ISA_avx512)
  return _mm512_maskz_max_ps(0xffff, a, b);
#elif defined(FASTNN_ISA_avx2)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}
FASTNN_INLINE vfloat vmin(vfloat a, vfloat b) {
#if defined(FASTNN_ISA_avx512)
  return _mm512_maskz_min_ps(0xffff, a, b);
#elif defined(FASTNN_ISA_avx2)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}
// Between two limits; a NaN in v stays.
FASTNN_INLINE vfloat vclamp(vfloat v, vfloat low, vfloat high) { return vmin(high, vmax(low, v)); }
FASTNN_INLINE vfloat vabs(vfloat a) { return as_float(as_int(a) & 0x7fffffff); }
FASTNN_INLINE vfloat vsqrt(vfloat a) {
#if defined(FASTNN_ISA_avx512)
  return _mm512_maskz_sqrt_ps(0xffff, a);  // the plain form warns of GCC's own header
#elif defined(FASTNN_ISA_avx2)
  return _mm256_sqrt_ps(a);
#else
  for (int i = 0; i < LANES; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
#endif
}

// Horizontal sum in a fixed tree of halves, and maximum. By instructions on values: a pointer to v
// would keep the caller's accumulator in memory throughout its loop.
template <class Pick>
FASTNN_INLINE float reduce(vfloat v, const Pick& pick) {
#if defined(FASTNN_ISA_avx512) || defined(FASTNN_ISA_avx2)
  typedef float Four __attribute__((vector_size(16)));
#if defined(FASTNN_ISA_avx512)
  typedef float Eight __attribute__((vector_size(32)));
  const Eight eight = pick(static_cast<Eight>(_mm512_maskz_extractf32x8_ps(0xff, v, 0)),
                           static_cast<Eight>(_mm512_maskz_extractf32x8_ps(0xff, v, 1)));
#else
  const vfloat eight = v;
#endif
  const Four four = pick(static_cast<Four>(_mm256_castps256_ps128(eight)),
                         static_cast<Four>(_mm256_extractf128_ps(eight, 1)));
  const Four two = pick(four, static_cast<Four>(_mm_movehl_ps(four, four)));
  return pick(two, static_cast<Four>(_mm_movehdup_ps(two)))[0];
#else
  const float even = pick(v[0], v[2]), odd = pick(v[1], v[3]);
  return pick(even, odd);
#endif
}
FASTNN_INLINE float sum(vfloat v) {
  return reduce(v, [](auto a, auto b) { return a + b; });
}
FASTNN_INLINE float max_lane(vfloat v) {
  // The first operand is kept unless the second is larger or a NaN; a NaN itself is kept.
  return reduce(v, [](auto a, auto b) { return ((b > a) | (b != b)) ? b : a; });
}
FASTNN_INLINE bool any_nan(vfloat v) {
#if defined(FASTNN_ISA_avx512)
  return _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q) != 0;
#elif defined(FASTNN_ISA_avx2)
  return _mm256_movemask_ps(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)) != 0;
#else
  const float all = sum(select(v != v, v, vfloat{}));
  return all != all;
#endif
}
// 0, 1, 2, ...
FASTNN_INLINE vint lanes() {
#if defined(FASTNN_ISA_avx512)
  return vint{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif defined(FASTNN_ISA_avx2)
  return vint{0, 1, 2, 3, 4, 5, 6, 7};
#else
  return vint{0, 1, 2, 3};
#endif
}
// The first n lanes of v, `filler` in the others.
FASTNN_INLINE vfloat filled(vfloat v, int n, float filler) {
  return n == LANES ? v : select(lanes() < n, v, set1(filler));
}

// v[i] = table[lane[i]].
FASTNN_INLINE vfloat permuted(vfloat table, vint lane) {
#if defined(FASTNN_ISA_avx512)
  return _mm512_maskz_permutexvar_ps(0xffff, reinterpret_cast<__m512i>(lane), table);
#elif defined(FASTNN_ISA_avx2)
  return _mm256_permutevar8x32_ps(table, reinterpret_cast<__m256i>(lane));
#else
  vfloat v;
  for (int i = 0; i < LANES; ++i) v[i] = table[lane[i]];
  return v;
#endif
}

// Loads and stores, unaligned; the _n forms touch the first n (0 <= n <= LANES) elements only and
// load zeros elsewhere. bfloat16 widens on load and rounds once on store.
FASTNN_INLINE vfloat load(const float* p) {
  vfloat v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
FASTNN_INLINE void store(float* p, vfloat v) { __builtin_memcpy(p, &v, sizeof(v)); }

FASTNN_INLINE vfloat widen(vhalf h) { return as_float(from_halves(h) << 16); }
// Two vectors of widened bfloat16 as one of pairs.
FASTNN_INLINE vfloat paired(vfloat first, vfloat second) {
  return as_float((as_uint(first) >> 16) | as_uint(second));
}
// bfloat16 in the upper half of each lane, with anything in the lower.
FASTNN_INLINE vuint rounded_above(vfloat v) {
  const vuint bits = as_uint(v);
  const vuint rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const vuint quiet = bits | 0x400000u;
  const vint nan = v != v;
  return nan ? quiet : rounded;
}
FASTNN_INLINE vhalf narrow(vfloat v) {
#if defined(FASTNN_ISA_avx512_bf16)
  return reinterpret_cast<vhalf>(_mm512_cvtneps_pbh(v));
#else
  return to_halves(rounded_above(v) >> 16);
#endif
}
FASTNN_INLINE vfloat load(const bfloat16* p) {
  vhalf h;
  __builtin_memcpy(&h, p, sizeof(h));
  return widen(h);
}
FASTNN_INLINE void store(bfloat16* p, vfloat v) {
  const vhalf h = narrow(v);
  __builtin_memcpy(p, &h, sizeof(h));
}

#if defined(FASTNN_ISA_avx512)
FASTNN_INLINE vfloat load_n(const float* p, int n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
FASTNN_INLINE void store_n(float* p, vfloat v, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
}
#elif defined(FASTNN_ISA_avx2)
FASTNN_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
FASTNN_INLINE vfloat load_n(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
// In pieces of 4, 2 and 1: AMD's processors up to Zen 4 take tens of cycles for a masked store.
FASTNN_INLINE void store_n(float* p, vfloat v, int n) {
  if (n & LANES) return store(p, v);
  __m128 rest = _mm256_castps256_ps128(v);
  if (n & 4) _mm_storeu_ps(p, rest), p += 4, rest = _mm256_extractf128_ps(v, 1);
  if (n & 2)
    _mm_storel_pi(reinterpret_cast<__m64*>(p), rest), p += 2, rest = _mm_movehl_ps(rest, rest);
  if (n & 1) _mm_store_ss(p, rest);
}
#else
FASTNN_INLINE vfloat load_n(const float* p, int n) {
  vfloat v{};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
FASTNN_INLINE void store_n(float* p, vfloat v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}
#endif

#if defined(FASTNN_ISA_avx512)
FASTNN_INLINE vfloat load_n(const bfloat16* p, int n) {
  const auto mask = static_cast<__mmask16>((1u << n) - 1);
  return widen(reinterpret_cast<vhalf>(_mm256_maskz_loadu_epi16(mask, p)));
}
FASTNN_INLINE void store_halves_n(bfloat16* p, vhalf h, int n) {
  const auto mask = static_cast<__mmask16>((1u << n) - 1);
  _mm256_mask_storeu_epi16(p, mask, reinterpret_cast<__m256i>(h));
}
#elif defined(FASTNN_ISA_avx2)
// In pieces, too: a call of memcpy takes longer.
FASTNN_INLINE vfloat load_n(const bfloat16* p, int n) {
  if (n & LANES) return load(p);
  int64_t low = 0, high = 0;
  int16_t one;
  int32_t two;
  if (n & 1) __builtin_memcpy(&one, p + n - 1, sizeof(one)), high = static_cast<uint16_t>(one);
  if (n & 2) {
    __builtin_memcpy(&two, p + (n & 4), sizeof(two));
    high = high << 32 | static_cast<uint32_t>(two);
  }
  if (n & 4)
    __builtin_memcpy(&low, p, sizeof(low));
  else
    low = high, high = 0;
  return widen(reinterpret_cast<vhalf>(_mm_set_epi64x(high, low)));
}
FASTNN_INLINE void store_halves_n(bfloat16* p, vhalf h, int n) {
  auto rest = reinterpret_cast<__m128i>(h);
  if (n & LANES) return _mm_storeu_si128(reinterpret_cast<__m128i*>(p), rest);
  if (n & 4)
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), rest), p += 4, rest = _mm_srli_si128(rest, 8);
  if (n & 2) _mm_storeu_si32(p, rest), p += 2, rest = _mm_srli_si128(rest, 4);
  if (n & 1) _mm_storeu_si16(p, rest);
}
#else
FASTNN_INLINE vfloat load_n(const bfloat16* p, int n) {
  vhalf h{};
  __builtin_memcpy(&h, p, sizeof(uint16_t) * static_cast<size_t>(n));
  return widen(h);
}
FASTNN_INLINE void store_halves_n(bfloat16* p, vhalf h, int n) {
  __builtin_memcpy(p, &h, sizeof(uint16_t) * static_cast<size_t>(n));
}
#endif
FASTNN_INLINE void store_n(bfloat16* p, vfloat v, int n) { store_halves_n(p, narrow(v), n); }

// How an operator's output is written. An ordinary store fetches its line first, from memory if the
// output has left the caches; a streaming store writes around them (measured: 18 against 47 GB/s).
// Rows of `row` elements must be whole vectors: lines written half around the caches and half
// through them cost five times as much. Of long rows few are.
enum class Route : uintptr_t { around = 0, through = 1 };
FASTNN_INLINE Route route_to(const void* output, int64_t row, int64_t cached = kCached) {
  const bool whole = row % LANES == 0 || row > 2048;
  return whole && left_caches(output, cached) ? Route::around : Route::through;
}
#if defined(FASTNN_ISA_avx512)
FASTNN_INLINE void stream(float* p, vfloat v) { _mm512_stream_ps(p, v); }
FASTNN_INLINE void stream(bfloat16* p, vfloat v) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(narrow(v)));
}
#elif defined(FASTNN_ISA_avx2)
FASTNN_INLINE void stream(float* p, vfloat v) { _mm256_stream_ps(p, v); }
FASTNN_INLINE void stream(bfloat16* p, vfloat v) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), reinterpret_cast<__m128i>(narrow(v)));
}
#else
FASTNN_INLINE void stream(float* p, vfloat v) { store(p, v); }
FASTNN_INLINE void stream(bfloat16* p, vfloat v) { store(p, v); }
#endif
// Whether a vector of `bytes` at p can go around the caches: these stores need it aligned.
FASTNN_INLINE bool streams(const void* p, size_t bytes, Route route) {
  return ((reinterpret_cast<uintptr_t>(p) | static_cast<uintptr_t>(route)) & (bytes - 1)) == 0;
}

// For lambdas and members that a loop calls for every vector, too large to be inlined unasked.
#define FASTNN_INLINED __attribute__((always_inline))

FASTNN_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// body(i, n) over [begin, end) in steps of LANES; n < LANES for the last, partial step.
template <class Body>
FASTNN_INLINE void vector_loop(int64_t begin, int64_t end, const Body& body) {
  int64_t i = begin;
  for (; i + LANES <= end; i += LANES) body(i, LANES);
  if (i >= end) return;
  const auto rest = static_cast<int>(end - i);
  if (rest >= LANES) __builtin_unreachable();  // so that no load or store asks again
  body(i, rest);
}

// body(i, vectors, n) likewise, `vectors` whole vectors at a time as long as there are as many,
// then one: what a body computes once, it computes for all of them.
template <int N>
struct Vectors {
  static constexpr int count = N;
};
template <int N, class Body>
FASTNN_INLINE void vectors_loop(int64_t begin, int64_t end, const Body& body) {
  int64_t i = begin;
  for (; i + N * LANES <= end; i += N * LANES) body(i, Vectors<N>{}, LANES);
  vector_loop(i, end, [&](int64_t at, int n) FASTNN_INLINED { body(at, Vectors<1>{}, n); });
}

// With n known to be LANES at compile time after inlining, these become plain loads and stores.
template <class T>
FASTNN_INLINE vfloat load_any(const T* p, int n) {
  return n == LANES ? load(p) : load_n(p, n);
}
// Brings what follows in a stream.
FASTNN_INLINE void prefetch_ahead(const void* p) {
  __builtin_prefetch(static_cast<const char*>(p) + 2048);
}
// A vector of a stream, of which what follows is brought meanwhile.
template <class T>
FASTNN_INLINE vfloat load_ahead(const T* p, int n) {
  prefetch_ahead(p);
  return load_any(p, n);
}
template <class T>
FASTNN_INLINE void store_any(T* p, vfloat v, int n) {
  if (n == LANES)
    store(p, v);
  else
    store_n(p, v, n);
}
template <class T>
FASTNN_INLINE void store_any(T* p, vfloat v, int n, Route route) {
  if (n == LANES && streams(p, LANES * sizeof(T), route))
    stream(p, v);
  else
    store_any(p, v, n);
}

// Two vectors, one behind the other.
template <class T>
FASTNN_INLINE void store_two(T* p, vfloat low, vfloat high, Route route) {
  store_any(p, low, LANES, route);
  store_any(p + LANES, high, LANES, route);
}
#if defined(FASTNN_ISA_avx512_bf16)
// In one piece, which is returned.
FASTNN_INLINE __m512i store_two(bfloat16* p, vfloat low, vfloat high, Route route) {
  const auto both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
  if (streams(p, sizeof(both), route))
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), both);
  else
    _mm512_storeu_si512(p, both);
  return both;
}
#endif

// Rows a multiple of 2 KB apart share a few sets of the first cache: 64 sets of 12 lines as often
// as not, 8 at worst.
FASTNN_INLINE bool is_far(int64_t bytes) { return bytes % 2048 == 0; }

// Two vectors of a vectors_loop for which the order within both does not matter: values of bfloat16
// take turns between them, which takes fewer instructions than one half after the other.
struct TwoVectors {
  vfloat first, second;
};
FASTNN_INLINE TwoVectors load_mixed(const float* p) {
  return {load_ahead(p, LANES), load_ahead(p + LANES, LANES)};
}
FASTNN_INLINE void store_mixed(float* p, TwoVectors v, Route route) {
  store_two(p, v.first, v.second, route);
}
FASTNN_INLINE TwoVectors load_mixed(const bfloat16* p) {
  prefetch_ahead(p);
  vuint bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return {as_float(bits << 16), as_float(bits & 0xffff0000u)};
}
FASTNN_INLINE void store_mixed(bfloat16* p, TwoVectors v, Route route) {
#if defined(FASTNN_ISA_avx512_bf16)
  alignas(64) static constexpr uint16_t kTurns[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const auto halves = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(v.second, v.first));
  const vfloat both = reinterpret_cast<vfloat>(
      _mm512_maskz_permutexvar_epi16(~__mmask32{0}, _mm512_load_si512(kTurns), halves));
#else
  const vfloat both =
      as_float((rounded_above(v.first) >> 16) | (rounded_above(v.second) & 0xffff0000u));
#endif
  store_any(reinterpret_cast<float*>(p), both, LANES, route);
}

template <class T>
constexpr bool kFloating = false;
template <>
constexpr bool kFloating<float> = true;
template <>
constexpr bool kFloating<bfloat16> = true;

template <class A, class B>
constexpr bool kSame = false;
template <class A>
constexpr bool kSame<A, A> = true;

// Elements per chunk of a bandwidth-bound loop: 256 KiB of float32, a share of one L2 cache.
constexpr int64_t kGrain = 65536;

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
