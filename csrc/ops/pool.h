// Pooling over windows of an image. Fixed, ceil-mode and adaptive windows are all described by
// tables: where each output row's window starts and how long it is, and for each input row which
// windows it is in. Kernels know only the tables.
#pragma once

#include <utility>

#include "core/array.h"

namespace fastnn {

// One dimension of the windows.
struct PoolAxis {
  int64_t in, out;
  int64_t dilation;
  int64_t extent;        // longest window, in taps
  const int64_t* start;  // per output: position of the first tap, may lie outside the image
  const int64_t* taps;   // per output: number of taps
  const float* divisor;  // per output: what the average divides by, along this dimension
  // Per input i, the pairs hits[2j], hits[2j + 1] = (output, tap) for j in [first[i], first[i +
  // 1]).
  const int64_t* first;
  const int64_t* hits;
};

struct PoolParams {
  int64_t N, C;
  PoolAxis h, w;
  bool wide;  // in-window indices are int32 instead of uint8
  DType dtype;
};

struct PoolSlots {
  void (*max)(const PoolParams&, const void* x, void* y, void* indices);
  void (*max_backward)(const PoolParams&, const void* g, const void* indices, void* grad_x);
  // In-window indices as flat positions h * W + w.
  void (*flat_indices)(const PoolParams&, const void* indices, int64_t* flat);
  void (*average)(const PoolParams&, const void* x, void* y);
  void (*average_backward)(const PoolParams&, const void* g, void* grad_x);
};

namespace ops {

// Output and in-window indices (uint8, or int32 for windows of more than 256 taps).
std::pair<Array, Array> max_pool2d(const Array& input, const Dims& kernel, const Dims& stride,
                                   const Dims& padding, const Dims& dilation, bool ceil_mode);
Array max_pool2d_backward(const Array& grad_output, const Array& indices, const Dims& input_shape,
                          const Dims& kernel, const Dims& stride, const Dims& padding,
                          const Dims& dilation, bool ceil_mode);
Array max_pool2d_flat_indices(const Array& indices, const Dims& input_shape, const Dims& kernel,
                              const Dims& stride, const Dims& padding, const Dims& dilation,
                              bool ceil_mode);

// divisor 0: the number of values in the window (with the padding if count_include_pad).
Array avg_pool2d(const Array& input, const Dims& kernel, const Dims& stride, const Dims& padding,
                 bool ceil_mode, bool count_include_pad, int64_t divisor);
Array avg_pool2d_backward(const Array& grad_output, const Dims& input_shape, const Dims& kernel,
                          const Dims& stride, const Dims& padding, bool ceil_mode,
                          bool count_include_pad, int64_t divisor);

// Window i of n covers [floor(i in / n), ceil((i + 1) in / n)).
Array adaptive_avg_pool2d(const Array& input, const Dims& output_size);
Array adaptive_avg_pool2d_backward(const Array& grad_output, const Dims& input_shape);
std::pair<Array, Array> adaptive_max_pool2d(const Array& input, const Dims& output_size);
Array adaptive_max_pool2d_backward(const Array& grad_output, const Array& indices,
                                   const Dims& input_shape);
Array adaptive_max_pool2d_flat_indices(const Array& indices, const Dims& input_shape);

}  // namespace ops
}  // namespace fastnn
