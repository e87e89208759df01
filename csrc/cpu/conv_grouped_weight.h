// conv2d of small groups (conv_grouped.cpp): buffers of pixels, and the gradient with respect to
// the weight.
//
// Strips of a few rows of one image, or of two images where bfloat16 is multiplied in pairs: a pair
// is the same pixel of both. A group's share of a strip's inputs and gradients is copied to
// buffers, pixel by pixel while the group before is multiplied. Tiles of 8 outputs x 3 taps of a
// vector of inputs stay in registers over a strip:
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

// Copies W channels of a pixel.
template <int W, class T, class P>
FASTNN_INLINE void copy_pixel(P* to, const T* from) {
  if constexpr (kSame<T, P>)
    __builtin_memcpy(to, from, W * sizeof(P));
  else
    for (int i = 0; i < W; i += LANES) store(to + i, load(from + i));
}
// The same of a step: of one image, or of that and the one `image` values on, if that is not 0.
template <int W, class T>
FASTNN_INLINE void copy_images(float* to, const T* from, int64_t) {
  copy_pixel<W>(to, from);
}
template <int W>
FASTNN_INLINE void copy_images(bfloat16* to, const bfloat16* from, int64_t image) {
  copy_pairs(from, image ? from + image : nullptr, W, to);
}

// Copies the inputs under a strip and its gradients, W channels at a time, a pixel with each call
// of copy(). Of the inputs, cols x lines with what is outside the image; zeros there are written
// once, by clear(), for those of all channels lie at the same places.
template <int W, class P, class T>
class StripCopy {
 public:
  static constexpr int64_t kPixel = W * kStep<P>;
  int64_t lines, cols, grads;  // of the inputs, and pixels of the gradient, which come after them

  StripCopy(const ConvParams& p, const T* x, const T* g, int64_t n, int64_t images, int64_t first,
            int64_t rows)
      : lines((rows - 1) * p.stride_h + (p.KH - 1) * p.dilation_h + 1),
        cols((p.OW - 1) * p.stride_w + 3),
        grads(rows * p.OW),
        C_(p.C),
        x_row_(p.W * p.C),
        x_image_(images > 1 ? p.H * p.W * p.C : 0),
        g_image_(images > 1 ? p.OH * p.OW * p.C : 0) {
    const int64_t top = first * p.stride_h - p.pad_top;
    line_ = clamp(-top, 0, lines);
    end_ = clamp(p.H - top, line_, lines);
    col_ = clamp(p.pad_left, 0, cols);
    width_ = clamp(p.W + p.pad_left, col_, cols) - col_;
    x_ = x + ((n * p.H + top + line_) * p.W + col_ - p.pad_left) * p.C;
    g_ = g + (n * p.OH + first) * p.OW * p.C;
  }
  int64_t size() const { return (lines * cols + grads) * kPixel; }

  void clear(P* to) const {
    for (int64_t i = 0; i < lines; ++i) {
      const bool inside = i >= line_ && i < end_;
      const int64_t left = inside ? col_ : cols, right = inside ? cols - col_ - width_ : 0;
      P* const line = to + i * cols * kPixel;
      zero_values(line, left * kPixel);
      zero_values(line + (cols - right) * kPixel, right * kPixel);
    }
  }
  // From here on, the channels from c on are copied.
  void start(int64_t c, P* to) {
    c_ = c;
    to_ = to;
    next_ = line_;
    left_ = 0;
  }
  // Turns to the next row of inputs, or after them to the gradients, if what was begun is done.
  FASTNN_INLINED inline void next_row() {
    if (left_ || next_ > end_) return;
    if (next_ < end_) {
      from_ = x_ + (next_ - line_) * x_row_ + c_;
      at_ = to_ + (next_ * cols + col_) * kPixel;
      image_ = x_image_;
      left_ = width_;
    } else {
      from_ = g_ + c_;
      at_ = to_ + lines * cols * kPixel;
      image_ = g_image_;
      left_ = grads;
    }
    ++next_;
  }
  FASTNN_INLINED inline void copy() {
    if (left_ == 0) return;
    __builtin_prefetch(from_ + 24 * C_, 0, 2);  // L2 does not hold all channels of a large strip
    copy_images<W>(at_, from_, image_);
    from_ += C_;
    at_ += kPixel;
    --left_;
  }
  // Copies what is left.
  void rest() {
    while (next_ <= end_ || left_) {
      next_row();
      while (left_) copy();
    }
  }

