// conv2d gradient with respect to the weight:
//   gw[oc][kh][kw][ic] = sum over n, oh, ow of g[n][oh][ow][oc] * x[n][oh*s - p + kh*d][..][ic].
//
// An outer product over pixels: M broadcasts of output channels times V vectors of the contiguous
// values under a tap (conv_input.h merges the KW * IC values of a tap row where that serves; stems
// of up to four input channels are in conv_stem_weight.h), so that a tile of accumulators is a tile
// of the weight as it lies in memory. It stays in registers over a whole unit of pixels.
//
//   for each unit of some 512 pixels:  x panel (padded, or x itself), g panel [block][pixel][M]
//     for each block of x columns (tap, NR values): from L2, used by every block of g
//       for each block of M output channels: outer kernel
//
// Determinism: units are dealt to R partial sums by shape alone and the partials are added in
// order. R is small where the weight is large (each partial is as large as the weight); then the
// blocks of x columns are the parallel dimension, and the panels of a unit are filled by all
// threads before. Flops: those of the forward pass.
#include "core/allocator.h"
#include "cpu/conv_grouped.h"
#include "cpu/conv_inside.h"
#include "cpu/conv_stem_weight.h"
#include "cpu/conv_weight.h"
#include "cpu/joined_groups.h"
#include "cpu/matmul.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kPartialFloats = 1 << 20;  // of all partial sums together
constexpr int64_t kUnitPixels = 512;
constexpr int64_t kUnitValues = 512 << 10;  // of one x panel
constexpr int64_t kUnitBytes = 256 << 10;  // of x and g, where the next unit's come to L2 meanwhile
constexpr int64_t kNearChannels = 64;      // pixels so close that g is read where it lies
constexpr int64_t kLongRun = 8;            // blocks of columns
constexpr int64_t kSmallWeight = 256 << 10;  // a partial sum is read and written fast

// How one group's work is cut; plans are those of the first one.
struct Plan {
  InputTiles x;
  int64_t oc, block_m;      // output channels, and how many of them a kernel takes
  bool in_place;            // g is its own panel
  bool square;              // one vector of output channels
  int64_t width;            // of a block of x columns
  int64_t partials, parts;  // of the sum, and of the blocks of x columns
  int64_t row, size;        // floats of one output channel's weights, and of one partial sum
  int64_t x_blocks, unit_pixels;
  int64_t g_pixels;         // of the g panel: rows are padded to pairs
  int64_t g_block, g_size;  // values of a block of the g panel, and of all of it
};

