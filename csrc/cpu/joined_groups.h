// Small groups taken together: their weights as blocks on the diagonal of a larger group's, zeros
// elsewhere. The products with zeros cost lanes of vectors, or parts of tiles, that would stand
// idle otherwise. What is not finite in one of the groups' inputs reaches all of them.
#pragma once

#include "core/allocator.h"
#include "cpu/conv_input.h"
#include "ops/conv.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// How many groups to take together, of so many channels at most.
inline int64_t groups_together(const ConvParams& p, int64_t inputs, int64_t outputs) {
  int64_t together = p.groups;
  while (together > 1 && (p.groups % together != 0 || together * p.group_inputs() > inputs ||
                          together * p.group_outputs() > outputs))
    --together;
  return together;
}

// How many, for a product of `depth` values under each tap by `columns` of each group: a tile of
// MR rows takes some 60 cycles, and for each tap 14 and 10 or 14 for a step of one or two vectors.
inline int64_t groups_together(const ConvParams& p, int64_t columns, int64_t depth, int64_t taps) {
  int64_t together = 1, least = 0;
  for (int64_t j = 1; j <= 2 * LANES && j <= p.groups; ++j) {
    if (p.groups % j != 0) continue;
    const int64_t steps = ceil_div(j * depth, step_of(p.dtype)), rest = j * columns % (2 * LANES);
    const auto tile = [&](int64_t cycles) { return 60 + taps * (14 + steps * cycles); };
    const int64_t cost = j * columns / (2 * LANES) * tile(14) + (rest > LANES ? tile(14)
                                                                 : rest > 0   ? tile(10)
                                                                              : 0);
    if (j == 1 || 9 * cost * together < 8 * least * j) together = j, least = cost;
  }
  return together;
}

class JoinedGroups {
 public:
  ConvParams p;  // of the larger groups

  JoinedGroups(const ConvParams& small, int64_t together, DType of_weight)
      : p(small),
        together_(together),
        ic_(small.group_inputs()),
        oc_(small.group_outputs()),
        taps_(small.KH * small.KW),
        item_(item_size(of_weight)),
        weight_(small.OC * taps_ * ic_ * together * item_) {
    p.groups /= together;
  }
  void* weight() const { return weight_.floats(); }

  // The larger groups' weights from the small ones'.
  void spread(const void* w) const {
    __builtin_memset(weight(), 0, static_cast<size_t>(p.OC * taps_ * ic_ * together_ * item_));
    each([&](int64_t small, int64_t large) { copy(weight(), large, w, small); });
  }
  // And back: of the gradient, what belongs to the groups.
  void gather(void* gw) const {
    each([&](int64_t small, int64_t large) { copy(gw, small, weight(), large); });
  }

 private:
  int64_t together_, ic_, oc_, taps_, item_;
  Workspace weight_;

  void copy(void* to, int64_t at, const void* from, int64_t its) const {
    if (item_ == sizeof(float))
      copy_values(static_cast<float*>(to) + at, static_cast<const float*>(from) + its, ic_);
    else
      copy_values(static_cast<bfloat16*>(to) + at, static_cast<const bfloat16*>(from) + its, ic_);
  }
  // body(where the inputs under a tap of an output are in the small weight, and in the large one).
  template <class Body>
  void each(const Body& body) const {
    for (int64_t o = 0; o < p.OC; ++o)
      for (int64_t t = 0; t < taps_; ++t)
        body((o * taps_ + t) * ic_, ((o * taps_ + t) * together_ + o / oc_ % together_) * ic_);
  }
};

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
