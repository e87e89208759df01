// The gradient of a convolution with respect to its input, cut into convolutions of stride 1.
//
// Input pixel (h, w) receives from output pixel (oh, ow) through tap (kh, kw) where
//   oh * stride + kh * dilation - pad = h.
// For a fixed phase h mod stride, the taps with (h + pad - kh * dilation) divisible by the stride
// are fixed too, and the phase is a stride-1 convolution of grad_output with these taps and
// transposed weights: stride_h * stride_w products of a quarter of the taps each (stride 2, 3x3: 1,
// 2, 2, 4), without a single multiplication by an inserted zero.
#pragma once

#include "cpu/implicit_gemm.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

FASTNN_INLINE int64_t floor_mod(int64_t a, int64_t b) { return ((a % b) + b) % b; }

struct Taps {
  int count = 0;
  int64_t kh[kMaxTaps], kw[kMaxTaps], dh[kMaxTaps], dw[kMaxTaps];
};

// The pixels of a phase that no output pixel reaches: relu(bias + residual).
template <class T>
void fill_phase(const ConvParams& p, int64_t ph, int64_t pw, int64_t rows, int64_t cols,
                const ConvEpilogue& e, T* grad_input, Route route) {
  parallel_for(p.N * rows, [&](int64_t task) {
    const int64_t row = task / rows * p.H + ph + task % rows * p.stride_h;
    alignas(64) const float zeros[NR] = {};
    for (int64_t j = 0; j < cols; ++j) {
      const int64_t pixel = (row * p.W + pw + j * p.stride_w) * p.C;
      for (int64_t c = 0; c < p.C; c += NR)
        store_tile(zeros, NR, 1, &pixel, c, clamp(p.C - c, 0, NR), e, grad_input, route);
    }
  });
}

// Calls run(taps, grid) for every phase that any output pixel reaches; run packs the weights of
// these taps, of all groups, and sets grid.b. The other phases are filled here.
template <class T, class Run>
void each_phase(const ConvParams& p, const T* g, const ConvEpilogue& epilogue, T* grad_input,
                const Run& run) {
  const int64_t ic = p.group_inputs(), oc = p.group_outputs();
  const Route route = product_route(grad_input, ic);
  const int64_t phases_h = p.stride_h < p.H ? p.stride_h : p.H;
  const int64_t phases_w = p.stride_w < p.W ? p.stride_w : p.W;
  Taps taps;
  for (int64_t ph = 0; ph < phases_h; ++ph)
    for (int64_t pw = 0; pw < phases_w; ++pw) {
      taps.count = 0;
      for (int64_t kh = p.KH - 1; kh >= 0; --kh)
        for (int64_t kw = p.KW - 1; kw >= 0; --kw) {
          const int64_t h = ph + p.pad_top - kh * p.dilation_h;
          const int64_t v = pw + p.pad_left - kw * p.dilation_w;
          if (floor_mod(h, p.stride_h) || floor_mod(v, p.stride_w)) continue;
          taps.kh[taps.count] = kh;
          taps.kw[taps.count] = kw;
          taps.dh[taps.count] = (h - floor_mod(h, p.stride_h)) / p.stride_h;
          taps.dw[taps.count] = (v - floor_mod(v, p.stride_w)) / p.stride_w;
          ++taps.count;
        }
      const int64_t rows = ceil_div(p.H - ph, p.stride_h), cols = ceil_div(p.W - pw, p.stride_w);
      if (taps.count == 0) {
        fill_phase(p, ph, pw, rows, cols, epilogue, grad_input, route);
        continue;
      }
      const InputGrid in{g,    p.N,  p.OH, p.OW, p.OC,       0,       oc,
                         rows, cols, 1,    1,    taps.count, taps.dh, taps.dw};
      TapGrid grid{in, nullptr,    ic, grad_input, p.H,      p.W,   p.C,      0,
                   ph, p.stride_h, pw, p.stride_w, epilogue, route, p.groups, 0};
      run(taps, grid);
    }
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