template <class T, class P>
Plan plan(const ConvParams& p, const T* x, const int64_t* dh, const int64_t* dw) {
  const int64_t ic = p.group_inputs(), taps = p.KH * p.KW;
  Plan a{};
  a.x.in = {x,  p.N,  p.H,  p.W,        p.C,        0,
            ic, p.OH, p.OW, p.stride_h, p.stride_w, static_cast<int>(taps),
            dh, dw};
  if (a.x.in.pointwise()) a.x.in.flatten();
  a.oc = p.group_outputs();
  a.row = taps * ic;
  a.size = a.oc * a.row;
  // Vectors of x are read whole: the tensor itself serves where they end with its channels. Pixels
  // of many channels lie a power of two apart as often as not, so that a column of them shares a
  // few sets of the cache: they are copied to planes of one block each.
  const bool planes = ic > 2 * NR && ic % NR == 0;
  a.in_place = sizeof(T) == sizeof(float) && p.OC <= kNearChannels && p.groups == 1 && !planes;
  a.square = a.in_place && p.OC == LANES;
  a.block_m = a.square ? LANES : even_block(a.oc);
  a.width = a.square ? LANES : NR;
  const bool ahead = a.x.in.pointwise() && a.size <= kSmallWeight;
  const int64_t near = kUnitBytes / int64_t{sizeof(P)} / (ic + a.oc);
  plan_input<T, P>(a.x, ahead ? clamp(near, 128, kUnitPixels) : kUnitPixels,
                   a.size > kPartialFloats ? 4 * kUnitValues : kUnitValues,
                   ic % LANES == 0 && !planes, false, planes ? NR : 0);
  // Groups are parallel to each other: many of them need few partial sums each.
  const int64_t most = ceil_div(16, p.groups);
  a.partials = clamp(kPartialFloats / a.size, 1, clamp(a.x.count(), 1, most));
  if (a.x.in.pointwise()) {  // as many units for each partial sum
    a.x.segments = ceil_div(a.x.segments, a.partials) * a.partials;
    a.x.cols = ceil_div(a.x.in.GW, a.x.segments);
    a.x.panel_cols = a.x.cols;
    a.x.segments = ceil_div(a.x.in.GW, a.x.cols);
    a.partials = clamp(a.partials, 1, a.x.segments);
  }
  a.x_blocks = a.x.tap_count * ceil_div(a.x.k, a.width);
  // Panels that one thread fills and reads stay in its cache: more parts only for more threads.
  a.parts = 1;
  while (a.partials * a.parts < 2 * get_num_threads() && a.parts * 2 <= a.x_blocks) a.parts *= 2;
  a.unit_pixels = a.x.images * a.x.rows * a.x.cols;
  a.g_pixels = a.x.images * a.x.rows * ceil_div(a.x.cols, kStep<P>) * kStep<P>;
  a.g_block = a.g_pixels * a.block_m + LANES;
  a.g_size = a.in_place ? 0 : a.g_block * ceil_div(a.oc, a.block_m);
  return a;
}

// g panel: [block of block_m channels][pixel of the unit][channels of the block], or [pair of
// pixels][channels][2]. Turned in pieces of a few pixels: reading is nearly sequential, and few
// pages are written at a time. A cache line keeps blocks from lying a power of two apart.
constexpr int64_t kPackPixels = 16;

template <class T>
FASTNN_INLINE void copy_step(const T* from, const T*, int64_t m, float* to) {
  copy_values(to, from, m);
}
FASTNN_INLINE void copy_step(const bfloat16* from, const bfloat16* next, int64_t m, bfloat16* to) {
  copy_pairs(from, next, m, to);
}

template <class T, class P>
void pack_gradient(const ConvParams& p, const Plan& a, const Tile& u, const T* g, int64_t piece,
                   P* panel) {
  const int64_t H = a.x.in.GH, W = a.x.in.GW;  // of the output, pixels in one row if pointwise
  const int64_t width = ceil_div(u.cols, kStep<P>) * kStep<P>, begin = piece * kPackPixels;
  const int64_t count = clamp(u.images * u.rows * width - begin, 0, kPackPixels);
  const T* from[kPackPixels];
  int64_t col = begin % width, row = begin / width % u.rows, image = begin / width / u.rows;
  for (int64_t q = 0; q < count; ++q) {
    from[q] = g + (((u.image + image) * H + u.row + row) * W + u.col + col) * p.OC;
    if (col >= u.cols) from[q] = nullptr;
    if (++col < width) continue;
    col = 0;
    if (++row == u.rows) row = 0, ++image;
  }
  for (int64_t first = 0; first < a.oc; first += a.block_m, panel += a.g_block) {
    const int64_t m = clamp(a.oc - first, 0, a.block_m);
    for (int64_t q = 0; q < count; q += kStep<P>) {
      const T* const next = kStep<P> == 2 && from[q + 1] ? from[q + 1] + first : nullptr;
      copy_step(from[q] + first, next, m, panel + (begin + q) * m);
    }
  }
}

template <class P>
OuterKernel<P> kernel_of(const Plan& a, int64_t m, int vectors) {
  if constexpr (kStep<P> == 1)
    if (a.square) return outer_square;
  return Kernels<P>::outer[m - 1][vectors - 1];
}

