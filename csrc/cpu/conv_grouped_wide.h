// conv2d of groups of 16 or 32 inputs and as many outputs, three taps across: a group is one or
// more whole vectors.
//
// Tasks are rows (conv_rows.h), as for smaller groups: all groups of a row before the next row, so
// that memory is read in order; a group's share of a row's inputs is copied to a buffer, in float32
// and with the zeros around it. Of the outputs, one input serves as many as there are taps:
//
//   for a row of taps, for k < G:  w_t = weights of tap t, a vector of outputs each
//     for 16 (stride 2: 29) inputs j:  v = in[j][k] in all lanes,  sum[j - t] += v * w_t
//
// 42 multiply-adds for 19 loads. The gradient with respect to the weight has tiles of 8 outputs x 3
// taps of inputs, over some rows of one image: 24 multiply-adds for 11 loads.
// Flops: 2 * outputs * KH * 3 * G.
#pragma once

#include "core/allocator.h"
#include "cpu/conv_input.h"
#include "cpu/conv_rows.h"
#include "cpu/conv_weight.h"
#include "cpu/matmul.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int kWideBlock = LANES == 16 ? 14 : 7;  // outputs whose sums stay in registers
constexpr int64_t kWideFloats = 4 << 10;          // of the inputs under some rows of a gradient

// in[first .. first + count) of a row of `width` pixels C apart, zeros outside: to[pixel][G].
template <int G, class T>
FASTNN_INLINE void buffer_pixels(const T* in, int64_t first, int64_t count, int64_t width,
                                 int64_t C, float* to) {
  for (int64_t j = first; j < first + count; ++j, to += G)
    for (int v = 0; v < G; v += LANES)
      store(to + v, j >= 0 && j < width ? load(in + j * C + v) : vfloat{});
}

// Outputs i to i + N - 1 of the group at channel c. Few outputs have two chains of sums each, for
// the latency.
template <int N, int G, int KW, int S, class T>
FASTNN_INLINE void wide_block(const ChannelRow<T>& d, int64_t i, int64_t c) {
  constexpr int kInputs = (N - 1) * S + KW, kChains = N == 7 && LANES == 16 ? 2 : 1;
  alignas(64) float in[kMaxRows][kInputs * G];
  for (int64_t r = 0; r < d.rows; ++r)
    buffer_pixels<G>(d.in[r] + c, i * S + d.start, kInputs, d.width, d.C, in[r]);
  for (int v = 0; v < G; v += LANES) {
    bring_next<N, S>(d, i, c + v);
    vfloat sum[N][kChains] = {};
    for (int64_t r = 0; r < d.rows; ++r) {
      const float* w = d.weights(r, c + v);
      for (int k = 0; k < G; k += kChains)
#pragma GCC unroll 2
        for (int chain = 0; chain < kChains; ++chain, w += LANES) {
          vfloat tap[KW];
#pragma GCC unroll 3
          for (int t = 0; t < KW; ++t) tap[t] = load(w + t * G * LANES);
#pragma GCC unroll 32
          for (int j = 0; j < kInputs; ++j) {
            const vfloat value = set1(in[r][j * G + k + chain]);
#pragma GCC unroll 3
            for (int t = 0; t < KW; ++t)
              if (j >= t && (j - t) % S == 0 && (j - t) / S < N)
                sum[(j - t) / S][chain] += value * tap[t];
          }
        }
    }
    vfloat total[N];
#pragma GCC unroll 16
    for (int b = 0; b < N; ++b)
      total[b] = kChains == 2 ? sum[b][0] + sum[b][kChains - 1] : sum[b][0];
    finish_row(total, d, i, c + v, LANES);
  }
}

template <int N, int G, int KW, int S, class T>
FASTNN_INLINE void wide_blocks(const ChannelRow<T>& d) {
  const int64_t last = d.outputs - N;  // this block may overlap the one before
  for (int64_t i = 0; i < d.outputs; i += N)
    for (int64_t c = 0; c < d.C; c += G) wide_block<N, G, KW, S>(d, i < last ? i : last, c);
}
template <int G, int KW, int S, class T>
void wide_row(const ChannelRow<T>& d) {
  if (d.outputs >= kWideBlock)
    wide_blocks<kWideBlock, G, KW, S>(d);
  else if (d.outputs >= 7)
    wide_blocks<7, G, KW, S>(d);
  else
    wide_blocks<1, G, KW, S>(d);
}

