// Elementary functions of vectors: range reduction and a polynomial, a few units in the last place.
// With <bfloat16>, for results that are rounded to it, shorter polynomials: within 2^-12 of the
// value, an eighth of a unit in bfloat16's last place.
//
// Inputs outside the finite range give what IEEE asks for: exp(inf) = inf, exp(-inf) = 0, log(0) =
// -inf, log(-1) = NaN, and NaN in, NaN out. Subnormal numbers count as zero (kernels run with flush
// to zero). Coefficients: S. Moshier, Cephes mathematical library (single precision). Errors over
// all of float32's range are measured by tests/test_activation.py.
#pragma once

#include "cpu/simd/vec.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

template <int N>
FASTNN_INLINE vfloat horner(vfloat x, const float (&coefficients)[N]) {
  vfloat y = set1(coefficients[0]);
#pragma GCC unroll 10
  for (int i = 1; i < N; ++i) y = y * x + coefficients[i];
  return y;
}

template <class T>
constexpr bool kRough = sizeof(T) < sizeof(float);

// 1 / x for normal x whose reciprocal is normal, within two units in the last place: an estimate of
// 14 bits and one step of Newton's, a quarter of a division's time.
template <class T = float>
FASTNN_INLINE vfloat vreciprocal(vfloat x) {
#if defined(FASTNN_ISA_avx512)
  const vfloat r = _mm512_maskz_rcp14_ps(0xffff, x);
  return kRough<T> ? r : r + r * (1.0f - x * r);
#else
  return 1.0f / x;
#endif
}

// exp(x) = 2^n (1 + p), with p = exp(r) - 1 and |r| <= ln 2 / 2; `power` added to the bits of a
// float multiplies it by 2^n.
struct ExpParts {
  vfloat n, p;
  vint power;
};
template <class T>
FASTNN_INLINE ExpParts exp_parts(vfloat x) {
  const vfloat magic = set1(12582912.0f);  // adding it rounds to an integer
  const vfloat whole = x * 1.44269504088896341f + magic, n = whole - magic;
  const vint power = as_int(whole) << 23;  // n is what the lowest bits count
  if (kRough<T>) {                         // the tail fitted to a relative error of 2e-5
    const vfloat r = x - n * 0.693147181f;
    return {n, horner(r, {0.04160996f, 0.16749712f, 0.50001656f}) * r * r + r, power};
  }
  const vfloat r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  const vfloat tail = horner(r, {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f});
  return {n, tail * r * r + r, power};
}

// Without an instruction for it, the factor 2^n is applied in two halves, so that results up to the
// largest float and down to the smallest normal one need no special case.
template <class T = float>
FASTNN_INLINE vfloat vexp(vfloat x) {
  x = vmin(set1(89.0f), x);
  x = vmax(set1(-104.0f), x);
  const ExpParts e = exp_parts<T>(x);
  const vfloat y = e.p + 1.0f, n = e.n;
#if defined(FASTNN_ISA_avx512)
  return _mm512_maskz_scalef_ps(0xffff, y, n);  // 2^n, overflow and all, in one instruction
#else
  const vint whole = __builtin_convertvector(n, vint);
  const vint half = whole >> 1;
  return y * as_float((half + 127) << 23) * as_float((whole - half + 127) << 23);
#endif
}

// The same for x below 88: one factor, zero or normal.
template <class T = float>
FASTNN_INLINE vfloat vexp_low(vfloat x) {
#if defined(FASTNN_ISA_avx512)
  const ExpParts e = exp_parts<T>(vmax(set1(-104.0f), x));
  return _mm512_maskz_scalef_ps(0xffff, e.p + 1.0f, e.n);
#else
  const ExpParts e = exp_parts<T>(vmax(set1(-88.0f), x));  // exp(-88) is subnormal: 2^-127 is zero
  return (e.p + 1.0f) * as_float(e.power + (127 << 23));
#endif
}

// log(x) = e ln 2 + log(m), m in [sqrt(1/2), sqrt(2)).
FASTNN_INLINE vfloat vlog(vfloat x) {
  const vint bits = as_int(x);
  vint exponent = (bits >> 23) - 126;
  vfloat m = as_float((bits & 0x7fffff) | 0x3f000000);  // [1/2, 1)
  const vint small = m < 0.707106781186547524f;
  exponent += small;  // minus one where small
  m = (small ? m + m : m) - 1.0f;
  const vfloat e = __builtin_convertvector(exponent, vfloat);
  const vfloat z = m * m;
  vfloat y = horner(m, {7.0376836292e-2f, -1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f,
                        1.4249322787e-1f, -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f,
                        3.3333331174e-1f}) *
             m * z;
  y += e * -2.12194440e-4f;
  y -= 0.5f * z;
  y = m + y;
  y += e * 0.693359375f;
  const vfloat infinity = set1(__builtin_inff());
  y = select(x == infinity, infinity, y);
  y = select(x < 1.17549435e-38f, -infinity, y);  // zero, and subnormals counted as zero
  return select((x < 0) | (x != x), set1(__builtin_nanf("")), y);
}

