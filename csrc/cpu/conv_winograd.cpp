// 3x3 convolutions of stride 1 and any dilation by Winograd's algorithm (winograd.h), in float32:
// forward, and the gradient with respect to the input, which is the same with turned weights (that
// with respect to the weight is in conv_winograd_weight.cpp). A quarter (R = 4) of the
// multiplications of the direct kernel, for more traffic and an error some 1.6 times as large.
// bfloat16 is widened where it is read and rounded where it is stored.
//
//   once:  U[x][block of NR columns][k] = transformed weights, (R + 2)^2 numbers x per (k, column)
//   task = some tiles of R x R outputs, everything of it in this thread's scratch memory:
//     V[x][tile][k] = transformed input, zero padded
//     for each group of column blocks:
//       for each x: M[x][block][tile] = V[x] U[x], by the product kernels of matmul.h
//       y = transformed M + epilogue, cropped at the edges
//
// Tiles per task: as many as keep V at half of L2, at least kLeastTiles so that U, which every task
// reads, costs less than the products. Planes of V and M are padded by a cache line: their distance
// would otherwise be a power of two. Each output is computed by one task in one order.
#include "core/allocator.h"
#include "cpu/conv_input.h"
#include "cpu/matmul.h"
#include "cpu/implicit_gemm.h"
#include "cpu/simd/transpose.h"
#include "cpu/winograd.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kInputFloats = 256 << 10;  // of V
constexpr int64_t kSumFloats = 128 << 10;    // of M
constexpr int64_t kLeastTiles = 64;

// One convolution: K channels in, `columns` channels out, in tiles of R x R outputs.
template <int R, class T>
struct Winograd {
  const T* x;
  int64_t N, H, W, K;  // input
  int64_t pad_h, pad_w;
  TileAxis down, across;  // of the outputs
  int64_t columns;
  ConvEpilogue epilogue;
  T* y;
  Route route;
  const float* u = nullptr;
};

// The U of 3 x 3 weights. weights(k, rows, n, count, square) fills square[tap][k][n] for `rows`
// channels from k on and `count` columns from n on, up to LANES of each; zero beyond the columns.
using Square = float[9][LANES][LANES];
template <int R, class Weights>
void transform_weights(int64_t K, int64_t columns, float* u, const Weights& weights) {
  constexpr int kSide = R + 2;
  const int64_t blocks = block_count(columns), plane = packed_columns(columns) * K;
  const int64_t chunks = ceil_div(K, LANES);
  parallel_for(blocks * chunks, [&](int64_t task) {
    const int64_t block = task / chunks, width = block_vectors(columns, block) * LANES;
    const int64_t k = task % chunks * LANES, rows = clamp(K - k, 0, LANES);
    for (int64_t v = 0; v < width; v += LANES) {
      const int64_t n = block * NR + v;
      alignas(64) Square square;
      weights(k, rows, n, clamp(columns - n, 0, LANES), square);
      for (int64_t r = 0; r < rows; ++r) {
        vfloat half[kSide][3], column[kSide];
        for (int j = 0; j < 3; ++j) {
          const vfloat g[3] = {load(square[j][r]), load(square[3 + j][r]), load(square[6 + j][r])};
          transform_weight<R>(g, column);
          for (int i = 0; i < kSide; ++i) half[i][j] = column[i];
        }
        for (int i = 0; i < kSide; ++i) {
          transform_weight<R>(half[i], column);
          for (int j = 0; j < kSide; ++j)
            store(u + (i * kSide + j) * plane + block * NR * K + (k + r) * width + v, column[j]);
        }
      }
    }
  });
}

// Where the outputs of a tile begin, and how many there are.
struct Spot {
  int64_t image, row, col, rows, cols;
};

// The outputs of one tile, one vector of columns.
template <int R, class T>
FASTNN_INLINE void write_vector(const Winograd<R, T>& c, const float* m, int64_t plane, Spot tile,
                                int64_t channel, int n, TileMoments* moments) {
  constexpr int kSide = R + 2;
  vfloat half[kSide][R], in[kSide], out[R];
  for (int i = 0; i < kSide; ++i) {
    for (int j = 0; j < kSide; ++j) in[j] = load(m + (i * kSide + j) * plane);
    transform_output<R>(in, half[i]);
  }
  const auto* residual = static_cast<const T*>(c.epilogue.residual);
  const vfloat bias = c.epilogue.bias ? load_any(c.epilogue.bias + channel, n) : vfloat{};
  CountedVector counted(vfloat{});
  if (moments && moments->count > 0) counted = CountedVector(*moments, channel % NR);
  bool opens = moments && moments->count == 0;
  const int64_t W = c.across.size;
  const int64_t first =
      ((tile.image * c.down.size + tile.row) * W + tile.col) * c.columns + channel;
  for (int j = 0; j < tile.cols; ++j) {
    for (int i = 0; i < kSide; ++i) in[i] = half[i][j];
    transform_output<R>(in, out);
    for (int i = 0; i < tile.rows; ++i) {
      const int64_t at = first + (i * c.down.step * W + j * c.across.step) * c.columns;
      vfloat value = out[i] + bias;
      if (residual) value += load_any(residual + at, n);
      if (c.epilogue.relu) value = vclamp(value, vfloat{}, set1(c.epilogue.relu.ceiling));
      store_any(c.y + at, value, n, c.route);
      const vfloat stored = as_stored<T>(value);
      if (opens) counted = CountedVector(stored), opens = false;
      counted.add(stored);
    }
  }
  if (moments) counted.keep(*moments, channel % NR);
}

