// Elementwise operators with broadcasting.
//
// ops/elementwise.cpp has sorted and merged the dimensions. Where that left one dimension that
// every operand runs through densely (or is a number), a thread takes 16 bytes at a time; else each
// thread finds its elements from its index. Which operator it is, is the same for all threads, so a
// switch in the kernel costs nothing beside memory and keeps the module small. Floor: one read of
// every operand and one write.
#include "cuda/device/packs.h"
#include "ops/slots.h"

namespace fastnn::cuda {
namespace {

// Floating operators: each hands f the function of the operands x that `op` names, so that f
// applies it to many elements after one jump.
struct FloatArithmetic {
  template <class F>
  __device__ void operator()(int op, const F& f) const {
    switch (static_cast<Arithmetic>(op)) {
      case Arithmetic::add:  // alpha of 1 or -1 multiplies exactly
        return f([](const float* x) { return x[0] + x[2] * x[1]; });
      case Arithmetic::mul:
        return f([](const float* x) { return x[0] * x[1]; });
      case Arithmetic::div:
        return f([](const float* x) { return x[0] / x[1]; });
      case Arithmetic::pow:
        return f([](const float* x) { return x[1] == 2.0f ? x[0] * x[0] : powf(x[0], x[1]); });
      case Arithmetic::maximum:
        return f([](const float* x) { return larger(x[0], x[1]); });
      case Arithmetic::minimum:
        return f([](const float* x) { return smaller(x[0], x[1]); });
      default:  // clamp
        return f([](const float* x) { return smaller(larger(x[0], x[1]), x[2]); });
    }
  }
  // NaN in either operand survives.
  static __device__ float larger(float a, float b) { return a > b || a != a ? a : b; }
  static __device__ float smaller(float a, float b) { return a < b || a != a ? a : b; }
};

FASTNN_DEVICE float sign_of(float x) { return x > 0 ? 1.0f : x < 0 ? -1.0f : x + x; }

struct FloatUnary {
  template <class F>
  __device__ void operator()(int op, const F& f) const {
    switch (static_cast<Unary>(op)) {
      case Unary::neg:
        return f([](const float* x) { return -x[0]; });
      case Unary::abs:
        return f([](const float* x) { return fabsf(x[0]); });
      case Unary::sign:
        return f([](const float* x) { return sign_of(x[0]); });
      case Unary::square:
        return f([](const float* x) { return x[0] * x[0]; });
      case Unary::sqrt:
        return f([](const float* x) { return sqrtf(x[0]); });
      case Unary::rsqrt:
        return f([](const float* x) { return 1.0f / sqrtf(x[0]); });
      case Unary::reciprocal:
        return f([](const float* x) { return 1.0f / x[0]; });
      case Unary::exp:
        return f([](const float* x) { return expf(x[0]); });
      case Unary::log:
        return f([](const float* x) { return logf(x[0]); });
      case Unary::sin:
        return f([](const float* x) { return sinf(x[0]); });
      case Unary::cos:
        return f([](const float* x) { return cosf(x[0]); });
      case Unary::floor:
        return f([](const float* x) { return floorf(x[0]); });
      case Unary::ceil:
        return f([](const float* x) { return ceilf(x[0]); });
      default:  // halves to even
        return f([](const float* x) { return rintf(x[0]); });
    }
  }
};

// x[0] is grad_output; the other operands are listed at the enum.
struct FloatGradient {
  template <class F>
  __device__ void operator()(int op, const F& f) const {
    switch (static_cast<Gradient>(op)) {
      case Gradient::abs:
        return f([](const float* x) { return x[0] * sign_of(x[1]); });
      case Gradient::square:
        return f([](const float* x) { return 2.0f * x[1] * x[0]; });
      case Gradient::sqrt:
        return f([](const float* x) { return 0.5f * x[0] / sqrtf(x[1]); });
      case Gradient::rsqrt:
        return f([](const float* x) { return -0.5f * x[0] / (x[1] * sqrtf(x[1])); });
      case Gradient::reciprocal:
        return f([](const float* x) { return -x[0] / x[1] / x[1]; });
      case Gradient::sin:
        return f([](const float* x) { return x[0] * cosf(x[1]); });
      case Gradient::cos:
        return f([](const float* x) { return -x[0] * sinf(x[1]); });
      case Gradient::div_other:  // two divisions: y * y could overflow
        return f([](const float* x) { return -(x[0] / x[2]) * (x[1] / x[2]); });
      case Gradient::pow_input:  // y = 0 gives 0 also where x = 0
        return f([](const float* x) {
          return x[2] == 0 ? 0.0f : x[0] * x[2] * powf(x[1], x[2] - 1.0f);
        });
      case Gradient::pow_exponent:  // 0 ** y is constant for y >= 0
        return f([](const float* x) {
          return x[1] == 0 && x[2] >= 0 ? 0.0f : x[0] * powf(x[1], x[2]) * logf(x[1]);
        });
      case Gradient::larger:
        return f([](const float* x) {
          return x[1] > x[2] ? x[0] : x[1] == x[2] ? 0.5f * x[0] : 0.0f;
        });
      case Gradient::clamp:
        return f([](const float* x) { return x[1] >= x[2] && x[1] <= x[3] ? x[0] : 0.0f; });
      default:  // deviation
        return f([](const float* x) { return x[0] * x[3] * (x[1] - x[2]); });
    }
  }
};

struct FloatTest {
  __device__ bool operator()(int op, const float* x) const {
    constexpr int kInfinity = 0x7f800000;
    const int magnitude = __float_as_int(x[0]) & 0x7fffffff;
    switch (static_cast<Test>(op)) {
      case Test::isnan:
        return magnitude > kInfinity;
      case Test::isinf:
        return magnitude == kInfinity;
      default:
        return magnitude < kInfinity;
    }
  }
};

struct Compare {
  template <class T>
  __device__ bool operator()(int op, const T* x) const {
    switch (static_cast<Comparison>(op)) {
      case Comparison::eq:
        return x[0] == x[1];
      case Comparison::ne:
        return x[0] != x[1];
      case Comparison::lt:
        return x[0] < x[1];
      case Comparison::le:
        return x[0] <= x[1];
      case Comparison::gt:
        return x[0] > x[1];
      default:
        return x[0] >= x[1];
    }
  }
};

// Integer operators wrap around like unsigned arithmetic.
struct IntegerArithmetic {
  template <class T>
  __device__ T operator()(int op, const T* x) const {
    const auto a = static_cast<uint64_t>(x[0]), b = static_cast<uint64_t>(x[1]);
    switch (static_cast<Arithmetic>(op)) {
      case Arithmetic::add:
        return static_cast<T>(a + static_cast<uint64_t>(x[2]) * b);
      case Arithmetic::mul:
        return static_cast<T>(a * b);
      case Arithmetic::pow:
        return power(x[0], x[1]);
      case Arithmetic::maximum:
        return x[0] > x[1] ? x[0] : x[1];
      case Arithmetic::minimum:
        return x[0] < x[1] ? x[0] : x[1];
      case Arithmetic::clamp: {
        const T low = x[0] > x[1] ? x[0] : x[1];
        return low < x[2] ? low : x[2];
      }
      case Arithmetic::logical_and:  // bool only, from here on
        return static_cast<T>(x[0] & x[1]);
      case Arithmetic::logical_or:
        return static_cast<T>(x[0] | x[1]);
      default:
        return static_cast<T>(x[0] ^ x[1]);
    }
  }
  // A negative exponent truncates 1 / x**|y| to an integer.
  template <class T>
  static __device__ T power(T base, T exponent) {
    if constexpr (std::is_signed_v<T>) {
      if (exponent < 0)
        return base == 1 ? 1 : base == static_cast<T>(-1) ? (exponent & 1 ? base : 1) : 0;
    }
    uint64_t result = 1, square = static_cast<uint64_t>(base);
    for (; exponent; exponent = static_cast<T>(exponent >> 1)) {
      if (exponent & 1) result *= square;
      square *= square;
    }
    return static_cast<T>(result);
  }
};

struct IntegerUnary {
  template <class T>
  __device__ T operator()(int op, const T* x) const {
    const auto u = static_cast<uint64_t>(x[0]);
    switch (static_cast<Unary>(op)) {
      case Unary::neg:
        return static_cast<T>(0 - u);
      case Unary::abs:
        return x[0] > 0 ? x[0] : static_cast<T>(0 - u);
      case Unary::sign:
        return x[0] == 0 ? T{0} : x[0] > 0 ? T{1} : static_cast<T>(-1);
      default:  // square
        return static_cast<T>(u * u);
    }
  }
};

// Byte offsets of element i in the operands and the output.
struct Offsets {
  int64_t in[kMaxOperands] = {}, out = 0;
  __device__ Offsets(const ElementwiseParams& p, int64_t i) {
    for (int d = p.rank - 1; d >= 0; --d) {
      const int64_t index = take_index(i, p.shape, d);
      out += index * p.out_steps[d];
#pragma unroll
      for (int k = 0; k < kMaxOperands; ++k)
        if (k < p.operands) in[k] += index * p.in_steps[k][d];
    }
  }
};

FASTNN_DEVICE const char* operand(const ElementwiseParams& p, int k, int64_t offset) {
  return static_cast<const char*>(p.in[k]) + offset;
}

// out = op(operands), floating operands of either dtype; R is float, or bool for predicates.
template <class Op, class R>
struct FloatRows {
  ElementwiseParams p;
  __device__ void operator()(int64_t i) const {
    const Offsets at(p, i);
    float x[kMaxOperands] = {};
#pragma unroll
    for (int k = 0; k < kMaxOperands; ++k)
      x[k] = k >= p.operands ? 0.0f
             : !p.in[k]      ? static_cast<float>(p.number[k])
             : p.in_dtype[k] == DType::bfloat16
                 ? to_float(*reinterpret_cast<const bfloat16*>(operand(p, k, at.in[k])))
                 : *reinterpret_cast<const float*>(operand(p, k, at.in[k]));
    char* const out = static_cast<char*>(p.out) + at.out;
    if constexpr (std::is_same_v<R, bool>) {
      *reinterpret_cast<bool*>(out) = Op()(p.op, x);
    } else {
      Op()(p.op, [&](const auto& f) {
        if (p.out_dtype == DType::bfloat16)
          *reinterpret_cast<bfloat16*>(out) = to_bfloat16(f(x));
        else
          *reinterpret_cast<float*>(out) = f(x);
      });
    }
  }
};

// Operands of T are dense; N elements at a time.
template <class Op, class T, int N>
struct DenseRow {
  ElementwiseParams p;
  int64_t first;  // element
  __device__ void operator()(int64_t i) const {
    const int64_t at = first + i * N;
    float x[kMaxOperands][N], y[N];
#pragma unroll
    for (int k = 0; k < kMaxOperands; ++k) {
      if (k < p.operands && p.in[k])
        load_floats(static_cast<const T*>(p.in[k]) + at, x[k]);
      else
        for (int n = 0; n < N; ++n) x[k][n] = static_cast<float>(p.number[k]);
    }
    static_assert(kMaxOperands == 4);
    Op()(p.op, [&](const auto& f) {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const float one[] = {x[0][n], x[1][n], x[2][n], x[3][n]};
        y[n] = f(one);
      }
    });
    store_floats(static_cast<T*>(p.out) + at, y);
  }
};

// out = op(operands) on integers of T.
template <class Op, class T, class R>
struct IntegerRows {
  ElementwiseParams p;
  __device__ void operator()(int64_t i) const {
    const Offsets at(p, i);
    T x[kMaxOperands] = {};
#pragma unroll
    for (int k = 0; k < kMaxOperands; ++k)
      if (k < p.operands)
        x[k] = p.in[k] ? *reinterpret_cast<const T*>(operand(p, k, at.in[k]))
                       : static_cast<T>(p.integer[k]);
    *reinterpret_cast<R*>(static_cast<char*>(p.out) + at.out) = Op()(p.op, x);
  }
};

int64_t count_of(const ElementwiseParams& p) {
  int64_t count = 1;
  for (int d = 0; d < p.rank; ++d) count *= p.shape[d];
  return count;
}

bool is_dense(const ElementwiseParams& p) {
  if (p.rank != 1 || p.out_steps[0] != item_size(p.out_dtype) || !aligned(p.out)) return false;
  for (int k = 0; k < p.operands; ++k)
    if (p.in[k] &&
        (p.in_dtype[k] != p.out_dtype || p.in_steps[k][0] != p.out_steps[0] || !aligned(p.in[k])))
      return false;
  return true;
}

template <class Op>
void float_rows(const ElementwiseParams& p) {
  const int64_t count = count_of(p);
  if (!is_dense(p)) return each(count, FloatRows<Op, float>{p});
  with_type(p.out_dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int N = kPack<T>;
    each(count / N, DenseRow<Op, T, N>{p, 0});
    each(count % N, DenseRow<Op, T, 1>{p, count / N * N});
  });
}

