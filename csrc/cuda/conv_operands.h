// What the convolutions do to their operands before a product: channels padded to whole vectors of
// 16 bytes, weights ordered for the pass. An operand that is so already is used as it is.
#pragma once

#include "cuda/device/packs.h"
#include "ops/slots.h"

namespace fastnn::cuda {

// Whether the kernels' 32-bit rows and columns suffice; if not, that is noted as the failure.
bool sizes_fit(const ConvParams& p);

// Where a tap's source pixel lies from the row's.
struct Tap {
  int down, across;
};

inline int64_t vectors_of(int64_t channels, DType dtype) {
  const int64_t vector = 16 / item_size(dtype);
  return (channels + vector - 1) / vector;
}

// Pixels of `groups` x `channels` channels, each group's padded with zeros.
class PaddedPixels {
 public:
  PaddedPixels(const void* x, int64_t pixels, int64_t groups, int64_t channels, DType dtype);
  const void* data() const { return memory_.as<char>() ? memory_.as<char>() : data_; }
  int64_t vectors() const { return vectors_; }                                  // of a group
  int64_t stride(int64_t groups) const { return groups * vectors_ * vector_; }  // elements

 private:
  const void* data_;
  int64_t vector_, vectors_;
  Workspace memory_;
};

// Weights [OC][tap][IC / groups] as [group][column][tap][channel padded], where columns are the
// group's outputs and channels its inputs; or, turned, the other way round: columns are inputs and
// channels outputs, and the taps those that `chosen` lists (null: all).
class PackedWeight {
 public:
  PackedWeight(const void* weight, const ConvParams& p, bool turned, const int64_t* chosen,
               int64_t taps);
  const void* data() const { return memory_.as<char>() ? memory_.as<char>() : data_; }

 private:
  const void* data_;
  Workspace memory_;
};

// out[i] = the sum of parts[part * count + i], in order.
void add_parts(const float* parts, int64_t splits, int64_t count, DType dtype, void* out);

}  // namespace fastnn::cuda
