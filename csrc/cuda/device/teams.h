// Rows: a row of neighbouring elements is one team's: eight threads where rows are short, a warp,
// or the whole block where they are long.
#pragma once

#include "cuda/device/packs.h"

namespace fastnn::cuda {

// kSize threads that share a row: 8, 32 (a warp) or kThreads (the block).
template <int kSize>
struct Team {
  static constexpr int size = kSize, kTeams = static_cast<int>(kThreads) / kSize;
  static constexpr int kOfWarp = kSize < 32 ? kSize : 32;  // members that shuffles reach
  static FASTNN_MEMBER int member() { return static_cast<int>(threadIdx.x) % kSize; }

  // f(row, there) for the team's rows. Shuffles name all lanes of a warp, so its teams stay
  // together: one that has no row left while others have is given the last row, to read and not to
  // store, `there` being false.
  template <class F>
  static FASTNN_MEMBER void over_rows(int64_t rows, const F& f) {
    const int team = static_cast<int>(threadIdx.x) / kSize;
    const int before = team % (32 / kOfWarp);                      // teams of the same warp
    int64_t first = int64_t{blockIdx.x} * kTeams + team - before;  // of the warp's rows
    for (; first < rows; first += int64_t{gridDim.x} * kTeams) {
      const bool there = first + before < rows;
      f(there ? first + before : rows - 1, there);
    }
  }

  // combine(a, b) over the team in a fixed tree; every member gets the result.
  template <class T, class Combine>
  static FASTNN_MEMBER T reduce(T x, const Combine& combine) {
    for (int bits = kOfWarp / 2; bits; bits >>= 1)
      x = combine(x, __shfl_xor_sync(0xffffffffu, x, bits));
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
  template <class T>
  static FASTNN_MEMBER T sum(T x) {
    return reduce(x, [](T a, T b) { return a + b; });
  }
  static FASTNN_MEMBER float largest(float x) {
    return reduce(x, [](float a, float b) { return fmaxf(a, b); });
  }
};

// Calls f with a team for rows of D elements, and the blocks to launch.
template <class F>
void with_team(int64_t rows, int64_t D, const F& f) {
  if (rows == 0) return;
  const auto run = [&](auto team) {
    constexpr int kTeams = decltype(team)::kTeams;
    const int64_t blocks = (rows + kTeams - 1) / kTeams, most = int64_t{multiprocessors()} * 32;
    f(team, dim3(static_cast<unsigned>(blocks < most ? blocks : most)));
  };
  if (D <= 32)
    run(Team<8>{});
  else if (D <= 2048)
    run(Team<32>{});
  else
    run(Team<kThreads>{});
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
