// The input side of a convolution: which tiles of output pixels are worked on at a time, and where
// the input under a tile is read from. Forward, backward-data and backward-weight share it.
//
// Pixel (i, j) of an output grid reads, through tap t, the K channels of input pixel
//   (i * step_h + dh[t], j * step_w + dw[t]), zeros outside the image.
// A tile (some images, or rows of one, or columns of one row) finds them in one of three places:
//   direct    the tensor itself: no tap leaves the image, and it is float32 already
//   padded    the rectangle of input under the tile, zero padded, float32, copied to a panel, or to
//             planes of some channels each, where the pixels under a tap follow each other
//   gathered  the taps of each pixel, copied one behind the other: for steps and dilations that
//             would leave most of a padded rectangle unused
// so that a kernel sees base + image * image_stride + row * row_stride + col * col_stride +
// taps[t].
//
// Panels hold P = float, or bfloat16 for AMX tiles, which have two wishes more: the values under a
// tap fall into equal even steps of at most 32 (otherwise the taps are gathered and padded with
// zeros), and 16 pixels at a constant distance. On maps too small for 16 pixels in a row, the same
// pixel of 16 images is what lies side by side in the panel (`across`).
#pragma once

#include "cpu/simd/steps.h"
#include "ops/conv.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int kMaxTaps = 1024;

FASTNN_INLINE int64_t clamp(int64_t x, int64_t lowest, int64_t highest) {
  return x < lowest ? lowest : (x > highest ? highest : x);
}

// body(first group, last group) for all groups, up to `most` at a time: of many groups, each range
// is a task, and its loops run on one thread.
template <class Body>
FASTNN_INLINE void each_range_of_groups(const ConvParams& p, int64_t most, const Body& body) {
  const int64_t tasks = 2 * get_num_threads();
  const bool many = p.groups >= tasks;
  const int64_t together = clamp(most, 1, many ? (p.groups + tasks - 1) / tasks : p.groups);
  const int64_t ranges = (p.groups + together - 1) / together;
  const auto range = [&](int64_t i) { body(i * together, clamp(p.groups, 0, (i + 1) * together)); };
  if (many)
    parallel_for_dynamic(ranges, range);
  else
    for (int64_t i = 0; i < ranges; ++i) range(i);
}
template <class Body>
FASTNN_INLINE void each_group(const ConvParams& p, const Body& body) {
  each_range_of_groups(p, 1, [&](int64_t group, int64_t) { body(group); });
}

struct InputGrid {
  const void* a;  // input images, NHWC
  int64_t N, H, W;
  int64_t a_pixel, a_channel, K;   // elements per pixel, first channel used, channels used
  int64_t GH, GW, step_h, step_w;  // the grid and its step through the input
  int tap_count;
  const int64_t* dh;
  const int64_t* dw;
  int64_t missing = 0;  // 1 if the last of the K channels is not in the tensor: zero in a panel
  // 1 if the channels do not fall into pairs: those of neighbouring taps are read as one run then,
  // always whole, whose last two pairs overlap if its length is odd too.
  int64_t odd = 0;

  // Products of one vector of columns add terms in two turns (matmul.cpp), beginning anew with
  // every tap: gathered taps are merged no further than padded ones then, since threads settle
  // which of the two a tile is, and the sums are not to depend on their number.
  bool same_sums = false;

  // The first channel of a group, if a_channel is that of the first.
  int64_t channel_of(int64_t group) const { return a_channel + group * (K - missing); }
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

// The grid points of one tile, and the first input channel that they use.
struct Tile {
  int64_t image, images, row, rows, col, cols, channel;
};

enum class Source { direct, padded, gathered };

struct InputTiles {
  InputGrid in;
  Source source;
  int64_t images, rows, cols;            // grid points of a full tile
  int64_t groups, strips, segments;      // number of tiles along images, rows, columns
  int64_t panel_rows, panel_cols;        // input pixels under a full tile
  int64_t low_h, low_w, high_h, high_w;  // smallest and largest tap offsets
  int64_t pitch;  // values from one row of a padded panel to the next (of a phase, see below)
  int64_t image_stride, row_stride, col_stride;
  int64_t panel_size;  // values of one tile's panel; 0 if direct
  int64_t run;         // this many taps at a time are neighbouring pixels
  bool across;         // images side by side, pixel by pixel (padded panels only)
  int64_t width;       // channels of a pixel that lie together: all K, or a panel's planes of fewer
  int64_t plane;       // values from one plane to the next
  // A plane's pixels that leave the same remainders of the steps lie together, as a tap meets them.
  int64_t phases_h, phases_w, phase;  // values from one of these grids to the next
  int64_t k, tap_count;               // contiguous values of one tap, and taps, after merging
  int64_t packed_k() const { return k + (in.odd && k % 2); }
  int64_t taps[kMaxTaps];

