// Dropout. Masks are never stored: Philox regenerates them in the backward pass from (seed,
// offset).
#pragma once

#include "core/array.h"

namespace fastnn {

struct DropoutSlots {
  // y[i] = x[i] * scale where half word i of the stream is >= threshold, else 0.
  void (*elements)(const void* x, void* y, int64_t count, DType, uint64_t seed, uint64_t offset,
                   uint32_t threshold, float scale);
  // The same with one half per (image, channel): x is N x P pixels x C channels; with C = 1 one per
  // image.
  void (*units)(const void* x, void* y, int64_t N, int64_t P, int64_t C, DType, uint64_t seed,
                uint64_t offset, uint32_t threshold, float scale);
};

namespace ops {

// kind: "dropout" (elements), "dropout2d" (channels of (N, C, H, W)) or "drop_path" (samples). p is
// the probability of zero. Applied to the output's gradient with the same seed and offset, this is
// the backward too.
Array dropout(const std::string& kind, const Array& input, double p, uint64_t seed,
              uint64_t offset);

}  // namespace ops
}  // namespace fastnn
