// Rows: a row of neighbouring elements is one team's, a warp, or the whole block where rows are
// long.
#pragma once

#include "cuda/device/packs.h"

namespace fastnn::cuda {

// kSize threads that share a row: 32 (a warp) or kThreads (the block).
template <int kSize>
struct Team {
  static constexpr int size = kSize, kTeams = static_cast<int>(kThreads) / kSize;
  static FASTNN_MEMBER int member() { return static_cast<int>(threadIdx.x) % kSize; }
  // The first row of this team; the next is all() further.
  static FASTNN_MEMBER int64_t first() {
    return int64_t{blockIdx.x} * kTeams + static_cast<int>(threadIdx.x) / kSize;
  }
  static FASTNN_MEMBER int64_t all() { return int64_t{gridDim.x} * kTeams; }

  // combine(a, b) over the team in a fixed tree; every member gets the result.
  template <class T, class Combine>
  static FASTNN_MEMBER T reduce(T x, const Combine& combine) {
    for (int bits = 16; bits; bits >>= 1) x = combine(x, __shfl_xor_sync(0xffffffffu, x, bits));
    if constexpr (kSize > 32) {
      using Parts = T[kSize / 32];
      FASTNN_SHARED(Parts, parts);
      __syncthreads();  // what an earlier call left is read
      if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
      __syncthreads();
      x = parts[0];
      for (int w = 1; w < kSize / 32; ++w) x = combine(x, parts[w]);
    }
    return x;
  }
  static FASTNN_MEMBER float sum(float x) {
    return reduce(x, [](float a, float b) { return a + b; });
  }
  static FASTNN_MEMBER float largest(float x) {
    return reduce(x, [](float a, float b) { return fmaxf(a, b); });
  }
};

// Calls f with a team for rows of D elements, and the blocks to launch.
template <class F>
void with_team(int64_t rows, int64_t D, const F& f) {
  if (rows == 0) return;
  const int64_t most = int64_t{multiprocessors()} * 32;
  const bool wide = D > 2048;
  const int64_t blocks = wide ? rows : (rows + Team<32>::kTeams - 1) / Team<32>::kTeams;
  const dim3 grid(static_cast<unsigned>(blocks < most ? blocks : most));
  if (wide)
    f(Team<kThreads>{}, grid);
  else
    f(Team<32>{}, grid);
}

// Calls f(pack, team, blocks), where a thread takes a pack of neighbours: 16 bytes if every row can
// be read so, else one.
template <class T, class F, class... P>
void with_row_team(int64_t rows, int64_t D, const F& f, const P*... pointers) {
  with_pack<T>(
      D, [&](auto pack) { with_team(rows, D, [&](auto team, dim3 grid) { f(pack, team, grid); }); },
      pointers...);
}

}  // namespace fastnn::cuda
