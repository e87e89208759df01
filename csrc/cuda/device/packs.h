// Packs: neighbouring elements as one access of up to 16 bytes.
#pragma once

#include "cuda/device/ptx.h"

namespace fastnn::cuda {

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};
template <class T>
constexpr int kPack = 16 / sizeof(T);

// Between two limits; a NaN stays.
FASTNN_DEVICE float clamped(float v, float low, float high) {
  const float above = v < low ? low : v;
  return above > high ? high : above;
}

// The pack as floats, and back, rounded once.
template <int N, class T>
FASTNN_DEVICE Pack<T, N> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}
template <class T, int N>
FASTNN_DEVICE void to_floats(const Pack<T, N>& pack, float (&x)[N]) {
  for (int i = 0; i < N; ++i) x[i] = to_float(pack.at[i]);
}
template <class T, int N>
FASTNN_DEVICE void load_floats(const T* p, float (&x)[N]) {
  to_floats(load_pack<N>(p), x);
}
template <class T, int N>
FASTNN_DEVICE Pack<T, N> to_pack(const float (&x)[N]) {
  Pack<T, N> pack;
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
    uint32_t words[N / 2];
    for (int i = 0; i < N / 2; ++i) words[i] = round_two(x[2 * i], x[2 * i + 1]);
    memcpy(&pack, words, sizeof(pack));
  } else {
    for (int i = 0; i < N; ++i) from_float(pack.at[i], x[i]);
  }
  return pack;
}
// As one store: the compiler may take the assignment of a structure apart.
template <class T, int N>
FASTNN_DEVICE void store_pack(T* p, const Pack<T, N>& pack) {
  if constexpr (sizeof(pack) >= 8) {
    store_words(p, pack);
  } else {
    std::conditional_t<sizeof(pack) == 2, uint16_t, uint32_t> word;
    memcpy(&word, &pack, sizeof(pack));
    *reinterpret_cast<decltype(word)*>(p) = word;
  }
}
template <class T, int N>
FASTNN_DEVICE void store_floats(T* p, const float (&x)[N]) {
  store_pack(p, to_pack<T>(x));
}
// What belongs to N channels, 16 bytes at a time.
template <int N>
FASTNN_DEVICE void load_terms(const float* p, float (&x)[N]) {
  constexpr int kSome = N % 4 ? N : 4;
  for (int i = 0; i < N; i += kSome) load_floats(p + i, reinterpret_cast<float (&)[kSome]>(x[i]));
}

template <int N>
FASTNN_DEVICE void store_terms(float* p, const float (&x)[N]) {
  constexpr int kSome = N % 4 ? N : 4;
  for (int i = 0; i < N; i += kSome)
    store_floats(p + i, reinterpret_cast<const float (&)[kSome]>(x[i]));
}

// Pack i of `count` elements: f(first, N), or, where it ends early, f(element, 1) for each.
template <int N, class F>
FASTNN_DEVICE void take_pack(int64_t i, int64_t count, const F& f) {
  if ((i + 1) * N <= count) return f(i * N, std::integral_constant<int, N>{});
  for (int64_t at = i * N; at < count; ++at) f(at, std::integral_constant<int, 1>{});
}

// Whether every pointer starts a 16-byte access; null is fine.
template <class... P>
bool aligned(const P*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// f(pack) with the channels that a thread takes at a time: a pack, or one.
template <class T, class F, class... P>
void with_pack(int64_t C, const F& f, const P*... pointers) {
  if (C % kPack<T> == 0 && aligned(pointers...))
    f(std::integral_constant<int, kPack<T>>{});
  else
    f(std::integral_constant<int, 1>{});
}

}  // namespace fastnn::cuda
