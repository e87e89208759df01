// Weights of an odd number of channels, made even: bfloat16 is multiplied in pairs, and the taps of
// a row of three channels then lie in whole ones (an input's panel has the same zeros,
// InputGrid::missing).
#pragma once

#include "core/allocator.h"
#include "cpu/conv_input.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

template <class T>
class EvenWeights {
 public:
  // Of `taps` times `channels` values, with `missing` (0 or 1) zeros behind those of each tap.
  EvenWeights(const T* w, int64_t taps, int64_t channels, int64_t missing)
      : room_(missing ? taps * (channels + 1) * int64_t{sizeof(T)} : 0), at_(w) {
    if (!missing) return;
    auto* const to = reinterpret_cast<T*>(room_.floats());
    for (int64_t i = 0; i < taps; ++i) {
      copy_values(to + i * (channels + 1), w + i * channels, channels);
      to[i * (channels + 1) + channels] = T{};
    }
    at_ = to;
  }
  const T* at() const { return at_; }

 private:
  Workspace room_;
  const T* at_;
};

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