template <int R, class T>
void run(const Winograd<R, T>& c) {
  constexpr int kSide = R + 2, kPoints = kSide * kSide;
  const int64_t blocks = block_count(c.columns), u_plane = packed_columns(c.columns) * c.K;
  const int64_t pitch = is_far(c.K * 4) ? c.K + LANES : c.K;  // of the tiles of V
  const int64_t down = c.down.count(), across = c.across.count(), all = c.N * down * across;
  int64_t count = clamp(kInputFloats / (kPoints * c.K), kLeastTiles, all);
  const int64_t tasks = ceil_div(all, count);
  count = ceil_div(all, tasks);
  const int64_t group = clamp(kSumFloats / (kPoints * NR * count), 1, blocks);
  const int64_t v_plane = padded_plane(count * pitch), m_plane = padded_plane(group * NR * count);
  int64_t parts = 1;  // of the columns, where there are few tiles
  while (tasks * parts < 8 && parts * 2 <= blocks) parts *= 2;
  const int64_t call = new_call();
  const bool of_whole_vectors = c.epilogue.moments && c.columns % LANES == 0;
  Workspace room(of_whole_vectors ? tasks * blocks * int64_t{sizeof(TileMoments)} : 0);
  auto* const moments = of_whole_vectors ? reinterpret_cast<TileMoments*>(room.floats()) : nullptr;
  for (int64_t i = 0; moments && i < tasks * blocks; ++i) moments[i].count = 0;
  parallel_for_dynamic(tasks * parts, [&](int64_t index) {
    const int64_t task = index / parts, part = index % parts;
    const int64_t first = task * count, tiles = clamp(all - first, 0, count);
    // V stays from one part to the next; what it is of stands behind it.
    auto* const v = static_cast<float*>(thread_scratch(kPoints * v_plane * 4 + 16, 0));
    auto* const kept = reinterpret_cast<int64_t*>(v + kPoints * v_plane);
    auto* const m = static_cast<float*>(thread_scratch(kPoints * m_plane * 4, 1));
    const auto at = [&](int64_t t, const auto& use) {
      const int64_t tile = first + t;
      const int64_t row = c.down.start(tile / across % down), col = c.across.start(tile % across);
      use(Spot{tile / (down * across), row, col, c.down.points(row), c.across.points(col)});
    };
    const bool there = kept[0] == call && kept[1] == task;
    for (int64_t t = 0; t < tiles && !there; ++t)
      at(t, [&](Spot tile) {
        const TilePixels<kSide, T> from(c.x + tile.image * c.H * c.W * c.K, c.H, c.W, c.K,
                                        tile.row - c.pad_h, tile.col - c.pad_w, c.down.step,
                                        c.across.step);
        transform_tile<R>(from, c.K, v + t * pitch, v_plane);
      });
    kept[0] = call, kept[1] = task;
    const int block_m = even_block(tiles);
    const int64_t share = ceil_div(NR * int64_t{sizeof(float)}, ceil_div(tiles, block_m));
    const int64_t no_offset = 0, last = blocks * (part + 1) / parts;
    const Terms terms{&no_offset, 1, c.K, c.K};
    for (int64_t b = blocks * part / parts; b < last; b += group) {
      const int64_t end = clamp(last, 0, b + group);
      for (int p = 0; p < kPoints; ++p)
        for (int64_t block = b; block < end; ++block) {
          const int vectors = block_vectors(c.columns, block);
          const float* const u = c.u + p * u_plane + block * NR * c.K;
          // The block of U after this one comes from memory meanwhile.
          Ahead next{block + 1 < end ? u + NR * c.K : u + u_plane - (end - 1 - b) * NR * c.K,
                     share};
          if (block + 1 == end && p + 1 == kPoints) next = Ahead::nothing(v);
          for (int64_t t = 0; t < tiles; t += block_m) {
            const int rows = static_cast<int>(clamp(tiles - t, 1, block_m));
            const float* from[MR];
            for (int r = 0; r < rows; ++r) from[r] = v + p * v_plane + (t + r) * pitch;
            Kernels<float>::product[rows - 1][vectors - 1](
                from, terms, u, m + p * m_plane + (block - b) * NR * count + t * vectors * LANES,
                next);
            next.from = static_cast<const char*>(next.from) + next.step * c.K;
          }
        }
      for (int64_t t = 0; t < tiles; ++t)
        at(t, [&](Spot tile) {
          for (int64_t block = b; block < end; ++block) {
            const int vectors = block_vectors(c.columns, block);
            TileMoments* const of = moments ? moments + task * blocks + block : nullptr;
            for (int i = 0; i < vectors; ++i) {
              const int64_t channel = block * NR + i * LANES;
              write_vector<R>(c, m + (block - b) * NR * count + (t * vectors + i) * LANES, m_plane,
                              tile, channel, static_cast<int>(clamp(c.columns - channel, 0, LANES)),
                              of);
            }
            if (of) of->count += static_cast<float>(tile.rows * tile.cols);
          }
        });
    }
  });
  if (moments) merge_moments(moments, tasks, c.columns, *c.epilogue.moments);
}

