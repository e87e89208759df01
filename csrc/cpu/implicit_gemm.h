// Convolution as a matrix product over pixels, without im2col: the loop nest that forward and
// backward-data share.
//
// Every output pixel (i, j) of a grid is a sum over taps of the channels of one input pixel,
//   y[i][j][n] = sum over t, k of a[i * step_h + dh[t]][j * step_w + dw[t]][k] * B[t][k][n]
// with input outside the image counted as zero. Forward is one such grid; the gradient of a strided
// convolution is stride_h * stride_w of them, one per output phase, each with the taps that reach
// it.
//
//   task = tile of grid points (conv_input.h) x (range of column blocks) x group of channels,
//   groups of one tile after each other: their pixels share cache lines
//     panel: the input it needs, in float32 or in pairs of bfloat16, in this thread's L2 (skipped
//     where the tensor serves)
//     for each block of NR columns, for each MR pixels of the tile: product kernel, epilogue, store
//
// Every output is computed by one kernel call in one order, so tasks may be cut freely.
// Cost: 2 * pixels * taps * K * columns flops. Per multiply-add tile the kernel reads B from L2 at
// 4 * NR bytes per MR * NV FMAs (9 B/cycle on AVX-512), which sets MR x NR rather than cache
// blocking.
#pragma once

#include "cpu/conv_epilogue.h"
#include "cpu/conv_inside.h"
#include "cpu/conv_moments.h"
#include "cpu/matmul.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// Bytes of a panel; larger where B, of more than kLargeB values, is too large for L2: every tile
// reads all of it.
constexpr int64_t kPanel = 384 << 10, kLargePanel = 640 << 10, kLargeB = 384 << 10;
// Tiles that moments are counted over: how many changes their last bits, so not by the threads.
constexpr int64_t kCountedTiles = 32;

struct TapGrid {
  InputGrid in;
  const void* b;  // packed [block][tap][K][block width], of the kernel's type, or in its pairs
  int64_t columns;
  void* y;  // output images, NHWC
  int64_t YH, YW, y_pixel, y_channel;
  int64_t y_row0, y_row_step, y_col0, y_col_step;  // where grid point (i, j) lies in the output
  ConvEpilogue epilogue;                           // bias and residual offsets are those of y
  Route route;                                     // to y
  // Groups, each with its own B behind the one before: the grid of the first serves all of them.
  int64_t groups, b_bytes;

  TapGrid of_group(int64_t group) const {
    TapGrid own = *this;
    own.in.a_channel = in.channel_of(group);
    own.y_channel += group * columns;
    own.b = static_cast<const char*>(b) + group * b_bytes;
    return own;
  }
};

// To an output of which `columns` of a pixel are written at one time, those beside them at another:
// around the caches if they are whole lines, or neighbouring pixels make one.
template <class T>
FASTNN_INLINE Route product_route(const T* y, int64_t columns) {
  const int64_t bytes = columns * int64_t{sizeof(T)};
  return bytes % 64 == 0 || bytes == 32 ? route_to(y, columns, kCachedOfProducts) : Route::through;
}

// Whether moments are counted: of whole vectors, all channels (of one group), and nothing but a
// bias.
FASTNN_INLINE bool is_counted(const ConvEpilogue& e, int64_t channels) {
  return e.moments && !e.residual && !e.relu && channels % LANES == 0;
}
FASTNN_INLINE bool is_counted(const TapGrid& g) {
  return g.columns == g.y_pixel && is_counted(g.epilogue, g.columns);
}

// One finished tile: y = relu(tile + bias + residual), row by row.
template <class T>
FASTNN_INLINE void store_tile(const float* tile, int width, int m, const int64_t* where,
                              int64_t channel, int64_t count, const ConvEpilogue& e, T* y,
                              Route route) {
  if (count == NR || count == LANES) {
    const Rows<T> out(e, channel, count, y, route);
    for (int r = 0; r < m; ++r, tile += width)
      count == NR ? static_cast<void>(out.store(load(tile), load(tile + LANES), where[r]))
                  : out.store(load(tile), where[r]);
    return;
  }
  for (int r = 0; r < m; ++r) {
    const int64_t at = where[r] + channel;
    for (int v = 0; v * LANES < count; ++v) {
      const int n = count - v * LANES < LANES ? static_cast<int>(count - v * LANES) : LANES;
      finish_vector(load(tile + r * width + v * LANES), e, channel + v * LANES, at + v * LANES, n,
                    y, route);
    }
  }
}

