// Convolutions of small groups (ResNeXt): as many outputs as inputs to a group, which is a part of
// a vector, or one or more whole vectors.
#pragma once

#include "cpu/simd/steps.h"
#include "ops/conv.h"

namespace fastnn::cpu::FASTNN_ISA {

constexpr int64_t kGroupedRows = 7;  // of a kernel, at most

// `of_weight`: for the gradient of the weight. Not where large groups have more weights to turn
// than pixels pay for, nor where pairs fill the product kernels.
FASTNN_INLINE bool is_grouped(const ConvParams& p, bool of_weight = false) {
  const int64_t G = p.group_inputs();
  const bool pairs = step_of(p.dtype) == 2;
  const bool many = p.N * p.OH * p.OW >= 2 * p.KH * p.KW * G;
  const bool here = G == 2 || G == 4 || G == 8 || (G == 16 && (many || !of_weight)) ||
                    (G == 32 && many && (of_weight || !pairs));
  return p.groups > 1 && G == p.group_outputs() && here && p.C % LANES == 0 && p.KW == 3 &&
         p.KH <= kGroupedRows && p.dilation_h <= 8 && p.dilation_w == 1 && p.stride_w <= 2;
}

void grouped_forward(const ConvParams& p, const void* x, const void* w, const ConvEpilogue& e,
                     void* y);
void grouped_backward_data(const ConvParams& p, const void* g, const void* w, const ConvEpilogue& e,
                           void* grad_input);
void grouped_backward_weight(const ConvParams& p, const void* x, const void* g, void* grad_weight);

}  // namespace fastnn::cpu::FASTNN_ISA

#if defined(FASTNN_ISA_avx512_bf16)
namespace fastnn::cpu::avx512 {  // whose kernels of float32 serve this level, too
decltype(FASTNN_ISA::grouped_forward) grouped_forward;
decltype(FASTNN_ISA::grouped_backward_data) grouped_backward_data;
decltype(FASTNN_ISA::grouped_backward_weight) grouped_backward_weight;
}  // namespace fastnn::cpu::avx512
#endif
