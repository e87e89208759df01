// The one-dimensional transforms of Winograd's minimal filtering F(R, 3): R outputs of a filter of
// 3 taps from R + 2 inputs by R + 2 multiplications instead of 3 R,
//   y = A^T [(G g) * (B^T d)],
// and in two dimensions along both: (R + 2)^2 multiplications for R^2 outputs instead of 9 R^2.
//
// F(4, 3) interpolates at 0, +-a, +-b, infinity with a = 5/8, b = 3/2: every constant is exact in
// float32, and the error is less than half that of the common points +-1, +-2 (docs/winograd.md).
// F(2, 3) interpolates at 0, +-1, infinity. Each transform shares its even and odd halves.
// Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016.
#pragma once

#include "cpu/simd/vec.h"
#include "ops/conv.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr float kA = 0.625f, kB = 1.5f;
constexpr float kA2 = kA * kA, kB2 = kB * kB;

// v = B^T d.
template <int R>
FASTNN_INLINE void transform_input(const vfloat* d, vfloat* v) {
  if constexpr (R == 4) {
    const vfloat even_a = d[4] - kB2 * d[2], odd_a = kA * (d[3] - kB2 * d[1]);
    const vfloat even_b = d[4] - kA2 * d[2], odd_b = kB * (d[3] - kA2 * d[1]);
    v[0] = kA2 * kB2 * d[0] - (kA2 + kB2) * d[2] + d[4];
    v[1] = even_a + odd_a;
    v[2] = even_a - odd_a;
    v[3] = even_b + odd_b;
    v[4] = even_b - odd_b;
    v[5] = kA2 * kB2 * d[1] - (kA2 + kB2) * d[3] + d[5];
  } else {
    v[0] = d[0] - d[2];
    v[1] = d[2] + d[1];
    v[2] = d[2] - d[1];
    v[3] = d[3] - d[1];
  }
}

// u = G g.
template <int R>
FASTNN_INLINE void transform_weight(const vfloat* g, vfloat* u) {
  if constexpr (R == 4) {
    constexpr float scale_a = 1 / (2 * kA2 * (kA2 - kB2)), scale_b = 1 / (2 * kB2 * (kB2 - kA2));
    const vfloat even_a = scale_a * (g[0] + kA2 * g[2]), odd_a = scale_a * kA * g[1];
    const vfloat even_b = scale_b * (g[0] + kB2 * g[2]), odd_b = scale_b * kB * g[1];
    u[0] = 1 / (kA2 * kB2) * g[0];
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = g[2];
  } else {
    const vfloat even = 0.5f * (g[0] + g[2]), odd = 0.5f * g[1];
    u[0] = g[0];
    u[1] = even + odd;
    u[2] = even - odd;
    u[3] = g[2];
  }
}

// y = A^T m.
template <int R>
FASTNN_INLINE void transform_output(const vfloat* m, vfloat* y) {
  if constexpr (R == 4) {
    const vfloat even_a = m[1] + m[2], odd_a = m[1] - m[2];
    const vfloat even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + even_a + even_b;
    y[1] = kA * odd_a + kB * odd_b;
    y[2] = kA2 * even_a + kB2 * even_b;
    y[3] = kA2 * kA * odd_a + kB2 * kB * odd_b + m[5];
  } else {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] + m[3];
  }
}

// The transposes of the last two, for the gradient with respect to the filter of F(4, 3):
// w = A y and g = G^T u.
FASTNN_INLINE void transform_gradient(const vfloat* y, vfloat* w) {
  const vfloat even_a = y[0] + kA2 * y[2], odd_a = kA * (y[1] + kA2 * y[3]);
  const vfloat even_b = y[0] + kB2 * y[2], odd_b = kB * (y[1] + kB2 * y[3]);
  w[0] = y[0];
  w[1] = even_a + odd_a;
  w[2] = even_a - odd_a;
  w[3] = even_b + odd_b;
  w[4] = even_b - odd_b;
  w[5] = y[3];
}
FASTNN_INLINE void transform_sums(const vfloat* u, vfloat* g) {
  constexpr float scale_a = 1 / (2 * kA2 * (kA2 - kB2)), scale_b = 1 / (2 * kB2 * (kB2 - kA2));
  const vfloat even_a = scale_a * (u[1] + u[2]), odd_a = scale_a * kA * (u[1] - u[2]);
  const vfloat even_b = scale_b * (u[3] + u[4]), odd_b = scale_b * kB * (u[3] - u[4]);
  g[0] = 1 / (kA2 * kB2) * u[0] + even_a + even_b;
  g[1] = odd_a + odd_b;
  g[2] = kA2 * even_a + kB2 * even_b + u[5];
}

