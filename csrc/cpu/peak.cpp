// What the multipliers can do: multiply-adds of values that stay in registers, as many sums as a
// tile of matmul.h has. No kernel exceeds their rate; `fastnn bench` measures it as the peak.
#include "cpu/matmul.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

template <class P>
double repeat(int64_t rounds) {
  constexpr int kSums = MR * NV;
  const volatile float factors[2] = {0.7109375f, -1.3046875f};  // not known to the compiler
  const vfloat a = set1(factors[0]), b = set1(factors[1]);
  vfloat sum[kSums];  // of different values, or they would be one
  for (int s = 0; s < kSums; ++s) sum[s] = set1(static_cast<float>(s));
  for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 32
    for (int s = 0; s < kSums; ++s)
      if constexpr (kStep<P> == 1)
        sum[s] = sum[s] * a + b;  // a product that no loop could begin with
      else
        add_step(sum[s], a, b, P{});
  volatile float total = 0;
  for (int s = 0; s < kSums; ++s) total = total + sum[s][0];
  return 2.0 * static_cast<double>(rounds * kSums * LANES * kStep<P>);
}

}  // namespace

// Returns the number of floating-point operations.
double multiply_adds(DType dtype, int64_t rounds) {
  return dtype == DType::float32 ? repeat<float>(rounds) : repeat<Operand<bfloat16>>(rounds);
}

}  // namespace fastnn::cpu::FASTNN_ISA
