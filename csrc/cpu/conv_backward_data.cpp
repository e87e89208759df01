// conv2d gradient with respect to the input; also conv_transpose2d's forward.
//
// One convolution of stride 1 per phase of the stride (conv_phases.h), over weights packed
// transposed on every call; or scattered (conv_scatter.h); or, of up to four output channels, a
// first layer's forward pass. Flops: those of the forward pass.
#include "core/allocator.h"
#include "cpu/conv_grouped.h"
#include "cpu/conv_phases.h"
#include "cpu/conv_scatter.h"
#include "cpu/joined_groups.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// packed[block][tap][oc][width] = w[oc][kh][kw][ic] for the taps of one phase of one group, or
// [block][tap][oc / 2][width][2], with zeros behind the last of an odd number of channels.
template <class P, class T>
void pack_transposed(const T* w, const ConvParams& p, const Taps& taps, P* packed) {
  const int64_t ic = p.group_inputs(), oc = p.group_outputs();
  parallel_for(block_count(ic), [&](int64_t block) {
    const int width = block_vectors(ic, block) * LANES;
    const int64_t left = ic - block * NR;
    P* to = packed + block * NR * (oc + oc % kStep<P>)*taps.count;
    const int64_t next = p.KH * p.KW * ic;
    for (int t = 0; t < taps.count; ++t)
      for (int64_t o = 0; o < oc; o += kStep<P>, to += width * kStep<P>) {
        const T* from = w + ((o * p.KH + taps.kh[t]) * p.KW + taps.kw[t]) * ic + block * NR;
        for (int64_t n = 0; n < width; n += LANES) {
          const int used = static_cast<int>(clamp(left - n, 0, LANES));
          vfloat row[1];
          load_columns(from + n, next, o + 1 < oc, used, row, P{});
          store(reinterpret_cast<float*>(to + n * kStep<P>), row[0]);
        }
      }
  });
}

// The forward pass, with a kernel turned around, that a gradient of stride 1 is.
ConvParams turned_around(const ConvParams& p) {
  ConvParams q = p;
  q.C = p.OC, q.H = p.OH, q.W = p.OW;
  q.OC = p.C, q.OH = p.H, q.OW = p.W;
  q.pad_top = (p.KH - 1) * p.dilation_h - p.pad_top;
  q.pad_left = (p.KW - 1) * p.dilation_w - p.pad_left;
  return q;
}

template <class T>
void backward_data_typed(const ConvParams& p, const T* g, const T* w, const ConvEpilogue& epilogue,
                         T* grad_input) {
  using P = Operand<T>;
  if (const Scatter s = scatter_backward(p); scatters(p) && s.pays(kStep<P>)) {
    Workspace packed(s.packed_size() * int64_t{sizeof(float)});
    const int64_t columns = s.KH * s.KW * s.C;
    const auto weights = [&](int64_t k, int64_t column, int n)
                             FASTNN_INLINED { return load_any(w + k * columns + column, n); };
    pack_scatter(s, weights, packed.floats());
    return run_scatter(s, g, packed.floats(), epilogue, grad_input);
  }
  // One phase, a first layer's forward pass. Pairs of values take less time, if there are any.
  const ConvParams turned = turned_around(p);
  if ((kSame<P, float> || p.OC == 1) && p.stride_h == 1 && p.stride_w == 1 && turned.pad_top >= 0 &&
      turned.pad_left >= 0 && is_stem(turned)) {
    Workspace packed(packed_columns(p.C) * p.OC * p.KH * p.KW * int64_t{sizeof(float)});
    return each_phase(p, g, epilogue, grad_input, [&](const Taps& taps, const TapGrid& grid) {
      pack_transposed(w, p, taps, packed.floats());
      stem_forward(turned, g, packed.floats(), epilogue, grad_input, grid.route);
    });
  }
  const int64_t ic = p.group_inputs(), oc = p.group_outputs(), missing = oc % kStep<P>;
  const int64_t size = packed_columns(ic) * (oc + missing) * p.KH * p.KW;
  Workspace packed(p.groups * size * int64_t{sizeof(P)});
  P* const b = reinterpret_cast<P*>(packed.floats());
  each_phase(p, g, epilogue, grad_input, [&](const Taps& taps, TapGrid& grid) {
    grid.in.K += missing;
    grid.in.missing = missing;
    grid.b = b;
    grid.b_bytes = size * int64_t{sizeof(P)};
    each_group(p, [&](int64_t group) {
      pack_transposed(w + group * oc * p.KH * p.KW * ic, p, taps, b + group * size);
    });
    run_grid<T, P>(grid);
  });
}

void backward_data(const ConvParams& p, const void* g, const void* w, const ConvEpilogue& epilogue,
                   void* grad_input) {
  if (is_grouped(p)) return grouped_backward_data(p, g, w, epilogue, grad_input);
  const int64_t ic = p.group_inputs(), oc = p.group_outputs();
  const int64_t taps = ceil_div(p.KH, p.stride_h) * ceil_div(p.KW, p.stride_w);  // of a phase
  if (const int64_t together = groups_together(p, ic, oc, taps); together > 1) {
    const JoinedGroups joined(p, together, p.dtype);
    joined.spread(w);
    return backward_data(joined.p, g, joined.weight(), epilogue, grad_input);
  }
  if (p.dtype == DType::float32)
    backward_data_typed(p, static_cast<const float*>(g), static_cast<const float*>(w), epilogue,
                        static_cast<float*>(grad_input));
  else
    backward_data_typed(p, static_cast<const bfloat16*>(g), static_cast<const bfloat16*>(w),
                        epilogue, static_cast<bfloat16*>(grad_input));
}

}  // namespace

void fill_conv_backward_data(Slots& slots) { slots.conv.backward_data = backward_data; }

}  // namespace fastnn::cpu::FASTNN_ISA
