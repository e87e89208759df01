// The input side of a convolution: which tiles of output pixels are worked on at a time, and where
// the input under a tile is read from. Forward, backward-data and backward-weight share it.
//
// Pixel (i, j) of an output grid reads, through tap t, the K channels of input pixel
//   (i * step_h + dh[t], j * step_w + dw[t]), zeros outside the image.
// A tile (some images, or rows of one, or columns of one row) finds them in one of three places:
//   direct    the tensor itself: no tap leaves the image, and it is float32 already
//   padded    the rectangle of input under the tile, zero padded, float32, copied to a panel
//   gathered  the taps of each pixel, copied one behind the other: for steps and dilations that
//             would leave most of a padded rectangle unused
// so that a kernel sees base + image * image_stride + row * row_stride + col * col_stride +
// taps[t].
#pragma once

#include "cpu/simd/vec.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int kMaxTaps = 1024;

FASTNN_INLINE int64_t clamp(int64_t x, int64_t lowest, int64_t highest) {
  return x < lowest ? lowest : (x > highest ? highest : x);
}
FASTNN_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct InputGrid {
  const void* a;  // input images, NHWC
  int64_t N, H, W;
  int64_t a_pixel, a_channel, K;   // elements per pixel, first channel used, channels used
  int64_t GH, GW, step_h, step_w;  // the grid and its step through the input
  int tap_count;
  const int64_t* dh;
  const int64_t* dw;

  bool pointwise() const {
    return tap_count == 1 && dh[0] == 0 && dw[0] == 0 && step_h == 1 && step_w == 1 && GH == H &&
           GW == W;
  }
  // A pointwise grid as one long row of pixels.
  void flatten() {
    W = GW = N * H * W;
    N = H = GH = 1;
  }
};

// The grid points of one tile.
struct Tile {
  int64_t image, images, row, rows, col, cols;
};

enum class Source { direct, padded, gathered };

struct InputTiles {
  InputGrid in;
  Source source;
  int64_t images, rows, cols;        // grid points of a full tile
  int64_t groups, strips, segments;  // number of tiles along images, rows, columns
  int64_t panel_rows, panel_cols;    // input pixels under a full tile
  int64_t low_h, low_w;              // smallest tap offsets
  int64_t image_stride, row_stride, col_stride;
  int64_t panel_floats;  // of one tile; 0 if direct
  int64_t run;           // this many taps at a time are neighbouring pixels
  int64_t k, tap_count;  // contiguous values of one tap, and taps, after merging
  int64_t taps[kMaxTaps];

  int64_t count() const { return groups * strips * segments; }
  Tile tile(int64_t index) const {
    const int64_t col = index % segments * cols, row = index / segments % strips * rows;
    const int64_t image = index / segments / strips * images;
    return {image, clamp(in.N - image, 0, images), row, clamp(in.GH - row, 0, rows),
            col,   clamp(in.GW - col, 0, cols)};
  }
};

// Floats of the padded rectangle under a full tile, and of its gathered taps.
FASTNN_INLINE int64_t padded_floats(const InputTiles& t, int64_t span_h, int64_t span_w) {
  return t.images * ((t.rows - 1) * t.in.step_h + span_h) * ((t.cols - 1) * t.in.step_w + span_w) *
         t.in.K;
}
FASTNN_INLINE int64_t gathered_floats(const InputTiles& t) {
  return t.images * t.rows * t.cols * t.in.tap_count * t.in.K;
}

// Tiles of about `pixels` grid points.
inline void set_tile(InputTiles& t, int64_t pixels) {
  const InputGrid& in = t.in;
  t.cols = ceil_div(in.GW, ceil_div(in.GW, pixels));
  t.rows = t.cols < in.GW ? 1 : clamp(ceil_div(pixels, in.GW), 1, in.GH);
  t.images = t.rows < in.GH || t.cols < in.GW ? 1 : clamp(pixels / (in.GH * in.GW), 1, in.N);
}
// The next smaller tile; false if it has become small enough to be left alone.
inline bool halve_tile(InputTiles& t) {
  if (t.images > 1)
    t.images = ceil_div(t.images, 2);
  else if (t.rows > 1)
    t.rows = ceil_div(t.rows, 2);
  else if (t.cols > 32)
    t.cols = ceil_div(t.cols, 2);
  else
    return false;
  return true;
}

