// conv2d of groups of 2 to 32 channels, as many outputs as inputs to a group, three taps across.
//
// Vectors run over channels: of one group, or of the groups that share a vector. Tasks are rows
// (conv_rows.h), and all channels of 14 (or 7) outputs come before the next, so that memory is read
// in order. Of the outputs, one input serves as many as there are taps:
//
//   for a row of taps, for k < G:  w_t = weights of tap t, a vector of outputs each
//     for 16 (stride 2: 29) inputs j:  v = the k-th of in[j] of each lane's group,
//                                      sum[j - t] += v * w_t
//
// 42 multiply-adds for 19 loads; v is one value in all lanes, or, where groups share a vector, a
// permutation. The inputs of a block are copied to a buffer, with the zeros around them, or read
// where they lie (kBuffered): then the loop over k is the inner one. A k is a pair of channels
// where bfloat16 is multiplied in pairs. The gradient with respect to the input is the same, by
// phases of the stride; that with respect to the weight is in conv_grouped_weight.h.
// Flops: 2 * outputs * KH * 3 * G.
#include "cpu/conv_grouped.h"

#include "core/allocator.h"
#include "cpu/conv_grouped_weight.h"
#include "cpu/conv_rows.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int kBlock = LANES == 16 ? 14 : 7;  // outputs whose sums stay in registers

// Sums of one or two chains, the first of which starts from the bias.
template <int N, int Chains, class P, class T>
FASTNN_INLINE void start_chains(vfloat (&sum)[N][Chains], const ChannelRow<T, P>& d, int64_t c) {
  vfloat first[N][1];
  start_row(first, d, c, LANES);
#pragma GCC unroll 16
  for (int b = 0; b < N; ++b)
#pragma GCC unroll 2
    for (int chain = 0; chain < Chains; ++chain) sum[b][chain] = chain ? vfloat{} : first[b][0];
}
template <int N, int Chains, class P, class T>
FASTNN_INLINE void finish_chains(const vfloat (&sum)[N][Chains], const ChannelRow<T, P>& d,
                                 int64_t i, int64_t c) {
  vfloat total[N][1];
#pragma GCC unroll 16
  for (int b = 0; b < N; ++b)
    total[b][0] = Chains == 2 ? sum[b][0] + sum[b][Chains - 1] : sum[b][0];
  finish_row(total, d, i, c, LANES);
}

// Outputs i to i + N - 1, over buffers of the inputs of W channels: while one is multiplied, the
// next channels' pixels are copied to the other, kCopies before every step (all of them before the
// last one), which then take no time of their own. Where registers are few (AVX2), a copy in the
// loop would cost a sum its place: all of a row are copied before it.
template <int N, int G, int KW, int S, class P, class T>
FASTNN_INLINE void buffered_block(const ChannelRow<T, P>& d, int64_t i) {
  constexpr int W = kWidth<G>, kInputs = (N - 1) * S + KW, kSteps = static_cast<int>(G / kStep<P>);
  constexpr int kChains = N < kBlock && LANES == 16 ? 2 : 1;  // of each sum, for the latency
  constexpr int kCopies = (kInputs * kChains + kSteps - 1) / kSteps;
  static_assert(kSteps % kChains == 0);
  alignas(64) P buffers[2][kGroupedRows][kInputs][W];
  const int64_t first = i * S + d.start;
  const int64_t begin = clamp(-first, 0, kInputs), end = clamp(d.width - first, begin, kInputs);
  const auto pixels = [&](int64_t r, int64_t c) { return d.inputs(r, (first + begin) * d.C + c); };
  for (int64_t r = 0; r < d.rows; ++r) {
    for (auto& buffer : buffers) {
      zero_values(buffer[r][0], begin * W);
      zero_values(buffer[r][0] + end * W, (kInputs - end) * W);
    }
    const T* from = pixels(r, 0);
    for (int64_t j = begin; j < end; ++j, from += d.C) copy_pixel<W>(buffers[0][r][j], from);
  }
  for (int64_t c = 0; c < d.C; c += W)
    for (int v = 0; v < W; v += LANES) {
      const auto& in = buffers[c / W % 2];
      auto& other = buffers[(c / W + 1) % 2];
      bring_next<N, S>(d, i, c + v);
      vfloat sum[N][kChains];
      start_chains(sum, d, c + v);
      for (int64_t r = 0; r < d.rows; ++r) {
        const T* next = pixels(r, c + W);
        int64_t copied = v == 0 && c + W < d.C ? begin : end;
        const auto copy = [&](int count) FASTNN_INLINED {
          for (; count > 0 && copied < end; --count, ++copied, next += d.C) {
            __builtin_prefetch(next + 8 * d.C);
            copy_pixel<W>(other[r][copied], next);
          }
        };
        if (LANES != 16) copy(kInputs);
        const P* w = d.weights(r, c + v);
        for (int step = 0; step < kSteps; step += kChains) {
          if (LANES == 16) copy(kCopies);
#pragma GCC unroll 2
          for (int chain = 0; chain < kChains; ++chain, w += LANES * kStep<P>) {
            vfloat tap[KW];
#pragma GCC unroll 3
            for (int t = 0; t < KW; ++t) tap[t] = load_steps(w + t * G * LANES);
            const int k = step + chain;
            const P* from = in[r][0] + (G >= LANES ? k * kStep<P> : 0);
            asm("" : "+r"(from));  // else GCC keeps an address of every pixel, in vector registers
#pragma GCC unroll 32
            for (int j = 0; j < kInputs; ++j) {
              vfloat value;
              if constexpr (G >= LANES)
                value = set1_step(from + j * W);
              else
                value = permuted(load_pixel(from + j * W, P{}), lanes() / G * kSteps + k);
#pragma GCC unroll 3
              for (int t = 0; t < KW; ++t)
                if (j >= t && (j - t) % S == 0 && (j - t) / S < N)
                  add_step(sum[(j - t) / S][chain], value, tap[t], P{});
            }
          }
        }
      }
      finish_chains(sum, d, i, c + v);
    }
}

