// Resampling of images: every output row and column is a weighted sum of at most two input rows and
// columns. Tables say which; nearest is the case of one.
#pragma once

#include "core/array.h"

namespace fastnn {

struct ResampleAxis {
  int64_t in, out;
  const int64_t* low;   // per output: first input
  const int64_t* high;  // per output: second input
  const float* share;   // per output: weight of the second; the first has 1 - share
  // Per input i, outputs and weights j in [first[i], first[i + 1]) that it contributes to.
  const int64_t* first;
  const int64_t* outputs;
  const float* weights;
};

struct ResampleParams {
  int64_t N, C;
  ResampleAxis h, w;
  bool nearest;
  DType dtype;
};

struct InterpolateSlots {
  void (*forward)(const ResampleParams&, const void* x, void* y);
  void (*backward)(const ResampleParams&, const void* g, void* grad_x);
};

namespace ops {

// scale_h, scale_w: input pixels per output pixel, or 0 to take them from the sizes.
Array interpolate(const Array& input, const Dims& size, const std::string& mode, bool align_corners,
                  double scale_h, double scale_w);
Array interpolate_backward(const Array& grad_output, const Dims& input_shape,
                           const std::string& mode, bool align_corners, double scale_h,
                           double scale_w);

}  // namespace ops
}  // namespace fastnn