  // Values between neighbouring pixels of a padded panel's plane.
  int64_t panel_pixel() const { return across ? images * width : width; }
  int64_t panel_row(int64_t r) const {
    return phases_h == 1 ? r * pitch : r % phases_h * phases_w * phase + r / phases_h * pitch;
  }
  int64_t panel_column(int64_t c) const {
    return phases_w == 1 ? c * panel_pixel() : c % phases_w * phase + c / phases_w * panel_pixel();
  }
  int64_t count() const { return groups * strips * segments; }
  Tile tile(int64_t index, int64_t group = 0) const {
    const int64_t col = index % segments * cols, row = index / segments % strips * rows;
    const int64_t image = index / segments / strips * images;
    return {image,
            clamp(in.N - image, 0, images),
            row,
            clamp(in.GH - row, 0, rows),
            col,
            clamp(in.GW - col, 0, cols),
            in.channel_of(group)};
  }
};

// Equal even steps of at most 32 that k values fall into, the fewest; 0 if that takes too many.
inline int64_t even_steps(int64_t k) {
  const int64_t least = ceil_div(k, 32);
  for (int64_t steps = least; steps <= least * 4 / 3; ++steps)
    if (k % (2 * steps) == 0) return steps;
  return 0;
}
// k padded so that even_steps(k) is not 0.
inline int64_t padded_to_steps(int64_t k) {
  const int64_t steps = ceil_div(k, 32);
  return steps * 2 * ceil_div(k, 2 * steps);
}

// Values of the padded rectangle under a full tile, and of its gathered taps. (Of strides of 2^30,
// the former may not fit an integer.)
FASTNN_INLINE int64_t padded_size(const InputTiles& t, int64_t span_h, int64_t span_w) {
  const auto rows = static_cast<double>((t.rows - 1) * t.in.step_h + span_h);
  const auto cols = static_cast<double>((t.cols - 1) * t.in.step_w + span_w);
  const double size = rows * cols * static_cast<double>(t.images * t.in.K);
  return size < 1e18 ? static_cast<int64_t>(size) : INT64_MAX;
}
FASTNN_INLINE int64_t gathered_size(const InputTiles& t) {
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

// Taps of a kernel row: taps are those of some kernel rows by some columns.
inline int64_t kernel_row(const InputGrid& in) {
  int64_t taps = 1;
  while (taps < in.tap_count && in.dh[taps] == in.dh[0]) ++taps;
  return taps;
}

// Settles tiles of about `pixels` grid points whose panels have at most about `size` values of type
// P. `direct` allows reading the tensor itself, `stepped` asks for the wishes of AMX tiles, and a
// `width` below K for panels cut into planes of that many channels (gathered ones tap by tap).
template <class T, class P = float>
void plan_input(InputTiles& t, int64_t pixels, int64_t size, bool direct = true,
                bool stepped = false, int64_t width = 0) {
  const InputGrid& in = t.in;
  t.width = in.K;
  t.phases_h = t.phases_w = 1;
  t.low_h = t.high_h = in.dh[0], t.low_w = t.high_w = in.dw[0];
  for (int i = 1; i < in.tap_count; ++i) {
    if (in.dh[i] < t.low_h) t.low_h = in.dh[i];
    if (in.dw[i] < t.low_w) t.low_w = in.dw[i];
    if (in.dh[i] > t.high_h) t.high_h = in.dh[i];
    if (in.dw[i] > t.high_w) t.high_w = in.dw[i];
  }
  const int64_t span_h = t.high_h - t.low_h + 1, span_w = t.high_w - t.low_w + 1;
  const bool inside = t.low_h >= 0 && t.low_w >= 0 && (in.GH - 1) * in.step_h + t.high_h < in.H &&
                      (in.GW - 1) * in.step_w + t.high_w < in.W;
  t.run = common_run(in);
  const bool as_it_is = inside && kSame<T, P> && direct && in.missing == 0 &&
                        (!in.odd || t.run == 1 || in.a_pixel == in.K);
  const bool whole = !stepped || even_steps(in.K * (in.a_pixel == in.K || !as_it_is ? t.run : 1));
  t.source = as_it_is && whole ? Source::direct : Source::padded;
  set_tile(t, pixels);
  t.across = stepped && t.source == Source::padded && in.N >= 8 &&
             ceil_div(in.GW, ceil_div(in.GW, 16)) < 12;
  if (t.across) {
    t.images = in.N < 16 ? in.N : 16;
    t.cols = in.GW;
    t.rows = clamp(ceil_div(pixels, t.images * in.GW), 1, in.GH);
    while (padded_size(t, span_h, span_w) > size && t.rows > 1) t.rows = ceil_div(t.rows, 2);
    t.across = even_steps(in.K) && padded_size(t, span_h, span_w) <= size;
    if (!t.across) set_tile(t, pixels);
  }
  if (t.source != Source::direct && !t.across) {
    while (padded_size(t, span_h, span_w) > size && halve_tile(t)) {
    }
    if (!whole || gathered_size(t) < padded_size(t, span_h, span_w)) {
      t.source = Source::gathered;
      set_tile(t, pixels);
      while (gathered_size(t) > size && halve_tile(t)) {
      }
    }
  }
  t.strips = ceil_div(in.GH, t.rows);
  t.rows = ceil_div(in.GH, t.strips);  // of nearly equal size
  t.segments = ceil_div(in.GW, t.cols);
  t.groups = ceil_div(in.N, t.images);
  t.images = ceil_div(in.N, t.groups);
  t.panel_rows = (t.rows - 1) * in.step_h + span_h;
  t.panel_cols = (t.cols - 1) * in.step_w + span_w;
  if (t.source == Source::gathered && width) {
    t.width = width;
    t.k = in.K;
    t.tap_count = in.tap_count;
    t.col_stride = width;
    t.row_stride = t.cols * width;
    t.image_stride = t.rows * t.row_stride;
    t.plane = t.images * t.image_stride + 64 / sizeof(P);
    for (int64_t i = 0; i < t.tap_count; ++i) t.taps[i] = i * (in.K / width) * t.plane;
    t.panel_size = t.tap_count * (in.K / width) * t.plane;
    return;
  }
  if (t.source == Source::gathered) {
    // Kernel rows are a tap each where parts of them are left out (conv_inside.h).
    const bool alike = in.same_sums && t.run * in.K % (2 * kStep<P>) != 0;
    const int64_t together = in.odd || alike          ? t.run
                             : t.run == 1 && !stepped ? kernel_row(in)
                                                      : in.tap_count;
    t.k = stepped ? padded_to_steps(in.K * in.tap_count) : in.K * together;
    t.tap_count = in.tap_count / together;
    for (int64_t i = 0; i < t.tap_count; ++i) t.taps[i] = i * t.k;
    t.col_stride = t.tap_count * t.k;
    t.row_stride = t.cols * t.col_stride;
    t.image_stride = t.rows * t.row_stride;
    t.panel_size = t.images * t.image_stride;
    return;
  }
  const bool as_is = t.source == Source::direct;
  if (width && !as_is) {
    t.width = width;
    // Every other line of a cache would be half of its sets.
    if (t.rows > 1) t.phases_h = in.step_h;
    if (t.cols > 1) t.phases_w = in.step_w;
  }
  const int64_t rows = ceil_div(t.panel_rows, t.phases_h);
  const int64_t cols = ceil_div(t.panel_cols, t.phases_w);
  const int64_t pixel = as_is ? in.a_pixel : t.panel_pixel();
  t.pitch = (as_is ? in.W : cols) * pixel;
  // Of the same column, pixels of several rows are multiplied at a time (conv_inside.h).
  if (!as_is && !stepped && is_far(t.pitch * int64_t{sizeof(P)})) t.pitch += 64 / sizeof(P);
  t.col_stride = (t.phases_w == 1 ? in.step_w : 1) * pixel;
  t.row_stride = (t.phases_h == 1 ? in.step_h : 1) * t.pitch;
  t.image_stride = t.across ? t.width : (as_is ? in.H : rows) * t.pitch;
  t.phase = rows * t.pitch * (t.across ? 1 : t.images);
  if (t.width < in.K) t.phase += 64 / sizeof(P);  // not a power of two apart
  t.plane = t.phases_h * t.phases_w * t.phase;
  t.panel_size = as_is ? 0 : t.plane * (in.K / t.width);
  for (int i = 0; i < in.tap_count; ++i)
    t.taps[i] = as_is ? in.dh[i] * t.pitch + in.dw[i] * pixel
                      : t.panel_row(in.dh[i] - t.low_h) + t.panel_column(in.dw[i] - t.low_w);
  const int64_t merged = pixel == in.K && t.width == in.K ? t.run : 1;
  t.tap_count = 0;
  for (int64_t i = 0; i < in.tap_count; i += merged) t.taps[t.tap_count++] = t.taps[i];
  t.k = in.K * merged;
}

// Where a full image is its own panel.
template <class P>
const P* direct_base(const InputTiles& t, const Tile& tile) {
  const P* a = static_cast<const P*>(t.in.a) + tile.channel;
  return a + tile.image * t.image_stride + tile.row * t.row_stride + tile.col * t.col_stride;
}

template <class T, class P>
FASTNN_INLINE void copy_values(P* to, const T* from, int64_t n) {
  // A call of memcpy costs as much as copying a cache line by vectors.
#if defined(FASTNN_ISA_avx512_bf16)
  if (kSame<T, bfloat16> && kSame<P, bfloat16> && n <= 32) {
    const auto mask = static_cast<__mmask32>((int64_t{1} << n) - 1);
    return _mm512_mask_storeu_epi16(to, mask, _mm512_maskz_loadu_epi16(mask, from));
  }
#endif
  if (kSame<T, P> && (n > 64 || sizeof(P) < 4))
    __builtin_memcpy(to, from, sizeof(P) * static_cast<size_t>(n));
  else
    vector_loop(0, n,
                [&](int64_t i, int lanes) { store_any(to + i, load_any(from + i, lanes), lanes); });
}
template <class P>
FASTNN_INLINE void zero_values(P* to, int64_t n) {
#if defined(FASTNN_ISA_avx512_bf16)
  if (kSame<P, bfloat16> && n <= 32) {
    const auto mask = static_cast<__mmask32>((int64_t{1} << n) - 1);
    return _mm512_mask_storeu_epi16(to, mask, _mm512_setzero_si512());
  }
#endif
  __builtin_memset(static_cast<void*>(to), 0, sizeof(P) * static_cast<size_t>(n));
}

#if defined(FASTNN_ISA_avx512_bf16)
// Pixels of three values become pixels of four, eight at a time.
FASTNN_INLINE void widen_pixels(bfloat16* to, const bfloat16* from, int64_t pixels) {
  alignas(64) static constexpr uint16_t kFrom[32] = {0,  1, 2,  0,  3,  4,  5,  0,  6,  7,  8,
                                                     0,  9, 10, 11, 0,  12, 13, 14, 0,  15, 16,
                                                     17, 0, 18, 19, 20, 0,  21, 22, 23, 0};
  const __m512i order = _mm512_load_si512(kFrom);
  for (; pixels > 0; pixels -= 8, from += 24, to += 32) {
    const int64_t n = pixels < 8 ? pixels : 8;
    const __m512i values =
        _mm512_maskz_loadu_epi16(static_cast<__mmask32>((int64_t{1} << 3 * n) - 1), from);
    _mm512_mask_storeu_epi16(to, static_cast<__mmask32>((int64_t{1} << 4 * n) - 1),
                             _mm512_maskz_permutexvar_epi16(0x77777777, order, values));
  }
}
#endif

// One row of a padded panel: panel_cols pixels from (row, col) on, zero outside the image. Planes
// are written side by side, so that the input is read as it lies.
template <class T, class P>
void padded_line(const InputTiles& t, int64_t image, int64_t row, int64_t col, int64_t channel,
                 P* to) {
  const InputGrid& in = t.in;
  const int64_t pixel = t.panel_pixel(), planes = in.K / t.width;
  const bool inside = row >= 0 && row < in.H;
  const int64_t first = inside ? clamp(-col, 0, t.panel_cols) : t.panel_cols;
  const int64_t last = clamp(in.W - col, first, t.panel_cols);
  const auto zeros = [&](int64_t from, int64_t end) {
    for (int64_t i = 0; i < planes; ++i)
      if (t.across || t.phases_w > 1)
        for (int64_t c = from; c < end; ++c)
          zero_values(to + i * t.plane + t.panel_column(c), t.width);
      else
        zero_values(to + i * t.plane + from * pixel, (end - from) * pixel);
  };
  zeros(0, first);
  zeros(last, t.panel_cols);
  const T* from = static_cast<const T*>(in.a) + channel +
                  ((image * in.H + row) * in.W + col + first) * in.a_pixel;
  if (in.a_pixel == t.width && !t.across && !in.missing)
    return copy_values(to + first * pixel, from, (last - first) * in.K);
#if defined(FASTNN_ISA_avx512_bf16)
  if constexpr (kSame<T, bfloat16> && kSame<P, bfloat16>)
    if (pixel == 4 && in.missing && in.a_pixel == 3)
      return widen_pixels(to + first * pixel, from, last - first);
#endif
  for (int64_t c = first; c < last; ++c, from += in.a_pixel) {
    P* const at = to + t.panel_column(c);
    for (int64_t i = 0; i + 1 < planes; ++i)
      copy_values(at + i * t.plane, from + i * t.width, t.width);
    P* end = at + (planes - 1) * t.plane;
    copy_values(end, from + (planes - 1) * t.width, t.width - in.missing);
    if (in.missing) end[t.width - 1] = P{};
  }
}

// One grid row of a gathered panel in planes.
template <class T, class P>
void gathered_planes(const InputTiles& t, int64_t image, int64_t row, int64_t col, int64_t cols,
                     int64_t channel, P* to) {
  const InputGrid& in = t.in;
  const T* a = static_cast<const T*>(in.a) + channel + image * in.H * in.W * in.a_pixel;
  for (int64_t j = col; j < col + cols; ++j, to += t.width)
    for (int64_t i = 0; i < in.tap_count; ++i) {
      const int64_t h = row * in.step_h + in.dh[i], w = j * in.step_w + in.dw[i];
      const bool inside = h >= 0 && h < in.H && w >= 0 && w < in.W;
      const T* const from = a + (h * in.W + w) * in.a_pixel;
      P* plane = to + t.taps[i];
      for (int64_t c = 0; c < in.K; c += t.width, plane += t.plane)
        if (inside)
          copy_values(plane, from + c, t.width);
        else
          zero_values(plane, t.width);
    }
}

// One grid row of a gathered panel. Neighbouring taps are copied together.
template <class T, class P>
void gathered_line(const InputTiles& t, int64_t image, int64_t row, int64_t col, int64_t cols,
                   int64_t channel, P* to) {
  const InputGrid& in = t.in;
  const T* a = static_cast<const T*>(in.a) + channel + image * in.H * in.W * in.a_pixel;
  const bool joined = in.a_pixel == in.K && !in.missing;
  const int64_t padding = t.col_stride - in.K * in.tap_count;
  for (int64_t j = col; j < col + cols; ++j) {
    for (int64_t i = 0, run; i < in.tap_count; i += run, to += run * in.K) {
      const int64_t h = row * in.step_h + in.dh[i], w = j * in.step_w + in.dw[i];
      const bool inside = h >= 0 && h < in.H && w >= 0 && w < in.W;
      run = inside && joined && i % t.run == 0 && w + t.run <= in.W ? t.run : 1;
      if (inside) {
        copy_values(to, a + (h * in.W + w) * in.a_pixel, run * in.K - in.missing);
        if (in.missing) to[run * in.K - 1] = P{};
      } else {
        zero_values(to, in.K);
      }
    }
    zero_values(to, padding);
    to += padding;
  }
}

// A panel is filled line by line, in any order and by any thread.
FASTNN_INLINE int64_t panel_lines(const InputTiles& t) {
  return t.source == Source::direct   ? 0
         : t.source == Source::padded ? t.images * t.panel_rows
                                      : t.images * t.rows;
}
template <class T, class P>
void fill_line(const InputTiles& t, const Tile& tile, int64_t line, P* panel) {
  const bool padded = t.source == Source::padded;
  const int64_t lines = padded ? t.panel_rows : t.rows;
  const int64_t image = line / lines, row = line % lines;
  if (image >= tile.images) return;
  if (padded) {
    if (row < t.panel_rows - (t.rows - tile.rows) * t.in.step_h)
      padded_line<T>(t, tile.image + image, tile.row * t.in.step_h + t.low_h + row,
                     tile.col * t.in.step_w + t.low_w, tile.channel,
                     panel + image * t.image_stride + t.panel_row(row));
  } else if (row < tile.rows) {
    const auto line_of = t.width < t.in.K ? gathered_planes<T, P> : gathered_line<T, P>;
    line_of(t, tile.image + image, tile.row + row, tile.col, tile.cols, tile.channel,
            panel + image * t.image_stride + row * t.row_stride);
  }
}

// What a kernel reads a tile's input from: the tensor, or this thread's panel, filled unless it is
// still there from the thread's last task. `call` tells this operator call's panels from others',
// and `index` this tile's.
template <class T, class P>
const P* tile_input(const InputTiles& t, const Tile& tile, int64_t index, int64_t call) {
  if (t.source == Source::direct) return direct_base<P>(t, tile);
  struct alignas(64) Head {
    int64_t call, index;
  };
  auto* head = static_cast<Head*>(
      thread_scratch(static_cast<int64_t>(sizeof(Head) + sizeof(P) * t.panel_size), 0));
  P* panel = reinterpret_cast<P*>(head + 1);
  if (head->call == call && head->index == index) return panel;
  for (int64_t line = 0; line < panel_lines(t); ++line) fill_line<T>(t, tile, line, panel);
  head->call = call;
  head->index = index;
  return panel;
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
