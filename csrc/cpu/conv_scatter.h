// Convolutions to few channels: gradients of images, layers that end in one.
//
// A pixel of few channels fills no vector. What one pixel of the source adds to all targets around
// it does: KH * KW * C sums of the same K values,
//
//   target[h * stride - top + kh * dilation][w * stride - left + kw][c]
//       += sum over k of source[h][w][k] * weight[k][kh][kw][c].
//
//   task = a band of rows of one target: a row of floats with room for what falls beside it
//     MR or 8 source pixels of the rows that reach the band: products with the weight's columns
//     what each of them adds to its KH rows, KW * C neighbouring sums
//   the band, finished and stored
//
// Flops: 2 N SH SW K KH KW C, again for the source rows that reach two bands. The gradient of the
// input has this form; so has a forward pass of stride 1, with its taps in reverse order.
#pragma once

#include "cpu/conv_stem_forward.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

struct Scatter {
  int64_t N, SH, SW, K;  // source
  int64_t TH, TW, C;     // target
  int64_t KH, KW, stride_h, stride_w, dilation_h, top, left;

  int64_t columns() const { return KH * KW * C; }
  // Rows of a band, of which a target has parts of nearly equal size; none if one takes no row.
  int64_t band_rows() const {
    constexpr int64_t kBand = 1 << 16, kTasks = 32;  // values; tasks at least, if rows allow them
    const int64_t most = width() > 0 ? kBand / (width() * C) : 0;
    return clamp(clamp(N * TH / kTasks, 4 * reach(), TH), 0, most);
  }
  // Pixels of a row of a band: those of the target, and where taps fall beside it.
  int64_t width() const {
    const int64_t first = left > 0 ? left : 0, end = (SW - 1) * stride_w + KW - left;
    return first + (end > TW ? end : TW);
  }
  int64_t reach() const { return (KH - 1) * dilation_h + 1; }
  // Whether it takes less time than products with a vector of each pixel's channels, `step` values
  // of K at a time. Unit: a multiplication of a vector; `taps` of KH * KW fall into the target.
  bool pays(double taps, int64_t step) const {
    const int64_t rows = band_rows();
    if (C >= LANES || KH * KW == 1 || rows == 0) return false;
    const double vectors = static_cast<double>(ceil_div(columns(), LANES));
    const double added = static_cast<double>(KH * ceil_div(KW * C, LANES));
    const double again = static_cast<double>(rows + reach() - 1) / static_cast<double>(rows);
    const double k = static_cast<double>(K);
    return (k * vectors + 6 * (vectors + added)) * again < taps * k / static_cast<double>(step);
  }
};

FASTNN_INLINE Scatter scatter_backward(const ConvParams& p) {
  return {p.N,  p.OH, p.OW,       p.OC,       p.H,          p.W,       p.C,
          p.KH, p.KW, p.stride_h, p.stride_w, p.dilation_h, p.pad_top, p.pad_left};
}
FASTNN_INLINE Scatter scatter_forward(const ConvParams& p) {
  const int64_t top = (p.KH - 1) * p.dilation_h - p.pad_top, left = p.KW - 1 - p.pad_left;
  return {p.N, p.H, p.W, p.C, p.OH, p.OW, p.OC, p.KH, p.KW, 1, 1, p.dilation_h, top, left};
}

// packed[block of columns][k][block width] = weight(k, column).
template <class Weight>
void pack_scatter(const Scatter& s, const Weight& weight, float* packed) {
  parallel_for(block_count(s.columns()), [&](int64_t block) {
    const int width = block_vectors(s.columns(), block) * LANES;
    float* to = packed + block * NR * s.K;
    for (int64_t k = 0; k < s.K; ++k, to += width)
      for (int64_t i = 0; i < width; ++i) {
        const int64_t column = block * NR + i;
        to[i] = column < s.columns() ? weight(k, column) : 0.0f;
      }
  });
}

// The sums of M pixels, V vectors of columns.
template <int M, int V>
void scatter_tile(const StemTerms& terms, float* to, int64_t pitch) {
  vfloat sum[M][V];
  stem_sums(terms, sum);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(to + m * pitch + v * LANES, sum[m][v]);
}

