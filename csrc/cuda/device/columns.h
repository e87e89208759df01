// Columns: kernels that go down the pixels of [segment][pixel][channel] with what belongs to
// channels in registers.
//
// A thread keeps N neighbouring channels, 16 bytes, for good: their terms are loaded once and no
// index is divided. Threads side by side take neighbouring channels, lines of threads every
// so-many-th pixel of a part. kAhead pixels are fetched before the first is used, so that the 512
// threads that a multiprocessor holds at least have 32 KB under way or more: memory's latency times
// its share of the bandwidth is 25 (H200: 0.7 us, 36 GB/s each). Floor: one read of every operand
// and one write, over the copy bandwidth.
//
// Sums are combined over lines in a fixed tree; a second kernel combines the parts in order, in two
// steps where they are many.
#pragma once

#include "cuda/device/packs.h"

namespace fastnn::cuda {

constexpr int kColumnBlocks = 2;  // that a multiprocessor holds at least
constexpr int kLeastPixels = 8;   // for a thread

// How a launch is cut: blocks are (tile of channels, part of the pixels, segment).
struct ColumnGrid {
  int64_t pixels, C, split, first_segment;
  int across;

  // At least `least` pixels for a thread; as many blocks as are resident at once, or, where there
  // are more tiles, enough rounds that the last does not count.
  static ColumnGrid of(int64_t segments, int64_t pixels, int64_t C, int N, int least,
                       dim3* blocks) {
    ColumnGrid grid{pixels, C, 1, 0, 1};
    while (grid.across < 32 && grid.across * N < C) grid.across *= 2;
    const int64_t tiles = (C + grid.across * N - 1) / (grid.across * N);
    const int64_t useful = (pixels * grid.across + kThreads * least - 1) / (kThreads * least);
    const int64_t all = tiles * segments, resident = int64_t{multiprocessors()} * kColumnBlocks;
    const int64_t wanted = all <= resident ? resident / all : (4 * resident + all - 1) / all;
    const int64_t parts = useful < 1 ? 1 : useful < wanted ? useful : wanted;
    if (pixels) grid.split = (pixels + parts - 1) / parts;
    *blocks = dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(parts), 1);
    return grid;
  }
};

// Launches in turn what a grid's third dimension takes: f(grid, blocks).
template <class F>
void over_segments(int64_t segments, ColumnGrid grid, dim3 blocks, const F& f) {
  constexpr int64_t kMost = 32768;
  for (; grid.first_segment < segments; grid.first_segment += kMost) {
    const int64_t left = segments - grid.first_segment;
    blocks.z = static_cast<unsigned>(left < kMost ? left : kMost);
    f(grid, blocks);
  }
}

// A thread's place.
struct ColumnPlace {
  int lanes, lane, lines, line;
  int64_t segment, c;
  FASTNN_MEMBER ColumnPlace(const ColumnGrid& grid, int N)
      : lanes(grid.across),
        lane(static_cast<int>(threadIdx.x) % lanes),
        lines(static_cast<int>(kThreads) / lanes),
        line(static_cast<int>(threadIdx.x) / lanes),
        segment(grid.first_segment + blockIdx.z),
        c((int64_t{blockIdx.x} * lanes + lane) * N) {}
};

// Down the thread's pixels: column.fetch(row, at, fetched), kAhead times, then column.use(at,
// fetched), where row counts pixels of all segments and at is the element.
template <class Column>
FASTNN_DEVICE void walk(const ColumnGrid& grid, const ColumnPlace& place, Column& column) {
  constexpr int kAhead = Column::kAhead;
  const int64_t begin = blockIdx.y * grid.split;
  const int64_t end = begin + grid.split < grid.pixels ? begin + grid.split : grid.pixels;
  const int64_t step = place.lines * grid.C;
  int64_t row = place.segment * grid.pixels + begin + place.line;
  int64_t left = end - begin - place.line;  // pixels from this one on
  for (int64_t at = row * grid.C + place.c; left > 0; left -= kAhead * place.lines) {
    typename Column::Fetched fetched[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a)
      if (a * place.lines < left) column.fetch(row + a * place.lines, at + a * step, fetched[a]);
#pragma unroll
    for (int a = 0; a < kAhead; ++a)
      if (a * place.lines < left) column.use(at + a * step, fetched[a]);
    row += kAhead * place.lines;
    at += kAhead * step;
  }
}

