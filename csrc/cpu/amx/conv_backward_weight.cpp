// conv2d gradient with respect to the weight in bfloat16, on AMX tiles:
//   gw[oc][kh][kw][ic] = sum over n, oh, ow of g[n][oh][ow][oc] * x[n][oh*s - p + kh*d][..][ic].
//
// The reduction runs over pixels, so x is turned once into planes [channel][pixel], in which a tap
// is an offset (rows of A need no alignment), and g into pairs of pixels, shared by all taps. A
// step takes up to 32 pixels of one output row; on narrow maps the same pixel of several images
// lies side by side, so that a row fills its steps whatever its width.
//
//   task = partial sum x range of input channels x range of output channels
//     for each unit of pixels of the partial sum:
//       planes: one per residue (dh mod stride_h, dw mod stride_w) of the taps, zero padded,
//               [channel][row][column][image]
//       pairs:  [16 output channels][row][pair of (column, image)][16][2]
//       for each 32 output channels, for each two (16 channels, tap): 2 x 2 tiles over the unit
//
// The sums of a task, 16 x 16 tiles, stay in its core's L2 beside the panels. Where planes would
// waste more than they save (few input channels, taps further apart than the map is large), every
// tap is gathered into rows of its own: one plane [tap, channel][pixel] without borders.
// Units and ranges come from the shape alone; partial sums are added in order. Flops: those of the
// forward pass.
#include "core/allocator.h"
#include "cpu/amx/tiles.h"
#include "cpu/conv_stem_weight.h"
#include "cpu/conv_input.h"
#include "cpu/conv_weight.h"
#include "cpu/joined_groups.h"
#include "cpu/simd/transpose.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kPartialFloats = 1 << 20;  // of all partial sums together
constexpr int64_t kTaskFloats = 128 << 10;   // of one task's sums
constexpr int64_t kPanelBytes = 512 << 10;   // of one unit
constexpr int64_t kUnitPixels = 2048;
constexpr int64_t kRowPixels = 224;
constexpr int64_t kTasks = 8;
constexpr int64_t kFewPixels = 32;  // a step of the reduction: packing costs more than it saves

ConvSlots wide;  // the AVX-512 kernels

struct Plane {
  int64_t h0, w0;  // its pixel (i, j) is input pixel (i * step_h + h0, j * step_w + w0)
};

struct Plan {
  InputGrid in;
  int64_t oc, row;  // output channels, weight values of each
  bool gathered;
  int64_t values, taps;        // rows of a plane, and offsets into planes
  int64_t images, rows, cols;  // of a unit
  int64_t image_units, row_units, col_units;
  int64_t plane_rows, plane_cols, line;  // of a unit; values of one plane row
  int64_t steps, depth;                  // of one output row of a unit
  int planes;
  Plane plane[kMaxTaps];
  int plane_of[kMaxTaps];
  int64_t offset[kMaxTaps];
  int64_t groups, oc_pairs;  // of 16 plane rows, of 32 output channels
  int64_t value_parts, oc_parts, partials;

  int64_t units() const { return image_units * row_units * col_units; }
  Tile unit(int64_t index) const {
    const int64_t col = index % col_units * cols, r = index / col_units % row_units * rows;
    const int64_t image = index / col_units / row_units * images;
    return {image, clamp(in.N - image, 0, images), r,           clamp(in.GH - r, 0, rows),
            col,   clamp(in.GW - col, 0, cols),    in.a_channel};
  }
  // Bytes of the panels per pixel of the output, borders not counted.
  int64_t pixel_bytes() const {
    return 2 * (ceil_div(values, value_parts) * (gathered ? 1 : planes) + ceil_div(oc, oc_parts));
  }
  // Values of one group of 16 output channels; a cache line more, against powers of two.
  int64_t group_size() const { return rows * steps * depth * kTile + 32; }
  int64_t sum_floats() const {  // of all tasks of one partial sum
    return ceil_div(groups * taps, 2) * oc_pairs * 4 * kTileFloats;
  }
};