template <class T>
void run_scatter(const Scatter& s, const T* source, const float* w, const ConvEpilogue& e,
                 T* target) {
  if (s.N * s.TH * s.TW * s.C == 0) return;
  const int64_t columns = s.columns(), blocks = block_count(columns);
  const int64_t pitch = packed_columns(columns), run = s.KW * s.C;
  const int64_t bands = ceil_div(s.TH, s.band_rows()), most = ceil_div(s.TH, bands);
  const int64_t shift = s.left < 0 ? -s.left : 0, row = (s.width() + shift) * s.C;
  const bool far = is_far(s.K * int64_t{sizeof(float)});
  const Route route = route_to(target, s.TW * s.C);
  parallel_for_dynamic(s.N * bands, [&](int64_t task) {
    const int64_t image = task / bands, band = task % bands;
    const int64_t begin = s.TH * band / bands, end = s.TH * (band + 1) / bands;
    // Vectors are added as a whole, zeros at their end.
    const int64_t room = most * row + LANES, panel_size = MR * s.K, sums_size = MR * pitch + LANES;
    auto* const sums = static_cast<float*>(
        thread_scratch((room + panel_size + sums_size) * int64_t{sizeof(float)}, 0));
    float *const panel = sums + sums_size, *const rows = panel + panel_size;
    for (int64_t i = 0; i < row; ++i) rows[i] = e.bias ? e.bias[i % s.C] : 0.0f;
    for (int64_t h = 1; h < end - begin; ++h) copy_values(rows + h * row, rows, row);

    // Source rows h with begin <= h * stride - top + kh * dilation < end for some kh.
    const int64_t low = begin + s.top - s.reach() + 1, high = end - 1 + s.top;
    const int64_t first = clamp(low < 0 ? 0 : ceil_div(low, s.stride_h), 0, s.SH);
    const int64_t last = clamp(high < 0 ? 0 : high / s.stride_h + 1, first, s.SH);
    const int64_t pixels = (last - first) * s.SW;
    const bool few = far || ceil_div(pixels, kFewOutputs) * kFewOutputs < ceil_div(pixels, MR) * MR;
    const int outputs = few ? kFewOutputs : MR;
    const T* from = source + (image * s.SH + first) * s.SW * s.K;
    int64_t h = first, col = 0;
    for (int64_t pixel = 0; pixel < pixels; pixel += outputs, from += outputs * s.K) {
      const int64_t count = clamp(pixels - pixel, 0, outputs);
      const float* x = panel;
      if (kSame<T, float> && count == outputs)
        x = reinterpret_cast<const float*>(from);
      else
        copy_values(panel, from, count * s.K);
      zero_values(panel + count * s.K, (outputs - count) * s.K);
      for (int64_t block = 0; block < blocks; ++block) {
        const bool two = block_vectors(columns, block) == NV;
        const auto tile = few   ? two ? scatter_tile<kFewOutputs, NV> : scatter_tile<kFewOutputs, 1>
                          : two ? scatter_tile<MR, NV>
                                : scatter_tile<MR, 1>;
        tile({x, 1, 0, s.K, s.K, w + block * NR * s.K}, sums + block * NR, pitch);
      }
      for (int64_t m = 0; m < count; ++m) {
        const int64_t high_row = h * s.stride_h - s.top - begin;
        float* const at = rows + (col * s.stride_w + shift) * s.C;
        for (int64_t kh = 0; kh < s.KH; ++kh) {
          const int64_t t = high_row + kh * s.dilation_h;
          if (t < 0 || t >= end - begin) continue;
          const float* const some = sums + m * pitch + kh * run;
          vector_loop(0, run, [&](int64_t i, int n) FASTNN_INLINED {
            float* const to = at + t * row + i;
            store(to, load(to) + filled(load(some + i), n, 0));
          });
        }
        if (++col == s.SW) col = 0, ++h;
      }
    }
    for (int64_t t = begin; t < end; ++t) {
      const float* const of_row = rows + (t - begin) * row + (s.left + shift) * s.C;
      const int64_t at = (image * s.TH + t) * s.TW * s.C;
      vector_loop(0, s.TW * s.C, [&](int64_t i, int n) FASTNN_INLINED {
        vfloat v = load_any(of_row + i, n);
        if (e.residual) v += load_any(static_cast<const T*>(e.residual) + at + i, n);
        if (e.relu) v = vclamp(v, vfloat{}, set1(e.relu.ceiling));
        store_any(target + at + i, v, n, route);
      });
    }
  });
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
