// Convolution as a matrix product over pixels, without im2col: the loop nest that forward and
// backward-data share.
//
// Every output pixel (i, j) of a grid is a sum over taps of the channels of one input pixel,
//   y[i][j][n] = sum over t, k of a[i * step_h + dh[t]][j * step_w + dw[t]][k] * B[t][k][n]
// with input outside the image counted as zero. Forward is one such grid; the gradient of a strided
// convolution is stride_h * stride_w of them, one per output phase, each with the taps that reach
// it.
//
//   task = (group of small images or strip of grid rows) x (range of column blocks)
//     panel: the input rows it needs, zero padded, in float32, in this thread's L2
//            (skipped where no tap leaves the image and the input is float32 already)
//     for each block of NR columns, for each tile of MR pixels: product kernel, epilogue, store
//
// Every output is computed by one kernel call in one order, so tasks may be cut freely.
// Cost: 2 * pixels * taps * K * columns flops. Per multiply-add tile the kernel reads B from L2 at
// 4 * NR bytes per MR * NV FMAs (9 B/cycle on AVX-512), which sets MR x NR rather than cache
// blocking.
#pragma once

#include "cpu/matmul.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int kMaxTaps = 1024;
constexpr int64_t kPanelBytes = 384 << 10;

struct TapGrid {
  const void* a;  // input images, NHWC
  int64_t N, H, W;
  int64_t a_pixel, a_channel, K;   // elements per pixel, first channel used, channels used
  int64_t GH, GW, step_h, step_w;  // the grid and its step through the input
  int tap_count;
  const int64_t* dh;
  const int64_t* dw;
  const float* b;  // packed [block][tap][K][block width]
  int64_t columns;
  void* y;  // output images, NHWC
  int64_t YH, YW, y_pixel, y_channel;
  int64_t y_row0, y_row_step, y_col0, y_col_step;  // where grid point (i, j) lies in the output
  ConvEpilogue epilogue;                           // bias and residual offsets are those of y
};

FASTNN_INLINE int64_t low(const int64_t* v, int n) {
  int64_t best = v[0];
  for (int i = 1; i < n; ++i) best = v[i] < best ? v[i] : best;
  return best;
}
FASTNN_INLINE int64_t high(const int64_t* v, int n) {
  int64_t best = v[0];
  for (int i = 1; i < n; ++i) best = v[i] > best ? v[i] : best;
  return best;
}
FASTNN_INLINE int64_t clamp(int64_t x, int64_t lowest, int64_t highest) {
  return x < lowest ? lowest : (x > highest ? highest : x);
}

// panel[r][c][k] = a[row0 + r][col0 + c][k] of one image, zero outside it.
template <class T>
void fill_panel(float* panel, int64_t rows, int64_t cols, const T* image, int64_t H, int64_t W,
                int64_t pixel, int64_t channels, int64_t row0, int64_t col0) {
  const int64_t first = clamp(-col0, 0, cols);
  const int64_t last = clamp(W - col0, first, cols);
  for (int64_t r = 0; r < rows; ++r, panel += cols * channels) {
    const int64_t row = row0 + r;
    if (row < 0 || row >= H) {
      __builtin_memset(panel, 0, sizeof(float) * static_cast<size_t>(cols * channels));
      continue;
    }
    __builtin_memset(panel, 0, sizeof(float) * static_cast<size_t>(first * channels));
    __builtin_memset(panel + last * channels, 0,
                     sizeof(float) * static_cast<size_t>((cols - last) * channels));
    const T* from = image + (row * W + col0 + first) * pixel;
    float* to = panel + first * channels;
    if (pixel == channels) {
      vector_loop(0, (last - first) * channels,
                  [&](int64_t i, int n) { store_any(to + i, load_any(from + i, n), n); });
    } else {
      for (int64_t c = first; c < last; ++c, from += pixel, to += channels)
        vector_loop(0, channels,
                    [&](int64_t i, int n) { store_any(to + i, load_any(from + i, n), n); });
    }
  }
}

// One finished tile: y = relu(tile + bias + residual), row by row.
template <class T>
FASTNN_INLINE void store_tile(const float* tile, int width, int m, const int64_t* where,
                              int64_t channel, int64_t count, const ConvEpilogue& e, T* y) {
  for (int r = 0; r < m; ++r) {
    const int64_t at = where[r] + channel;
    for (int v = 0; v * LANES < count; ++v) {
      const int n = count - v * LANES < LANES ? static_cast<int>(count - v * LANES) : LANES;
      vfloat value = load(tile + r * width + v * LANES);
      if (e.bias) value += load_any(e.bias + channel + v * LANES, n);
      if (e.residual) value += load_any(static_cast<const T*>(e.residual) + at + v * LANES, n);
      if (e.relu) value = select(value < 0, vfloat{}, value);
      store_any(y + at + v * LANES, value, n);
    }
  }
}