// A pointwise grid becomes one long row of pixels.
FASTNN_INLINE void flatten(TapGrid& g) {
  if (!g.in.pointwise() || g.y_row_step != 1 || g.y_col_step != 1 || g.YH != g.in.GH ||
      g.YW != g.in.GW)
    return;
  g.in.flatten();
  g.YW = g.in.GW;
  g.YH = 1;
}

// Where output pixel (image, i, j) of a tile lies in y.
FASTNN_INLINE int64_t output_offset(const TapGrid& g, const Tile& tile, int64_t image, int64_t i,
                                    int64_t j) {
  return (((tile.image + image) * g.YH + g.y_row0 + (tile.row + i) * g.y_row_step) * g.YW +
          g.y_col0 + (tile.col + j) * g.y_col_step) *
         g.y_pixel;
}

// The memory under a tile's input, from row to row; none where that is not in one piece.
struct InputRows {
  const char* from;
  int64_t bytes;
};
template <class T>
FASTNN_INLINE InputRows input_rows(const InputTiles& t, int64_t index, int64_t group) {
  if (index >= t.count() || t.segments > 1) return {nullptr, 0};
  const InputGrid& in = t.in;
  const Tile tile = t.tile(index, group);
  const int64_t rows = tile.images > 1 ? tile.images * in.H : tile.rows * in.step_h;
  const int64_t first = clamp(tile.row * in.step_h + t.low_h, 0, in.H);
  return {reinterpret_cast<const char*>(static_cast<const T*>(in.a) + tile.channel +
                                        (tile.image * in.H + first) * in.W * in.a_pixel),
          rows * in.W * in.a_pixel * int64_t{sizeof(T)}};
}

// Goes over the pixels of a piece, images taking turns row by row: where the input of each lies in
// the panel, or tensor, and where its output.
template <class P>
class PieceWalk {
 public:
  PieceWalk(const TapGrid& g, const InputTiles& t, const Tile& tile, const Piece& piece,
            const P* panel)
      : g_(g), t_(t), tile_(tile), piece_(piece), panel_(panel), row_(piece.row) {
    start_row();
  }
  // The next m.
  FASTNN_INLINED void take(int m, const P** at, int64_t* where) {
    for (int r = 0; r < m; ++r) {
      at[r] = from_;
      where[r] = to_;
      from_ += t_.col_stride;
      to_ += g_.y_col_step * g_.y_pixel;
      if (++col_ < piece_.cols) continue;
      col_ = 0;
      if (++image_ == tile_.images) image_ = 0, ++row_;
      start_row();
    }
  }

 private:
  void start_row() {
    from_ = panel_ + image_ * t_.image_stride + row_ * t_.row_stride + piece_.col * t_.col_stride +
            piece_.skipped;
    to_ = output_offset(g_, tile_, image_, row_, piece_.col);
  }

  const TapGrid& g_;
  const InputTiles& t_;
  const Tile& tile_;
  const Piece& piece_;
  const P* const panel_;
  const P* from_;
  int64_t to_, image_ = 0, row_, col_ = 0;
};

