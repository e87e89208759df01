// Convolutions of small groups (ResNeXt): as many outputs as inputs to a group, which is a part of
// a vector (conv_grouped.cpp), or one or more whole vectors (conv_grouped_wide.h).
#pragma once

#include "cpu/simd/steps.h"
#include "ops/conv.h"

namespace fastnn::cpu::FASTNN_ISA {

// Whether turning the weights, which leave L2 where groups are large, would not pay.
FASTNN_INLINE bool few_pixels(const ConvParams& p) {
  return p.N * p.OH * p.OW < 2 * p.KH * p.KW * p.group_inputs();
}
// `of_weight`: for the gradient of the weight.
FASTNN_INLINE bool is_grouped(const ConvParams& p, bool of_weight = false) {
  const int64_t G = p.group_inputs();
  const bool part = (G == 2 || G == 4 || G == 8) && LANES % G == 0;
  const bool pairs = p.dtype == DType::bfloat16 && kStep<Operand<bfloat16>> == 2;
  // Pairs fill the product kernels.
  const bool whole = (G == 16 || G == 32) && G % LANES == 0 && !pairs &&
                     !((G == 32 || of_weight) && few_pixels(p));
  return p.groups > 1 && G == p.group_outputs() && (part || whole) && p.C % LANES == 0 &&
         p.KW == 3 && p.KH <= 7 && p.dilation_h <= 8 && p.dilation_w == 1 && p.stride_w <= 2;
}

void grouped_forward(const ConvParams& p, const void* x, const void* w, const ConvEpilogue& e,
                     void* y);
void grouped_backward_data(const ConvParams& p, const void* g, const void* w, const ConvEpilogue& e,
                           void* grad_input);
void grouped_backward_weight(const ConvParams& p, const void* x, const void* g, void* grad_weight);

}  // namespace fastnn::cpu::FASTNN_ISA