// Largest n for which every n taps, from the first on, lie side by side in one input row.
inline int64_t common_run(const InputGrid& in) {
  for (int n = in.tap_count; n > 1; --n) {
    bool fits = in.tap_count % n == 0;
    for (int i = 0; fits && i < in.tap_count; ++i)
      fits = i % n == 0 || (in.dh[i] == in.dh[i - 1] && in.dw[i] == in.dw[i - 1] + 1);
    if (fits) return n;
  }
  return 1;
}

// Settles tiles of about `pixels` grid points whose panels have at most about `floats` values.
// `direct` allows reading the tensor itself.
template <class T>
void plan_input(InputTiles& t, int64_t pixels, int64_t floats, bool direct = true) {
  const InputGrid& in = t.in;
  t.low_h = in.dh[0], t.low_w = in.dw[0];
  int64_t high_h = in.dh[0], high_w = in.dw[0];
  for (int i = 1; i < in.tap_count; ++i) {
    if (in.dh[i] < t.low_h) t.low_h = in.dh[i];
    if (in.dw[i] < t.low_w) t.low_w = in.dw[i];
    if (in.dh[i] > high_h) high_h = in.dh[i];
    if (in.dw[i] > high_w) high_w = in.dw[i];
  }
  const int64_t span_h = high_h - t.low_h + 1, span_w = high_w - t.low_w + 1;
  const bool inside = t.low_h >= 0 && t.low_w >= 0 && (in.GH - 1) * in.step_h + high_h < in.H &&
                      (in.GW - 1) * in.step_w + high_w < in.W;
  t.source = inside && sizeof(T) == sizeof(float) && direct ? Source::direct : Source::padded;
  set_tile(t, pixels);
  if (t.source != Source::direct) {
    while (padded_floats(t, span_h, span_w) > floats && halve_tile(t)) {
    }
    if (gathered_floats(t) < padded_floats(t, span_h, span_w)) {
      t.source = Source::gathered;
      set_tile(t, pixels);
      while (gathered_floats(t) > floats && halve_tile(t)) {
      }
    }
  }
  t.run = common_run(in);
  t.strips = ceil_div(in.GH, t.rows);
  t.rows = ceil_div(in.GH, t.strips);  // of nearly equal size
  t.segments = ceil_div(in.GW, t.cols);
  t.groups = ceil_div(in.N, t.images);
  t.panel_rows = (t.rows - 1) * in.step_h + span_h;
  t.panel_cols = (t.cols - 1) * in.step_w + span_w;
  if (t.source == Source::gathered) {
    t.k = in.K * in.tap_count;
    t.tap_count = 1;
    t.taps[0] = 0;
    t.col_stride = t.k;
    t.row_stride = t.cols * t.k;
    t.image_stride = t.rows * t.row_stride;
    t.panel_floats = gathered_floats(t);
    return;
  }
  const bool as_is = t.source == Source::direct;
  const int64_t pixel = as_is ? in.a_pixel : in.K, pitch = as_is ? in.W : t.panel_cols;
  t.col_stride = in.step_w * pixel;
  t.row_stride = in.step_h * pitch * pixel;
  t.image_stride = (as_is ? in.H : t.panel_rows) * pitch * pixel;
  t.panel_floats = as_is ? 0 : t.images * t.image_stride;
  for (int i = 0; i < in.tap_count; ++i)
    t.taps[i] = as_is ? (in.dh[i] * pitch + in.dw[i]) * pixel
                      : ((in.dh[i] - t.low_h) * pitch + in.dw[i] - t.low_w) * pixel;
  const int64_t merged = pixel == in.K ? t.run : 1;
  t.tap_count = 0;
  for (int64_t i = 0; i < in.tap_count; i += merged) t.taps[t.tap_count++] = t.taps[i];
  t.k = in.K * merged;
}

