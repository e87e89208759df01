// Rows of outputs for convolutions whose vectors run over channels, where a vector of outputs
// depends on the same vector of inputs: depthwise ones, of groups of G = 1 channel, and those of
// small groups.
//
// Both passes over activations are rows of one form: an output pixel of the forward pass, or an
// input pixel of one phase of the columns' stride, is a sum over rows and taps that are evenly
// apart. Weights are turned once per call to [vector of channels][kernel row][tap][k][LANES], k
// counting the channels of a group, or to [..][tap][k / 2][LANES][2] where they are multiplied in
// pairs.
#pragma once

#include "core/allocator.h"
#include "cpu/conv_epilogue.h"
#include "cpu/simd/steps.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// y[i] = sum over r, tap, k of (k of the group in) in[r][i * S + start + tap * gap] * w[r][tap][k],
// inputs outside [0, width) counted as zero.
template <class T, class P = float>
struct ChannelRow {
  const T* in;       // of row 0, pixels C apart
  int64_t next_row;  // from one row to the next one
  const P* w;        // of row 0 and the first vector of channels, (tap, k) LANES apart
  int64_t w_next_row, w_next_vector;
  int64_t rows, gap, width, start, outputs, C;
  const ConvEpilogue* e;
  T* y;
  Route route;
  int64_t at, step;  // of output 0 in y; distance of the next
  // Rows that the next task reads for the first time, brought meanwhile.
  int64_t new_rows;
  const T* next;