 private:
  int64_t C_, x_row_, x_image_, g_image_;
  int64_t line_, end_, col_, width_;  // lines and columns inside the image
  const T *x_, *g_;
  int64_t c_ = 0, next_ = 0, left_ = 0, image_ = 0;
  const T* from_ = nullptr;
  P *to_ = nullptr, *at_ = nullptr;
};

// M outputs of a group at a time, by 3 taps; the taps of one output lie kWidth<G> apart, those of
// the next `pitch`. Takes and returns what is left to copy by value, which stays in registers.
template <int G>
constexpr int kOutputs = G < LANES / 2 ? G : LANES / 2;
template <int G, int S, class P, class Copy>
FASTNN_INLINE Copy grouped_outer(const P* x, int64_t x_row, const P* g, int64_t rows, int64_t cols,
                                 float* to, int64_t pitch, Ahead ahead, Copy copies) {
  constexpr int W = kWidth<G>, M = kOutputs<G>;
  constexpr int64_t kPixel = W * kStep<P>;
  vfloat sum[M][3];
#pragma GCC unroll 8
  for (int o = 0; o < M; ++o)
#pragma GCC unroll 3
    for (int t = 0; t < 3; ++t) sum[o][t] = load(to + o * pitch + t * W);
  for (int64_t row = 0; row < rows; ++row, x += x_row) {
    const P* in = x;
    copies.next_row();
    for (int64_t col = 0; col < cols; ++col, in += S * kPixel, g += kPixel) {
      __builtin_prefetch(ahead.from, 0, 2);
      ahead.from = static_cast<const char*>(ahead.from) + ahead.step;
      copies.copy();
      const vfloat tap[3] = {load_steps(in), load_steps(in + kPixel), load_steps(in + 2 * kPixel)};
#pragma GCC unroll 8
      for (int o = 0; o < M; ++o) {
        const vfloat value = of_group<G>(g, o);
#pragma GCC unroll 3
        for (int t = 0; t < 3; ++t) add_step(sum[o][t], value, tap[t], P{});
      }
    }
  }
#pragma GCC unroll 8
  for (int o = 0; o < M; ++o)
#pragma GCC unroll 3
    for (int t = 0; t < 3; ++t) store(to + o * pitch + t * W, sum[o][t]);
  return copies;
}

// Adds the share of output rows [first, first + rows) of `images` images from n on to the gradient.
// Sums of a group that fills vectors are in the weight's order, others [vector][kh][m][t][LANES].
template <int G, int S, class P, class T>
void grouped_strip(const ConvParams& p, const T* x, const T* g, int64_t n, int64_t images,
                   int64_t first, int64_t rows, float* sums, NextPixels next) {
  constexpr int W = kWidth<G>, M = kOutputs<G>;
  constexpr int64_t kPixel = W * kStep<P>;
  const int64_t C = p.C;
  StripCopy<W, P, T> copies(p, x, g, n, images, first, rows);
  const int64_t cols = copies.cols, size = copies.size();
  auto* in = static_cast<P*>(thread_scratch(2 * size * int64_t{sizeof(P)}, 0));
  auto* other = in + size;
  copies.clear(in);
  copies.clear(other);
  copies.start(0, in);
  copies.rest();
  const int64_t calls = C / LANES * p.KH * (G / M);
  next.share = (next.x_bytes + next.g_bytes) / calls;
  const int64_t step = ceil_div(next.share, rows * p.OW);
  int64_t call = 0;
  for (int64_t c = 0; c < C; c += W) {
    const P* const grad = in + copies.lines * cols * kPixel;
    if (c + W < C) copies.start(c + W, other);
    for (int64_t kh = 0; kh < p.KH; ++kh)
      for (int m = 0; m < G; m += M)
        for (int v = 0; v < W; v += LANES) {
          float* const to = G < LANES ? sums + (c / LANES * p.KH + kh) * G * 3 * LANES
                                      : sums + ((c + m) * p.KH + kh) * 3 * G + v;
          copies = grouped_outer<G, S>(in + (kh * p.dilation_h * cols * W + v) * kStep<P>,
                                       p.stride_h * cols * kPixel, grad + m * kStep<P>, rows, p.OW,
                                       to, G < LANES ? 3 * LANES : p.KH * 3 * G,
                                       next.piece(call++, step), copies);
        }
    copies.rest();
    P* const done = in;
    in = other;
    other = done;
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
