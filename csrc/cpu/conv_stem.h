// Stems, convolutions of a few input channels: three of an image.
//
// Under a row of taps lie KW * C contiguous values of a padded input row, too few for a vector's
// lanes, and those under the next output stride_w * C further on. Vectors run over output channels
// in both passes, and the input's values are broadcast: outputs of a row need no pointers of their
// own.
#pragma once

#include "cpu/conv_input.h"
#include "cpu/matmul.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kStemChannels = 4;
constexpr int64_t kStemPanel = 1 << 20;  // values under one row of outputs

// Values of a padded input row under all its outputs.
FASTNN_INLINE int64_t stem_width(const ConvParams& p) {
  return ((p.OW - 1) * p.stride_w + p.KW) * p.C;
}
FASTNN_INLINE bool is_stem(const ConvParams& p) {
  return p.groups == 1 && p.C <= kStemChannels && p.dilation_h == 1 && p.dilation_w == 1 &&
         p.stride_w <= kStemPanel && p.KH * (stem_width(p) + MR * p.stride_w * p.C) <= kStemPanel;
}

// Rows of outputs whose input, rows of `width` values, is no larger than kStemPanel, if there are
// two of them.
FASTNN_INLINE int64_t stem_rows(const ConvParams& p, int64_t width) {
  const int64_t rows = kStemPanel / width;
  return rows < p.KH ? 1 : (rows - p.KH) / p.stride_h + 1;
}

// Row h of an image, zero padded, as `width` values: those under a row of outputs, or more.
template <class T, class P>
void stem_row(const ConvParams& p, const T* image, int64_t h, int64_t width, P* to) {
  const int64_t under = stem_width(p), first = p.pad_left * p.C;
  if (h < 0 || h >= p.H) return zero_values(to, width);
  const int64_t begin = clamp(first, 0, under), end = clamp(first + p.W * p.C, begin, under);
  zero_values(to, begin);
  copy_values(to + begin, image + h * p.W * p.C + begin - first, end - begin);
  zero_values(to + end, width - end);
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
