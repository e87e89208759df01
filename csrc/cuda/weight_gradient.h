// What the kernels of conv_backward_weight.cu compute: rows are output channels, columns (tap,
// input channel), terms output pixels, split among blocks.
#pragma once

#include "cuda/conv_operands.h"

namespace fastnn::cuda {

struct WeightGradient {
  const void* grad;   // pixels x grad_stride elements
  const void* input;  // images x height x width pixels of input_stride elements
  int64_t grad_stride, input_stride;
  int grad_vectors, input_vectors;  // of a group
  int height, width;
  const Tap* taps;
  int tap_count;
  int64_t pixels;  // of the output: images x down x across
  int down, across, step_down, step_across;
  int64_t outputs, inputs;  // channels of a group
  int64_t split;            // pixels per split
  // [split][output channel][tap][input channel]; of one split the gradient itself, in `rounded` if
  // that is bfloat16.
  float* sums;
  bfloat16* rounded;  // or null
  int groups;

  // Elements of one split's sums.
  __host__ __device__ int64_t count() const { return groups * outputs * tap_count * inputs; }

  FASTNN_MEMBER void store(int64_t at, float sum) const {
    if (rounded)
      from_float(rounded[at], sum);
    else
      sums[at] = sum;
  }
};

// Splits of the pixels into whole steps: about `wanted`, of no less than 16 steps each. Sets
// p.split.
inline int64_t set_splits(WeightGradient& p, int64_t wanted, int64_t depth) {
  const int64_t steps = (p.pixels + depth - 1) / depth;
  int64_t splits = wanted < (steps + 15) / 16 ? wanted : (steps + 15) / 16;
  if (splits > 256) splits = 256;
  if (splits < 1) splits = 1;
  const int64_t of_each = (steps + splits - 1) / splits;
  p.split = (of_each > 0 ? of_each : 1) * depth;
  return splits;
}

// Memory for the splits' sums, and what adds them in order; nothing if there is one split.
class SplitSums {
 public:
  SplitSums(WeightGradient& p, int64_t splits, DType dtype, void* grad_weight)
      : splits_(splits),
        count_(p.count()),
        dtype_(dtype),
        grad_weight_(grad_weight),
        parts_(splits > 1 ? splits * count_ * 4 : 0) {
    if (splits > 1)
      p.sums = parts_.as<float>();
    else if (dtype == DType::float32)
      p.sums = static_cast<float*>(grad_weight);
    else
      p.rounded = static_cast<bfloat16*>(grad_weight);
  }
  void add() const {
    if (splits_ > 1) add_parts(parts_.as<float>(), splits_, count_, dtype_, grad_weight_);
  }

 private:
  int64_t splits_, count_;
  DType dtype_;
  void* grad_weight_;
  Workspace parts_;
};

}  // namespace fastnn::cuda
