// Rows of outputs for convolutions whose vectors run over channels, where a vector of outputs
// depends on the same vector of inputs: depthwise ones, of groups of G = 1 channel, and those of
// small groups.
//
// Both passes over activations are rows of one form: an output pixel of the forward pass, or an
// input pixel of one phase of the columns' stride, is a sum over a few rows and neighbouring taps.
// Weights are turned once per call to [vector of channels][kernel row][tap][k][LANES], k counting
// the channels of a group, or to [..][tap][k / 2][LANES][2] where they are multiplied in pairs.
#pragma once

#include "core/allocator.h"
#include "cpu/conv_epilogue.h"
#include "cpu/simd/steps.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kMaxRows = 7;  // of a kernel that these loops take; its columns: at most as many

// y[i] = sum over r, tap, k of (k of the group in) in[r][i * S + start + tap] * w[r][tap][k],
// inputs outside [0, width) counted as zero.
template <class T, class P = float>
struct ChannelRow {
  const T* in[kMaxRows];  // pixels C apart
  const P* w[kMaxRows];   // of the first vector of channels, (tap, k) LANES apart
  int64_t rows, width, start, outputs, C;
  const ConvEpilogue* e;
  T* y;
  Route route;
  int64_t at, step;  // of output 0 in y; distance of the next
  // Rows that the next task reads for the first time, brought meanwhile.
  int64_t new_rows;
  const T* next;
  int64_t w_vector;  // from one vector's weights to the next one's

  FASTNN_INLINED inline const P* weights(int64_t r, int64_t c) const {
    return w[r] + c / LANES * w_vector;
  }
};

// Which of `count` columns from `first` on, up to 32, lie in a row of `width`: a bit each.
FASTNN_INLINE uint32_t columns_there(int64_t first, int count, int64_t width) {
  uint32_t there = 0;
  for (int j = 0; j < count; ++j)
    if (first + j >= 0 && first + j < width) there |= 1u << j;
  return there;
}

// V vectors of channels from c on of outputs i to i + N - 1, of the last vector n channels. Without
// an epilogue a store is all that is left.
template <int N, int V, class T, class P>
FASTNN_INLINE void finish_row(const vfloat (&sum)[N][V], const ChannelRow<T, P>& d, int64_t i,
                              int64_t c, int n) {
  const int64_t step = d.step, at = d.at + i * step + c;  // a store may change what d refers to
  T* const y = d.y;
  const bool plain = !d.e->bias && !d.e->residual && !d.e->relu && n == LANES;
  const bool around = step % LANES == 0 && streams(y + at, LANES * sizeof(T), d.route);
#pragma GCC unroll 16
  for (int b = 0; b < N; ++b)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const int64_t to = at + b * step + v * LANES;
      if (plain && around)
        stream(y + to, sum[b][v]);
      else if (plain)
        store(y + to, sum[b][v]);
      else
        finish_vector(sum[b][v], *d.e, c + v * LANES, to, n, y, d.route);
    }
}

// Prefetches what outputs i to i + count - 1 of the next task read first.
template <int N, int S, class T, class P>
FASTNN_INLINE void bring_next(const ChannelRow<T, P>& d, int64_t i, int64_t c) {
  const T* from = d.next + i * S * d.C + c;
  const int64_t next_row = (d.width - N * S) * d.C;
  for (int64_t r = 0; r < d.new_rows; ++r, from += next_row)
#pragma GCC unroll 8
    for (int j = 0; j < N * S; ++j, from += d.C) __builtin_prefetch(from, 0, 2);
}

FASTNN_INLINE int64_t turned_size(int64_t C, int64_t taps, int64_t G) {
  return (C + LANES - 1) / LANES * LANES * taps * G;
}
// The k-th weight of a channel and a tap is w[of_channel(c) + of_tap(tap) + k * k_step].
template <class P, class T, class OfChannel, class OfTap>
void turn_weight(const T* w, int64_t C, int64_t taps, int64_t G, int64_t k_step,
                 const OfChannel& of_channel, const OfTap& of_tap, P* turned) {
  parallel_for((C + LANES - 1) / LANES, [&](int64_t vector) {
    const int64_t used = C - vector * LANES < LANES ? C - vector * LANES : LANES;
    int64_t channel[LANES];
    for (int64_t l = 0; l < used; ++l) channel[l] = of_channel(vector * LANES + l);
    P* to = turned + vector * taps * G * LANES;
    for (int64_t t = 0; t < taps; ++t, to += G * LANES)
      for (int64_t k = 0; k < G; ++k) {
        const T* const from = w + of_tap(t) + k * k_step;
        P* const lane = to + k / kStep<P> * kStep<P> * LANES + k % kStep<P>;
        for (int64_t l = 0; l < LANES; ++l)
          from_float(lane[l * kStep<P>], l < used ? to_float(from[channel[l]]) : 0.0f);
      }
  });
}
template <class P, class T>
void turn_weight(const T* w, int64_t C, int64_t taps, int64_t G, P* turned) {
  turn_weight(
      w, C, taps, G, 1, [&](int64_t c) { return c * taps * G; }, [&](int64_t t) { return t * G; },
      turned);
}

