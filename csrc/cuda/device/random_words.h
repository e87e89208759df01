// The words of a random call's stream in kernels; in a graph, of the call as it is replayed.
#pragma once

#include "core/philox.h"
#include "cuda/capture.h"

namespace fastnn::cuda {

struct RandomWords {
  uint64_t seed, offset;
  const LaterRandom* later;  // added to both, in a graph
  __device__ Philox4 operator()(int64_t block) const {
    const auto at = static_cast<uint64_t>(block);
    return later ? philox(seed + later->seed, offset + later->offset, at)
                 : philox(seed, offset, at);
  }
};

}  // namespace fastnn::cuda