// Residues of the taps, and what offsets they leave; returns the span of the offsets in rows and
// columns of a plane.
inline void find_planes(Plan& a, int64_t& low_h, int64_t& low_w, int64_t& span_h, int64_t& span_w) {
  const InputGrid& in = a.in;
  const auto floor_div = [](int64_t x, int64_t by) {
    return x >= 0 ? x / by : -((-x + by - 1) / by);
  };
  low_h = low_w = INT64_MAX;
  int64_t high_h = INT64_MIN, high_w = INT64_MIN;
  a.planes = 0;
  for (int t = 0; t < in.tap_count; ++t) {
    const int64_t h = floor_div(in.dh[t], in.step_h), w = floor_div(in.dw[t], in.step_w);
    const Plane residue{in.dh[t] - h * in.step_h, in.dw[t] - w * in.step_w};
    int i = 0;
    while (i < a.planes && (a.plane[i].h0 != residue.h0 || a.plane[i].w0 != residue.w0)) ++i;
    if (i == a.planes) a.plane[a.planes++] = residue;
    a.plane_of[t] = i;
    low_h = h < low_h ? h : low_h, high_h = h > high_h ? h : high_h;
    low_w = w < low_w ? w : low_w, high_w = w > high_w ? w : high_w;
  }
  span_h = high_h - low_h + 1, span_w = high_w - low_w + 1;
}

inline void plan(const ConvParams& p, const bfloat16* x, int64_t group, const int64_t* dh,
                 const int64_t* dw, Plan& a) {
  const int64_t ic = p.group_inputs(), taps = p.KH * p.KW;
  a.in = {x,  p.N,  p.H,  p.W,        p.C,        group * ic,
          ic, p.OH, p.OW, p.stride_h, p.stride_w, static_cast<int>(taps),
          dh, dw};
  if (a.in.pointwise()) a.in.flatten();
  const InputGrid& in = a.in;
  a.oc = p.group_outputs(), a.row = taps * ic;
  int64_t low_h, low_w, span_h, span_w;
  find_planes(a, low_h, low_w, span_h, span_w);
  a.gathered = ceil_div(taps * ic, kTile) * 4 < taps * ceil_div(ic, kTile) * 3 ||
               (in.GH + span_h - 1) * (in.GW + span_w - 1) * a.planes > 2 * taps * in.GH * in.GW;
  if (a.gathered) a.planes = 1, span_h = span_w = 1;
  a.values = a.gathered ? taps * ic : ic;
  a.taps = a.gathered ? 1 : taps;
  a.groups = ceil_div(a.values, kTile);
  a.oc_pairs = ceil_div(a.oc, 2 * kTile);
  a.value_parts = a.oc_parts = 1;
  const auto split = [&] {
    const int64_t v = ceil_div(a.groups, 2 * a.value_parts), o = ceil_div(a.oc_pairs, a.oc_parts);
    if (v < 2 && o < 2) return false;
    (v >= o ? a.value_parts : a.oc_parts) *= 2;
    return true;
  };
  // Several taps use a panel longer: both may be larger.
  const int64_t many = taps > 1 ? 2 : 1;
  while (a.sum_floats() / (a.value_parts * a.oc_parts) > many * kTaskFloats && split()) {
  }
  // A unit: as many images as fill the steps of a row, then rows, then more images.
  const int64_t pixels = clamp(many * kPanelBytes / a.pixel_bytes(), 64, kUnitPixels);
  a.cols = ceil_div(in.GW, ceil_div(in.GW, pixels));
  a.images = clamp(ceil_div(56, a.cols), 1, in.N);
  // More where that fills the steps of a row better.
  const auto idle = [&](int64_t images) { return -(images * a.cols) & 31; };
  for (int64_t i = a.images + 1; i <= in.N && i * a.cols <= kRowPixels; ++i)
    if (idle(i) * a.images < idle(a.images) * i) a.images = i;
  a.rows = clamp(pixels / (a.cols * a.images), 1, in.GH);
  if (a.rows == in.GH && a.cols == in.GW)
    a.images = clamp(pixels / (a.rows * a.cols), a.images, in.N);
  a.row_units = ceil_div(in.GH, a.rows);
  a.rows = ceil_div(in.GH, a.row_units);
  a.image_units = ceil_div(in.N, a.images);
  a.images = ceil_div(in.N, a.image_units);
  a.col_units = ceil_div(in.GW, a.cols);
  a.plane_rows = a.rows + span_h - 1, a.plane_cols = a.cols + span_w - 1;
  const int64_t run = a.cols * a.images;
  a.steps = ceil_div(run, 32);
  a.depth = 2 * ceil_div(run, 2 * a.steps);
  // An odd number of cache lines: 16 rows at a power of two would share one set of L1.
  const int64_t read = a.plane_rows * a.plane_cols * a.images + a.steps * a.depth - run;
  a.line = (ceil_div(read, 32) | 1) * 32;
  for (int t = 0; t < a.taps; ++t)
    a.offset[t] = a.gathered
                      ? 0
                      : (((dh[t] - a.plane[a.plane_of[t]].h0) / in.step_h - low_h) * a.plane_cols +
                         (dw[t] - a.plane[a.plane_of[t]].w0) / in.step_w - low_w) *
                            a.images;
  for (int i = 0; i < a.planes; ++i) {
    a.plane[i].h0 += low_h * in.step_h;
    a.plane[i].w0 += low_w * in.step_w;
  }
  a.partials = 1;
  while (a.partials * 2 <= a.units() && a.partials * 2 * a.sum_floats() <= kPartialFloats &&
         a.partials * a.value_parts * a.oc_parts < kTasks)
    a.partials *= 2;
  // The ranges change no result: as few as the threads need, for each packs its operands itself.
  const int64_t tasks = 2 * get_num_threads();
  while (p.groups < tasks && a.partials * a.value_parts * a.oc_parts < tasks && split()) {
  }
}