// x ** y by libm, 20 ns a lane; and without, for whole and half y, given in halves: infinities and
// zeros give what products and roots of them are.
FASTNN_INLINE vfloat vpow(vfloat x, vfloat y) {
  for (int l = 0; l < LANES; ++l) x[l] = __builtin_powf(x[l], y[l]);
  return x;
}
FASTNN_INLINE bool is_simple_power(double y) {
  return y >= -3 && y <= 3 && 2 * y == static_cast<int>(2 * y);
}
FASTNN_INLINE vfloat simple_power(vfloat x, int halves) {
  const int magnitude = halves < 0 ? -halves : halves;
  vfloat power = set1(1.0f);
  if (magnitude >= 2) power = x;
  if (magnitude >= 4) power = x * x;
  if (magnitude >= 6) power = x * x * x;
  if (magnitude % 2) power = power * vsqrt(x);
  return halves < 0 ? 1.0f / power : power;
}

// log(1 + x) for x in [0, 1]: 2 artanh(s) with s = x / (2 + x), an odd series in s.
FASTNN_INLINE vfloat vlog1p(vfloat x) {
  const vfloat s = x * vreciprocal(2.0f + x), z = s * s;
  const vfloat odd = horner(z, {0.1401231587f, 0.1399955451f, 0.2001084983f, 0.3333320618f});
  return 2.0f * (s + s * z * odd);
}

// exp(x) - 1 = 2^n (exp(r) - 1) + (2^n - 1), by half of it: 2^(n - 1) is in range where the result
// is.
template <class T = float>
FASTNN_INLINE vfloat vexpm1(vfloat x) {
  x = vmin(set1(89.0f), x);
  x = vmax(set1(-80.0f), x);
  const ExpParts e = exp_parts<T>(x);
  const vfloat half = as_float(e.power + (126 << 23));
  const vfloat y = half * e.p + (half - 0.5f);
  return y + y;
}

FASTNN_INLINE vfloat with_sign_of(vfloat magnitude, vfloat sign) {
  return as_float(as_int(magnitude) | (as_int(sign) & static_cast<int32_t>(0x80000000u)));
}

// (1 - e) / (1 + e) with e = exp(-2 |x|).
template <class T = float>
FASTNN_INLINE vfloat vtanh(vfloat x) {
  const vfloat m = vexpm1<T>(-2.0f * vabs(x));
  return with_sign_of(-m * vreciprocal<T>(2.0f + m), x);
}

// The logistic function and its complement, 1 - it: both with their full relative accuracy, for
// exp is taken of a negative number.
struct Sigmoid {
  vfloat value, rest;
};
template <class T = float>
FASTNN_INLINE Sigmoid vsigmoids(vfloat x) {
  const vfloat e = vexp_low<T>(-vabs(x)), larger = vreciprocal<T>(1.0f + e), smaller = e * larger;
  return {select(x < 0, smaller, larger), select(x < 0, larger, smaller)};
}
template <class T = float>
FASTNN_INLINE vfloat vsigmoid(vfloat x) {
  return vsigmoids<T>(x).value;
}
// Their product, the slope, which is the same for x and -x: nothing cancels.
template <class T = float>
FASTNN_INLINE vfloat vsigmoid_slope(vfloat x) {
  const vfloat e = vexp_low<T>(-vabs(x)), larger = vreciprocal<T>(1.0f + e);
  return e * larger * larger;
}

// The normal distribution of x and its density: with t = 1 / (1 + 0.34 |x|), the tail beyond |x| is
// exp(-x^2 / 2) times a polynomial in t (the form of Abramowitz and Stegun, 7.1.26; coefficients
// fitted to a relative error of 4e-8, or 4e-5).
struct Normal {
  vfloat below, density;
};
template <class T = float>
FASTNN_INLINE Normal vnormal(vfloat x) {
  const vfloat a = vmin(set1(40.0f), vabs(x)), e = vexp_low<T>(-0.5f * a * a);
  const vfloat t = vreciprocal<T>(1.0f + (kRough<T> ? 0.38f : 0.34f) * a);
  const vfloat rest =
      kRough<T> ? horner(t, {-0.08992429f, 0.18886742f, 0.09198687f, 0.15782713f, 0.15122541f})
                : horner(t, {-0.0256372001f, 0.1372403055f, -0.2686678767f, 0.1973266453f,
                             -0.04155086353f, 0.1140948161f, 0.1154981852f, 0.1360734254f,
                             0.1356225759f});
  const vfloat tail = e * t * rest;
  return {select(x < 0, tail, 1.0f - tail), e * 0.39894228040143268f};
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
