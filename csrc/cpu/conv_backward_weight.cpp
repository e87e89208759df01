// conv2d gradient with respect to the weight:
//   gw[oc][kh][kw][ic] = sum over n, oh, ow of g[n][oh][ow][oc] * x[n][oh*s - p + kh*d][..][ic].
//
// An outer product over pixels, computed where the operands lie: M broadcasts of input channels
// times NV vectors of output channels, the tile kept in registers over a whole unit of pixels (a
// strip of rows, or several small images). Where the dilation along w is 1, the KW * IC values
// under a row of taps are contiguous in the padded panel and form one long M dimension, which also
// serves stems with 3 input channels.
//
// Determinism: units are dealt to R partial sums by shape alone and the partials are added in
// order. R is small where the weight is large (each partial is as large as the weight), and then
// the columns of the weight are the parallel dimension instead. Flops: those of the forward pass.
#include "core/allocator.h"
#include "cpu/implicit_gemm.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kPartialBytes = 4 << 20;  // of all partial sums together
constexpr int64_t kUnitPixels = 512;

// How one group's work is cut.
struct Plan {
  int64_t strip, strips, images, units;  // a unit: `images` images or one strip of rows
  int64_t partials, parts;               // of the sum, and of the columns
  int64_t columns;                       // output channels, padded
  int64_t size;                          // floats of one partial sum
};

Plan plan(const ConvParams& p) {
  const int64_t ic = p.group_inputs(), oc = p.group_outputs();
  Plan a{};
  a.strip = clamp(kUnitPixels / p.OW, 1, p.OH);
  a.strips = (p.OH + a.strip - 1) / a.strip;
  a.images = a.strips > 1 ? 1 : clamp(kUnitPixels / (p.OH * p.OW), 1, p.N);
  a.units = (p.N + a.images - 1) / a.images * a.strips;
  a.columns = packed_columns(oc);
  a.size = p.KH * p.KW * ic * a.columns;
  a.partials = clamp(kPartialBytes / (a.size * 4 + 1), 1, a.units < 16 ? a.units : 16);
  a.parts = 1;
  while (a.partials * a.parts < 16 && a.parts * 2 <= block_count(oc)) a.parts *= 2;
  return a;
}

// Adds one unit's product to a partial sum, for column blocks [first, last).
template <class T>
void add_unit(const ConvParams& p, const Plan& a, const T* x, const T* g, int64_t group,
              int64_t unit, int64_t first_block, int64_t last_block, bool add, float* sum) {
  const int64_t ic = p.group_inputs(), oc = p.group_outputs();
  const int64_t first_row = unit % a.strips * a.strip;
  const int64_t rows = clamp(p.OH - first_row, 0, a.strip);
  const int64_t first_image = unit / a.strips * a.images;
  const int64_t count = clamp(p.N - first_image, 0, a.images);
  // The input under these rows, padded; all images of the unit lie below each other.
  const int64_t panel_rows = (rows - 1) * p.stride_h + (p.KH - 1) * p.dilation_h + 1;
  const int64_t panel_cols = (p.OW - 1) * p.stride_w + (p.KW - 1) * p.dilation_w + 1;
  const int64_t image_size = panel_rows * panel_cols * ic;
  float* panel = static_cast<float*>(thread_scratch(count * image_size * 4 + 64, 0));
  for (int64_t i = 0; i < count; ++i)
    fill_panel(panel + i * image_size, panel_rows, panel_cols,
               x + (first_image + i) * p.H * p.W * p.C + group * ic, p.H, p.W, p.C, ic,
               first_row * p.stride_h - p.pad_top, -p.pad_left);
  // grad_output of the unit, in float32, channels padded with zeros to whole vectors.
  const int64_t grad_image = rows * p.OW * a.columns;
  float* grad = static_cast<float*>(thread_scratch(count * grad_image * 4, 1));
  for (int64_t i = 0; i < count; ++i) {
    const T* from = g + ((first_image + i) * p.OH + first_row) * p.OW * p.OC + group * oc;
    float* to = grad + i * grad_image;
    for (int64_t q = 0; q < rows * p.OW; ++q, from += p.OC, to += a.columns) {
      vector_loop(0, oc, [&](int64_t n, int lanes) { store(to + n, load_any(from + n, lanes)); });
    }
  }
  const bool merged = p.dilation_w == 1;
  const int64_t run = merged ? p.KW * ic : ic;  // contiguous values under one tap row
  const int64_t taps = merged ? p.KH : p.KH * p.KW;
  for (int64_t block = first_block; block < last_block; ++block) {
    const int vectors = block_vectors(oc, block);
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t kh = merged ? t : t / p.KW, kw = merged ? 0 : t % p.KW;
      const int64_t offset = (kh * p.dilation_h * panel_cols + kw * p.dilation_w) * ic;
      const int step = even_block(run);
      for (int64_t m0 = 0; m0 < run; m0 += step) {
        const int m = static_cast<int>(clamp(run - m0, 1, step));
        float* tile = sum + (t * run + m0) * a.columns + block * NR;
        for (int64_t i = 0; i < count; ++i) {
          const OuterStrip strip{panel + i * image_size + offset + m0,
                                 p.stride_h * panel_cols * ic,
                                 p.stride_w * ic,
                                 grad + i * grad_image + block * NR,
                                 p.OW * a.columns,
                                 a.columns,
                                 rows,
                                 p.OW};
          outer_kernels[m - 1][vectors - 1](strip, tile, a.columns, add || i > 0);
        }
      }
    }
  }
}

