// Functions of one argument, and the gradients that are no chain of other operators.
#include "cpu/elementwise_loops.h"
#include "cpu/simd/math.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// -1, 0, 1, or NaN.
FASTNN_INLINE vfloat sign(vfloat x) {
  const vfloat one = set1(1.0f);
  return select(x > 0, one, select(x < 0, -one, x + x));
}

// sin(x + quarters * pi/2): reduces x by multiples of pi/2 held in three parts (Cody and Waite),
// which is good to one unit in the last place up to 8192; larger arguments go to libm lane by lane.
// Polynomials: S. Moshier, Cephes mathematical library (single precision).
FASTNN_INLINE vfloat sine(vfloat x, int quarters) {
  const vfloat magic = set1(12582912.0f);  // adding it rounds to an integer
  const vfloat n = (x * 0.636619772367581343f + magic) - magic;
  const vfloat r =
      ((x - n * 1.5703125f) - n * 4.837512969970703125e-4f) - n * 7.54978995489188216e-8f;
  const vint q = __builtin_convertvector(n, vint) + quarters;
  const vfloat z = r * r;
  const vfloat odd =
      ((z * -1.9515295891e-4f + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * r + r;
  const vfloat even =
      ((z * 2.443315711809948e-5f - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z -
      0.5f * z + 1.0f;
  const vfloat y = select((q & 1) != 0, even, odd);
  return as_float(as_int(y) ^ ((q & 2) << 30));
}
FASTNN_INLINE bool all_small(vfloat x) {
  const vint large = ~(vabs(x) <= 8192.0f);  // NaN too
  int32_t any = 0;
  for (int l = 0; l < LANES; ++l) any |= large[l];
  return any == 0;
}
FASTNN_INLINE vfloat sine(vfloat x) {
  return all_small(x) ? sine(x, 0) : by_lane(x, [](float a) { return __builtin_sinf(a); });
}
FASTNN_INLINE vfloat cosine(vfloat x) {
  return all_small(x) ? sine(x, 1) : by_lane(x, [](float a) { return __builtin_cosf(a); });
}

template <class F>
void apply(const ElementwiseParams& p, const F& f) {
  float_rows<1>(p, [&](const vfloat* x) FASTNN_INLINED { return f(x[0]); });
}

void floating(const ElementwiseParams& p) {
  switch (static_cast<Unary>(p.op)) {
    case Unary::neg:
      return apply(p, [](vfloat x) { return -x; });
    case Unary::abs:
      return apply(p, [](vfloat x) { return vabs(x); });
    case Unary::sign:
      return apply(p, [](vfloat x) { return sign(x); });
    case Unary::square:
      return apply(p, [](vfloat x) { return x * x; });
    case Unary::sqrt:
      return apply(p, [](vfloat x) { return vsqrt(x); });
    case Unary::rsqrt:
      return apply(p, [](vfloat x) { return 1.0f / vsqrt(x); });
    case Unary::reciprocal:
      return apply(p, [](vfloat x) { return 1.0f / x; });
    case Unary::exp:
      return apply(p, [](vfloat x) { return vexp(x); });
    case Unary::log:
      return apply(p, [](vfloat x) { return vlog(x); });
    case Unary::sin:
      return apply(p, [](vfloat x) { return sine(x); });
    case Unary::cos:
      return apply(p, [](vfloat x) { return cosine(x); });
    case Unary::floor:
      return apply(
          p, [](vfloat x) { return by_lane(x, [](float a) { return __builtin_floorf(a); }); });
    case Unary::ceil:
      return apply(p,
                   [](vfloat x) { return by_lane(x, [](float a) { return __builtin_ceilf(a); }); });
    case Unary::round:  // the default rounding mode: halves to even
      return apply(p,
                   [](vfloat x) { return by_lane(x, [](float a) { return __builtin_rintf(a); }); });
  }
}

template <class T>
void integer(const ElementwiseParams& p) {
  typedef uint64_t U;  // unsigned: the most negative value wraps instead of being undefined
  switch (static_cast<Unary>(p.op)) {
    case Unary::neg:
      return integer_rows<1, T, T>(p, [](const T* x) { return static_cast<T>(-U(*x)); });
    case Unary::abs:
      return integer_rows<1, T, T>(p,
                                   [](const T* x) { return *x < 0 ? static_cast<T>(-U(*x)) : *x; });
    case Unary::sign:
      return integer_rows<1, T, T>(p,
                                   [](const T* x) { return static_cast<T>((*x > 0) - (*x < 0)); });
    default:  // square
      return integer_rows<1, T, T>(p, [](const T* x) { return static_cast<T>(U(*x) * U(*x)); });
  }
}

void unary(const ElementwiseParams& p) {
  switch (p.dtype) {
    case DType::float32:
    case DType::bfloat16:
      return floating(p);
    case DType::int64:
      return integer<int64_t>(p);
    case DType::int32:
      return integer<int32_t>(p);
    default:
      return integer<uint8_t>(p);
  }
}

// y = 0 gives 0 also where x = 0.
void pow_input(const ElementwiseParams& p) {
  const double y = p.number[2];
  ElementwiseParams two = p;
  two.operands = 2;
  if (!p.in[2] && y == 0)
    return float_rows<2>(two, [](const vfloat*) FASTNN_INLINED { return vfloat{}; });
  if (!p.in[2] && is_simple_power(y - 1)) {
    const auto halves = static_cast<int>(2 * (y - 1));
    const auto factor = static_cast<float>(y);
    return float_rows<2>(two, [=](const vfloat* x) FASTNN_INLINED {
      return x[0] * factor * simple_power(x[1], halves);
    });
  }
  float_rows<3>(p, [](const vfloat* x) FASTNN_INLINED {
    const vfloat slope = x[0] * x[2] * vpow(x[1], x[2] - 1.0f);
    return select(x[2] == 0, vfloat{}, slope);
  });
}

// x[0] is grad_output; the other operands are listed at the enum.
void gradient(const ElementwiseParams& p) {
  switch (static_cast<Gradient>(p.op)) {
    case Gradient::abs:
      return float_rows<2>(p, [](const vfloat* x) FASTNN_INLINED { return x[0] * sign(x[1]); });
    case Gradient::square:
      return float_rows<2>(p, [](const vfloat* x) FASTNN_INLINED { return 2.0f * x[1] * x[0]; });
    case Gradient::sqrt:
      return float_rows<2>(
          p, [](const vfloat* x) FASTNN_INLINED { return 0.5f * x[0] / vsqrt(x[1]); });
    case Gradient::rsqrt:
      return float_rows<2>(
          p, [](const vfloat* x) FASTNN_INLINED { return -0.5f * x[0] / (x[1] * vsqrt(x[1])); });
    case Gradient::reciprocal:
      return float_rows<2>(p, [](const vfloat* x) FASTNN_INLINED { return -x[0] / x[1] / x[1]; });
    case Gradient::sin:
      return float_rows<2>(p, [](const vfloat* x) FASTNN_INLINED { return x[0] * cosine(x[1]); });
    case Gradient::cos:
      return float_rows<2>(p, [](const vfloat* x) FASTNN_INLINED { return -x[0] * sine(x[1]); });
    case Gradient::div_other:  // two divisions: y * y could overflow
      return float_rows<3>(
          p, [](const vfloat* x) FASTNN_INLINED { return -(x[0] / x[2]) * (x[1] / x[2]); });
    case Gradient::pow_input:
      return pow_input(p);
    case Gradient::pow_exponent:  // 0 ** y is constant for y >= 0
      return float_rows<3>(p, [](const vfloat* x) FASTNN_INLINED {
        const vfloat slope = x[0] * vpow(x[1], x[2]) * vlog(x[1]);
        return select((x[1] == 0) & (x[2] >= 0), vfloat{}, slope);
      });
    case Gradient::larger:
      return float_rows<3>(p, [](const vfloat* x) FASTNN_INLINED {
        const vfloat shared = select(x[1] == x[2], 0.5f * x[0], vfloat{});
        return select(x[1] > x[2], x[0], shared);
      });
    case Gradient::clamp:
      return float_rows<4>(p, [](const vfloat* x) FASTNN_INLINED {
        return select((x[1] >= x[2]) & (x[1] <= x[3]), x[0], vfloat{});
      });
    case Gradient::deviation:
      return float_rows<4>(
          p, [](const vfloat* x) FASTNN_INLINED { return x[0] * x[3] * (x[1] - x[2]); });
  }
}

}  // namespace

void fill_elementwise_unary(Slots& slots) {
  slots.elementwise.unary = unary;
  slots.elementwise.gradient = gradient;
}

}  // namespace fastnn::cpu::FASTNN_ISA