// Adds one unit's product to a partial sum, for blocks [first, last) of x columns; `finished`, if
// any, gets the sums then, and the first unit's go nowhere else.
template <class P>
void add_unit(const Plan& a, const Tile& u, const P* x, const P* g, int64_t first, int64_t last,
              bool add, float* sum, const WeightGradient* finished, const NextPixels& next) {
  alignas(64) float only[MR * NR];
  int64_t call = 0;
  const int64_t per_tap = ceil_div(a.x.k, a.width), m_blocks = ceil_div(a.oc, a.block_m);
  // Blocks of x outside keeps x in cache, and g of this many channels. Of few pixels, that much of
  // x stays there that rows of the weight are written in long runs, one after the other.
  const int64_t run = clamp((64 << 10) / (NR * a.unit_pixels), 1, last - first);
  const bool few = run >= kLongRun || run == last - first;
  const int64_t x_group = few ? run : last - first;
  const int64_t m_group = few ? 1 : clamp((128 << 10) / (a.unit_pixels * a.block_m), 1, m_blocks);
  const int64_t m_groups = ceil_div(m_blocks, m_group);
  for (int64_t part = 0; part < ceil_div(last - first, x_group) * m_groups; ++part) {
    const int64_t b_first = first + part / m_groups * x_group, m_first = part % m_groups * m_group;
    const int64_t b_last = clamp(last, 0, b_first + x_group);
    for (int64_t b = b_first; b < b_last; ++b) {
      const int64_t tap = b / per_tap, block = b % per_tap, n = block * a.width;
      const Middle inside = rows_inside(a.x, u, tap);  // the others would add zeros
      const int64_t rows = inside.end - inside.begin;
      const int vectors = a.square ? 1 : block_vectors(a.x.k, block);
      const int tail = static_cast<int>(clamp(a.x.k - n - (vectors - 1) * LANES, 1, LANES));
      const int64_t m_end = clamp(m_first + m_group, 0, m_blocks);
      for (int64_t i = m_first; i < m_end; ++i) {
        const int64_t channel = i * a.block_m, m = clamp(a.oc - channel, 1, a.block_m);
        const int64_t g_next = a.in_place ? a.oc : m * kStep<P>;
        const int64_t g_row = ceil_div(u.cols, kStep<P>) * g_next;
        const OuterStrip<P> strip{
            x + a.x.taps[tap] + (a.x.width < a.x.in.K ? block * a.x.plane : n) +
                inside.begin * a.x.row_stride,
            a.x.image_stride,
            a.x.row_stride,
            a.x.col_stride,
            (a.in_place ? g + channel : g + i * a.g_block) + inside.begin * g_row,
            g_next,
            (u.rows - rows) * g_row,
            u.images,
            rows,
            u.cols,
            next.piece(call++, 64)};
        const int64_t at = channel * a.row + tap * a.x.k + n;
        const bool once = finished && !add;
        float* const tile = once ? only : sum + at;
        const int64_t pitch = once ? NR : a.row;
        kernel_of<P>(a, m, vectors)(strip, tile, pitch, tail, add);
        if (finished) finished->store(at, a.row, tile, pitch, m, (vectors - 1) * LANES + tail);
      }
    }
  }
}

constexpr int64_t kSharedChannels = 128;  // of groups whose pixels share cache lines

