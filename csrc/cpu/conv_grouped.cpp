// conv2d of small groups: G inputs and G outputs each, 2 to 16, three taps across.
//
// Vectors run over channels as in conv_depthwise.cpp. A vector of outputs is a sum over taps and k
// of weights times the k-th input of each lane's group: a vector of inputs is loaded once and
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

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int B = 4;            // outputs of a block
constexpr int64_t kPiece = 32;  // pixels of a row whose gradient sums stay in registers

// Lane l: the k-th channel of its group.
template <int G>
FASTNN_INLINE vfloat kth(vfloat v, int k) {
  return permuted(v, lanes() / G * G + k);
}

// The row of outputs y[i] = sum over r, tap, k of in[r][i * S + start + tap] * w[r][tap][k], inputs
// outside [0, width) counted as zero.
template <class T>
struct GroupedRow {
  const T* in[7];     // pixels C apart
  const float* w[7];  // (tap, k) C apart
  int64_t rows, width, start, outputs, C;
  const ConvEpilogue* e;
  T* y;
  Route route;
  int64_t at, step;  // of output 0 in y; distance of the next
  // Rows that the next task reads for the first time, brought meanwhile.
  int64_t new_rows = 0;
  const T* next = nullptr;
};

template <class T>
FASTNN_INLINE void finish(vfloat value, const GroupedRow<T>& d, int64_t c, int64_t i) {
  const int64_t at = d.at + i * d.step + c;
  if (d.e->bias) value += load(d.e->bias + c);
  if (d.e->residual) value += load(static_cast<const T*>(d.e->residual) + at);
  if (d.e->relu) value = select(value < 0, vfloat{}, value);
  store_any(d.y + at, value, LANES, d.route);
}

// Outputs i to i + N - 1.
template <bool Checked, int N, int G, int KW, int S, class T>
FASTNN_INLINE void grouped_block(const GroupedRow<T>& d, int64_t i, int64_t c) {
  vfloat sum[N][2] = {};
  const int64_t first = i * S + d.start;
  for (int64_t r = 0; r < d.new_rows; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < N * S; ++j)
      __builtin_prefetch(d.next + (r * d.width + i * S + j) * d.C + c, 0, 2);
  for (int64_t r = 0; r < d.rows; ++r) {
    const float* const w = d.w[r] + c;
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
            sum[b][k % 2] += mine * load(w + ((j - b * S) * G + k) * d.C);
      }
    }
  }
#pragma GCC unroll 4
  for (int b = 0; b < N; ++b) finish(sum[b][0] + sum[b][1], d, c, i + b);
}