// sum[m][t] += over rows and pixels of g[pixel][m] * x[row][pixel * S + t]: 8 (or 4) outputs, one
// vector of inputs; sums of different outputs are `pitch` apart.
constexpr int kWideOutputs = LANES == 16 ? 8 : 4;
template <int G, int S>
FASTNN_INLINE void wide_outer(const float* x, int64_t x_row, const float* g, int64_t rows,
                              int64_t cols, float* to, int64_t pitch, Ahead ahead) {
  vfloat sum[kWideOutputs][3];
#pragma GCC unroll 8
  for (int m = 0; m < kWideOutputs; ++m)
#pragma GCC unroll 3
    for (int t = 0; t < 3; ++t) sum[m][t] = load(to + m * pitch + t * G);
  for (int64_t row = 0; row < rows; ++row, x += x_row) {
    const float* in = x;
    for (int64_t col = 0; col < cols; ++col, in += S * G, g += G) {
      __builtin_prefetch(ahead.from, 0, 2);
      ahead.from = static_cast<const char*>(ahead.from) + ahead.step;
      const vfloat tap[3] = {load(in), load(in + G), load(in + 2 * G)};
#pragma GCC unroll 8
      for (int m = 0; m < kWideOutputs; ++m) {
        const vfloat value = set1(g[m]);
#pragma GCC unroll 3
        for (int t = 0; t < 3; ++t) sum[m][t] += value * tap[t];
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kWideOutputs; ++m)
#pragma GCC unroll 3
    for (int t = 0; t < 3; ++t) store(to + m * pitch + t * G, sum[m][t]);
}

// Adds the share of output rows [first, first + rows) of image n to the weight's gradient.
template <int G, int S, class T>
void wide_strip(const ConvParams& p, const T* x, const T* g, int64_t n, int64_t first, int64_t rows,
                float* sums, NextPixels next) {
  const int64_t C = p.C, cols = (p.OW - 1) * S + 3, pitch = p.KH * 3 * G;
  const int64_t lines = (rows - 1) * p.stride_h + (p.KH - 1) * p.dilation_h + 1;
  auto* const in = static_cast<float*>(thread_scratch((lines * cols + rows * p.OW) * G * 4, 0));
  float* const grad = in + lines * cols * G;
  const int64_t calls = C / LANES * p.KH * (G / kWideOutputs);
  next.share = (next.x_bytes + next.g_bytes) / calls;
  const int64_t step = ceil_div(next.share, rows * p.OW);
  int64_t call = 0;
  for (int64_t c = 0; c < C; c += G) {
    for (int64_t line = 0; line < lines; ++line) {
      const int64_t h = first * p.stride_h - p.pad_top + line;
      const bool inside = h >= 0 && h < p.H;
      buffer_pixels<G>(x + (n * p.H + (inside ? h : 0)) * p.W * C + c, -p.pad_left, cols,
                       inside ? p.W : 0, C, in + line * cols * G);
    }
    const T* const from = g + (n * p.OH + first) * p.OW * C + c;
    buffer_pixels<G>(from, 0, rows * p.OW, rows * p.OW, C, grad);
    for (int64_t kh = 0; kh < p.KH; ++kh)
      for (int m = 0; m < G; m += kWideOutputs)
        for (int v = 0; v < G; v += LANES)
          wide_outer<G, S>(in + kh * p.dilation_h * cols * G + v, p.stride_h * cols * G, grad + m,
                           rows, p.OW, sums + (c + m) * pitch + kh * 3 * G + v, pitch,
                           next.piece(call++, step));
  }
}

template <int G, class T>
void wide_backward_weight(const ConvParams& p, const T* x, const T* g, WeightGradient gw) {
  // Strips of a few rows of one image; each partial sum takes a range of them, by shape alone.
  const int64_t most = clamp(kWideFloats / (p.OW * p.stride_h * p.stride_w * G), 1, p.OH);
  const int64_t per_image = ceil_div(p.OH, most), rows = ceil_div(p.OH, per_image);
  const int64_t strips = p.N * per_image, size = p.OC * p.KH * 3 * G;
  const int64_t partials = clamp((1 << 20) / size, 4, clamp(strips, 1, 16));
  Workspace partial(partials * size * 4);
  parallel_for_dynamic(partials, [&](int64_t r) {
    float* const sums = partial.floats() + r * size;
    __builtin_memset(sums, 0, sizeof(float) * static_cast<size_t>(size));
    for (int64_t strip = strips * r / partials; strip < strips * (r + 1) / partials; ++strip) {
      const int64_t n = strip / per_image, first = strip % per_image * rows;
      const int64_t count = clamp(p.OH - first, 0, rows);
      if (count == 0) continue;
      // Most often the next strip is of the next image, or of the rows after these.
      const bool last = strip + 1 >= strips;
      const int64_t in = (n * p.H + clamp((first + count) * p.stride_h, 0, p.H)) * p.W * p.C;
      const int64_t out = (n * p.OH + first + count) * p.OW * p.C;
      const NextPixels next{reinterpret_cast<const char*>(x + in),
                            reinterpret_cast<const char*>(g + out),
                            last ? 0 : count * p.stride_h * p.W * p.C * int64_t{sizeof(T)},
                            last ? 0 : count * p.OW * p.C * int64_t{sizeof(T)}, 0};
      if (p.stride_w == 1)
        wide_strip<G, 1>(p, x, g, n, first, count, sums, next);
      else
        wide_strip<G, 2>(p, x, g, n, first, count, sums, next);
    }
  });
  add_partials(partial.floats(), partials, size, gw);
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
