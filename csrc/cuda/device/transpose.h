// A tile of a matrix turned by a block of kThreads through shared memory, so that both sides are
// accessed along their rows.
#pragma once

#include "cuda/device/device.h"

namespace fastnn::cuda {

constexpr int kTurnedTile = 32;

// write(j, lane, read(lane, j)) for j and lane below kTurnedTile; neighbouring threads have
// neighbouring lanes in both: read(j, lane) is called with what follows in memory in `lane`.
template <class T, class Read, class Write>
FASTNN_DEVICE void turn_tile(const Read& read, const Write& write) {
  using Tile = T[kTurnedTile][kTurnedTile + 1];
  FASTNN_SHARED(Tile, tile);
  constexpr int kLines = static_cast<int>(kThreads) / kTurnedTile;
  const int lane = static_cast<int>(threadIdx.x) % kTurnedTile,
            line = static_cast<int>(threadIdx.x) / kTurnedTile;
  for (int j = line; j < kTurnedTile; j += kLines) tile[j][lane] = read(j, lane);
  __syncthreads();
  for (int j = line; j < kTurnedTile; j += kLines) write(j, lane, tile[lane][j]);
}

}  // namespace fastnn::cuda