template <class T>
void backward_weight_typed(const ConvParams& p, const T* x, const T* g, WeightGradient gw) {
  using P = Operand<T>;
  const int64_t ic = p.group_inputs(), oc = p.group_outputs();
  if (p.N * p.OH * p.OW == 0) {
    const int64_t bytes = p.OC * ic * p.KH * p.KW * item_size(gw.dtype);
    __builtin_memset(gw.at, 0, static_cast<size_t>(bytes));
    return;
  }
  if (is_stem(p)) return stem_backward_weight(p, x, g, gw);
  int64_t dh[kMaxTaps], dw[kMaxTaps];
  for (int64_t t = 0; t < p.KH * p.KW; ++t) {
    dh[t] = t / p.KW * p.dilation_h - p.pad_top;
    dw[t] = t % p.KW * p.dilation_w - p.pad_left;
  }
  const Plan a = plan<T, P>(p, x, dh, dw);
  const int64_t units = a.x.count(), pieces = a.in_place ? 0 : ceil_div(a.g_pixels, kPackPixels);
  const int64_t lines = panel_lines(a.x), x_size = a.x.panel_size + LANES;
  const bool in_float = gw.dtype == DType::float32, finishes = a.partials == 1 && !in_float;
  // Groups of a range go through a unit one after the other.
  each_range_of_groups(p, kSharedChannels / ic, [&](int64_t first, int64_t last) {
    Workspace room(a.partials * (x_size + a.g_size) * int64_t{sizeof(P)});
    P* const panels = reinterpret_cast<P*>(room.floats());
    const bool sums_needed = a.partials > 1 || (!in_float && units > 1);
    Workspace own(sums_needed ? (last - first) * a.partials * a.size * 4 : 0);
    const auto sums_of = [&](int64_t group) {
      return a.partials == 1 && in_float ? static_cast<float*>(gw.from(group * a.size).at)
                                         : own.floats() + (group - first) * a.partials * a.size;
    };

    const auto fill = [&](int64_t group, int64_t partial, int64_t unit, int64_t piece) {
      const Tile u = a.x.tile(unit, group);
      P* x_panel = panels + partial * (x_size + a.g_size);
      if (piece < lines)
        fill_line<T>(a.x, u, piece, x_panel);
      else
        pack_gradient(p, a, u, g + group * oc, piece - lines, x_panel + x_size);
    };
    const auto multiply = [&](int64_t group, int64_t partial, int64_t part, int64_t unit,
                              bool add) {
      const Tile u = a.x.tile(unit, group);
      const P* panel = panels + partial * (x_size + a.g_size);
      const P* from = a.x.source == Source::direct ? direct_base<P>(a.x, u) : panel;
      NextPixels next{reinterpret_cast<const char*>(from), nullptr, 1, 0, 0};
      const bool whole = p.groups == 1 && p.KH >= p.stride_h && p.KW >= p.stride_w;
      if (a.parts == 1 && unit + 1 < units && (whole || a.x.in.pointwise())) {
        const Tile v = a.x.tile(unit + 1, group);
        const int64_t rows = v.images * v.rows;  // pointwise: one, of all pixels
        const int64_t h = clamp(v.row * p.stride_h, 0, a.x.in.H);
        next.x = reinterpret_cast<const char*>(
            x + ((v.image * a.x.in.H + h) * a.x.in.W + v.col * p.stride_w) * p.C + group * ic);
        next.g = reinterpret_cast<const char*>(
            g + ((v.image * a.x.in.GH + v.row) * a.x.in.GW + v.col) * p.OC + group * oc);
        next.x_bytes = rows * v.cols * p.stride_h * p.stride_w * p.C * int64_t{sizeof(T)};
        next.g_bytes = rows * v.cols * p.OC * int64_t{sizeof(T)};
        next.share = (next.x_bytes + next.g_bytes) / (a.x_blocks * ceil_div(oc, a.block_m));
      }
      // The pixels of a unit lie in one piece.
      const T* const own = g + ((u.image * p.OH + u.row) * p.OW + u.col) * p.OC;
      const P* const factors = a.in_place ? reinterpret_cast<const P*>(own) : panel + x_size;
      const WeightGradient of_group = gw.from(group * a.size);
      add_unit(a, u, from, factors, a.x_blocks * part / a.parts, a.x_blocks * (part + 1) / a.parts,
               add, sums_of(group) + partial * a.size,
               finishes && unit + 1 == units ? &of_group : nullptr, next);
    };
    const auto begin = [&](int64_t partial) { return units * partial / a.partials; };
    if (a.parts == 1) {
      parallel_for_dynamic(a.partials, [&](int64_t partial) {
        for (int64_t unit = begin(partial); unit < begin(partial + 1); ++unit)
          for (int64_t group = first; group < last; ++group) {
            for (int64_t piece = 0; piece < lines + pieces; ++piece)
              fill(group, partial, unit, piece);
            multiply(group, partial, 0, unit, unit > begin(partial));
          }
      });
    } else {
      for (int64_t round = 0; round < ceil_div(units, a.partials); ++round)
        for (int64_t group = first; group < last; ++group) {
          parallel_for(a.partials * (lines + pieces), [&](int64_t task) {
            const int64_t partial = task / (lines + pieces), unit = begin(partial) + round;
            if (unit < begin(partial + 1)) fill(group, partial, unit, task % (lines + pieces));
          });
          parallel_for_dynamic(a.partials * a.parts, [&](int64_t task) {
            const int64_t partial = task / a.parts, unit = begin(partial) + round;
            if (unit < begin(partial + 1))
              multiply(group, partial, task % a.parts, unit, round > 0);
          });
        }
    }
    for (int64_t group = first; group < last && a.partials > 1; ++group)
      add_partials(sums_of(group), a.partials, a.size, gw.from(group * a.size));
  });
}

