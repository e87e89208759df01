// Random tensors. Every block of four words of the stream (seed, offset) gives values of its own
// (rules/random.h), in memory order.
#pragma once

#include "core/array.h"
#include "core/random.h"

namespace fastnn {

struct RandomSlots {  // on a GPU alone
  void (*uniform)(RandomState draw, double low, double high, float* y, int64_t count);
  void (*normal)(RandomState draw, double mean, double std, float* y, int64_t count);
  void (*integers)(RandomState draw, int64_t low, uint64_t range, int64_t* y, int64_t count);
};

namespace ops {

// float32, canonical, on the current device: uniform in [low, high), and normal.
Array random_uniform(const Dims& shape, double low, double high);
Array random_normal(const Dims& shape, double mean, double std);
// int64, in [low, high).
Array random_integers(const Dims& shape, int64_t low, int64_t high);
// int64 permutation of [0, n) on the host: Fisher-Yates.
Array random_permutation(int64_t n);

}  // namespace ops
}  // namespace fastnn