template <class T>
void backward_weight_typed(const ConvParams& p, const T* x, const T* g, T* gw) {
  const int64_t ic = p.group_inputs(), oc = p.group_outputs();
  const int64_t rows = p.KH * p.KW * ic;
  if (p.N * p.OH * p.OW == 0) {
    __builtin_memset(gw, 0, sizeof(T) * static_cast<size_t>(p.OC * rows));
    return;
  }
  const Plan a = plan(p);
  const int64_t blocks = block_count(oc);
  Workspace sums(a.size * a.partials * 4);
  for (int64_t group = 0; group < p.groups; ++group) {
    parallel_for_dynamic(a.partials * a.parts, [&](int64_t task) {
      const int64_t partial = task / a.parts, part = task % a.parts;
      const int64_t begin = a.units * partial / a.partials;
      for (int64_t unit = begin; unit < a.units * (partial + 1) / a.partials; ++unit)
        add_unit(p, a, x, g, group, unit, blocks * part / a.parts, blocks * (part + 1) / a.parts,
                 unit > begin, sums.floats() + partial * a.size);
    });
    // gw[oc][row] = sum of partials [row][oc], in order.
    T* const to = gw + group * oc * rows;
    parallel_ranges(rows, 64, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t o = 0; o < oc; ++o) {
          float total = 0;
          for (int64_t r = 0; r < a.partials; ++r)
            total += sums.floats()[r * a.size + row * a.columns + o];
          from_float(to[o * rows + row], total);
        }
    });
  }
}

void backward_weight(const ConvParams& p, const void* x, const void* g, void* gw) {
  if (p.dtype == DType::float32)
    backward_weight_typed(p, static_cast<const float*>(x), static_cast<const float*>(g),
                          static_cast<float*>(gw));
  else
    backward_weight_typed(p, static_cast<const bfloat16*>(x), static_cast<const bfloat16*>(g),
                          static_cast<bfloat16*>(gw));
}

// Column sums in fixed chunks of rows, added in order.
template <class T>
void bias_gradient_typed(const T* g, int64_t pixels, int64_t channels, float* grad_bias) {
  const int64_t chunk = clamp(kGrain / (channels + 1), 64, 8192);
  const int64_t chunks = (pixels + chunk - 1) / chunk;
  Workspace partial((chunks * channels + 1) * 4);
  parallel_ranges(pixels, chunk, [&](int64_t begin, int64_t end) {
    float* sum = partial.floats() + begin / chunk * channels;
    __builtin_memset(sum, 0, sizeof(float) * static_cast<size_t>(channels));
    for (int64_t q = begin; q < end; ++q)
      vector_loop(0, channels, [&](int64_t c, int n) {
        store_any(sum + c, load_any(sum + c, n) + load_any(g + q * channels + c, n), n);
      });
  });
  vector_loop(0, channels, [&](int64_t c, int n) {
    vfloat total{};
    for (int64_t i = 0; i < chunks; ++i) total += load_any(partial.floats() + i * channels + c, n);
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
