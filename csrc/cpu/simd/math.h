// Elementary functions of vectors: range reduction and a polynomial, a few units in the last place.
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

// exp(x) = 2^n exp(r), |r| <= ln 2 / 2. Without an instruction for it, the factor 2^n is applied in
// two halves, so that results up to the largest float and down to the smallest normal one need no
// special case.
FASTNN_INLINE vfloat vexp(vfloat x) {
  x = vmin(set1(89.0f), x);
  x = vmax(set1(-104.0f), x);
  const vfloat magic = set1(12582912.0f);  // adding it rounds to an integer
  const vfloat n = (x * 1.44269504088896341f + magic) - magic;
  const vfloat r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  const vfloat p = horner(r, {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                              4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f});
  const vfloat y = p * r * r + r + 1.0f;
#if defined(FASTNN_ISA_avx512)
  return _mm512_maskz_scalef_ps(0xffff, y, n);  // 2^n, overflow and all, in one instruction
#else
  const vint whole = __builtin_convertvector(n, vint);
  const vint half = whole >> 1;
  return y * as_float((half + 127) << 23) * as_float((whole - half + 127) << 23);
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

// log(1 + x), accurate for small x: log(u) x / (u - 1) with u = 1 + x rounded.
FASTNN_INLINE vfloat vlog1p(vfloat x) {
  const vfloat u = x + 1.0f;
  const vfloat rounded = u - 1.0f;
  const vfloat y = vlog(u) * (x / rounded);
  return select(rounded == 0, x, select(u == __builtin_inff(), u, y));
}

// exp(x) - 1, accurate for small x: (u - 1) x / log(u) with u = exp(x) rounded (Kahan).
FASTNN_INLINE vfloat vexpm1(vfloat x) {
  const vfloat u = vexp(x), rest = u - 1.0f;
  const vfloat y = rest * (x / vlog(u));
  return select(rest == 0, x, select((u == 0) | (u == __builtin_inff()) | (x < -20.0f), rest, y));
}

FASTNN_INLINE vfloat with_sign_of(vfloat magnitude, vfloat sign) {
  return as_float(as_int(magnitude) | (as_int(sign) & static_cast<int32_t>(0x80000000u)));
}

FASTNN_INLINE vfloat vtanh(vfloat x) {
  const vfloat a = vabs(x), z = x * x;
  const vfloat large = 1.0f - 2.0f / (vexp(a + a) + 1.0f);
  const vfloat tiny = horner(z, {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f,
                                 1.33314422036e-1f, -3.33332819422e-1f}) *
                          z * x +
                      x;
  return select(a < 0.625f, tiny, with_sign_of(large, x));
}

FASTNN_INLINE vfloat vsigmoid(vfloat x) {
  // exp of a negative number: no overflow, and a small result keeps its relative accuracy.
  const vfloat e = vexp(-vabs(x));
  return select(x < 0, e, set1(1.0f)) / (1.0f + e);
}

FASTNN_INLINE vfloat verf(vfloat x) {
  const vfloat a = vabs(x), z = x * x;
  const vfloat inner =
      x * horner(z, {7.853861353153693e-5f, -8.010193625184903e-4f, 5.188327685732524e-3f,
                     -2.685381193529856e-2f, 1.128358514861418e-1f, -3.761262582423300e-1f,
                     1.128379165726710e+0f});
  const vfloat inverse = 1.0f / a, y = inverse * inverse;
  const vfloat middle =
      horner(y, {2.326819970068386e-2f, -1.387039388740657e-1f, 3.687424674597105e-1f,
                 -5.824733027278666e-1f, 6.210004621745983e-1f, -4.944515323274145e-1f,
                 3.404879937665872e-1f, -2.741127028184656e-1f, 5.638259427386472e-1f});
  const vfloat outer =
      horner(y, {-1.047766399936249e+1f, 1.297719955372516e+1f, -7.495518717768503e+0f,
                 2.921019019210786e+0f, -1.015265279202700e+0f, 4.218463358204948e-1f,
                 -2.820767439740514e-1f, 5.641895067754075e-1f});
  const vfloat tail = vexp(-z) * inverse * select(a < 2.0f, middle, outer);
  const vfloat far = with_sign_of(select(a > 10.0f, set1(1.0f), 1.0f - tail), x);
  return select(x != x, x, select(a <= 1.0f, inner, far));
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
