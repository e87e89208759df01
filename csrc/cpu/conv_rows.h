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
#include "cpu/turned_weight.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int kHeld = 16 * LANES;
constexpr int64_t kNearOutput = 2 << 20;  // bytes of all outputs that L2 holds

// y[i] = sum over r, tap, k of (k of the group in) in[r][i * S + start + tap * gap] * w[r][tap][k],
// inputs outside [0, width) counted as zero.
template <class T, class P = float>
struct ChannelRow {
  const T* in;       // of row 0, pixels `pitch` apart
  int64_t next_row;  // from one row to the next one
  const P* w;        // of row 0 and the first vector of channels, (tap, k) LANES apart
  int64_t w_next_row, w_next_vector;
  int64_t pitch, rows, gap, width, start, outputs, C;
  ConvEpilogue e;
  T* y;
  Route route;
  int64_t at, step;  // of output 0 in y; distance of the next
  float* held;       // kHeld floats: half lines that wait for the other half, which comes next
  // Rows that the next task reads for the first time, brought meanwhile.
  int64_t new_rows, new_next_row;
  const T* next;
  bool brings_output;  // whether outputs are brought into L2 before they are written

  FASTNN_INLINED inline const T* inputs(int64_t r, int64_t c) const {
    return in + r * next_row + c;
  }
  FASTNN_INLINED inline const P* weights(int64_t r, int64_t c) const {
    return w + r * w_next_row + c / LANES * w_next_vector;
  }
};

// Which of `count` columns from `first` on, up to 32, lie in a row of `width`: a bit each.
FASTNN_INLINE uint32_t columns_there(int64_t first, int count, int64_t width) {
  const auto below = [&](int64_t column) FASTNN_INLINED {
    const int64_t columns = column < 0 ? 0 : column < count ? column : count;
    return (uint64_t{1} << columns) - 1;
  };
  return static_cast<uint32_t>(below(width - first) & ~below(-first));
}

// The sums of outputs i to i + N - 1, of V vectors of channels from c on and of the last vector n
// channels, start from the bias, and are stored as relu(sum + residual).
template <int N, int V, class T, class P>
FASTNN_INLINE void start_row(vfloat (&sum)[N][V], const ChannelRow<T, P>& d, int64_t c, int n) {
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    const vfloat bias = d.e.bias ? load_any(d.e.bias + c + v * LANES, n) : vfloat{};
#pragma GCC unroll 16
    for (int b = 0; b < N; ++b) sum[b][v] = bias;
  }
}
template <int N, int V, class T, class P>
FASTNN_INLINE void finish_row(vfloat (&sum)[N][V], const ChannelRow<T, P>& d, int64_t i, int64_t c,
                              int n) {
  // Several loops over all sums, with one decision before each, are half the code of one loop.
  const int64_t step = d.step, at = d.at + i * step + c;  // a store may change what d refers to
  const auto each = [&](const auto& body) FASTNN_INLINED {
#pragma GCC unroll 16
    for (int b = 0; b < N; ++b)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) body(sum[b][v], at + b * step + v * LANES);
  };
  if (const auto* residual = static_cast<const T*>(d.e.residual))
    each([&](vfloat& value, int64_t to) FASTNN_INLINED { value += load_any(residual + to, n); });
  if (d.e.relu) {
    const vfloat ceiling = set1(d.e.relu.ceiling);
    each([&](vfloat& value, int64_t) FASTNN_INLINED { value = vclamp(value, vfloat{}, ceiling); });
  }
  T* const y = d.y;
  const bool around =
      n == LANES && step % LANES == 0 && streams(y + at, LANES * sizeof(T), d.route);
  if constexpr (V == 1 && LANES * sizeof(T) == 32)
    if (around && d.C % (2 * LANES) == 0) {
      // Lines written half by half around the caches cost up to twice: channels come in order.
      float* held = d.held;
      if (c & LANES)
        each([&](vfloat value, int64_t to) FASTNN_INLINED {
          store_two(y + to - LANES, load(held), value, Route::around);
          held += LANES;
        });
      else
        each([&](vfloat value, int64_t) FASTNN_INLINED { store(held, value), held += LANES; });
      return;
    }
  if (around)
    each([&](vfloat value, int64_t to) FASTNN_INLINED { stream(y + to, value); });
  else
    each([&](vfloat value, int64_t to) FASTNN_INLINED { store_any(y + to, value, n); });
}

