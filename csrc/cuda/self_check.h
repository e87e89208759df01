// What the instructions of device/ptx.h make of fixed operands, beside plain loops on the host.
//
// Fragment layouts, roundings and the order of copies are taken from a document; the emulator has
// the same reading of it. So every GPU is asked once, when it is prepared (runtime.cu), and the
// tensor cores are used where all of theirs agree. Sums are of whole numbers of few bits: equal
// means equal, whatever the order. Cost: two launches of a few warps, and a wait for each.
#pragma once

#include <string>
#include <vector>

#include "cuda/runtime.h"

namespace fastnn::cuda {

// An instruction's results, and what they should be.
struct Primitive {
  const char* name;
  std::vector<float> found, expected;
};

enum class Primitives {
  basic,         // what every kernel needs: rounding, whole stores, asynchronous copies
  tensor_cores,  // matrix loads, products, rounding to TF32: code compiled for 8.0 or newer
};

// Runs them on a stream of the selected device and waits. Nothing where that failed, which is
// noted, or something else had before.
std::vector<Primitive> run_primitives(cudaStream_t stream, Primitives which);

// "mma_bf16, to_tf32": the names of those that are not as expected.
std::string disagreeing(const std::vector<Primitive>& all);

}  // namespace fastnn::cuda