// Body::Column(body, segment, c) are a thread's terms of N channels from c on.
template <int N, class Body>
__global__ void __launch_bounds__(kThreads, kColumnBlocks) walk_kernel(Body body, ColumnGrid grid) {
  const ColumnPlace place(grid, N);
  if (place.c >= grid.C) return;
  typename Body::Column column(body, place.segment, place.c);
  walk(grid, place, column);
}

// Walks over `segments` x `pixels` x C. N: channels per thread; has to divide C.
template <int N, class Body>
void walk_columns(const Body& body, int64_t segments, int64_t pixels, int64_t C) {
  if (segments == 0 || pixels == 0 || C == 0) return;
  dim3 blocks;
  const ColumnGrid all = ColumnGrid::of(segments, pixels, C, N, kLeastPixels, &blocks);
  over_segments(segments, all, blocks, [&](const ColumnGrid& grid, dim3 some) {
    launch(walk_kernel<N, Body>, some, kThreads, 0, body, grid);
  });
}

// What the columns of one operand fetch.
template <class T, int N>
struct OneOperand {
  using Fetched = Pack<T, N>;
  const T* x;
  FASTNN_MEMBER void fetch(int64_t, int64_t at, Fetched& to) const { to = load_pack<N>(x + at); }
};

// States of column reductions.
struct OneSum {
  float sum = 0;
  FASTNN_MEMBER void add(const OneSum& other) { sum += other.sum; }
};
struct OneSumWriter {
  float* out;
  FASTNN_MEMBER void write(int64_t at, const OneSum& state) const { out[at] = state.sum; }
};
// The sums themselves.
template <class T, int N>
struct ColumnSums {
  using State = OneSum;
  const T* x;

  struct Column : OneOperand<T, N> {
    static constexpr int kAhead = 8;
    OneSum state[N];
    FASTNN_MEMBER Column(const ColumnSums& body, int64_t, int64_t) : OneOperand<T, N>{body.x} {}
    FASTNN_MEMBER void use(int64_t, const Pack<T, N>& from) {
      float v[N];
      to_floats(from, v);
      for (int n = 0; n < N; ++n) state[n].sum += v[n];
    }
  };
};
struct TwoSums {
  float a = 0, b = 0;
  FASTNN_MEMBER void add(const TwoSums& other) {
    a += other.a;
    b += other.b;
  }
};
struct TwoSumsWriter {
  float* a;  // null: not wanted
  float* b;
  FASTNN_MEMBER void write(int64_t at, const TwoSums& state) const {
    if (a) a[at] = state.a;
    if (b) b[at] = state.b;
  }
};

// Count, mean, and sum of squared deviations: Welford's step and Chan's combination.
struct Moments {
  float n = 0, mean = 0, m2 = 0;
  FASTNN_MEMBER void add(const Moments& other) {
    const float total = n + other.n;
    const float delta = other.mean - mean, share = other.n / (total > 0 ? total : 1.0f);
    m2 += other.m2 + delta * delta * n * share;
    mean += delta * share;
    n = total;
  }
};
struct MomentsWriter {
  float* mean;
  float* m2;
  FASTNN_MEMBER void write(int64_t at, const Moments& state) const {
    mean[at] = state.mean;
    m2[at] = state.m2;
  }
};

// parts[(segment * parts + part) * C + c] = the state, `state[N]` of Body::Column, after the walk.
template <int N, class Body>
__global__ void __launch_bounds__(kThreads, kColumnBlocks)
    column_kernel(Body body, ColumnGrid grid, typename Body::State* parts) {
  using State = typename Body::State;
  struct Buffer {
    float words[kThreads * N * sizeof(State) / 4];
  };
  FASTNN_SHARED(Buffer, buffer);
  const ColumnPlace place(grid, N);
  State mine[N];
  if (place.c < grid.C) {
    typename Body::Column column(body, place.segment, place.c);
    walk(grid, place, column);
    for (int n = 0; n < N; ++n) mine[n] = column.state[n];
  }
  // [channel of a lane][thread]: neighbouring threads in neighbouring words.
  State* const shared = reinterpret_cast<State*>(buffer.words);
  for (int half = place.lines / 2; half; half /= 2) {
    __syncthreads();
    if (place.line >= half && place.line < 2 * half)
      for (int n = 0; n < N; ++n) shared[n * kThreads + threadIdx.x] = mine[n];
    __syncthreads();
    if (place.line < half)
      for (int n = 0; n < N; ++n)
        mine[n].add(shared[n * kThreads + threadIdx.x + half * place.lanes]);
  }
  const int64_t part = static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y;
  if (place.line == 0 && place.c < grid.C)
    for (int n = 0; n < N; ++n) parts[part * grid.C + place.c + n] = mine[n];
}

