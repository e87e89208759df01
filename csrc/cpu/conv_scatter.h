// Convolutions whose sources add to targets: gradients of images and layers that end in one, whose
// few channels fill no vector, and gradients of small maps, most of whose taps fall beside them.
//
// What one pixel of the source adds to all targets around it fills vectors, and falls into the
// target wherever the forward pass had no padding: KH * KW * C sums of the same K values,
//
//   target[h * stride - top + kh * dilation][w * stride - left + kw][c]
//       += sum over k of source[h][w][k] * weight[k][kh][kw][c].
//
//   task = a band of rows of one target, or a few small targets: rows of floats, with room for what
//          falls beside them
//     MR or 8 source pixels of the rows that reach the band
//       a part of the weight's columns, all rows of a kernel or one: products
//         what each pixel adds to its rows, KW * C neighbouring sums each
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

  // Parts of the columns, one unless those of a kernel row fill vectors.
  int64_t parts() const { return KW * C < 4 * LANES ? 1 : KH; }
  int64_t part_columns() const { return KH / parts() * KW * C; }
  int64_t packed_size() const { return parts() * packed_columns(part_columns()) * K; }

  // Pixels of a row of a band: those of the target, and where taps fall beside it.
  int64_t width() const {
    const int64_t first = left > 0 ? left : 0, end = (SW - 1) * stride_w + KW - left;
    return first + (end > TW ? end : TW) + (left < 0 ? -left : 0);
  }
  int64_t reach() const { return (KH - 1) * dilation_h + 1; }
  // Rows of a band, of which a target has parts of nearly equal size; none if one takes no row.
  int64_t band_rows() const {
    constexpr int64_t kBand = 1 << 16, kTasks = 32;  // values; tasks at least, if rows allow them
    const int64_t most = kBand / (width() * C);
    return clamp(clamp(N * TH / kTasks, 4 * reach(), TH), 0, most);
  }
  // Targets of a task, if each is one band.
  int64_t together() const {
    constexpr int64_t kTasks = 16;
    return clamp(clamp(ceil_div(4 * MR, SH * SW), 1, N / kTasks), 1, N);
  }
  // Whether it takes less time than products for each target pixel, `step` values of K at a time,
  // whose taps beside the source are left out by rows. Unit: a multiplication of a vector, for a
  // source pixel.
  bool pays(int64_t step) const {
    constexpr int64_t kNearWeight = 1 << 18;  // values, near L2
    const bool empty = N * SH * SW * TH * TW == 0;
    const int64_t rows = empty ? 0 : band_rows(), run = KW * C;
    if (KH * KW == 1 || rows == 0 || packed_size() > kNearWeight) return false;
    const double k = static_cast<double>(K);
    const double taps = static_cast<double>(KH * KW * TW) / static_cast<double>(stride_w * SW);
    const double direct = taps * k * static_cast<double>(ceil_div(C, LANES));
    const double vectors = static_cast<double>(parts() * ceil_div(part_columns(), LANES));
    const double added = static_cast<double>(KH * ceil_div(run, LANES));
    const double again = static_cast<double>(rows + reach() - 1) / static_cast<double>(rows);
    const int64_t pixels = rows < TH ? SH * SW : together() * SH * SW;
    const double whole = static_cast<double>(ceil_div(pixels, kFewOutputs) * kFewOutputs);
    const double computed = rows < TH ? again : whole / static_cast<double>(pixels);
    return (k * vectors * computed + 6 * (vectors + added)) * static_cast<double>(step) < direct;
  }
};

// Whether taps of a kernel row are neighbours, of all channels, which a Scatter supposes.
FASTNN_INLINE bool scatters(const ConvParams& p) {
  return p.groups == 1 && (p.dilation_w == 1 || p.KW == 1);
}
FASTNN_INLINE Scatter scatter_backward(const ConvParams& p) {
  return {p.N,  p.OH, p.OW,       p.OC,       p.H,          p.W,       p.C,
          p.KH, p.KW, p.stride_h, p.stride_w, p.dilation_h, p.pad_top, p.pad_left};
}
FASTNN_INLINE Scatter scatter_forward(const ConvParams& p) {
  const int64_t top = (p.KH - 1) * p.dilation_h - p.pad_top, left = p.KW - 1 - p.pad_left;
  return {p.N, p.H, p.W, p.C, p.OH, p.OW, p.OC, p.KH, p.KW, 1, 1, p.dilation_h, top, left};
}

