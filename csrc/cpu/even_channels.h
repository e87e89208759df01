// Weights of an odd number of channels, made even: bfloat16 is multiplied in pairs. Either each tap
// has a zero more, as the input's panel has (InputGrid::missing); or the last two pairs of a run of
// neighbouring taps overlap (InputGrid::odd), and share the factor of what is in both.
#pragma once

#include "core/allocator.h"
#include "cpu/conv_input.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

template <class T>
class EvenWeights {
 public:
  // Of `runs` times `values`; as they are if `even`.
  EvenWeights(const T* w, int64_t runs, int64_t values, bool even, bool overlap = false)
      : room_(even ? 0 : runs * (values + 1) * int64_t{sizeof(T)}), at_(w) {
    if (even) return;
    auto* to = reinterpret_cast<T*>(room_.floats());
    at_ = to;
    for (int64_t i = 0; i < runs; ++i, w += values, to += values + 1) {
      copy_values(to, w, values);
      to[values] = overlap ? w[values - 1] : T{};
      if (!overlap) continue;
      from_float(to[values - 2], 0.5f * to_float(w[values - 2]));
      to[values - 1] = to[values - 2];
    }
  }
  const T* at() const { return at_; }

 private:
  Workspace room_;
  const T* at_;
};

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