// Floats of one of the planes of V or M: an odd number of half lines, so that planes do not lie a
// power of two apart.
constexpr int64_t padded_plane(int64_t floats) { return (floats + 31) / 32 * 32 + 16; }

// The pixels under a tile, Side of them high and wide: those from row `top` to `bottom` and from
// column `left` to `right`, ends excluded, lie in the image, the others are zero.
template <int Side, class T>
struct TilePixels {
  const T* corner;
  int64_t row, pixel;  // values from one row, and from one pixel, to the next
  int64_t top, bottom, left, right;

  // Of an image of H x W pixels, from (row, col) on, which may lie outside it, `down` rows and
  // `across` columns apart.
  TilePixels(const T* image, int64_t H, int64_t W, int64_t values, int64_t first_row,
             int64_t first_col, int64_t down, int64_t across)
      : corner(image + (first_row * W + first_col) * values),
        row(down * W * values),
        pixel(across * values),
        top(first_row < 0 ? ceil_div(-first_row, down) : 0),
        bottom(TileAxis{H, down, Side}.points(first_row)),
        left(first_col < 0 ? ceil_div(-first_col, across) : 0),
        right(TileAxis{W, across, Side}.points(first_col)) {}
  bool whole() const { return top + left == 0 && bottom == Side && right == Side; }
};

// A transform along both directions, of `count` channels of a tile: value k of point (i, j) goes to
// to[(i * Out + j) * plane + k]; whole vectors, if `padded`. The pixels of the next tile, four
// columns on, are brought meanwhile.
template <bool Whole, int Out, int In, class T, class Transform>
FASTNN_INLINE void transform_pixels(const TilePixels<In, T>& from, int64_t count, float* to,
                                    int64_t plane, bool padded, const Transform& transform) {
  vector_loop(0, count, [&](int64_t k, int n) FASTNN_INLINED {
    vfloat half[Out][In], d[In], out[Out];
#pragma GCC unroll 6
    for (int j = 0; j < In; ++j) {
      const T* at = from.corner + j * from.pixel + k;
#pragma GCC unroll 6
      for (int i = 0; i < In; ++i, at += from.row) {
        if (j >= In - 4) __builtin_prefetch(at + 4 * from.pixel);
        d[i] = Whole || (i >= from.top && i < from.bottom && j >= from.left && j < from.right)
                   ? load_any(at, n)
                   : vfloat{};
      }
      transform(d, out);
#pragma GCC unroll 6
      for (int i = 0; i < Out; ++i) half[i][j] = out[i];
    }
    float* point = to + k;
#pragma GCC unroll 6
    for (int i = 0; i < Out; ++i) {
      transform(half[i], out);
#pragma GCC unroll 6
      for (int j = 0; j < Out; ++j, point += plane) store_any(point, out[j], padded ? LANES : n);
    }
  });
}

template <int Out, int In, class T, class Transform>
FASTNN_INLINE void transform_both_ways(const TilePixels<In, T>& from, int64_t count, float* to,
                                       int64_t plane, bool padded, const Transform& transform) {
  if (from.whole())
    transform_pixels<true, Out>(from, count, to, plane, padded, transform);
  else
    transform_pixels<false, Out>(from, count, to, plane, padded, transform);
}

// V of a tile: `count` channels.
template <int R, class T>
void transform_tile(const TilePixels<R + 2, T>& from, int64_t count, float* v, int64_t plane) {
  transform_both_ways<R + 2>(from, count, v, plane, false,
                             [](const vfloat* d, vfloat* out)
                                 FASTNN_INLINED { transform_input<R>(d, out); });
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
