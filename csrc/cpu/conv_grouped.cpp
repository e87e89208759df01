// conv2d of small groups: G inputs and G outputs each, three taps across. 2 to 8 here; 16 and 32 in
// conv_grouped_wide.h.
//
// Tasks are rows, vectors run over channels (conv_rows.h). A vector of outputs is a sum over taps
// and k of weights times the k-th input of each lane's group: a vector of inputs is loaded once and
// permuted G times, and every permuted one serves all outputs of a block that it reaches:
//
//   for 4 outputs i, for a row of taps, for 6 (stride 2: 9) inputs j:  v = in[j]
//     for k < G:  v_k = v[lane / G * G + k],  sum[i] += v_k * w[j - i * S][k]    i that j reaches
//
// The permutation shares a port with the multiply-adds, which bounds this to 3/4 (stride 2: 4/7) of
// the peak. Sums have two chains each, for the latency. The gradient with respect to the input is
// the same, by phases of the stride; that with respect to the weight multiplies v_k with outputs.
// Flops: 2 * outputs * KH * 3 * G.
#include "cpu/conv_grouped.h"

#include "core/allocator.h"
#include "cpu/conv_grouped_wide.h"
#include "cpu/conv_rows.h"
#include "cpu/conv_weight.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int B = 4;            // outputs of a block
constexpr int64_t kPiece = 32;  // pixels of a row whose gradient sums stay in registers

// Lane l: the k-th channel of its group.
template <int G>
FASTNN_INLINE vfloat kth(vfloat v, int k) {
  return permuted(v, lanes() / G * G + k);
}

// Outputs i to i + N - 1.
template <bool Checked, int N, int G, int KW, int S, class T>
FASTNN_INLINE void grouped_block(const ChannelRow<T>& d, int64_t i, int64_t c) {
  vfloat sum[N][2] = {};
  const int64_t first = i * S + d.start;
  bring_next<N, S>(d, i, c);
  for (int64_t r = 0; r < d.rows; ++r) {
    const float* const w = d.weights(r, c);
    const T* const in = d.in[r] + first * d.C + c;
#pragma GCC unroll 9
    for (int j = 0; j < (N - 1) * S + KW; ++j) {
      if (Checked && (first + j < 0 || first + j >= d.width)) continue;
      const vfloat v = load(in + j * d.C);
#pragma GCC unroll 16
      for (int k = 0; k < G; ++k) {
        const vfloat mine = kth<G>(v, k);
#pragma GCC unroll 4
        for (int b = 0; b < N; ++b)
          if (j - b * S >= 0 && j - b * S < KW)
            sum[b][k % 2] += mine * load(w + ((j - b * S) * G + k) * LANES);
      }
    }
  }
  vfloat total[N];
#pragma GCC unroll 4
  for (int b = 0; b < N; ++b) total[b] = sum[b][0] + sum[b][1];
  finish_row(total, d, i, c, LANES);
}

template <int G, int KW, int S, class T>
void grouped_row(const ChannelRow<T>& d) {
  const auto block = [&](int64_t i, int64_t c) FASTNN_INLINED {
    const int64_t first = i * S + d.start;
    if (first >= 0 && first + (B - 1) * S + KW <= d.width)
      grouped_block<false, B, G, KW, S>(d, i, c);
    else
      grouped_block<true, B, G, KW, S>(d, i, c);
  };
  if (d.outputs < B) {
    for (int64_t i = 0; i < d.outputs; ++i)
      for (int64_t c = 0; c < d.C; c += LANES) grouped_block<true, 1, G, KW, S>(d, i, c);
    return;
  }
  const int64_t last = d.outputs - B;  // this block may overlap the one before
  for (int64_t i = 0; i < d.outputs; i += B)
    for (int64_t c = 0; c < d.C; c += LANES) block(i < last ? i : last, c);
}

// Calls row with G, KW and S as constants: KW of a phase is 1 to 3.
template <class T, int G, int KW, int S>
FASTNN_INLINE void any_row(const ChannelRow<T>& d) {
  if constexpr (G < 16)
    grouped_row<G, KW, S>(d);
  else
    wide_row<G, KW, S>(d);
}
template <class T, int G>
void run_row(int64_t KW, int64_t S, const ChannelRow<T>& d) {
  if (KW == 3 && S == 2) return any_row<T, G, 3, 2>(d);
  if (KW == 3) return any_row<T, G, 3, 1>(d);
  if (KW == 2) return any_row<T, G, 2, 1>(d);
  any_row<T, G, 1, 1>(d);
}

template <int N>
struct Size {
  static constexpr int value = N;
};
// body(Size<G>) for the size of a group.
template <class Body>
FASTNN_INLINE void with_group(int64_t G, const Body& body) {
  if (G == 2) return body(Size<2>{});
  if (G == 4) return body(Size<4>{});
  if constexpr (LANES >= 8)
    if (G == 8) return body(Size<8>{});
  if (G == 16) return body(Size<16>{});
  if (G == 32) return body(Size<32>{});
}

// Adds N outputs' share to the sums of one row of taps: in is the input row at the channel.
template <bool Checked, int N, int G, int S, class T>
FASTNN_INLINE void weight_block(const T* in, int64_t first, int64_t width, const T* g, int64_t C,
                                vfloat (&sum)[3][G]) {
  vfloat grad[N];
#pragma GCC unroll 4
  for (int b = 0; b < N; ++b) grad[b] = load(g + b * C);
#pragma GCC unroll 9
  for (int j = 0; j < (N - 1) * S + 3; ++j) {
    if (Checked && (first + j < 0 || first + j >= width)) continue;
    const vfloat v = load(in + (first + j) * C);
#pragma GCC unroll 16
    for (int k = 0; k < G; ++k) {
      const vfloat mine = kth<G>(v, k);
#pragma GCC unroll 4
      for (int b = 0; b < N; ++b)
        if (j - b * S >= 0 && j - b * S < 3) sum[j - b * S][k] += mine * grad[b];
    }
  }
}

