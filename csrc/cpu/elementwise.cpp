// Arithmetic of two or three operands, and selection: bandwidth-bound, one pass over each operand.
#include "cpu/elementwise_loops.h"
#include "cpu/simd/math.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// NaN in either operand survives.
FASTNN_INLINE vfloat larger(vfloat a, vfloat b) { return select((a > b) | (a != a), a, b); }
FASTNN_INLINE vfloat smaller(vfloat a, vfloat b) { return select((a < b) | (a != a), a, b); }

void power(const ElementwiseParams& p) {
  if (!p.in[1] && is_simple_power(p.number[1])) {
    ElementwiseParams one = p;
    one.operands = 1;
    const auto halves = static_cast<int>(2 * p.number[1]);
    return float_rows<1>(
        one, [=](const vfloat* x) FASTNN_INLINED { return simple_power(x[0], halves); });
  }
  float_rows<2>(p, [](const vfloat* x) FASTNN_INLINED { return vpow(x[0], x[1]); });
}

void floating(const ElementwiseParams& p) {
  switch (static_cast<Arithmetic>(p.op)) {
    case Arithmetic::add:  // alpha of 1 or -1 multiplies exactly
      return float_rows<3>(p, [](const vfloat* x) FASTNN_INLINED { return x[0] + x[2] * x[1]; });
    case Arithmetic::mul:
      return float_rows<2>(p, [](const vfloat* x) FASTNN_INLINED { return x[0] * x[1]; });
    case Arithmetic::div:
      return float_rows<2>(p, [](const vfloat* x) FASTNN_INLINED { return x[0] / x[1]; });
    case Arithmetic::pow:
      return power(p);
    case Arithmetic::maximum:
      return float_rows<2>(p, [](const vfloat* x) FASTNN_INLINED { return larger(x[0], x[1]); });
    case Arithmetic::minimum:
      return float_rows<2>(p, [](const vfloat* x) FASTNN_INLINED { return smaller(x[0], x[1]); });
    default:  // clamp
      return float_rows<3>(
          p, [](const vfloat* x) FASTNN_INLINED { return smaller(larger(x[0], x[1]), x[2]); });
  }
}

// Wraps around like unsigned arithmetic. A negative exponent truncates 1 / x**|y| to an integer.
template <class T>
FASTNN_INLINE T integer_power(T base, T exponent) {
  if (exponent < 0)
    return base == 1 ? 1 : base == static_cast<T>(-1) ? (exponent & 1 ? base : 1) : 0;
  uint64_t result = 1, square = static_cast<uint64_t>(base);
  for (; exponent; exponent = static_cast<T>(exponent >> 1)) {
    if (exponent & 1) result *= square;
    square *= square;
  }
  return static_cast<T>(result);
}

template <class T>
void integer(const ElementwiseParams& p) {
  typedef uint64_t U;  // unsigned: overflow wraps instead of being undefined
  switch (static_cast<Arithmetic>(p.op)) {
    case Arithmetic::add:
      return integer_rows<3, T, T>(
          p, [](const T* x) { return static_cast<T>(U(x[0]) + U(x[2]) * U(x[1])); });
    case Arithmetic::mul:
      return integer_rows<2, T, T>(p, [](const T* x) { return static_cast<T>(U(x[0]) * U(x[1])); });
    case Arithmetic::pow:
      return integer_rows<2, T, T>(p, [](const T* x) { return integer_power(x[0], x[1]); });
    case Arithmetic::maximum:
      return integer_rows<2, T, T>(p, [](const T* x) { return x[0] > x[1] ? x[0] : x[1]; });
    case Arithmetic::minimum:
      return integer_rows<2, T, T>(p, [](const T* x) { return x[0] < x[1] ? x[0] : x[1]; });
    case Arithmetic::clamp:
      return integer_rows<3, T, T>(p, [](const T* x) {
        const T low = x[0] > x[1] ? x[0] : x[1];
        return low < x[2] ? low : x[2];
      });
    case Arithmetic::logical_and:  // bool only, from here on
      return integer_rows<2, T, T>(p, [](const T* x) { return static_cast<T>(x[0] & x[1]); });
    case Arithmetic::logical_or:
      return integer_rows<2, T, T>(p, [](const T* x) { return static_cast<T>(x[0] | x[1]); });
    default:
      return integer_rows<2, T, T>(p, [](const T* x) { return static_cast<T>(x[0] ^ x[1]); });
  }
}

void arithmetic(const ElementwiseParams& p) {
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

template <class T>
void where_typed(const ElementwiseParams& p) {
  const int last = p.rank - 1;
  constexpr int64_t kItem = sizeof(T);
  const int64_t c = p.in_steps[0][last], a = p.in_steps[1][last] / kItem,
                b = p.in_steps[2][last] / kItem;
  for_rows(p, [&](char* out_bytes, const char* const* in, int64_t n) {
    T* const out = reinterpret_cast<T*>(out_bytes);
    const auto* condition = reinterpret_cast<const uint8_t*>(in[0]);
    const T* x = reinterpret_cast<const T*>(in[1]);
    const T* y = reinterpret_cast<const T*>(in[2]);
    if (c == 1 && a == 1 && b == 1) {
      for (int64_t i = 0; i < n; ++i) out[i] = condition[i] ? x[i] : y[i];
    } else if (c == 1 && a == 1 && b == 0) {
      const T value = *y;
      for (int64_t i = 0; i < n; ++i) out[i] = condition[i] ? x[i] : value;
    } else if (c == 1 && a == 0 && b == 1) {
      const T value = *x;
      for (int64_t i = 0; i < n; ++i) out[i] = condition[i] ? value : y[i];
    } else {
      for (int64_t i = 0; i < n; ++i) out[i] = condition[i * c] ? x[i * a] : y[i * b];
    }
  });
}

void where(const ElementwiseParams& p) {
  switch (item_size(p.out_dtype)) {
    case 8:
      return where_typed<uint64_t>(p);
    case 4:
      return where_typed<uint32_t>(p);
    case 2:
      return where_typed<uint16_t>(p);
    default:
      return where_typed<uint8_t>(p);
  }
}

}  // namespace

void fill_elementwise(Slots& slots) {
  slots.elementwise.arithmetic = arithmetic;
  slots.elementwise.where = where;
}

}  // namespace fastnn::cpu::FASTNN_ISA