// Prefetches what outputs i to i + count - 1 of the next task read first.
template <int N, int S, class T, class P>
FASTNN_INLINE void bring_next(const ChannelRow<T, P>& d, int64_t i, int64_t c) {
  for (int64_t r = 0; r < d.new_rows; ++r) {
    const T* from = d.next + r * d.new_next_row + i * S * d.pitch + c;
#pragma GCC unroll 16
    for (int j = 0; j < N * S; ++j, from += d.pitch) __builtin_prefetch(from, 0, 2);
  }
}

// Prefetches where outputs i to i + count - 1 go. Too few lines lie one behind the other for the
// hardware to do so, and stores that miss L2 hold up those behind them.
template <int N, class T, class P>
FASTNN_INLINE void bring_output(const ChannelRow<T, P>& d, int64_t i, int64_t c) {
  if (!d.brings_output) return;
  const T* to = d.y + d.at + i * d.step + c;
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j, to += d.step) __builtin_prefetch(to, 0, 2);
}

// How so many pixels of C channels are written: around the caches where a pixel is whole lines, for
// those written in pieces cost twice; and brought before, where L2 does not hold all of them.
struct RowRoute {
  Route route;
  bool brings;
};
template <class T>
FASTNN_INLINE RowRoute row_route(const T* y, int64_t pixels, int64_t C) {
  const int64_t pixel = C * int64_t{sizeof(T)};
  const Route route = pixel % 64 ? Route::through : route_to(y, C, kCachedOfProducts);
  return {route, route == Route::through && pixels * pixel > kNearOutput};
}

FASTNN_INLINE int64_t turned_size(int64_t C, int64_t taps, int64_t G) {
  return (C + LANES - 1) / LANES * LANES * taps * G;
}
// Calls body(vector) for the vectors of C channels, of `rows` values each.
template <class Body>
void each_weight_vector(int64_t C, int64_t rows, const Body& body) {
  if (rows == 0) return;  // a phase without taps
  parallel_ranges(ceil_div(C, LANES), ceil_div(kGrain / 4, LANES * rows),
                  [&](int64_t begin, int64_t end) {
                    for (int64_t vector = begin; vector < end; ++vector) body(vector);
                  });
}

// turned[vector][row][LANES] = w[channel][row], or [row / 2][LANES][2] for pairs of rows.
template <class P, class T>
void turn_channels(const T* w, int64_t C, int64_t rows, P* turned) {
  each_weight_vector(C, rows, [&](int64_t vector) {
    const int64_t c = vector * LANES;
    turn_outputs(w + c * rows, C - c, rows, 0, rows, turned + c * rows, LANES);
  });
}

// Calls body(image, begin, end) for strips of rows of images, in parallel: rows one below the other
// whose blocks of outputs take turns, so that the inputs that they share are still in L1; single
// ones where there are few for each thread. (There, to give each thread the channels whose weights
// it has turned costs up to four times as much: prefetchers fetch the lines of both.) On AVX2 (Zen
// 3), rows one after the other are up to twice as fast where a pixel has few channels, and as fast
// elsewhere.
constexpr int64_t kTurns = LANES == 16 ? 4 : 1, kNearBytes = 4 << 20;
template <class Body>
void each_strip(int64_t images, int64_t H, const Body& body) {
  const int64_t turns = images * H < 4 * kTurns * get_num_threads() ? 1 : kTurns;
  const int64_t strips = ceil_div(H, turns);
  parallel_for(images * strips, [&](int64_t task) {
    const int64_t begin = task % strips * turns;
    body(task / strips, begin, begin + turns < H ? begin + turns : H);
  });
}