// Sums over rows [begin, end) into sums[KH][3][G][C].
template <int G, int S, class T>
void weight_chunk(const ConvParams& p, const T* x, const T* g, int64_t begin, int64_t end,
                  float* sums) {
  const int64_t C = p.C;
  for (int64_t row = begin; row < end; ++row)
    for (int64_t kh = 0; kh < p.KH; ++kh) {
      const int64_t n = row / p.OH, h = row % p.OH * p.stride_h - p.pad_top + kh * p.dilation_h;
      if (h < 0 || h >= p.H) continue;
      for (int64_t piece = 0; piece < p.OW; piece += kPiece)
        for (int64_t c = 0; c < C; c += LANES) {
          const T* const in = x + (n * p.H + h) * p.W * C + c;
          const T* const grad = g + row * p.OW * C + c;
          float* const to = sums + kh * 3 * G * C + c;
          vfloat sum[3][G];
          for (int t = 0; t < 3; ++t)
            for (int k = 0; k < G; ++k) sum[t][k] = load(to + (t * G + k) * C);
          const int64_t last = piece + kPiece < p.OW ? piece + kPiece : p.OW;
          int64_t i = piece;
          for (; i + B <= last; i += B) {
            const int64_t first = i * S - p.pad_left;
            if (first >= 0 && first + (B - 1) * S + 3 <= p.W)
              weight_block<false, B, G, S>(in, first, p.W, grad + i * C, C, sum);
            else
              weight_block<true, B, G, S>(in, first, p.W, grad + i * C, C, sum);
          }
          for (; i < last; ++i)
            weight_block<true, 1, G, S>(in, i * S - p.pad_left, p.W, grad + i * C, C, sum);
          for (int t = 0; t < 3; ++t)
            for (int k = 0; k < G; ++k) store(to + (t * G + k) * C, sum[t][k]);
        }
    }
}

template <int G, class T>
void backward_weight_typed(const ConvParams& p, const T* x, const T* g, WeightGradient gw) {
  const int64_t C = p.C, rows = p.N * p.OH, chunks = rows < 32 ? rows : 32;
  const int64_t size = p.KH * 3 * G * C;
  Workspace partial((chunks + (chunks == 0)) * size * 4);
  parallel_for(chunks, [&](int64_t chunk) {
    float* const sums = partial.floats() + chunk * size;
    __builtin_memset(sums, 0, sizeof(float) * static_cast<size_t>(size));
    const int64_t begin = rows * chunk / chunks, end = rows * (chunk + 1) / chunks;
    if (p.stride_w == 1)
      weight_chunk<G, 1>(p, x, g, begin, end, sums);
    else
      weight_chunk<G, 2>(p, x, g, begin, end, sums);
  });
  parallel_for(p.KH * 3 * G, [&](int64_t line) {
    const int64_t t = line / G, k = line % G;
    for (int64_t c = 0; c < C; c += LANES) {
      vfloat total{};
      for (int64_t chunk = 0; chunk < chunks; ++chunk)
        total += load(partial.floats() + chunk * size + line * C + c);
      for (int l = 0; l < LANES; ++l) gw.store(((c + l) * p.KH * 3 + t) * G + k, total[l]);
    }
  });
}

// body(Size<G>, value of the element type).
template <class Body>
FASTNN_INLINE void dispatch(const ConvParams& p, const Body& body) {
  with_group(p.group_inputs(), [&](auto size) FASTNN_INLINED {
    if (p.dtype == DType::float32)
      body(size, float{});
    else
      body(size, bfloat16{});
  });
}

}  // namespace

void grouped_forward(const ConvParams& p, const void* x, const void* w, const ConvEpilogue& e,
                     void* y) {
  dispatch(p, [&](auto size, auto type) {
    using T = decltype(type);
    each_output_row(p, static_cast<const T*>(x), static_cast<const T*>(w), e, static_cast<T*>(y),
                    [&](const ChannelRow<T>& d) { run_row<T, size.value>(p.KW, p.stride_w, d); });
  });
}

void grouped_backward_data(const ConvParams& p, const void* g, const void* w, const ConvEpilogue& e,
                           void* grad_input) {
  dispatch(p, [&](auto size, auto type) {
    using T = decltype(type);
    each_input_row(
        p, static_cast<const T*>(g), static_cast<const T*>(w), e, static_cast<T*>(grad_input),
        [&](const ChannelRow<T>& d, int64_t taps) { run_row<T, size.value>(taps, 1, d); });
  });
}

void grouped_backward_weight(const ConvParams& p, const void* x, const void* g, void* grad_weight) {
  const WeightGradient gw(p, grad_weight);
  dispatch(p, [&](auto size, auto type) {
    using T = decltype(type);
    const T *const input = static_cast<const T*>(x), *const grad = static_cast<const T*>(g);
    if constexpr (size.value < 16)
      backward_weight_typed<size.value>(p, input, grad, gw);
    else
      wide_backward_weight<size.value>(p, input, grad, gw);
  });
}

}  // namespace fastnn::cpu::FASTNN_ISA
