// Elementwise operators with NumPy broadcasting.
//
// Dtypes promote bool < uint8 < int32 < int64 < bfloat16 < float32; a Python number takes the
// tensor's dtype unless it is of a higher kind (bool < integer < floating). Floating kernels read
// any mix of float32 and bfloat16, compute in float32 and round once on store.
#pragma once

#include <optional>

#include "core/array.h"

namespace fastnn {

constexpr int kMaxOperands = 4;

// Operators by result: floating or integer arithmetic, bool, and gradients (floating).
enum class Arithmetic : int {
  add,
  mul,
  div,
  pow,
  maximum,
  minimum,
  clamp,
  logical_and,
  logical_or,
  logical_xor
};
enum class Comparison : int { eq, ne, lt, le, gt, ge };
enum class Test : int { isnan, isinf, isfinite };
enum class Unary : int {
  neg,
  abs,
  sign,
  square,
  sqrt,
  rsqrt,
  reciprocal,
  exp,
  log,
  sin,
  cos,
  floor,
  ceil,
  round
};
// Gradients that are no chain of the operators above; operands are listed beside each.
enum class Gradient : int {
  abs,           // g, x: g sign(x)
  square,        // g, x: 2 g x
  sqrt,          // g, x: g / (2 sqrt(x))
  rsqrt,         // g, x: -g / (2 x sqrt(x))
  reciprocal,    // g, x: -g / x^2
  sin,           // g, x: g cos(x)
  cos,           // g, x: -g sin(x)
  div_other,     // g, x, y: -g x / y^2
  pow_input,     // g, x, y: g y x^(y-1)
  pow_exponent,  // g, x, y: g x^y log(x)
  larger,        // g, x, y: g where x > y, g / 2 where equal, else 0
  clamp,         // g, x, low, high: g where low <= x <= high, else 0
  deviation,     // g, x, mean, scale: g scale (x - mean)
};

// Dimensions are sorted by falling step of the output and merged; rank is at least 1. Steps are in
// bytes, 0 along broadcast dimensions. An operand whose pointer is null is a number.
struct ElementwiseParams {
  int op;
  int operands;
  DType dtype;  // of integer operands; `where` looks at its size only
  DType in_dtype[kMaxOperands];
  DType out_dtype;
  const void* in[kMaxOperands];
  void* out;
  double number[kMaxOperands];
  int64_t integer[kMaxOperands];
  int rank;
  int64_t shape[kMaxRank];
  int64_t in_steps[kMaxOperands][kMaxRank];
  int64_t out_steps[kMaxRank];
};

struct ElementwiseSlots {
  void (*arithmetic)(const ElementwiseParams&);  // add and minus share: in[2] is alpha
  void (*compare)(const ElementwiseParams&);
  void (*test)(const ElementwiseParams&);
  void (*unary)(const ElementwiseParams&);
  void (*gradient)(const ElementwiseParams&);
  void (*where)(const ElementwiseParams&);  // condition, input, other of one dtype
};

namespace ops {

// A tensor or a Python number.
struct Operand {
  enum Kind { boolean, integer, floating };
  Array array;
  Kind kind = floating;
  double number = 0;
  int64_t whole = 0;
  bool is_number() const { return !array.defined(); }
  Operand() = default;
  Operand(const Array& x) : array(x) {}  // NOLINT: converts on purpose
  static Operand of(double value);
  static Operand of(int64_t value, Kind kind = integer);
};

// Shape both broadcast to. Throws ValueError "<name>: ...".
Dims broadcast_shape(const char* name, const Dims& a, const Dims& b);
// A view of x with the given shape, repeated along broadcast dimensions.
Array broadcast_to(const Array& x, const Dims& shape);

// Each writes to `out` if it is given (in place; checked for shape, dtype, memory), else to a fresh
// array. `name` is the public name for messages.
using Out = std::optional<Array>;

Array arithmetic(const char* name, Arithmetic op, const Operand& x, const Operand& y,
                 const Out& out);
// x + alpha y
Array add_scaled(const char* name, const Operand& x, const Operand& y, const Operand& alpha,
                 const Out& out);
Array clamp(const Array& x, const std::optional<Operand>& min, const std::optional<Operand>& max,
            const Out& out);
Array compare(const char* name, Comparison op, const Operand& x, const Operand& y);
Array test(const char* name, Test op, const Array& x);
Array logical_not(const Array& x);
Array unary(const char* name, Unary op, const Array& x, const Out& out);
Array where(const Array& condition, const Operand& input, const Operand& other);
// Operands broadcast; float32 if any is float32, else bfloat16.
Array gradient(Gradient op, const Array& g, const Operand& x, const Operand& y, const Operand& z);

}  // namespace ops
}  // namespace fastnn