// Calls run(row) for the rows of the forward pass.
template <class P, class T, class Run>
void each_output_row(const ConvParams& p, const T* x, const T* w, const ConvEpilogue& e, T* y,
                     const Run& run) {
  const int64_t C = p.C, G = p.group_inputs(), taps = p.KH * p.KW;
  Workspace room(turned_size(C, taps, G) * int64_t{sizeof(P)});
  P* const turned = reinterpret_cast<P*>(room.floats());
  turn_weight(w, C, taps, G, turned);
  const Route route = route_to(y);
  parallel_for(p.N * p.OH, [&](int64_t task) {
    const int64_t n = task / p.OH, oh = task % p.OH;
    const int64_t below = oh * p.stride_h - p.pad_top + (p.KH - 1) * p.dilation_h + 1;
    const int64_t fresh = below < 0 || below >= p.H ? 0 : below + 1 < p.H ? p.stride_h : 1;
    ChannelRow<T, P> d{{},
                       {},
                       0,
                       p.W,
                       -p.pad_left,
                       p.OW,
                       C,
                       &e,
                       y,
                       route,
                       task * p.OW * C,
                       C,
                       fresh,
                       x + (n * p.H + below) * p.W * C,
                       taps * G * LANES};
    for (int64_t kh = 0; kh < p.KH; ++kh) {
      const int64_t h = oh * p.stride_h - p.pad_top + kh * p.dilation_h;
      if (h < 0 || h >= p.H) continue;
      d.in[d.rows] = x + (n * p.H + h) * p.W * C;
      d.w[d.rows++] = turned + kh * p.KW * G * LANES;
    }
    run(d);
  });
}

// Taps across of one phase of input columns, last first, so that the outputs they read ascend.
struct ColumnPhase {
  int64_t count = 0, start = 0, taps[kMaxRows];
  ColumnPhase(const ConvParams& p, int64_t phase) {
    for (int64_t kw = p.KW - 1; kw >= 0; --kw) {
      const int64_t shifted = phase + p.pad_left - kw;
      const int64_t rest = ((shifted % p.stride_w) + p.stride_w) % p.stride_w;
      if (rest) continue;
      if (count == 0) start = (shifted - rest) / p.stride_w;
      taps[count++] = kw;
    }
  }
};

// Calls run(row, taps across) for the rows of the gradient with respect to the input, phase by
// phase of a stride of 1 or 2.
template <class P, class T, class Run>
void each_input_row(const ConvParams& p, const T* g, const T* w, const ConvEpilogue& e,
                    T* grad_input, const Run& run) {
  const int64_t C = p.C, G = p.group_inputs(), S = p.stride_w;
  const ColumnPhase phases[2] = {{p, 0}, {p, 1}};
  Workspace turned(turned_size(C, p.KH * p.KW, G) * int64_t{sizeof(P)});
  const P* weights[2];
  P* to = reinterpret_cast<P*>(turned.floats());
  for (int64_t phase = 0; phase < S; ++phase) {
    const ColumnPhase& taps = phases[phase];
    weights[phase] = to;
    // Of input c: from output k of its group.
    turn_weight(
        w, C, p.KH * taps.count, G, p.KH * p.KW * G,
        [&](int64_t c) { return c / G * G * p.KH * p.KW * G + c % G; },
        [&](int64_t t) { return (t / taps.count * p.KW + taps.taps[t % taps.count]) * G; }, to);
    to += turned_size(C, p.KH * taps.count, G);
  }
  const Route route = route_to(grad_input);
  parallel_for(p.N * p.H, [&](int64_t task) {
    const int64_t n = task / p.H, h = task % p.H;
    for (int64_t phase = 0; phase < S && phase < p.W; ++phase) {
      const ColumnPhase& taps = phases[phase];
      const int64_t outputs = (p.W - phase + S - 1) / S, at = (task * p.W + phase) * C;
      ChannelRow<T, P> d{{},      {},    0,  p.OW,       taps.start,
                         outputs, C,     &e, grad_input, route,
                         at,      S * C, 0,  nullptr,    p.KH * taps.count * G * LANES};
      for (int64_t kh = 0; kh < p.KH && taps.count; ++kh) {
        const int64_t shifted = h + p.pad_top - kh * p.dilation_h, oh = shifted / p.stride_h;
        if (shifted < 0 || shifted % p.stride_h || oh >= p.OH) continue;
        d.in[d.rows] = g + (n * p.OH + oh) * p.OW * C;
        d.w[d.rows++] = weights[phase] + kh * taps.count * G * LANES;
      }
      run(d, taps.count ? taps.count : 1);
    }
  });
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