// Turns 32 pixels of up to 32 values each: to[value][pixel], for values below `kept`, which may be
// beyond `count`: then zeros.
FASTNN_INLINE void turn(const bfloat16* const* pixel, int64_t count, int64_t kept, bfloat16* to,
                        int64_t line) {
  const auto mask = static_cast<__mmask32>((int64_t{1} << clamp(count, 0, 32)) - 1);
  vuint low[16], high[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    low[i] = reinterpret_cast<vuint>(_mm512_maskz_loadu_epi16(mask, pixel[i]));
    high[i] = reinterpret_cast<vuint>(_mm512_maskz_loadu_epi16(mask, pixel[16 + i]));
  }
  transpose(low);
  transpose(high);
  const vuint lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const auto even = reinterpret_cast<__m512i>(((lane * 4 + 2) << 16) | lane * 4);
  const auto odd = reinterpret_cast<__m512i>(((lane * 4 + 3) << 16) | (lane * 4 + 1));
  for (int j = 0; j < 16 && 2 * j < kept; ++j) {
    const auto a = reinterpret_cast<__m512i>(low[j]), b = reinterpret_cast<__m512i>(high[j]);
    _mm512_storeu_si512(to + 2 * j * line, _mm512_permutex2var_epi16(a, even, b));
    _mm512_storeu_si512(to + (2 * j + 1) * line, _mm512_permutex2var_epi16(a, odd, b));
  }
}

alignas(64) const bfloat16 kZeros[32] = {};