  FASTNN_INLINED inline const T* inputs(int64_t r, int64_t c) const {
    return in + r * next_row + c;
  }
  FASTNN_INLINED inline const P* weights(int64_t r, int64_t c) const {
    return w + r * w_next_row + c / LANES * w_next_vector;
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

// Rows one below the other whose blocks of outputs take turns, so that the inputs that they share
// are still in L1; one where there are few rows for each thread.
constexpr int64_t kTurns = 4;
FASTNN_INLINE int64_t rows_in_turn(int64_t rows) {
  return rows < 4 * kTurns * get_num_threads() ? 1 : kTurns;
}

// Calls run(rows, count) for the rows of the forward pass.
template <class P, class T, class Run>
void each_output_row(const ConvParams& p, const T* x, const T* w, const ConvEpilogue& e, T* y,
                     const Run& run) {
  const int64_t C = p.C, G = p.group_inputs(), taps = p.KH * p.KW, kernel_row = p.KW * G * LANES;
  Workspace room(turned_size(C, taps, G) * int64_t{sizeof(P)});
  P* const turned = reinterpret_cast<P*>(room.floats());
  turn_weight(
      w, C, taps, G, 1, [&](int64_t c) { return c * taps * G; }, [&](int64_t t) { return t * G; },
      turned);
  const Route route = route_to(y, kCachedOfProducts);
  const int64_t turns = rows_in_turn(p.N * p.OH), strips = ceil_div(p.OH, turns);
  parallel_for(p.N * strips, [&](int64_t task) {
    const int64_t n = task / strips, begin = task % strips * turns;
    const T* const image = x + n * p.H * p.W * C;
    ChannelRow<T, P> rows[kTurns];
    int count = 0;
    for (int64_t oh = begin; oh < begin + turns && oh < p.OH; ++oh) {
      const int64_t top = oh * p.stride_h - p.pad_top;
      const int64_t below = top + (p.KH - 1) * p.dilation_h + 1;
      ChannelRow<T, P>& d = rows[count++];
      d.next_row = p.dilation_h * p.W * C;
      d.w_next_row = kernel_row;
      d.w_next_vector = taps * G * LANES;
      d.rows = 0;
      d.gap = p.dilation_w;
      d.width = p.W;
      d.start = -p.pad_left;
      d.outputs = p.OW;
      d.C = C;
      d.e = &e;
      d.y = y;
      d.route = route;
      d.at = (n * p.OH + oh) * p.OW * C;
      d.step = C;
      d.new_rows = below < 0 || below >= p.H ? 0 : below + 1 < p.H ? p.stride_h : 1;
      d.next = image + below * p.W * C;
      for (int64_t kh = 0; kh < p.KH; ++kh) {
        const int64_t h = top + kh * p.dilation_h;
        if (h < 0 || h >= p.H) continue;
        if (d.rows++ == 0) d.in = image + h * p.W * C, d.w = turned + kh * kernel_row;
      }
    }
    run(rows, count);
  });
}

// The taps of a kernel, along one axis, that reach the inputs of one phase of the stride: from the
// last on, every `every`th, so that the outputs they read ascend, `gap` apart, from `start` on.
struct PhaseTaps {
  int64_t last = 0, every = 1, count = 0, start = 0, gap;
  PhaseTaps(int64_t phase, int64_t taps, int64_t pad, int64_t dilation, int64_t stride) {
    while (every * dilation % stride) ++every;
    gap = every * dilation / stride;
    for (int64_t tap = taps - 1; tap >= 0; --tap) {
      const int64_t shifted = phase + pad - tap * dilation;
      if (shifted % stride) continue;
      if (count++ == 0) last = tap, start = shifted / stride;
    }
  }
};

// Calls run(rows, count, taps across) for the rows of the gradient with respect to the input, phase
// by phase of the stride.
template <class P, class T, class Run>
void each_input_row(const ConvParams& p, const T* g, const T* w, const ConvEpilogue& e,
                    T* grad_input, const Run& run) {
  const int64_t C = p.C, G = p.group_inputs(), S = p.stride_w, taps = p.KH * p.KW;
  Workspace room(turned_size(C, taps, G) * int64_t{sizeof(P)});
  P* const turned = reinterpret_cast<P*>(room.floats());
  int64_t turned_taps = 0;
  for (int64_t phase = 0; phase < S; ++phase) {
    const PhaseTaps across(phase, p.KW, p.pad_left, p.dilation_w, S);
    // Of input c: from output k of its group.
    turn_weight(
        w, C, p.KH * across.count, G, taps * G,
        [&](int64_t c) { return c / G * G * taps * G + c % G; },
        [&](int64_t t) {
          return (t / across.count * p.KW + across.last - t % across.count * across.every) * G;
        },
        turned + turned_size(C, turned_taps, G));
    turned_taps += p.KH * across.count;
  }
  const Route route = route_to(grad_input, kCachedOfProducts);
  const int64_t turns = rows_in_turn(p.N * p.H), strips = ceil_div(p.H, turns);
  parallel_for(p.N * strips, [&](int64_t task) {
    const int64_t n = task / strips, begin = task % strips * turns;
    int64_t taps_before = 0;
    for (int64_t phase = 0; phase < S && phase < p.W; ++phase) {
      const PhaseTaps across(phase, p.KW, p.pad_left, p.dilation_w, S);
      const P* const weights = turned + turned_size(C, taps_before, G);
      const int64_t kernel_row = across.count * G * LANES;
      taps_before += p.KH * across.count;
      ChannelRow<T, P> rows[kTurns];
      int count = 0;
      for (int64_t h = begin; h < begin + turns && h < p.H; ++h) {
        const PhaseTaps down(h % p.stride_h, p.KH, p.pad_top, p.dilation_h, p.stride_h);
        ChannelRow<T, P>& d = rows[count++];
        d.next_row = down.gap * p.OW * C;
        d.w_next_row = -down.every * kernel_row;
        d.w_next_vector = p.KH * kernel_row;
        d.rows = 0;
        d.gap = across.gap;
        d.width = p.OW;
        d.start = across.start;
        d.outputs = (p.W - phase + S - 1) / S;
        d.C = C;
        d.e = &e;
        d.y = grad_input;
        d.route = route;
        d.at = ((n * p.H + h) * p.W + phase) * C;
        d.step = S * C;
        d.new_rows = 0;
        d.next = g;
        for (int64_t t = 0; t < down.count && across.count; ++t) {
          const int64_t oh = h / p.stride_h + down.start + t * down.gap;
          if (oh < 0 || oh >= p.OH) continue;
          if (d.rows++ > 0) continue;
          d.in = g + (n * p.OH + oh) * p.OW * C;
          d.w = weights + (down.last - t * down.every) * kernel_row;
        }
      }
      run(rows, count, across.count ? across.count : 1);
    }
  });
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
