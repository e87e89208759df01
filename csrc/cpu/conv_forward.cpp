// conv2d forward: y[n][oh][ow][oc] = sum over kh, kw, ic of
//   x[n][oh * stride - pad + kh * dilation][..][ic] * w[oc][kh][kw][ic].
//
// Weights are packed once per call to [block of NR output channels][kh][kw][ic][NR], then
// implicit_gemm.h does the rest; groups are separate products over channel ranges.
// Flops: 2 N OH OW OC KH KW IC. Rejected: im2col (writes and reads KH KW times the input), padding
// the whole input (a strip in L2 costs a hundredth of it).
#include "core/allocator.h"
#include "cpu/implicit_gemm.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// packed[block][row][width] = w[oc][row] for one group; rows = KH * KW * IC.
template <class T>
void pack_weight(const T* w, int64_t outputs, int64_t rows, float* packed) {
  parallel_for(block_count(outputs), [&](int64_t block) {
    const int width = block_vectors(outputs, block) * LANES;
    float* to = packed + block * NR * rows;
    const int64_t left = outputs - block * NR;
    for (int64_t row = 0; row < rows; ++row, to += width)
      for (int64_t n = 0; n < width; ++n)
        to[n] = n < left ? to_float(w[(block * NR + n) * rows + row]) : 0.0f;
  });
}

template <class T>
void forward_typed(const ConvParams& p, const T* x, const T* w, const ConvEpilogue& epilogue,
                   T* y) {
  const int64_t ic = p.group_inputs(), oc = p.group_outputs();
  const int64_t rows = p.KH * p.KW * ic;
  Workspace packed(packed_columns(oc) * rows * 4);
  int64_t dh[kMaxTaps], dw[kMaxTaps];
  for (int64_t t = 0; t < p.KH * p.KW; ++t) {
    dh[t] = t / p.KW * p.dilation_h - p.pad_top;
    dw[t] = t % p.KW * p.dilation_w - p.pad_left;
  }
  for (int64_t group = 0; group < p.groups; ++group) {
    pack_weight(w + group * oc * rows, oc, rows, packed.floats());
    ConvEpilogue e = epilogue;
    TapGrid grid{x,          p.N,        p.H,
                 p.W,        p.C,        group * ic,
                 ic,         p.OH,       p.OW,
                 p.stride_h, p.stride_w, static_cast<int>(p.KH * p.KW),
                 dh,         dw,         packed.floats(),
                 oc,         y,          p.OH,
                 p.OW,       p.OC,       group * oc,
                 0,          1,          0,
                 1,          e};
    run_grid<T>(grid);
  }
}

void forward(const ConvParams& p, const void* x, const void* w, const ConvEpilogue& epilogue,
             void* y) {
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