// packed[part][block of columns][k][block width] = weights(k, column, n), a vector of n columns.
template <class Weights>
void pack_scatter(const Scatter& s, const Weights& weights, float* packed) {
  const int64_t columns = s.part_columns(), blocks = block_count(columns);
  parallel_for(s.parts() * blocks, [&](int64_t task) {
    const int64_t part = task / blocks, block = task % blocks;
    const int width = block_vectors(columns, block) * LANES;
    float* to = packed + (part * packed_columns(columns) + block * NR) * s.K;
    const int64_t end = clamp(columns, 0, block * NR + width);
    for (int64_t k = 0; k < s.K; ++k, to += width)
      vector_loop(block * NR, end, [&](int64_t column, int n) FASTNN_INLINED {
        store(to + column - block * NR, filled(weights(k, part * columns + column, n), n, 0));
      });
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
  const int64_t columns = s.part_columns(), blocks = block_count(columns), parts = s.parts();
  const int64_t pitch = packed_columns(columns), run = s.KW * s.C, kernel_rows = s.KH / parts;
  const int64_t bands = ceil_div(s.TH, s.band_rows()), most = ceil_div(s.TH, bands);
  const int64_t together = bands == 1 ? s.together() : 1, row = s.width() * s.C;
  const int64_t shift = s.left < 0 ? -s.left : 0;
  const bool far = is_far(s.K * int64_t{sizeof(float)});
  const Route route = route_to(target, s.TW * s.C);
  parallel_for_dynamic(ceil_div(s.N, together) * bands, [&](int64_t task) {
    const int64_t image = task / bands * together, band = task % bands;
    const int64_t images = clamp(s.N - image, 0, together);
    const int64_t begin = s.TH * band / bands, end = s.TH * (band + 1) / bands;
    const int64_t height = end - begin;
    // Vectors are added as a whole, zeros at their end.
    const int64_t room = together * most * row + LANES;
    const int64_t panel_size = MR * s.K, sums_size = MR * pitch + LANES;
    auto* const sums = static_cast<float*>(
        thread_scratch((room + panel_size + sums_size) * int64_t{sizeof(float)}, 0));
    float *const panel = sums + sums_size, *const rows = panel + panel_size;
    for (int64_t i = 0; i < row; ++i) rows[i] = e.bias ? e.bias[i % s.C] : 0.0f;
    for (int64_t h = 1; h < images * height; ++h) copy_values(rows + h * row, rows, row);

    // Source rows h with begin <= h * stride - top + kh * dilation < end for some kh.
    const int64_t low = begin + s.top - s.reach() + 1, high = end - 1 + s.top;
    const int64_t reached = high < 0 ? 0 : high / s.stride_h + 1;
    const int64_t first = bands == 1 || low < 0 ? 0 : clamp(ceil_div(low, s.stride_h), 0, s.SH);
    const int64_t last = bands == 1 ? s.SH : clamp(reached, first, s.SH);
    const int64_t pixels = images * (last - first) * s.SW;
    const bool few = far || ceil_div(pixels, kFewOutputs) * kFewOutputs < ceil_div(pixels, MR) * MR;
    const int outputs = few ? kFewOutputs : MR;
    const T* from = source + (image * s.SH + first) * s.SW * s.K;
    float* image_rows = rows;
    int64_t h = first, col = 0;  // of the first pixel
    for (int64_t pixel = 0; pixel < pixels; pixel += outputs, from += outputs * s.K) {
      const int64_t count = clamp(pixels - pixel, 0, outputs);
      const float* x = panel;
      if (kSame<T, float> && count == outputs) {
        x = reinterpret_cast<const float*>(from);
      } else {
        copy_values(panel, from, count * s.K);
        zero_values(panel + count * s.K, (outputs - count) * s.K);
      }
      float* in = image_rows;
      int64_t at_h = h, at_col = col;
      for (int64_t part = 0; part < parts; ++part) {
        for (int64_t block = 0; block < blocks; ++block) {
          const bool two = block_vectors(columns, block) == NV;
          const auto tile = few ? two ? scatter_tile<kFewOutputs, NV> : scatter_tile<kFewOutputs, 1>
                            : two ? scatter_tile<MR, NV>
                                  : scatter_tile<MR, 1>;
          tile({x, 1, 0, s.K, s.K, w + (part * pitch + block * NR) * s.K}, sums + block * NR,
               pitch);
        }
        in = image_rows, at_h = h, at_col = col;
        for (int64_t m = 0; m < count; ++m) {
          float* const at = in + (at_col * s.stride_w + shift) * s.C;
          for (int64_t i = 0; i < kernel_rows; ++i) {
            const int64_t kh = part * kernel_rows + i;
            const int64_t t = at_h * s.stride_h - s.top - begin + kh * s.dilation_h;
            if (t < 0 || t >= height) continue;
            const float* const some = sums + m * pitch + i * run;
            vector_loop(0, run, [&](int64_t c, int n) FASTNN_INLINED {
              float* const to = at + t * row + c;
              store(to, load(to) + filled(load(some + c), n, 0));
            });
          }
          if (++at_col < s.SW) continue;
          at_col = 0;
          if (++at_h == last) at_h = first, in += height * row;
        }
      }
      image_rows = in, h = at_h, col = at_col;
    }
    for (int64_t i = 0; i < images * height; ++i) {
      const float* const of_row = rows + i * row + (s.left + shift) * s.C;
      const int64_t t = begin + i % height;
      const int64_t at = ((image + i / height) * s.TH + t) * s.TW * s.C;
      vector_loop(0, s.TW * s.C, [&](int64_t c, int n) FASTNN_INLINED {
        vfloat v = load_any(of_row + c, n);
        if (e.residual) v += load_any(static_cast<const T*>(e.residual) + at + c, n);
        if (e.relu) v = vclamp(v, vfloat{}, set1(e.relu.ceiling));
        store_any(target + at + c, v, n, route);
      });
    }
  });
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