template <class Op, class R>
void integer_rows(const ElementwiseParams& p) {
  const int64_t count = count_of(p);
  constexpr bool kPredicate = std::is_same_v<R, bool>;
  switch (p.dtype) {
    case DType::int64:
      return each(count,
                  IntegerRows<Op, int64_t, std::conditional_t<kPredicate, bool, int64_t>>{p});
    case DType::int32:
      return each(count,
                  IntegerRows<Op, int32_t, std::conditional_t<kPredicate, bool, int32_t>>{p});
    default:
      return each(count,
                  IntegerRows<Op, uint8_t, std::conditional_t<kPredicate, bool, uint8_t>>{p});
  }
}

void arithmetic(const ElementwiseParams& p) {
  is_floating(p.dtype) ? float_rows<FloatArithmetic>(p) : integer_rows<IntegerArithmetic, int>(p);
}
void unary(const ElementwiseParams& p) {
  is_floating(p.dtype) ? float_rows<FloatUnary>(p) : integer_rows<IntegerUnary, int>(p);
}
void gradient(const ElementwiseParams& p) { float_rows<FloatGradient>(p); }
void test(const ElementwiseParams& p) { each(count_of(p), FloatRows<FloatTest, bool>{p}); }
void compare(const ElementwiseParams& p) {
  if (is_floating(p.dtype))
    each(count_of(p), FloatRows<Compare, bool>{p});
  else
    integer_rows<Compare, bool>(p);
}

template <class T>
struct Where {
  ElementwiseParams p;
  __device__ void operator()(int64_t i) const {
    const Offsets at(p, i);
    const bool first = *reinterpret_cast<const uint8_t*>(operand(p, 0, at.in[0]));
    *reinterpret_cast<T*>(static_cast<char*>(p.out) + at.out) =
        *reinterpret_cast<const T*>(first ? operand(p, 1, at.in[1]) : operand(p, 2, at.in[2]));
  }
};

void where(const ElementwiseParams& p) {
  switch (item_size(p.out_dtype)) {
    case 8:
      return each(count_of(p), Where<uint64_t>{p});
    case 4:
      return each(count_of(p), Where<uint32_t>{p});
    case 2:
      return each(count_of(p), Where<uint16_t>{p});
    default:
      return each(count_of(p), Where<uint8_t>{p});
  }
}

}  // namespace

void fill_elementwise(Slots& slots) {
  slots.elementwise = {arithmetic, compare, test, unary, gradient, where};
}

}  // namespace fastnn::cuda