// Where a full float32 image is its own panel.
template <class T>
const float* direct_base(const InputTiles& t, const Tile& tile) {
  const float* a = static_cast<const float*>(t.in.a) + t.in.a_channel;
  return a + tile.image * t.image_stride + tile.row * t.row_stride + tile.col * t.col_stride;
}

template <class T>
FASTNN_INLINE void copy_floats(float* to, const T* from, int64_t n) {
  vector_loop(0, n,
              [&](int64_t i, int lanes) { store_any(to + i, load_any(from + i, lanes), lanes); });
}
FASTNN_INLINE void zero_floats(float* to, int64_t n) {
  __builtin_memset(to, 0, sizeof(float) * static_cast<size_t>(n));
}

// One row of a padded panel: panel_cols pixels from (row, col) on, zero outside the image.
template <class T>
void padded_line(const InputTiles& t, int64_t image, int64_t row, int64_t col, float* to) {
  const InputGrid& in = t.in;
  if (row < 0 || row >= in.H) return zero_floats(to, t.panel_cols * in.K);
  const int64_t first = clamp(-col, 0, t.panel_cols), last = clamp(in.W - col, first, t.panel_cols);
  zero_floats(to, first * in.K);
  zero_floats(to + last * in.K, (t.panel_cols - last) * in.K);
  const T* from = static_cast<const T*>(in.a) + in.a_channel +
                  ((image * in.H + row) * in.W + col + first) * in.a_pixel;
  to += first * in.K;
  if (in.a_pixel == in.K) return copy_floats(to, from, (last - first) * in.K);
  for (int64_t c = first; c < last; ++c, from += in.a_pixel, to += in.K)
    copy_floats(to, from, in.K);
}

// One grid row of a gathered panel. Neighbouring taps are copied together.
template <class T>
void gathered_line(const InputTiles& t, int64_t image, int64_t row, int64_t col, int64_t cols,
                   float* to) {
  const InputGrid& in = t.in;
  const T* a = static_cast<const T*>(in.a) + in.a_channel + image * in.H * in.W * in.a_pixel;
  const bool joined = in.a_pixel == in.K;
  for (int64_t j = col; j < col + cols; ++j)
    for (int64_t i = 0, run; i < in.tap_count; i += run, to += run * in.K) {
      const int64_t h = row * in.step_h + in.dh[i], w = j * in.step_w + in.dw[i];
      const bool inside = h >= 0 && h < in.H && w >= 0 && w < in.W;
      run = inside && joined && i % t.run == 0 && w + t.run <= in.W ? t.run : 1;
      if (inside)
        copy_floats(to, a + (h * in.W + w) * in.a_pixel, run * in.K);
      else
        zero_floats(to, in.K);
    }
}

// A panel is filled line by line, in any order and by any thread.
FASTNN_INLINE int64_t panel_lines(const InputTiles& t) {
  return t.source == Source::direct   ? 0
         : t.source == Source::padded ? t.images * t.panel_rows
                                      : t.images * t.rows;
}
template <class T>
void fill_line(const InputTiles& t, const Tile& tile, int64_t line, float* panel) {
  const bool padded = t.source == Source::padded;
  const int64_t lines = padded ? t.panel_rows : t.rows;
  const int64_t image = line / lines, row = line % lines;
  if (image >= tile.images) return;
  if (padded) {
    if (row < t.panel_rows - (t.rows - tile.rows) * t.in.step_h)
      padded_line<T>(t, tile.image + image, tile.row * t.in.step_h + t.low_h + row,
                     tile.col * t.in.step_w + t.low_w,
                     panel + image * t.image_stride + row * t.panel_cols * t.in.K);
  } else if (row < tile.rows) {
    gathered_line<T>(t, tile.image + image, tile.row + row, tile.col, tile.cols,
                     panel + image * t.image_stride + row * t.row_stride);
  }
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
