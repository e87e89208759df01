// Rows and columns: how threads share a reduction.
//
// A row of neighbouring elements is one team's: a warp, or the whole block where rows are long.
// Sums over pixels for every channel (columns) are a block's for a few channels and a part of the
// pixels: threads side by side take neighbouring channels, lines of threads every so-many-th pixel;
// lines are combined in a fixed tree, and a second kernel combines the parts in order.
#pragma once

#include "cuda/device/device.h"

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

// States of column reductions.
struct OneSum {
  float sum = 0;
  FASTNN_MEMBER void add(const OneSum& other) { sum += other.sum; }
};
struct OneSumWriter {
  float* out;
  OneSumWriter from(int64_t segment, int64_t C) const { return {out + segment * C}; }
  FASTNN_MEMBER void write(int64_t at, const OneSum& state) const { out[at] = state.sum; }
};
struct TwoSums {
  float a = 0, b = 0;
  FASTNN_MEMBER void add(const TwoSums& other) {
    a += other.a;
    b += other.b;
  }
};

// Count, mean, and sum of squared deviations: Welford's step and Chan's combination.
struct Moments {
  float n = 0, mean = 0, m2 = 0;
  FASTNN_MEMBER void add(const Moments& other) {
    const float total = n + other.n;
    if (total == 0) return;
    const float delta = other.mean - mean, share = other.n / total;
    m2 += other.m2 + delta * delta * n * share;
    mean += delta * share;
    n = total;
  }
};

struct MomentsWriter {
  float* mean;
  float* m2;
  MomentsWriter from(int64_t segment, int64_t C) const {
    return {mean + segment * C, m2 + segment * C};
  }
  FASTNN_MEMBER void write(int64_t at, const Moments& state) const {
    mean[at] = state.mean;
    m2[at] = state.m2;
  }
};

// parts[(segment * parts + part) * C + c] = Reader's state of the pixels of one part. The reader
// has State, `add(State (&)[N], segment, pixel, c)` for N channels from c on.
template <int N, class Reader>
__global__ void __launch_bounds__(kThreads)
    column_kernel(Reader reader, int64_t pixels, int64_t C, int across, int64_t split,
                  typename Reader::State* parts) {
  using State = typename Reader::State;
  struct Buffer {
    float words[kThreads * N * sizeof(State) / 4];
  };
  FASTNN_SHARED(Buffer, buffer);
  const int lines = static_cast<int>(kThreads) / across;
  const int lane = static_cast<int>(threadIdx.x) % across,
            line = static_cast<int>(threadIdx.x) / across;
  const int64_t segment = blockIdx.z, part = blockIdx.y,
                c = (int64_t{blockIdx.x} * across + lane) * N;
  const int64_t begin = part * split, end = begin + split < pixels ? begin + split : pixels;
  State mine[N];
  if (c < C)
    for (int64_t pixel = begin + line; pixel < end; pixel += lines)
      reader.add(mine, segment, pixel, c);
  State* const shared = reinterpret_cast<State*>(buffer.words);
  for (int half = lines / 2; half; half /= 2) {
    __syncthreads();
    if (line >= half && line < 2 * half)
      for (int n = 0; n < N; ++n) shared[(line * across + lane) * N + n] = mine[n];
    __syncthreads();
    if (line < half)
      for (int n = 0; n < N; ++n) mine[n].add(shared[((line + half) * across + lane) * N + n]);
  }
  if (line == 0 && c < C)
    for (int n = 0; n < N; ++n) parts[(segment * gridDim.y + part) * C + c + n] = mine[n];
}

// Combines the parts of each column and hands them to the writer: write(segment * C + c, state).
template <class State, class Writer>
__global__ void __launch_bounds__(kThreads)
    column_parts_kernel(const State* parts, int64_t count, int64_t C, Writer writer) {
  constexpr int kLines = static_cast<int>(kThreads) / 32;
  struct Buffer {
    float words[kThreads * sizeof(State) / 4];
  };
  FASTNN_SHARED(Buffer, buffer);
  State* const shared = reinterpret_cast<State*>(buffer.words);
  const int lane = static_cast<int>(threadIdx.x) % 32, line = static_cast<int>(threadIdx.x) / 32;
  const int64_t c = int64_t{blockIdx.x} * 32 + lane, segment = blockIdx.z;
  State mine;
  if (c < C)
    for (int64_t i = line; i < count; i += kLines) mine.add(parts[(segment * count + i) * C + c]);
  shared[threadIdx.x] = mine;
  __syncthreads();
  if (line == 0 && c < C) {
    for (int i = 1; i < kLines; ++i) mine.add(shared[i * 32 + lane]);
    writer.write(segment * C + c, mine);
  }
}

// Reduces `segments` x `pixels` x C over pixels. N: channels per thread; has to divide C.
template <int N, class Reader, class Writer>
void reduce_columns(const Reader& reader, const Writer& writer, int64_t segments, int64_t pixels,
                    int64_t C) {
  using State = typename Reader::State;
  if (segments == 0 || C == 0) return;
  int across = 1;
  while (across < 32 && across * N < C) across *= 2;
  const int64_t tiles = (C + across * N - 1) / (across * N), lines = kThreads / across;
  // At least 8 pixels per thread, and blocks for four rounds of the device.
  const int64_t useful = (pixels + lines * 8 - 1) / (lines * 8);
  const int64_t wanted = (4 * multiprocessors() + tiles * segments - 1) / (tiles * segments);
  int64_t parts = useful < wanted ? useful : wanted;
  if (parts < 1) parts = 1;
  const int64_t split = pixels ? (pixels + parts - 1) / parts : 1;
  for (int64_t first = 0; first < segments; first += 32768) {
    const int64_t some = segments - first < 32768 ? segments - first : 32768;
    Workspace memory(some * parts * C * static_cast<int64_t>(sizeof(State)));
    launch(column_kernel<N, Reader>,
           dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(parts),
                static_cast<unsigned>(some)),
           kThreads, 0, reader.from(first), pixels, C, across, split, memory.as<State>());
    launch(column_parts_kernel<State, Writer>,
           dim3(static_cast<unsigned>((C + 31) / 32), 1, static_cast<unsigned>(some)), kThreads, 0,
           memory.as<State>(), parts, C, writer.from(first, C));
  }
}

}  // namespace fastnn::cuda
