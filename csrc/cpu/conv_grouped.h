// Convolutions of small groups (ResNeXt): as many outputs as inputs to a group, a divisor of a
// vector's lanes, so that a vector of outputs depends on the same vector of inputs.
// conv_grouped.cpp.
#pragma once

#include "cpu/simd/vec.h"
#include "ops/conv.h"

namespace fastnn::cpu::FASTNN_ISA {

// Beyond these sizes of a group the kernels for whole groups are faster: for products, and for sums
// of weight gradients.
constexpr int64_t kMostMultiplied = 8, kMostSummed = 16;

// Groups of up to `most` channels.
FASTNN_INLINE bool is_small_groups(const ConvParams& p, int64_t most) {
  const int64_t G = p.group_inputs();
  return p.groups > 1 && G == p.group_outputs() && G > 1 && LANES % G == 0 && G <= most &&
         p.C % LANES == 0 && p.KW == 3 && p.KH <= 7 && p.dilation_w == 1 && p.stride_w <= 2;
}

void grouped_forward(const ConvParams& p, const void* x, const void* w, const ConvEpilogue& e,
                     void* y);
void grouped_backward_data(const ConvParams& p, const void* g, const void* w, const ConvEpilogue& e,
                           void* grad_input);
void grouped_backward_weight(const ConvParams& p, const void* x, const void* g, void* gw);

}  // namespace fastnn::cpu::FASTNN_ISA
