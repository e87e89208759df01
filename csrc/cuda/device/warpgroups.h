// A persistent block for sm_90a: one warpgroup copies, two multiply, over stages in shared memory
// (device/hopper.h).
//
//   warpgroup 0: one thread waits until a stage is empty and starts its copies
//   warpgroups 1, 2: wait until it is full, multiply; a step behind, each warp gives it back
//
// The copies run on into the next outputs while these are finished.
#pragma once

#include "cuda/device/hopper.h"

namespace fastnn::cuda {

constexpr int kMultipliers = 2, kWarpgroupStages = 4;
constexpr int kWarpgroupsThreads = (1 + kMultipliers) * kWarpgroup;

// Shared memory to launch with.
template <class Stage>
constexpr size_t warpgroups_memory() {
  return kWarpgroupStages * sizeof(Stage) + kTileAlignment;
}

// For every tile of the block: steps(tile); copies(tile) gives a function that has the copies of a
// step expected and started, (step, stage, barrier); multiply(stage, multiplier, sums) starts the
// products; finish(tile, multiplier, thread, sums) takes their sums, kSums for each thread.
template <class Stage, int kSums, class Steps, class Copies, class Multiply, class Finish>
FASTNN_DEVICE void run_warpgroups(int64_t tiles, const Steps& steps, const Copies& copies,
                                  const Multiply& multiply, const Finish& finish) {
  using Barriers = Barrier[kWarpgroupStages];
  FASTNN_SHARED(Barriers, full);
  FASTNN_SHARED(Barriers, empty);
  auto* const stages = reinterpret_cast<Stage*>(tiles_memory());
  if (threadIdx.x == 0) {
    make_barriers(full, kWarpgroupStages, 1);
    make_barriers(empty, kWarpgroupStages, kMultipliers * kWarpgroup / 32);
  }
  __syncthreads();

  int stage = 0;
  unsigned parity = 0;  // of the stages' round
  const auto advance = [&] {
    if (++stage < kWarpgroupStages) return;
    stage = 0;
    parity ^= 1;
  };
  const int multiplier = static_cast<int>(threadIdx.x) / kWarpgroup - 1;

  if (multiplier < 0) {
    keep_registers<40>();
    if (threadIdx.x != 0) return;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const auto copy = copies(tile);
      const int count = steps(tile);
      for (int step = 0; step < count; ++step, advance()) {
        // Without a limit, which would cost registers: what hangs here, hangs the multipliers too.
        while (!barrier_passed(&empty[stage], parity ^ 1)) {
        }
        copy(step, stages[stage], &full[stage]);
      }
    }
    return;
  }

  take_registers<232>();
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    float sums[kSums] = {};
    int before = -1;  // the stage of the step before, still being read
    const int count = steps(tile);
    for (int step = 0; step < count; ++step, advance()) {
      barrier_wait(&full[stage], parity);
      begin_products();
      multiply(stages[stage], multiplier, sums);
      commit_products();
      wait_products<1>(sums);
      if (before >= 0 && thread % 32 == 0) barrier_arrive(&empty[before]);
      before = stage;
    }
    wait_products<0>(sums);
    if (before >= 0 && thread % 32 == 0) barrier_arrive(&empty[before]);
    finish(tile, multiplier, thread, sums);
  }
}

}  // namespace fastnn::cuda