// Plane rows [first, last) of one unit, all planes.
inline void fill_planes(const Plan& a, const Tile& u, int64_t first, int64_t last, bfloat16* to) {
  const InputGrid& in = a.in;
  const bfloat16* const x = static_cast<const bfloat16*>(in.a) + in.a_channel;
  const int64_t count = clamp(a.values, 0, last) - first, kept = last - first;
  const int64_t real = a.plane_rows * a.plane_cols * a.images;
  // Gathered: the values of 32 pixels, one behind the other.
  auto* const own =
      a.gathered ? static_cast<bfloat16*>(thread_scratch(32 * a.row * 2, 2)) : nullptr;
  const int64_t run = in.a_pixel == in.K ? common_run(in) : 1;  // of taps side by side
  const int64_t ahead = a.gathered ? 0 : ceil_div(32, a.images) * in.step_w * in.a_pixel;
  for (int p = 0; p < a.planes; ++p) {
    bfloat16* const plane = to + p * kept * a.line;
    int64_t i = 0, j = 0, n = 0;
    for (int64_t at = 0; at < a.line; at += 32) {
      const bfloat16* pixel[32];
      bool any = false;
      for (int64_t q = 0; q < 32; ++q) {
        pixel[q] = nullptr;
        if (at + q < real && n < u.images) {
          if (a.gathered) {
            if (i < u.rows && j < u.cols) {
              bfloat16* const values = own + q * a.row;
              for (int64_t t = 0, n_taps; t < in.tap_count; t += n_taps) {
                const int64_t h = (u.row + i) * in.step_h + in.dh[t];
                const int64_t w = (u.col + j) * in.step_w + in.dw[t];
                const bool inside = h >= 0 && h < in.H && w >= 0 && w < in.W;
                n_taps = inside && t % run == 0 && w + run <= in.W ? run : 1;
                if (inside)
                  copy_values(values + t * in.K,
                              x + (((u.image + n) * in.H + h) * in.W + w) * in.a_pixel,
                              n_taps * in.K);
                else
                  zero_values(values + t * in.K, in.K);
              }
              pixel[q] = values + first;
            }
          } else {
            const int64_t h = (u.row + i) * in.step_h + a.plane[p].h0;
            const int64_t w = (u.col + j) * in.step_w + a.plane[p].w0;
            if (h >= 0 && h < in.H && w >= 0 && w < in.W)
              pixel[q] = x + (((u.image + n) * in.H + h) * in.W + w) * in.a_pixel + first;
          }
        }
        any |= pixel[q] != nullptr;
        if (++n == a.images) {
          n = 0;
          if (++j == a.plane_cols) j = 0, ++i;
        }
      }
      for (int64_t v = 0; v < kept; v += 32) {
        const bfloat16* from[32];
        for (int q = 0; q < 32; ++q) {
          from[q] = pixel[q] ? pixel[q] + v : kZeros;
          // Where pixel q of the next 32 most likely is; a wrong guess costs nothing.
          __builtin_prefetch(from[q] + ahead);
        }
        if (any)
          turn(from, count - v, kept - v, plane + v * a.line + at, a.line);
        else
          for (int64_t r = v; r < v + 32 && r < kept; ++r) zero_values(plane + r * a.line + at, 32);
      }
    }
  }
}

// Pairs of output channels [first, last), a multiple of 16 apart, of one unit: eight pixels at a
// time, which reads g nearly in order and writes whole runs of each group.
inline void fill_pairs(const Plan& a, const Tile& u, const bfloat16* g, int64_t pixel,
                       int64_t first, int64_t last, bfloat16* to) {
  constexpr int kPixels = 8;
  const int64_t row_size = a.steps * a.depth * kTile, group_size = a.group_size();
  const int64_t ahead = ceil_div(kPixels, a.images) * pixel;
  for (int64_t i = 0; i < a.rows; ++i) {
    int64_t j = 0, n = 0;
    for (int64_t start = 0; start < a.steps * a.depth; start += kPixels) {
      const bfloat16* from[kPixels];
      const int64_t count = clamp(a.steps * a.depth - start, 0, kPixels);
      for (int64_t q = 0; q < count; ++q) {
        const bool there = i < u.rows && j < u.cols && n < u.images;
        from[q] = there ? g + (((u.image + n) * a.in.GH + u.row + i) * a.in.GW + u.col + j) * pixel
                        : nullptr;
        if (++n == a.images) n = 0, ++j;
      }
      bfloat16* out = to + i * row_size + start * kTile;
      for (int64_t c = first; c < last; c += 2 * kTile, out += 2 * group_size) {
        const auto mask = static_cast<__mmask32>((int64_t{1} << clamp(a.oc - c, 0, 2 * kTile)) - 1);
        for (int64_t q = 0; q < count; q += 2) {
          __m512i row[2];
          for (int64_t s = 0; s < 2; ++s) {
            row[s] = _mm512_setzero_si512();
            if (!from[q + s]) continue;
            row[s] = _mm512_maskz_loadu_epi16(mask, from[q + s] + c);
            __builtin_prefetch(from[q + s] + c + ahead);  // the next eight, most likely
          }
          store_pairs(row[0], row[1], out + q * kTile,
                      c + kTile < last ? out + q * kTile + group_size : nullptr);
        }
      }
    }
  }
}

