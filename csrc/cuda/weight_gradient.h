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
  float* sums;              // [split][output channel][tap][input channel]
  int groups;

  // Elements of one split's sums.
  __host__ __device__ int64_t count() const { return groups * outputs * tap_count * inputs; }
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

}  // namespace fastnn::cuda