// The same, of groups that share a vector, as the inputs lie: a permutation per step, but no copy.
template <bool Checked, int N, int G, int KW, int S, class P, class T>
FASTNN_INLINE void direct_block(const ChannelRow<T, P>& d, int64_t i, int64_t c) {
  constexpr int kInputs = (N - 1) * S + KW, kSteps = static_cast<int>(G / kStep<P>);
  constexpr int kChains = LANES == 16 && kSteps % 2 == 0 ? 2 : 1;
  const int64_t first = i * S + d.start;
  bring_next<N, S>(d, i, c);
  vfloat sum[N][kChains];
  start_chains(sum, d, c);
  for (int64_t r = 0; r < d.rows; ++r) {
    const P* const w = d.weights(r, c);
    const T* const in = d.inputs(r, first * d.C + c);
#pragma GCC unroll 32
    for (int j = 0; j < kInputs; ++j) {
      if (Checked && (first + j < 0 || first + j >= d.width)) continue;
      const vfloat pixel = load_pixel(in + j * d.C, P{});
#pragma GCC unroll 8
      for (int step = 0; step < kSteps; ++step) {
        const vfloat value = permuted(pixel, lanes() / G * kSteps + step);
#pragma GCC unroll 3
        for (int t = 0; t < KW; ++t)
          if (j >= t && (j - t) % S == 0 && (j - t) / S < N)
            add_step(sum[(j - t) / S][step % kChains], value,
                     load_steps(w + (t * kSteps + step) * LANES * kStep<P>), P{});
      }
    }
  }
  finish_chains(sum, d, i, c);
}

// Whether inputs are copied: where a group fills vectors, for then one value of it is all that a
// step takes; of smaller groups, of which a step takes a permutation, where three taps share it (of
// two steps apart, if the permutations do not take all of the time already).
template <int G, int KW, int S, class P>
constexpr bool kBuffered =
    G >= LANES || (LANES == 16 && KW == 3 && G >= 4 && (S == 1 || G / kStep<P> < 8));