template <int G, int KW, int S, class T>
void grouped_row(const GroupedRow<T>& d) {
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
template <class T, int G>
void run_row(int64_t KW, int64_t S, const GroupedRow<T>& d) {
  if (KW == 3 && S == 2) return grouped_row<G, 3, 2>(d);
  if (KW == 3) return grouped_row<G, 3, 1>(d);
  if (KW == 2) return grouped_row<G, 2, 1>(d);
  grouped_row<G, 1, 1>(d);
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
  if constexpr (LANES >= 16)
    if (G == 16) return body(Size<16>{});
}

template <int G, class T>
void forward_typed(const ConvParams& p, const T* x, const T* w, const ConvEpilogue& e, T* y) {
  const int64_t C = p.C;
  Workspace turned(C * p.KH * 3 * G * 4);  // [kh][kw][k][C]
  for (int64_t c = 0; c < C; ++c)
    for (int64_t t = 0; t < p.KH * 3; ++t)
      for (int64_t k = 0; k < G; ++k)
        turned.floats()[(t * G + k) * C + c] = to_float(w[(c * p.KH * 3 + t) * G + k]);
  const Route route = route_to(y);
  parallel_for(p.N * p.OH, [&](int64_t task) {
    const int64_t n = task / p.OH, oh = task % p.OH;
    GroupedRow<T> d{{}, {}, 0, p.W, -p.pad_left, p.OW, C, &e, y, route, task * p.OW * C, C};
    const int64_t below = oh * p.stride_h - p.pad_top + (p.KH - 1) * p.dilation_h + 1;
    d.next = x + (n * p.H + below) * p.W * C;
    if (below >= 0 && below < p.H) d.new_rows = below + 1 < p.H ? p.stride_h : 1;
    for (int64_t kh = 0; kh < p.KH; ++kh) {
      const int64_t h = oh * p.stride_h - p.pad_top + kh * p.dilation_h;
      if (h < 0 || h >= p.H) continue;
      d.in[d.rows] = x + (n * p.H + h) * p.W * C;
      d.w[d.rows++] = turned.floats() + kh * 3 * G * C;
    }
    run_row<T, G>(3, p.stride_w, d);
  });
}

// Taps across of one phase of input columns, last first, so that the outputs they read ascend.
struct ColumnPhase {
  int64_t count = 0, start = 0, taps[3];
  ColumnPhase(int64_t phase, int64_t pad, int64_t stride) {
    for (int64_t kw = 2; kw >= 0; --kw) {
      const int64_t shifted = phase + pad - kw, rest = ((shifted % stride) + stride) % stride;
      if (rest) continue;
      if (count == 0) start = (shifted - rest) / stride;
      taps[count++] = kw;
    }
  }
};

template <int G, class T>
void backward_data_typed(const ConvParams& p, const T* g, const T* w, const ConvEpilogue& e,
                         T* grad_input) {
  const int64_t C = p.C, S = p.stride_w;
  Workspace turned(C * p.KH * 3 * G * 4);  // per phase: [kh][tap][k][C]
  const ColumnPhase phases[2] = {{0, p.pad_left, S}, {1, p.pad_left, S}};
  const float* weights[2];
  float* to = turned.floats();
  for (int64_t phase = 0; phase < S; ++phase) {
    weights[phase] = to;
    for (int64_t kh = 0; kh < p.KH; ++kh)
      for (int64_t t = 0; t < phases[phase].count; ++t)
        for (int64_t k = 0; k < G; ++k, to += C)
          for (int64_t c = 0; c < C; ++c)  // of input c: from output k of its group
            to[c] = to_float(
                w[(((c / G * G + k) * p.KH + kh) * 3 + phases[phase].taps[t]) * G + c % G]);
  }
  const Route route = route_to(grad_input);
  parallel_for(p.N * p.H, [&](int64_t task) {
    const int64_t n = task / p.H, h = task % p.H;
    for (int64_t phase = 0; phase < S && phase < p.W; ++phase) {
      const ColumnPhase& taps = phases[phase];
      GroupedRow<T> d{{},
                      {},
                      0,
                      p.OW,
                      taps.start,
                      (p.W - phase + S - 1) / S,
                      C,
                      &e,
                      grad_input,
                      route,
                      (task * p.W + phase) * C,
                      S * C};
      for (int64_t kh = 0; kh < p.KH && taps.count; ++kh) {
        const int64_t shifted = h + p.pad_top - kh * p.dilation_h, oh = shifted / p.stride_h;
        if (shifted < 0 || shifted % p.stride_h || oh >= p.OH) continue;
        d.in[d.rows] = g + (n * p.OH + oh) * p.OW * C;
        d.w[d.rows++] = weights[phase] + kh * taps.count * G * C;
      }
      run_row<T, G>(taps.count, 1, d);
    }
  });
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
void backward_weight_typed(const ConvParams& p, const T* x, const T* g, T* gw) {
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
      for (int l = 0; l < LANES; ++l) from_float(gw[((c + l) * p.KH * 3 + t) * G + k], total[l]);
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
    forward_typed<size.value>(p, static_cast<const T*>(x), static_cast<const T*>(w), e,
                              static_cast<T*>(y));
  });
}

void grouped_backward_data(const ConvParams& p, const void* g, const void* w, const ConvEpilogue& e,
                           void* grad_input) {
  dispatch(p, [&](auto size, auto type) {
    using T = decltype(type);
    backward_data_typed<size.value>(p, static_cast<const T*>(g), static_cast<const T*>(w), e,
                                    static_cast<T*>(grad_input));
  });
}

void grouped_backward_weight(const ConvParams& p, const void* x, const void* g, void* gw) {
  dispatch(p, [&](auto size, auto type) {
    using T = decltype(type);
    backward_weight_typed<size.value>(p, static_cast<const T*>(x), static_cast<const T*>(g),
                                      static_cast<T*>(gw));
  });
}

}  // namespace fastnn::cpu::FASTNN_ISA