// Calls run(rows, count) for the rows of the forward pass.
template <class P, class T, class Run>
void each_output_row(const ConvParams& p, const T* x, const T* w, const ConvEpilogue& e, T* y,
                     const Run& run) {
  const int64_t C = p.C, G = p.group_inputs(), taps = p.KH * p.KW, kernel_row = p.KW * G * LANES;
  Workspace room(turned_size(C, taps, G) * int64_t{sizeof(P)});
  P* const turned = reinterpret_cast<P*>(room.floats());
  turn_channels(w, C, taps * G, turned);
  const RowRoute to = row_route(y, p.N * p.OH * p.OW, C);
  // With a stride, prefetching what a cache holds costs more than it hides.
  const bool near = p.stride_w > 1 && p.N * p.H * p.W * C * int64_t{sizeof(T)} <= kNearBytes;
  each_strip(p.N, p.OH, [&](int64_t n, int64_t begin, int64_t end) {
    const T* const image = x + n * p.H * p.W * C;
    ChannelRow<T, P> rows[kTurns];
    alignas(64) float held[kHeld];
    int count = 0;
    for (int64_t oh = begin; oh < end; ++oh) {
      const int64_t top = oh * p.stride_h - p.pad_top;
      const int64_t below = top + (p.KH - 1) * p.dilation_h + 1;
      ChannelRow<T, P>& d = rows[count++];
      d.next_row = p.dilation_h * p.W * C;
      d.w_next_row = kernel_row;
      d.w_next_vector = taps * G * LANES;
      d.pitch = C;
      d.rows = 0;
      d.gap = p.dilation_w;
      d.width = p.W;
      d.start = -p.pad_left;
      d.outputs = p.OW;
      d.C = C;
      d.e = e;
      d.held = held;
      d.y = y;
      d.route = to.route;
      d.brings_output = to.brings;
      d.at = (n * p.OH + oh) * p.OW * C;
      d.step = C;
      d.new_rows = near || below < 0 || below >= p.H ? 0 : below + 1 < p.H ? p.stride_h : 1;
      d.new_next_row = p.W * C;
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

// The smallest number of steps of `step` that are steps of `unit`, too.
inline int64_t steps_between(int64_t step, int64_t unit) {
  int64_t a = step, divisor = unit;
  while (a % divisor) {
    const int64_t rest = a % divisor;
    a = divisor;
    divisor = rest;
  }
  return unit / divisor;
}

// The taps of a kernel, along one axis, that reach the inputs of one phase of the stride: from the
// last on, every `every`th, so that the outputs they read ascend, `gap` apart, from `start` on.
struct PhaseTaps {
  int64_t last = 0, every, count = 0, start = 0, gap;
  PhaseTaps(int64_t phase, int64_t taps, int64_t pad, int64_t dilation, int64_t stride)
      : every(steps_between(dilation, stride)), gap(every * dilation / stride) {
    for (int64_t tap = taps - 1; tap >= 0; --tap) {
      const int64_t shifted = phase + pad - tap * dilation;
      if (shifted % stride) continue;
      if (count++ == 0) last = tap, start = shifted / stride;
    }
  }
};

// Weights for the gradient of the input: turned[vector][kernel row][tap of `across`][k] of input c
// is that from output k of its group; G > 1.
template <class P, class T>
void turn_group_taps(const ConvParams& p, const T* w, const PhaseTaps& across, P* turned) {
  const int64_t C = p.C, G = p.group_inputs(), taps = p.KH * p.KW, next = taps * G;
  const int some = static_cast<int>(G < LANES ? G : LANES);  // neighbours in one group
  each_weight_vector(C, p.KH * across.count * G, [&](int64_t vector) {
    auto* to = reinterpret_cast<float*>(turned + vector * p.KH * across.count * G * LANES);
    for (int64_t kh = 0; kh < p.KH; ++kh)
      for (int64_t t = 0; t < across.count; ++t)
        for (int64_t k = 0; k < G; k += kStep<P>, to += LANES)
          for (int lane = 0; lane < LANES; lane += some) {
            const int64_t c = vector * LANES + lane;
            const int64_t tap = kh * p.KW + across.last - t * across.every;
            const T* const from = w + (c / G * G + k) * next + tap * G + c % G;
            vfloat values = load_any(from, some);
            if (kStep<P> == 2) values = paired(values, load_any(from + next, some));
            store_any(to + lane, values, some);
          }
  });
}
// The same with G = 1, from what turn_channels() made.
inline void choose_taps(const ConvParams& p, const float* all, const PhaseTaps& across,
                        float* turned) {
  each_weight_vector(p.C, p.KH * across.count, [&](int64_t vector) {
    const float* const from = all + vector * p.KH * p.KW * LANES;
    float* to = turned + vector * p.KH * across.count * LANES;
    for (int64_t kh = 0; kh < p.KH; ++kh)
      for (int64_t t = 0; t < across.count; ++t, to += LANES)
        store(to, load(from + (kh * p.KW + across.last - t * across.every) * LANES));
  });
}

// Calls run(rows, count, taps across) for the rows of the gradient with respect to the input, phase
// by phase of the stride.
template <class P, class T, class Run>
void each_input_row(const ConvParams& p, const T* g, const T* w, const ConvEpilogue& e,
                    T* grad_input, const Run& run) {
  const int64_t C = p.C, G = p.group_inputs(), S = p.stride_w, taps = p.KH * p.KW;
  const int64_t phases = S < p.W ? S : p.W;
  Workspace room(turned_size(C, taps, G) * int64_t{sizeof(P)});
  P* const turned = reinterpret_cast<P*>(room.floats());
  Workspace all(G == 1 ? turned_size(C, taps, 1) * int64_t{sizeof(float)} : 0);
  if (G == 1) turn_channels(w, C, taps, all.floats());
  int64_t turned_taps = 0;
  for (int64_t phase = 0; phase < phases; ++phase) {
    const PhaseTaps across(phase, p.KW, p.pad_left, p.dilation_w, S);
    P* const of_phase = turned + turned_size(C, turned_taps, G);
    if constexpr (kStep<P> == 1) {
      if (G == 1) choose_taps(p, all.floats(), across, of_phase);
    }
    if (G > 1) turn_group_taps(p, w, across, of_phase);
    turned_taps += p.KH * across.count;
  }
  const RowRoute to = row_route(grad_input, p.N * p.H * p.W, C);
  const bool near = p.N * p.OH * p.OW * C * int64_t{sizeof(T)} <= kNearBytes;
  each_strip(p.N, p.H, [&](int64_t n, int64_t begin, int64_t end) {
    int64_t taps_before = 0;
    for (int64_t phase = 0; phase < phases; ++phase) {
      const PhaseTaps across(phase, p.KW, p.pad_left, p.dilation_w, S);
      const P* const weights = turned + turned_size(C, taps_before, G);
      const int64_t kernel_row = across.count * G * LANES;
      taps_before += p.KH * across.count;
      ChannelRow<T, P> rows[kTurns];
      alignas(64) float held[kHeld];
      int count = 0;
      for (int64_t h = begin; h < end; ++h) {
        const PhaseTaps down(h % p.stride_h, p.KH, p.pad_top, p.dilation_h, p.stride_h);
        ChannelRow<T, P>& d = rows[count++];
        d.next_row = down.gap * p.OW * C;
        d.w_next_row = -down.every * kernel_row;
        d.w_next_vector = p.KH * kernel_row;
        d.pitch = C;
        d.rows = 0;
        d.gap = across.gap;
        d.width = p.OW;
        d.start = across.start;
        d.outputs = (p.W - phase + S - 1) / S;
        d.C = C;
        d.e = e;
        d.held = held;
        d.y = grad_input;
        d.route = to.route;
        d.brings_output = to.brings;
        d.at = ((n * p.H + h) * p.W + phase) * C;
        d.step = S * C;
        const int64_t below = (h + 1 + p.pad_top) / p.stride_h;
        const bool is_new = (h + 1 + p.pad_top) % p.stride_h == 0 && below < p.OH;
        d.new_rows = phase == 0 && is_new && !near;
        d.new_next_row = 0;
        d.next = g + (n * p.OH + below) * p.OW * C;
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