template <int N, int G, int KW, int S, class P, class T>
FASTNN_INLINE void grouped_blocks(const ChannelRow<T, P>& d) {
  for (int64_t next = 0; next < d.outputs; next += N) {
    // The last block may overlap the one before.
    const int64_t i = next < d.outputs - N ? next : d.outputs - N;
    if constexpr (kBuffered<G, KW, S, P>) {
      buffered_block<N, G, KW, S>(d, i);
    } else {
      const int64_t first = i * S + d.start;
      const bool inside = first >= 0 && first + (N - 1) * S + KW <= d.width;
      for (int64_t c = 0; c < d.C; c += kWidth<G>)
        if (inside)
          direct_block<false, N, G, KW, S>(d, i, c);
        else
          direct_block<true, N, G, KW, S>(d, i, c);
    }
  }
}
template <int G, int KW, int S, class P, class T>
void grouped_row(const ChannelRow<T, P>& d) {
  if constexpr (kBuffered<G, KW, S, P> && kBlock > 7)
    if (d.outputs >= kBlock) return grouped_blocks<kBlock, G, KW, S>(d);
  if (d.outputs >= 7)
    grouped_blocks<7, G, KW, S>(d);
  else if (d.outputs >= 4)
    grouped_blocks<4, G, KW, S>(d);
  else
    grouped_blocks<1, G, KW, S>(d);
}

// KW and S as constants: KW of a phase is 1 to 3.
template <int G, class P, class T>
void run_rows(int64_t KW, int64_t S, const ChannelRow<T, P>* rows, int count) {
  const auto run = KW == 3 && S == 2 ? grouped_row<G, 3, 2, P, T>
                   : KW == 3         ? grouped_row<G, 3, 1, P, T>
                   : KW == 2         ? grouped_row<G, 2, 1, P, T>
                                     : grouped_row<G, 1, 1, P, T>;
  for (int i = 0; i < count; ++i) run(rows[i]);
}

template <int N>
struct Size {
  static constexpr int value = N;
};
// body(Size<G>, value of the element type).
template <class Body>
FASTNN_INLINE void dispatch(const ConvParams& p, const Body& body) {
  const auto with_size = [&](auto type) FASTNN_INLINED {
    switch (p.group_inputs()) {
      case 2:
        return body(Size<2>{}, type);
      case 4:
        return body(Size<4>{}, type);
      case 8:
        return body(Size<8>{}, type);
      case 16:
        return body(Size<16>{}, type);
      default:
        return body(Size<32>{}, type);
    }
  };
  if (p.dtype == DType::bfloat16) return with_size(bfloat16{});
#if !defined(FASTNN_ISA_avx512_bf16)
  with_size(float{});
#endif
}

}  // namespace

void grouped_forward(const ConvParams& p, const void* x, const void* w, const ConvEpilogue& e,
                     void* y) {
#if defined(FASTNN_ISA_avx512_bf16)
  if (p.dtype == DType::float32) return avx512::grouped_forward(p, x, w, e, y);
#endif
  dispatch(p, [&](auto size, auto type) {
    using T = decltype(type);
    using P = Operand<T>;
    each_output_row<P>(p, static_cast<const T*>(x), static_cast<const T*>(w), e, static_cast<T*>(y),
                       [&](const ChannelRow<T, P>* rows, int count) {
                         run_rows<size.value>(p.KW, p.stride_w, rows, count);
                       });
  });
}

void grouped_backward_data(const ConvParams& p, const void* g, const void* w, const ConvEpilogue& e,
                           void* grad_input) {
#if defined(FASTNN_ISA_avx512_bf16)
  if (p.dtype == DType::float32) return avx512::grouped_backward_data(p, g, w, e, grad_input);
#endif
  dispatch(p, [&](auto size, auto type) {
    using T = decltype(type);
    using P = Operand<T>;
    each_input_row<P>(p, static_cast<const T*>(g), static_cast<const T*>(w), e,
                      static_cast<T*>(grad_input),
                      [&](const ChannelRow<T, P>* rows, int count, int64_t taps) {
                        run_rows<size.value>(taps, 1, rows, count);
                      });
  });
}

void grouped_backward_weight(const ConvParams& p, const void* x, const void* g, void* grad_weight) {
#if defined(FASTNN_ISA_avx512_bf16)
  if (p.dtype == DType::float32) return avx512::grouped_backward_weight(p, x, g, grad_weight);
#endif
  const WeightGradient gw(p, grad_weight);
  dispatch(p, [&](auto size, auto type) {
    using T = decltype(type);
    grouped_weight_gradient<size.value, Operand<T>>(p, static_cast<const T*>(x),
                                                    static_cast<const T*>(g), gw);
  });
}

}  // namespace fastnn::cpu::FASTNN_ISA
