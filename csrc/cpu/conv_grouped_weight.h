// conv2d of small groups (conv_grouped.cpp): buffers of pixels, and the gradient with respect to
// the weight.
//
// Strips of a few rows of one image, or of two images where bfloat16 is multiplied in pairs: a pair
// is the same pixel of both. A group's share of a strip's inputs and gradients is copied to
// buffers. Tiles of 8 outputs x 3 taps of a vector of inputs stay in registers over a strip:
//
//   for a pixel:  x_t = the inputs under tap t, for 8 outputs m:
//                 v = the m-th gradient of each lane's group,  sum[m][t] += v * x_t
//
// 24 multiply-adds for 11 loads.
#pragma once

#include "core/allocator.h"
#include "cpu/conv_input.h"
#include "cpu/conv_weight.h"
#include "cpu/matmul.h"
#include "cpu/simd/steps.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// Channels of a pixel in a buffer: a group, or the groups that share a vector.
template <int G>
constexpr int kWidth = G < LANES ? LANES : G;
constexpr int64_t kGroupedPixels = 4 << 10;  // channels of the inputs under a strip

// Step k of each lane's group.
template <int G, class P>
FASTNN_INLINE vfloat of_group(const P* pixel, int k) {
  if constexpr (G >= LANES)
    return set1_step(pixel + k * kStep<P>);
  else
    return permuted(load_steps(pixel), lanes() / G * G + k);
}

// in[first .. first + count) of a row of `width` pixels C apart, zeros outside: to[pixel][W].
template <int W, class T, class P>
FASTNN_INLINE void buffer_pixels(const T* in, int64_t first, int64_t count, int64_t width,
                                 int64_t C, P* to) {
  for (int64_t j = first; j < first + count; ++j, to += W)
    if (j >= 0 && j < width)
      copy_values(to, in + j * C, W);
    else
      zero_values(to, W);
}
// The same of a step of images, `image` values apart, of which `images` are there.
template <int W, class T>
FASTNN_INLINE void buffer_images(const T* in, int64_t, int64_t, int64_t first, int64_t count,
                                 int64_t width, int64_t C, float* to) {
  buffer_pixels<W>(in, first, count, width, C, to);
}
template <int W>
FASTNN_INLINE void buffer_images(const bfloat16* in, int64_t image, int64_t images, int64_t first,
                                 int64_t count, int64_t width, int64_t C, bfloat16* to) {
  for (int64_t j = first; j < first + count; ++j, to += 2 * W)
    if (j >= 0 && j < width)
      copy_pairs(in + j * C, images > 1 ? in + j * C + image : nullptr, W, to);
    else
      zero_values(to, 2 * W);
}

// M outputs of a group at a time, by 3 taps; the taps of one output lie kWidth<G> apart, those of
// the next `pitch`.
template <int G>
constexpr int kOutputs = G < LANES / 2 ? G : LANES / 2;
template <int G, int S, class P>
FASTNN_INLINE void grouped_outer(const P* x, int64_t x_row, const P* g, int64_t rows, int64_t cols,
                                 int m, float* to, int64_t pitch, Ahead ahead) {
  constexpr int W = kWidth<G>, M = kOutputs<G>;
  constexpr int64_t kPixel = W * kStep<P>;
  vfloat sum[M][3];
#pragma GCC unroll 8
  for (int o = 0; o < M; ++o)
#pragma GCC unroll 3
    for (int t = 0; t < 3; ++t) sum[o][t] = load(to + o * pitch + t * W);
  for (int64_t row = 0; row < rows; ++row, x += x_row) {
    const P* in = x;
    for (int64_t col = 0; col < cols; ++col, in += S * kPixel, g += kPixel) {
      __builtin_prefetch(ahead.from, 0, 2);
      ahead.from = static_cast<const char*>(ahead.from) + ahead.step;
      const vfloat tap[3] = {load_steps(in), load_steps(in + kPixel), load_steps(in + 2 * kPixel)};
#pragma GCC unroll 8
      for (int o = 0; o < M; ++o) {
        const vfloat value = of_group<G>(g, m + o);
#pragma GCC unroll 3
        for (int t = 0; t < 3; ++t) add_step(sum[o][t], value, tap[t], P{});
      }
    }
  }
#pragma GCC unroll 8
  for (int o = 0; o < M; ++o)
#pragma GCC unroll 3
    for (int t = 0; t < 3; ++t) store(to + o * pitch + t * W, sum[o][t]);
}