// T: of the output; P: what is multiplied.
template <class T, class P>
void run_grid(TapGrid all) {
  if (all.in.N * all.in.GH * all.in.GW * all.columns == 0) return;
  flatten(all);
  InputTiles t;
  t.in = all.in;
  t.in.same_sums = true;
  const bool large = all.in.tap_count * all.in.K * all.columns > kLargeB;
  const bool counted = is_counted(all);
  const int64_t tasks = 8 * get_num_threads(), cut = counted ? kCountedTiles : tasks;
  const int64_t some = clamp(ceil_div(all.in.N * all.in.GH * all.in.GW, cut), 4 * MR, 32 * MR);
  const int64_t size = (large ? kLargePanel : kPanel) / int64_t{sizeof(P)};
  const int64_t most = clamp(size / all.in.K, 4 * MR, 32 * MR);
  plan_input<T, P>(t, large ? most : some, size);
  const int64_t tiles = t.count(), blocks = block_count(all.columns);
  const bool far = is_far(t.col_stride * int64_t{sizeof(P)}) ||
                   is_far(all.y_col_step * all.y_pixel * int64_t{sizeof(T)});
  int64_t parts = 1;  // column ranges, where there are few tiles
  while (tiles * all.groups * parts < tasks / 2 && parts * 2 <= blocks) parts *= 2;
  const int64_t call = new_call();
  T* const y = static_cast<T*>(all.y);
  Workspace room(counted ? tiles * blocks * int64_t{sizeof(TileMoments)} : 0);
  auto* const moments = counted ? reinterpret_cast<TileMoments*>(room.floats()) : nullptr;

  parallel_for_dynamic(tiles * parts * all.groups, [&](int64_t task) {
    const int64_t of_group = task % all.groups, part = task / all.groups % parts;
    const int64_t index = task / all.groups / parts;
    const TapGrid g = all.of_group(of_group);
    const Tile tile = t.tile(index, of_group);
    const P* const panel = tile_input<T, P>(t, tile, index * all.groups + of_group, call);
    const int64_t pixels = tile.images * tile.rows * tile.cols;
    const Pieces pieces = pieces_of(t, tile);
    const int most_m = far ? kMostFarRows : MR;
    alignas(64) float sums[MR * NR];
    const P* at[MR];
    const int64_t first_block = blocks * part / parts, last_block = blocks * (part + 1) / parts;
    // A pointwise product over the tensor itself, with a B that fits L2, reads every pixel once:
    // all column blocks before the next pixels, which are brought from memory meanwhile. Elsewhere
    // the input is in L2, and B is read once for it: what comes from memory meanwhile is the next
    // block of B, or, where all of B stays in L2, the input of the thread's next task. A share for
    // each step of a kernel call.
    const bool once = t.source == Source::direct && t.tap_count == 1 && parts == 1 && !large;
    const int64_t group = once ? blocks : 1, calls = ceil_div(pixels, most_m);
    InputRows later{nullptr, 0};
    if (!once && !large && parts == 1 && all.groups == 1)
      later = input_rows<T>(t, index + get_num_threads(), of_group);
    const int64_t later_block = ceil_div(later.bytes, blocks);
    const int64_t share =
        once          ? ceil_div(even_block(pixels, most_m) * int64_t{sizeof(float)}, group)
        : later.bytes ? ceil_div(later_block, calls * (t.k / kStep<P>)*t.tap_count)
                      : ceil_div(NR * int64_t{sizeof(float)}, calls);
    int64_t where[MR];
    const auto packed_block = [&](int64_t block) {
      return static_cast<const P*>(g.b) + block * NR * t.packed_k() * t.tap_count;
    };
    for (int64_t start = first_block; start < last_block; start += group) {
      Ahead next = Ahead::nothing(sums);
      if (later.bytes)
        next = {later.from + start * later_block, share};
      else if (!once && start + 1 < blocks)
        next = {packed_block(start + 1), share};
      for (const Piece& piece : pieces) {
        const int64_t count = tile.images * piece.rows * piece.cols;
        const int block_m = even_block(count, most_m);
        PieceWalk<P> walk(g, t, tile, piece, panel);
        for (int64_t p = 0; p < count; p += block_m) {
          const int m = static_cast<int>(clamp(count - p, 1, block_m));
          walk.take(m, at, where);
          if (once && t.col_stride == t.k) next = {at[0] + block_m * t.k, share};
          for (int64_t block = start; block < start + group; ++block) {
            const int vectors = block_vectors(g.columns, block);
            const P* const b = packed_block(block) + piece.b_row * vectors * LANES;
            const int64_t left = g.columns - block * NR;
            const int64_t channel = g.y_channel + block * NR;
            if (left >= vectors * LANES && !moments) {
              const Output<T> out{g.epilogue, channel, y, where, g.route == Route::around};
              Finished<P, T>::product[m - 1][vectors - 1](at, piece.terms, b, out, next);
            } else {
              Kernels<P>::product[m - 1][vectors - 1](at, piece.terms, b, sums, next);
              store_tile(sums, vectors * LANES, m, where, channel, left < NR ? left : NR,
                         g.epilogue, y, g.route);
            }
            if (moments) {
              TileMoments& of = moments[index * blocks + block];
              const bool first = &piece == pieces.begin() && p == 0;
              of.count = static_cast<float>(pixels);
              count_rows<T>(sums, vectors, m,
                            g.epilogue.bias ? g.epilogue.bias + block * NR : nullptr, first, of);
            }
            next.from = static_cast<const char*>(next.from) +
                        next.step * (piece.terms.k / kStep<P>)*piece.terms.tap_count;
          }
        }
      }
    }
  });
  if (moments) merge_moments(moments, tiles, all.columns, *all.epilogue.moments);
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
