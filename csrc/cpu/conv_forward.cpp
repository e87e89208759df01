// conv2d forward: y[n][oh][ow][oc] = sum over kh, kw, ic of
//   x[n][oh * stride - pad + kh * dilation][..][ic] * w[oc][kh][kw][ic].
//
// Weights are packed once per call to [block of NR output channels][kh][kw][ic][NR], then
// implicit_gemm.h does the rest; groups are separate products over channel ranges, small ones
// several together (joined_groups.h).
// Flops: 2 N OH OW OC KH KW IC. Rejected: im2col (writes and reads KH KW times the input), padding
// the whole input (a strip in L2 costs a hundredth of it).
#include "core/allocator.h"
#include "cpu/conv_grouped.h"
#include "cpu/conv_scatter.h"
#include "cpu/even_channels.h"
#include "cpu/implicit_gemm.h"
#include "cpu/joined_groups.h"
#include "cpu/turned_weight.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// packed[block][row][width] = w[oc][row] for one group, or [block][row / 2][width][2]; rows =
// KH * KW * IC.
template <class P, class T>
void pack_weight(const T* w, int64_t outputs, int64_t rows, P* packed) {
  const int64_t blocks = block_count(outputs), chunk = 32 * LANES * kStep<P>;
  const int64_t chunks = ceil_div(rows, chunk);
  parallel_for(blocks * chunks, [&](int64_t task) {
    const int64_t block = task / chunks, begin = task % chunks * chunk;
    const int64_t end = clamp(rows, begin, begin + chunk);
    const int width = block_vectors(outputs, block) * LANES;
    P* const to = packed + block * NR * rows;
    for (int64_t v = 0; v < width; v += LANES) {
      const int64_t first = block * NR + v;
      turn_outputs(w + first * rows, outputs - first, rows, begin, end, to + v * kStep<P>, width);
    }
  });
}

template <class T>
void forward_typed(const ConvParams& p, const T* x, const T* w, const ConvEpilogue& epilogue,
                   T* y) {
  using P = Operand<T>;
  if (const Scatter s = scatter_forward(p);
      p.stride_h == 1 && p.stride_w == 1 && !is_stem(p) && scatters(p) && s.pays(kStep<P>)) {
    KeptWorkspace packed(p.kept, hash(3, LANES, s.KH, s.KW, s.C, s.K),
                         s.packed_size() * int64_t{sizeof(float)});
    const int64_t taps = p.KH * p.KW;
    const auto weights = [&](int64_t k, int64_t column, int n) {
      vfloat v{};
      for (int i = 0; i < n; ++i, ++column)
        v[i] = to_float(w[(column % s.C * taps + taps - 1 - column / s.C) * s.K + k]);
      return v;
    };
    if (!packed.filled()) pack_scatter(s, weights, packed.floats());
    return run_scatter(s, x, packed.floats(), epilogue, y);
  }
  const int64_t real = p.group_inputs(), oc = p.group_outputs(), taps = p.KH * p.KW;
  int64_t dh[kMaxTaps], dw[kMaxTaps];
  for (int64_t t = 0; t < taps; ++t) {
    dh[t] = t / p.KW * p.dilation_h - p.pad_top;
    dw[t] = t % p.KW * p.dilation_w - p.pad_left;
  }
  InputGrid in{x,    p.N,  p.H,  p.W,        p.C,        0,
               real, p.OH, p.OW, p.stride_h, p.stride_w, static_cast<int>(taps),
               dh,   dw};
  const int64_t run = common_run(in), values = run * real;
  in.missing = kStep<P> > 1 && values == 1;
  in.K += in.missing;
  in.odd = in.K % kStep<P>;
  const int64_t more = values % kStep<P>, rows = taps / run * (values + more);
  const Route route = product_route(y, oc);
  const int64_t size = packed_columns(oc) * rows;
  KeptWorkspace packed(p.kept, hash(0, LANES, kStep<P>, oc, rows),
                       p.groups * size * int64_t{sizeof(P)});
  P* const b = reinterpret_cast<P*>(packed.floats());
  const TapGrid grid{in, b, oc, y, p.OH,     p.OW,  p.OC,     0,
                     0,  1, 0,  1, epilogue, route, p.groups, size * int64_t{sizeof(P)}};
  if (!packed.filled()) {
    const EvenWeights even(w, p.OC * taps / run, values, !more, in.odd != 0);
    each_group(p, [&](int64_t group) {
      pack_weight(even.at() + group * oc * rows, oc, rows, b + group * size);
    });
  }
  if constexpr (kSame<P, float>)
    if (is_stem(p)) return stem_forward(p, x, b, epilogue, y, route);
  run_grid<T, P>(grid);
}

void forward(const ConvParams& p, const void* x, const void* w, const ConvEpilogue& epilogue,
             void* y) {
  if (is_grouped(p)) return grouped_forward(p, x, w, epilogue, y);
  const int64_t ic = p.group_inputs(), oc = p.group_outputs();
  if (const int64_t together = groups_together(p, oc, ic, p.KH * p.KW); together > 1) {
    const JoinedGroups joined(p, together, p.dtype);
    joined.spread(w);
    return forward(joined.p, x, joined.weight(), epilogue, y);
  }
  if (p.dtype == DType::float32)
    forward_typed(p, static_cast<const float*>(x), static_cast<const float*>(w), epilogue,
                  static_cast<float*>(y));
  else
    forward_typed(p, static_cast<const bfloat16*>(x), static_cast<const bfloat16*>(w), epilogue,
                  static_cast<bfloat16*>(y));
}

}  // namespace

void fill_conv_forward(Slots& slots) { slots.conv.forward = forward; }

}  // namespace fastnn::cpu::FASTNN_ISA
