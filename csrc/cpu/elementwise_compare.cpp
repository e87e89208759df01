// Comparisons and tests for NaN and infinity: bool results.
#include "cpu/elementwise_loops.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

struct Equal {
  template <class T>
  FASTNN_INLINED auto operator()(const T* x) const {
    return x[0] == x[1];
  }
};
struct NotEqual {
  template <class T>
  FASTNN_INLINED auto operator()(const T* x) const {
    return x[0] != x[1];
  }
};
struct Less {
  template <class T>
  FASTNN_INLINED auto operator()(const T* x) const {
    return x[0] < x[1];
  }
};
struct LessEqual {
  template <class T>
  FASTNN_INLINED auto operator()(const T* x) const {
    return x[0] <= x[1];
  }
};
struct Greater {
  template <class T>
  FASTNN_INLINED auto operator()(const T* x) const {
    return x[0] > x[1];
  }
};
struct GreaterEqual {
  template <class T>
  FASTNN_INLINED auto operator()(const T* x) const {
    return x[0] >= x[1];
  }
};

template <class Op>
void compare_with(const ElementwiseParams& p, const Op& op) {
  switch (p.dtype) {
    case DType::float32:
    case DType::bfloat16:
      return predicate_rows<2>(p, op);
    case DType::int64:
      return integer_rows<2, int64_t, uint8_t>(p, op);
    case DType::int32:
      return integer_rows<2, int32_t, uint8_t>(p, op);
    default:
      return integer_rows<2, uint8_t, uint8_t>(p, op);
  }
}

void compare(const ElementwiseParams& p) {
  switch (static_cast<Comparison>(p.op)) {
    case Comparison::eq:
      return compare_with(p, Equal());
    case Comparison::ne:
      return compare_with(p, NotEqual());
    case Comparison::lt:
      return compare_with(p, Less());
    case Comparison::le:
      return compare_with(p, LessEqual());
    case Comparison::gt:
      return compare_with(p, Greater());
    case Comparison::ge:
      return compare_with(p, GreaterEqual());
  }
}

void test(const ElementwiseParams& p) {
  constexpr int32_t kInfinity = 0x7f800000;
  const auto magnitude = [](vfloat x) FASTNN_INLINED { return as_int(x) & 0x7fffffff; };
  switch (static_cast<Test>(p.op)) {
    case Test::isnan:
      return predicate_rows<1>(
          p, [&](const vfloat* x) FASTNN_INLINED { return magnitude(x[0]) > kInfinity; });
    case Test::isinf:
      return predicate_rows<1>(
          p, [&](const vfloat* x) FASTNN_INLINED { return magnitude(x[0]) == kInfinity; });
    case Test::isfinite:
      return predicate_rows<1>(
          p, [&](const vfloat* x) FASTNN_INLINED { return magnitude(x[0]) < kInfinity; });
  }
}

}  // namespace

void fill_elementwise_compare(Slots& slots) {
  slots.elementwise.compare = compare;
  slots.elementwise.test = test;
}

}  // namespace fastnn::cpu::FASTNN_ISA