template <class T>
void run_grid(TapGrid g) {
  if (g.N * g.GH * g.GW * g.columns == 0) return;
  const int64_t low_h = low(g.dh, g.tap_count), high_h = high(g.dh, g.tap_count);
  const int64_t low_w = low(g.dw, g.tap_count), high_w = high(g.dw, g.tap_count);
  const bool pointwise = g.tap_count == 1 && g.dh[0] == 0 && g.dw[0] == 0 && g.step_h == 1 &&
                         g.step_w == 1 && g.GH == g.H && g.GW == g.W && g.y_row_step == 1 &&
                         g.y_col_step == 1 && g.YH == g.GH && g.YW == g.GW;
  if (pointwise) {  // pixels are rows of one long matrix
    g.H = g.GH = g.YH = g.N * g.H * g.W;
    g.W = g.GW = g.YW = g.N = 1;
  }
  const bool inside = low_h >= 0 && low_w >= 0 && (g.GH - 1) * g.step_h + high_h < g.H &&
                      (g.GW - 1) * g.step_w + high_w < g.W;
  const bool direct = inside && sizeof(T) == sizeof(float);
  const int64_t cols = direct ? g.W : (g.GW - 1) * g.step_w + high_w - low_w + 1;
  const int64_t pixel = direct ? g.a_pixel : g.K;

  // Taps as offsets in the panel; runs of neighbouring pixels become one longer tap.
  int64_t taps[kMaxTaps];
  int64_t tap_count = 0, merged = 1;
  for (int t = 0; t < g.tap_count; ++t)
    taps[t] = direct ? (g.dh[t] * cols + g.dw[t]) * pixel
                     : ((g.dh[t] - low_h) * cols + g.dw[t] - low_w) * pixel;
  if (pixel == g.K) {
    for (int64_t run = g.tap_count; run > 1; --run) {
      bool fits = g.tap_count % run == 0;
      for (int64_t t = 0; fits && t < g.tap_count; ++t)
        fits = t % run == 0 || taps[t] == taps[t - 1] + g.K;
      if (fits) {
        merged = run;
        break;
      }
    }
  }
  for (int64_t t = 0; t < g.tap_count; t += merged) taps[tap_count++] = taps[t];
  const int64_t k = g.K * merged;

  // Geometry of tasks. A strip has rows enough for a few tiles but fits L2 as a panel; images
  // smaller than a few tiles are taken several at a time.
  const int64_t row_bytes = cols * g.step_h * g.K * 4;
  int64_t strip = clamp(kPanelBytes / (row_bytes > 0 ? row_bytes : 1), 1, g.GH);
  const int64_t enough = (32 * MR + g.GW - 1) / g.GW;
  strip = clamp(strip, 1, enough > 1 ? enough : 1);
  const int64_t strips = (g.GH + strip - 1) / strip;
  const int64_t image_bytes = ((g.GH - 1) * g.step_h + high_h - low_h + 1) * cols * g.K * 4;
  int64_t images = strips > 1 ? 1 : clamp(16 * MR / (g.GH * g.GW), 1, g.N);
  if (!direct) images = clamp(images, 1, clamp(kPanelBytes / (image_bytes + 1), 1, g.N));
  const int64_t groups = (g.N + images - 1) / images;
  const int64_t blocks = block_count(g.columns);
  int64_t parts = 1;  // column ranges, where there are few strips
  while (groups * strips * parts < 16 && parts * 2 <= blocks) parts *= 2;
  const T* const a = static_cast<const T*>(g.a) + g.a_channel;
  T* const y = static_cast<T*>(g.y);

  parallel_for_dynamic(groups * strips * parts, [&](int64_t task) {
    const int64_t part = task % parts, place = task / parts;
    const int64_t first_row = place % strips * strip;
    const int64_t rows = clamp(g.GH - first_row, 0, strip);
    const int64_t first_image = place / strips * images;
    const int64_t count = clamp(g.N - first_image, 0, images);
    const int64_t panel_rows = (rows - 1) * g.step_h + high_h - low_h + 1;
    const int64_t image_size = direct ? g.H * g.W * g.a_pixel : panel_rows * cols * g.K;
    const float* panel;
    if (direct) {
      panel = reinterpret_cast<const float*>(a) + first_image * image_size +
              first_row * g.step_h * cols * pixel;
    } else {
      float* own = static_cast<float*>(thread_scratch(count * image_size * 4, 0));
      for (int64_t i = 0; i < count; ++i)
        fill_panel(own + i * image_size, panel_rows, cols,
                   a + (first_image + i) * g.H * g.W * g.a_pixel, g.H, g.W, g.a_pixel, g.K,
                   first_row * g.step_h + low_h, low_w);
      panel = own;
    }
    const int64_t pixels = count * rows * g.GW;
    const int block_m = even_block(pixels);
    alignas(64) float tile[MR * NR];
    const float* at[MR];
    int64_t where[MR];
    for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block) {
      const int vectors = block_vectors(g.columns, block);
      const float* b = g.b + block * NR * g.K * g.tap_count;
      const int64_t left = g.columns - block * NR;
      int64_t image = 0, i = 0, j = 0;  // of the next pixel
      for (int64_t p = 0; p < pixels; p += block_m) {
        const int m = static_cast<int>(clamp(pixels - p, 1, block_m));
        for (int r = 0; r < m; ++r) {
          at[r] = panel + image * image_size + (i * g.step_h * cols + j * g.step_w) * pixel;
          where[r] =
              (((first_image + image) * g.YH + g.y_row0 + (first_row + i) * g.y_row_step) * g.YW +
               g.y_col0 + j * g.y_col_step) *
              g.y_pixel;
          if (++j == g.GW) {
            j = 0;
            if (++i == rows) {
              i = 0;
              ++image;
            }
          }
        }
        product_kernels[m - 1][vectors - 1](at, taps, tap_count, k, b, tile);
        store_tile(tile, vectors * LANES, m, where, g.y_channel + block * NR, left < NR ? left : NR,
                   g.epilogue, y);
      }
    }
  });
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