template <int R, class T, class Weights>
void transform_and_run(Winograd<R, T> c, KeptWorkspaces* kept, const Weights& weights) {
  constexpr int64_t kPoints = (R + 2) * (R + 2);
  if (c.N * c.down.size * c.across.size == 0) return;
  KeptWorkspace u(kept, hash(2, LANES, R, c.columns, c.K),
                  kPoints * packed_columns(c.columns) * c.K * 4);
  if (!u.filled()) transform_weights<R>(c.K, c.columns, u.floats(), weights);
  c.u = u.floats();
  run(c);
}

template <int R, class T>
void forward_typed(const ConvParams& p, const T* x, const T* w, const ConvEpilogue& epilogue,
                   T* y) {
  const Winograd<R, T> c{x,
                         p.N,
                         p.H,
                         p.W,
                         p.C,
                         p.pad_top,
                         p.pad_left,
                         {p.OH, p.dilation_h, R},
                         {p.OW, p.dilation_w, R},
                         p.OC,
                         epilogue,
                         y,
                         route_to(y, p.OC, kCachedOfProducts)};
  transform_and_run(c, p.kept, [&](int64_t k, int64_t rows, int64_t n, int64_t count, Square& to) {
    for (int tap = 0; tap < 9; ++tap) {
      vfloat turned[LANES] = {};
      for (int64_t i = 0; i < count; ++i)
        turned[i] = load_any(w + ((n + i) * 9 + tap) * p.C + k, static_cast<int>(rows));
      transpose(turned);
      for (int i = 0; i < LANES; ++i) store(to[tap][i], turned[i]);
    }
  });
}

template <int R, class T>
void backward_data_typed(const ConvParams& p, const T* g, const T* w, const ConvEpilogue& epilogue,
                         T* grad_input) {
  const Winograd<R, T> c{g,
                         p.N,
                         p.OH,
                         p.OW,
                         p.OC,
                         2 * p.dilation_h - p.pad_top,
                         2 * p.dilation_w - p.pad_left,
                         {p.H, p.dilation_h, R},
                         {p.W, p.dilation_w, R},
                         p.C,
                         epilogue,
                         grad_input,
                         route_to(grad_input, p.C, kCachedOfProducts)};
  transform_and_run(c, nullptr, [&](int64_t k, int64_t rows, int64_t n, int64_t count, Square& to) {
    for (int tap = 0; tap < 9; ++tap)
      for (int64_t r = 0; r < rows; ++r)
        store(to[tap][r], load_any(w + ((k + r) * 9 + 8 - tap) * p.C + n, static_cast<int>(count)));
  });
}

// call(R, T{}) with the tile's size as a constant and a value of the tensors' type.
template <int R>
struct Size {
  static constexpr int value = R;
};
template <class Call>
void typed(const ConvParams& p, int tile, const Call& call) {
  const bool single = p.dtype == DType::float32;
  if (tile == 4)
    single ? call(Size<4>{}, float{}) : call(Size<4>{}, bfloat16{});
  else
    single ? call(Size<2>{}, float{}) : call(Size<2>{}, bfloat16{});
}

void forward(const ConvParams& p, int tile, const void* x, const void* w,
             const ConvEpilogue& epilogue, void* y) {
  typed(p, tile, [&](auto size, auto zero) {
    using T = decltype(zero);
    forward_typed<decltype(size)::value>(p, static_cast<const T*>(x), static_cast<const T*>(w),
                                         epilogue, static_cast<T*>(y));
  });
}
void backward_data(const ConvParams& p, int tile, const void* g, const void* w,
                   const ConvEpilogue& epilogue, void* grad_input) {
  typed(p, tile, [&](auto size, auto zero) {
    using T = decltype(zero);
    backward_data_typed<decltype(size)::value>(p, static_cast<const T*>(g),
                                               static_cast<const T*>(w), epilogue,
                                               static_cast<T*>(grad_input));
  });
}

}  // namespace

void fill_conv_winograd(Slots& slots) {
  slots.conv.winograd_forward = forward;
  slots.conv.winograd_backward_data = backward_data;
}

}  // namespace fastnn::cpu::FASTNN_ISA