// C += A B over the rows of a unit.
template <int MA, int NB>
void outer(const bfloat16* a0, const bfloat16* a1, int64_t a_bytes, int64_t a_row,
           const bfloat16* b0, const bfloat16* b1, int64_t rows, int64_t steps, int64_t depth,
           float* c, bool add, NextRows& next_x, NextRows& next_g) {
  load_sums<MA, NB>(c, add);
  for (int64_t i = 0; i < rows; ++i, a0 += a_row, a1 += a_row) {
    const bfloat16 *x0 = a0, *x1 = a1;
    for (int64_t s = 0; s < steps; ++s, b0 += depth * kTile, b1 += depth * kTile) {
      multiply<MA, NB>(x0, x1, a_bytes, b0, b1);
      x0 += depth, x1 += depth;
      next_x.fetch();
      next_g.fetch();
    }
  }
  store_sums<MA, NB>(c);
}
using Outer = void (*)(const bfloat16*, const bfloat16*, int64_t, int64_t, const bfloat16*,
                       const bfloat16*, int64_t, int64_t, int64_t, float*, bool, NextRows&,
                       NextRows&);
constexpr Outer kOuters[2][2] = {{outer<1, 1>, outer<1, 2>}, {outer<2, 1>, outer<2, 2>}};

// The ranges of one task: groups of plane rows and pairs of 16 output channels.
struct Range {
  int64_t first, last;
};
FASTNN_INLINE Range range(int64_t n, int64_t part, int64_t parts) {
  return {n * part / parts, n * (part + 1) / parts};
}

// sums: [pair of output channel groups][pair of (group, tap)] of 2 x 2 tiles.
inline void run_task(const Plan& a, const bfloat16* g, int64_t g_pixel, Range units, Range groups,
                     Range pairs, float* sums) {
  const int64_t kept = (groups.last - groups.first) * kTile;
  const int64_t first_oc = pairs.first * 2 * kTile;
  const int64_t last_oc = clamp(ceil_div(a.oc, kTile) * kTile, 0, pairs.last * 2 * kTile);
  const int64_t group_size = a.group_size();
  auto* const x = static_cast<bfloat16*>(thread_scratch(
      2 * (a.planes * kept * a.line + (last_oc - first_oc) / kTile * group_size), 0));
  bfloat16* const b = x + a.planes * kept * a.line;
  const int64_t count = kept / kTile * a.taps, blocks = ceil_div(count, 2);
  shape_tiles(kTile, static_cast<int>(a.depth));
  for (int64_t index = units.first; index < units.last; ++index) {
    const Tile u = a.unit(index);
    fill_planes(a, u, groups.first * kTile, groups.last * kTile, x);
    fill_pairs(a, u, g, g_pixel, first_oc, last_oc, b);
    const auto rows_of = [&](int64_t r) {
      const int64_t tap = r % a.taps, group = r / a.taps;
      const int plane = a.gathered ? 0 : a.plane_of[tap];
      return x + (plane * kept + group * kTile) * a.line + a.offset[tap];
    };
    NextRows next_x{}, next_g{};
    if (a.in.GH == 1 && index + 1 < units.last && a.value_parts * a.oc_parts <= 2) {
      const Tile later = a.unit(index + 1);
      const int64_t steps = (pairs.last - pairs.first) * blocks * u.rows * a.steps;
      const auto* const from = static_cast<const bfloat16*>(a.in.a) + a.in.a_channel;
      next_x.bring(from + later.col * a.in.a_pixel, 0, later.cols * a.in.a_pixel, 1, steps);
      next_g.bring(g + later.col * g_pixel, 0, later.cols * g_pixel, 1, steps);
    }
    for (int64_t pair = pairs.first; pair < pairs.last; ++pair) {
      const int64_t n = (pair - pairs.first) * 2;
      const int two_b = pair * 2 * kTile + kTile < last_oc;
      float* c = sums + (pair - pairs.first) * blocks * 4 * kTileFloats;
      for (int64_t r = 0; r < count; r += 2, c += 4 * kTileFloats) {
        const int two_a = r + 1 < count;
        kOuters[two_a][two_b](rows_of(r), rows_of(r + two_a), a.line * 2, a.plane_cols * a.images,
                              b + n * group_size, b + (n + two_b) * group_size, u.rows, a.steps,
                              a.depth, c, index > units.first, next_x, next_g);
      }
    }
  }
  release_tiles();
}