// Groups that would leave most of a vector of inputs, or of the rows of a tile, empty.
int64_t groups_together(const ConvParams& p) {
  if (p.group_inputs() * p.group_outputs() >= LANES * LANES / 4) return 1;
  const int64_t square = groups_together(p, LANES, LANES);
  const int64_t high = groups_together(p, LANES / 2, p.OC);
  return square > high ? square : high;
}

void backward_weight(const ConvParams& p, const void* x, const void* g, void* grad_weight) {
  if (is_grouped(p, true)) return grouped_backward_weight(p, x, g, grad_weight);
  if (const int64_t together = groups_together(p); together > 1) {
    const JoinedGroups joined(p, together, p.grad_dtype);
    backward_weight(joined.p, x, g, joined.weight());
    return joined.gather(grad_weight);
  }
  const WeightGradient gw(p, grad_weight);
  if (p.dtype == DType::float32)
    backward_weight_typed(p, static_cast<const float*>(x), static_cast<const float*>(g), gw);
  else
    backward_weight_typed(p, static_cast<const bfloat16*>(x), static_cast<const bfloat16*>(g), gw);
}

// Column sums in fixed chunks of rows, added in order. Of a few channels, LANES pixels are taken
// for one of as many times the channels.
template <class T>
void bias_gradient_typed(const T* g, int64_t pixels, int64_t channels, float* grad_bias) {
  const int64_t together = channels < LANES ? LANES : 1, width = together * channels;
  const int64_t chunk = clamp(kGrain / (channels + 1), 64, 8192) / LANES * LANES;
  const int64_t chunks = ceil_div(pixels, chunk);
  Workspace partial((chunks * width + 1) * 4);
  parallel_ranges(pixels, chunk, [&](int64_t begin, int64_t end) {
    float* sum = partial.floats() + begin / chunk * width;
    __builtin_memset(sum, 0, sizeof(float) * static_cast<size_t>(width));
    for (int64_t q = begin; q < end; q += together) {
      const int64_t some = end - q < together ? (end - q) * channels : width;
      vector_loop(0, some, [&](int64_t c, int n) FASTNN_INLINED {
        store_any(sum + c, load_any(sum + c, n) + load_any(g + q * channels + c, n), n);
      });
    }
  });
  vector_loop(0, channels, [&](int64_t c, int n) {
    vfloat total{};
    for (int64_t i = 0; i < chunks * together; ++i)
      total += load_any(partial.floats() + i * channels + c, n);
    store_any(grad_bias + c, total, n);
  });
}

void bias_gradient(const void* g, int64_t pixels, int64_t channels, DType dtype, float* grad_bias) {
  if (dtype == DType::float32)
    bias_gradient_typed(static_cast<const float*>(g), pixels, channels, grad_bias);
  else
    bias_gradient_typed(static_cast<const bfloat16*>(g), pixels, channels, grad_bias);
}

}  // namespace

void fill_conv_backward_weight(Slots& slots) {
  slots.conv.backward_weight = backward_weight;
  slots.conv.bias_gradient = bias_gradient;
}

}  // namespace fastnn::cpu::FASTNN_ISA