// Adds the share of output rows [first, first + rows) of `images` images from n on to the gradient.
// Sums of a group that fills vectors are in the weight's order, others [vector][kh][m][t][LANES].
template <int G, int S, class P, class T>
void grouped_strip(const ConvParams& p, const T* x, const T* g, int64_t n, int64_t images,
                   int64_t first, int64_t rows, float* sums, NextPixels next) {
  constexpr int W = kWidth<G>, M = kOutputs<G>;
  constexpr int64_t kPixel = W * kStep<P>;
  const int64_t C = p.C, cols = (p.OW - 1) * S + 3;
  const int64_t lines = (rows - 1) * p.stride_h + (p.KH - 1) * p.dilation_h + 1;
  const int64_t in_size = lines * cols * kPixel, grad_size = rows * p.OW * kPixel;
  auto* const in = static_cast<P*>(thread_scratch((in_size + grad_size) * int64_t{sizeof(P)}, 0));
  P* const grad = in + in_size;
  const int64_t calls = C / LANES * p.KH * (G / M);
  next.share = (next.x_bytes + next.g_bytes) / calls;
  const int64_t step = ceil_div(next.share, rows * p.OW);
  int64_t call = 0;
  for (int64_t c = 0; c < C; c += W) {
    for (int64_t line = 0; line < lines; ++line) {
      const int64_t h = first * p.stride_h - p.pad_top + line;
      const bool inside = h >= 0 && h < p.H;
      buffer_images<W>(x + (n * p.H + (inside ? h : 0)) * p.W * C + c, p.H * p.W * C, images,
                       -p.pad_left, cols, inside ? p.W : 0, C, in + line * cols * kPixel);
    }
    buffer_images<W>(g + (n * p.OH + first) * p.OW * C + c, p.OH * p.OW * C, images, 0, rows * p.OW,
                     rows * p.OW, C, grad);
    for (int64_t kh = 0; kh < p.KH; ++kh)
      for (int m = 0; m < G; m += M)
        for (int v = 0; v < W; v += LANES) {
          float* const to = G < LANES ? sums + (c / LANES * p.KH + kh) * G * 3 * LANES
                                      : sums + ((c + m) * p.KH + kh) * 3 * G + v;
          grouped_outer<G, S>(in + (kh * p.dilation_h * cols * W + v) * kStep<P>,
                              p.stride_h * cols * kPixel, grad, rows, p.OW, m, to,
                              G < LANES ? 3 * LANES : p.KH * 3 * G, next.piece(call++, step));
        }
  }
}

// Writes the total of sums [vector][kh][m][t][LANES].
template <int G>
void add_grouped_partials(const ConvParams& p, const float* sums, int64_t partials, int64_t size,
                          WeightGradient to) {
  parallel_for(p.C / LANES * p.KH, [&](int64_t task) {
    const int64_t channel = task / p.KH * LANES, kh = task % p.KH;
    for (int i = 0; i < G * 3; ++i) {
      const float* from = sums + (task * G * 3 + i) * LANES;
      vfloat total = load(from);
      for (int64_t r = 1; r < partials; ++r) total += load(from + r * size);
      for (int64_t l = 0; l < LANES; ++l)
        to.store((((channel + l / G * G + i / 3) * p.KH + kh) * 3 + i % 3) * G + l % G, total[l]);
    }
  });
}

template <int G, class P, class T>
void grouped_weight_gradient(const ConvParams& p, const T* x, const T* g, WeightGradient gw) {
  // Each partial sum takes a range of strips, by shape alone.
  const int64_t most =
      clamp(kGroupedPixels / (p.OW * p.stride_h * p.stride_w * kWidth<G>), 1, p.OH);
  const int64_t per_image = ceil_div(p.OH, most), rows = ceil_div(p.OH, per_image);
  const int64_t strips = ceil_div(p.N, kStep<P>) * per_image, size = p.OC * p.KH * 3 * G;
  const int64_t partials = clamp((1 << 20) / size, 4, clamp(strips, 1, 16));
  Workspace partial(partials * size * 4);
  parallel_for_dynamic(partials, [&](int64_t r) {
    float* const sums = partial.floats() + r * size;
    __builtin_memset(sums, 0, sizeof(float) * static_cast<size_t>(size));
    for (int64_t strip = strips * r / partials; strip < strips * (r + 1) / partials; ++strip) {
      const int64_t n = strip / per_image * kStep<P>, first = strip % per_image * rows;
      const int64_t count = clamp(p.OH - first, 0, rows);
      if (count == 0) continue;
      // Most often the next strip is of the next image, or of the rows after these; of two images,
      // the first one's are brought.
      const bool last = strip + 1 >= strips;
      const int64_t in = (n * p.H + clamp((first + count) * p.stride_h, 0, p.H)) * p.W * p.C;
      const int64_t out = (n * p.OH + first + count) * p.OW * p.C;
      const NextPixels next{reinterpret_cast<const char*>(x + in),
                            reinterpret_cast<const char*>(g + out),
                            last ? 0 : count * p.stride_h * p.W * p.C * int64_t{sizeof(T)},
                            last ? 0 : count * p.OW * p.C * int64_t{sizeof(T)}, 0};
      if (p.stride_w == 1)
        grouped_strip<G, 1, P>(p, x, g, n, p.N - n, first, count, sums, next);
      else
        grouped_strip<G, 2, P>(p, x, g, n, p.N - n, first, count, sums, next);
    }
  });
  if (G < LANES)
    add_grouped_partials<G>(p, partial.floats(), partials, size, gw);
  else
    add_partials(partial.floats(), partials, size, gw);
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