// Combines the parts of each column, `split` of them per block, and hands them to the writer:
// write((segment * blocks + block) * C + c, state). A line's states are fetched several at a time,
// so that memory is waited for once for them all.
template <class State, class Writer>
__global__ void __launch_bounds__(kThreads)
    column_parts_kernel(const State* parts, int64_t count, int64_t split, int64_t C,
                        int64_t first_segment, Writer writer) {
  constexpr int kLines = static_cast<int>(kThreads) / 32, kAhead = 8;
  struct Buffer {
    float words[kThreads * sizeof(State) / 4];
  };
  FASTNN_SHARED(Buffer, buffer);
  State* const shared = reinterpret_cast<State*>(buffer.words);
  const int lane = static_cast<int>(threadIdx.x) % 32, line = static_cast<int>(threadIdx.x) / 32;
  const int64_t c = int64_t{blockIdx.x} * 32 + lane;
  const int64_t begin = blockIdx.y * split, end = begin + split < count ? begin + split : count;
  State mine;
  if (c < C)
    for (int64_t i = begin + line; i < end; i += kAhead * kLines) {
      const State* const from = parts + (blockIdx.z * count + i) * C + c;
      State fetched[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a)
        if (i + a * kLines < end) fetched[a] = from[a * kLines * C];
#pragma unroll
      for (int a = 0; a < kAhead; ++a)
        if (i + a * kLines < end) mine.add(fetched[a]);
    }
  shared[threadIdx.x] = mine;
  __syncthreads();
  if (line == 0 && c < C) {
    for (int i = 1; i < kLines; ++i) mine.add(shared[i * 32 + lane]);
    const int64_t block = (first_segment + blockIdx.z) * gridDim.y + blockIdx.y;
    writer.write(block * C + c, mine);
  }
}
template <class State, class Writer>
void combine_parts(const State* parts, int64_t count, int64_t C, int64_t first_segment,
                   unsigned segments, const Writer& writer) {
  launch(column_parts_kernel<State, Writer>,
         dim3(static_cast<unsigned>((C + 31) / 32), 1, segments), kThreads, 0, parts, count, count,
         C, first_segment, writer);
}

// The same of one segment with any number of parts: where they are many, kBlocks blocks to 32
// columns combine a range each first; one would leave all multiprocessors but its own idle.
template <class State>
struct StateWriter {
  State* out;
  FASTNN_MEMBER void write(int64_t at, const State& state) const { out[at] = state; }
};
template <class State, class Writer>
void combine_many_parts(const State* parts, int64_t count, int64_t C, const Writer& writer) {
  constexpr int64_t kBlocks = 64, kMany = 4 * kBlocks;
  if (count <= kMany) return combine_parts(parts, count, C, 0, 1, writer);
  const int64_t split = (count + kBlocks - 1) / kBlocks, blocks = (count + split - 1) / split;
  Workspace memory(blocks * C * static_cast<int64_t>(sizeof(State)));
  launch(column_parts_kernel<State, StateWriter<State>>,
         dim3(static_cast<unsigned>((C + 31) / 32), static_cast<unsigned>(blocks)), kThreads, 0,
         parts, count, split, C, int64_t{0}, StateWriter<State>{memory.as<State>()});
  combine_parts(memory.as<State>(), blocks, C, 0, 1, writer);
}

// Reduces `segments` x `pixels` x C over pixels. N: channels per thread; has to divide C.
template <int N, class Body, class Writer>
void reduce_columns(const Body& body, const Writer& writer, int64_t segments, int64_t pixels,
                    int64_t C, int least = kLeastPixels) {
  using State = typename Body::State;
  if (segments == 0 || C == 0) return;
  dim3 blocks;
  const ColumnGrid all = ColumnGrid::of(segments, pixels, C, N, least, &blocks);
  over_segments(segments, all, blocks, [&](const ColumnGrid& grid, dim3 some) {
    Workspace memory(int64_t{some.z} * some.y * C * static_cast<int64_t>(sizeof(State)));
    launch(column_kernel<N, Body>, some, kThreads, 0, body, grid, memory.as<State>());
    combine_parts(memory.as<State>(), some.y, C, grid.first_segment, some.z, writer);
  });
}

}  // namespace fastnn::cuda
