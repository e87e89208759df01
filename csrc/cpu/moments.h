// Mean and sum of squared deviations of a vector of channels, of parts that are added one by one.
// Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983.
#pragma once

#include "cpu/simd/vec.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

struct Moments {
  float count = 0;
  vfloat mean{}, m2{};
  // A part of n values, n > 0.
  FASTNN_INLINED inline void add(float n, vfloat part_mean, vfloat part_m2) {
    const float total = count + n;
    const vfloat delta = part_mean - mean;
    m2 += part_m2 + delta * delta * (count * n / total);
    mean += delta * (n / total);
    count = total;
  }
};

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