// Adds the partial sums of one 16 x 16 tile and writes it as 16 rows of the weight.
inline void write_tile(const float* tile, int64_t partials, int64_t partial_size, int64_t oc,
                       int64_t count, WeightGradient to, int64_t row) {
  vuint r[16];
  for (int i = 0; i < 16; ++i) {
    vfloat total = load(tile + i * 2 * kTile);
    for (int64_t s = 1; s < partials; ++s) total += load(tile + s * partial_size + i * 2 * kTile);
    r[i] = as_uint(total);
  }
  transpose(r);
  for (int64_t o = 0; o < oc; ++o) to.store(o * row, as_float(r[o]), static_cast<int>(count));
}

void backward_weight(const ConvParams& p, const void* x, const void* grad_output,
                     void* grad_weight) {
  // A row of taps of a small stem is a third of a tile.
  const bool small = is_stem(p) && p.KW * p.C <= kStemBlock;
  const int64_t pixels = p.N * p.OH * p.OW;
  if (p.dtype != DType::bfloat16 || pixels * p.C * p.OC == 0 || pixels <= kFewPixels || small)
    return wide.backward_weight(p, x, grad_output, grad_weight);
  if (const int64_t together = groups_together(p, 2 * kTile, 4 * kTile); together > 1) {
    const JoinedGroups joined(p, together, p.grad_dtype);
    backward_weight(joined.p, x, grad_output, joined.weight());
    return joined.gather(grad_weight);
  }
  int64_t dh[kMaxTaps], dw[kMaxTaps];
  for (int64_t t = 0; t < p.KH * p.KW; ++t) {
    dh[t] = t / p.KW * p.dilation_h - p.pad_top;
    dw[t] = t % p.KW * p.dilation_w - p.pad_left;
  }
  each_group(p, [&](int64_t group) {
    Plan a;
    plan(p, static_cast<const bfloat16*>(x), group, dh, dw, a);
    const bfloat16* const g = static_cast<const bfloat16*>(grad_output) + group * a.oc;
    const WeightGradient gw = WeightGradient(p, grad_weight).from(group * a.oc * a.row);
    const int64_t ranges = a.value_parts * a.oc_parts;
    // Every task has the same room, enough for the largest.
    const int64_t room = ceil_div(ceil_div(a.groups, a.value_parts) * a.taps, 2) *
                         ceil_div(a.oc_pairs, a.oc_parts) * 4 * kTileFloats;
    Workspace sums(a.partials * ranges * room * 4);
    parallel_for_dynamic(a.partials * ranges, [&](int64_t task) {
      run_task(a, g, p.OC, range(a.units(), task / ranges, a.partials),
               range(a.groups, task % ranges % a.value_parts, a.value_parts),
               range(a.oc_pairs, task % ranges / a.value_parts, a.oc_parts),
               sums.floats() + task * room);
    });
    parallel_for(ranges, [&](int64_t part) {
      const Range groups = range(a.groups, part % a.value_parts, a.value_parts);
      const Range pairs = range(a.oc_pairs, part / a.value_parts, a.oc_parts);
      const int64_t count = (groups.last - groups.first) * a.taps, blocks = ceil_div(count, 2);
      for (int64_t pair = pairs.first; pair < pairs.last; ++pair)
        for (int64_t r = 0; r < count; ++r) {
          const float* const block = sums.floats() + part * room +
                                     ((pair - pairs.first) * blocks + r / 2) * 4 * kTileFloats +
                                     r % 2 * 2 * kTileFloats;
          const int64_t value = (groups.first + r / a.taps) * kTile;
          const int64_t column = a.gathered ? value : r % a.taps * p.group_inputs() + value;
          for (int64_t o = pair * 2 * kTile, h = 0; h < 2 && o < a.oc; ++h, o += kTile)
            write_tile(block + h * kTile, a.partials, ranges * room, clamp(a.oc - o, 0, kTile),
                       clamp(a.values - value, 0, kTile), gw.from(o * a.row + column), a.row);
        }
    });
  });
}

}  // namespace

void fill_conv_backward_weight(Slots& slots) {
  wide = slots.conv;
  slots.conv.backward_weight = backward_weight;
}

}  // namespace fastnn::cpu::FASTNN_ISA
