// Depthwise conv2d (one filter per channel): every pass is a few multiply-adds per element loaded,
// so the floor is the copy bandwidth; vectors run over channels and no product kernel is involved.
//
// Tasks are output (or input) rows (conv_rows.h), worked through seven or eight outputs at a time,
// all their channels before the next: every input loaded serves all outputs it reaches (3.8 loads
// for 9 multiply-adds at 3x3, stride 1), and only the blocks at the ends of a row check their
// columns. Vectors of half a cache line go in twos: bfloat16's, and AVX2's by four outputs. Taps
// of wide kernels are added four at a time, three of a rest or single ones; of a dilated one,
// outputs that share inputs make rows of their own, without gaps. Strides above 2 take a loop with
// a load for every multiply-add. The weight's gradient walks the channels of a strip of rows, its
// sums in registers; chunks of rows are added in order.
#include "core/allocator.h"
#include "cpu/conv_rows.h"
#include "cpu/conv_weight.h"
#include "ops/slots.h"

#if defined(FASTNN_ISA_avx512_bf16)
namespace fastnn::cpu::avx512 {  // whose kernels of float32 serve this level, too
void depthwise_forward(const ConvParams& p, const void* x, const void* w, const ConvEpilogue& e,
                       void* y);
void depthwise_backward_data(const ConvParams& p, const void* g, const void* w,
                             const ConvEpilogue& e, void* grad_input);
void depthwise_backward_weight(const ConvParams& p, const void* x, const void* g,
                               void* grad_weight);
}  // namespace fastnn::cpu::avx512
#endif

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// Vectors of channels at a time, so that cache lines are written whole.
template <class T>
constexpr int kLine = LANES == 16 && sizeof(T) == 2 ? 2 : 1;
// Whether there are registers for two by four outputs on AVX2 (32 channels at 112 x 112 take half
// the time); if all channels are such pairs.
template <int KW>
constexpr bool kPairs = LANES == 8 && KW > 0 && KW < 5;
// Of a weight's gradient: what a strip of rows may take, and pixels to a chunk at least.
constexpr int64_t kStripBytes = 192 << 10, kChunkPixels = 64;
// Rows of a 5x5 kernel at a time, with stride 2: 25 sums are more than 16 registers, and what is
// loaded for them serves few (144 channels at 56 x 56 by single rows: 0.6 of the time).
constexpr int kFiveRows = LANES == 16 ? 5 : 1;

// Adds KW taps of a row to outputs i to i + B - 1: `in` is the first column they read, `w` the
// first tap; bit j of `there`: whether column j is.
template <bool Checked, int B, int KW, int S, int V, class T>
FASTNN_INLINE void add_taps(const T* in, int64_t pitch, const float* w, int64_t next_vector,
                            uint32_t there, int lanes, vfloat (&sum)[B][V]) {
  vfloat weight[V][KW];
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v)
#pragma GCC unroll 8
    for (int k = 0; k < KW; ++k) weight[v][k] = load(w + v * next_vector + k * LANES);
#pragma GCC unroll 32
  for (int j = 0; j < (B - 1) * S + KW; ++j, in += pitch) {
    if (Checked && !(there >> j & 1)) continue;
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const vfloat x = load_any(in + v * LANES, lanes);
#pragma GCC unroll 8
      for (int b = 0; b < B; ++b)
        if (j - b * S >= 0 && j - b * S < KW) sum[b][v] += x * weight[v][j - b * S];
    }
  }
}

// Outputs i to i + B - 1, V vectors of channels from c on, of KW taps; or, if KW is 0, of any
// number of them, four at a time and a rest of three or of single ones.
template <bool Checked, int B, int KW, int S, int V, class T>
FASTNN_INLINE void depthwise_block(const ChannelRow<T>& d, int64_t taps, int64_t i, uint32_t there,
                                   int64_t c, int lanes) {
  vfloat sum[B][V];
  start_row(sum, d, c, lanes);
  const int64_t first = i * S + d.start, pitch = d.pitch, next = d.w_next_vector;
  bring_next<B, S>(d, i, c);
  bring_output<B>(d, i + B, c);
  for (int64_t r = 0; r < d.rows; ++r) {
    const float* w = d.weights(r, c);
    const T* in = d.inputs(r, first * pitch + c);
    if constexpr (KW > 0) {
      add_taps<Checked, B, KW, S>(in, pitch, w, next, there, lanes, sum);
      continue;
    }
    for (int64_t tap = 0, some; tap < taps; tap += some, in += some * pitch, w += some * LANES) {
      const uint32_t columns =
          Checked ? columns_there(first + tap, (B - 1) * S + 4, d.width) : ~uint32_t{};
      some = taps - tap >= 4 ? 4 : taps - tap == 3 ? 3 : 1;
      if (some == 4)
        add_taps<Checked, B, 4, S>(in, pitch, w, next, columns, lanes, sum);
      else if (some == 3)
        add_taps<Checked, B, 3, S>(in, pitch, w, next, columns, lanes, sum);
      else
        add_taps<Checked, B, 1, S>(in, pitch, w, next, columns, lanes, sum);
    }
  }
  finish_row(sum, d, i, c, lanes);
}

// Blocks of B outputs, the last of which may overlap the one before. The channels of a block are
// walked before the next one: memory is then read and written in order, which the hardware's
// prefetchers need.
template <int B, int V, int KW, int S, class T>
FASTNN_INLINE void depthwise_blocks(const ChannelRow<T>* rows, int count, int64_t taps) {
  constexpr int kInputs = (B - 1) * S + KW;
  constexpr bool kUnchecked = B * V > 4;  // what is rare or small is not worth the code
  const int64_t outputs = rows->outputs;
  for (int64_t next = 0; next < outputs; next += B) {
    const int64_t i = next < outputs - B ? next : outputs - B, first = i * S + rows->start;
    const uint32_t there = columns_there(first, kInputs, rows->width);
    const bool inside =
        kUnchecked && (KW ? there == columns_there(0, kInputs, kInputs)
                          : first >= 0 && first + (B - 1) * S + taps <= rows->width);
    for (int row = 0; row < count; ++row) {
      const ChannelRow<T> d = rows[row];  // a copy, in registers: no store may change it
      int64_t c = 0;
      for (; c + V * LANES <= d.C; c += V * LANES)
        if (inside)
          depthwise_block<!kUnchecked, B, KW, S, V>(d, taps, i, there, c, LANES);
        else
          depthwise_block<true, B, KW, S, V>(d, taps, i, there, c, LANES);
      if (LANES == 8 && V == 2) continue;  // no channels are left
      if (V == 2 && c + LANES <= d.C) {
        depthwise_block<true, B, KW, S, 1>(d, taps, i, there, c, LANES);
        c += LANES;
      }
      const auto rest = static_cast<int>(d.C - c);
      if (rest > 0 && rest < LANES) depthwise_block<true, B, KW, S, 1>(d, taps, i, there, c, rest);
    }
  }
}
template <int KW, int S, class T>
void depthwise_rows(const ChannelRow<T>* rows, int count, int64_t taps) {
  constexpr int V = kLine<T>;
  const int64_t outputs = rows->outputs;
  if constexpr (kPairs<KW>)
    if (outputs >= 4 && rows->C % (2 * LANES) == 0)
      return depthwise_blocks<4, 2, KW, S>(rows, count, taps);
  // Each size of block is minutes of compilation.
  if constexpr (LANES == 8)
    if (outputs > 16 || outputs == 7 || outputs == 14)
      return depthwise_blocks<7, V, KW, S>(rows, count, taps);
  if constexpr (LANES == 16)
    if (outputs >= 7 && outputs % 8) return depthwise_blocks<7, V, KW, S>(rows, count, taps);
  if constexpr (LANES != 8)
    if (outputs >= 8) return depthwise_blocks<8, V, KW, S>(rows, count, taps);
  if (outputs >= 4) return depthwise_blocks<4, V, KW, S>(rows, count, taps);
  depthwise_blocks<1, V, KW, S>(rows, count, taps);
}

// Strides above 2, whose taps share little: a load for every multiply-add.
template <bool Checked, int B, int V, class T>
FASTNN_INLINE void far_block(const ChannelRow<T>& d, int64_t taps, int64_t S, int64_t i, int64_t c,
                             int lanes) {
  vfloat sum[B][V];
  start_row(sum, d, c, lanes);
  const int64_t pitch = d.pitch, first = i * S + d.start;
  for (int64_t r = 0; r < d.rows; ++r)
    for (int64_t tap = 0; tap < taps; ++tap) {
      const T* const in = d.inputs(r, (first + tap) * pitch + c);
      uint32_t there = 0;
      if (Checked)
        for (int b = 0; b < B; ++b) there |= columns_there(first + tap + b * S, 1, d.width) << b;
      add_taps<Checked, B, 1, 1>(in, S * pitch, d.weights(r, c) + tap * LANES, d.w_next_vector,
                                 there, lanes, sum);
    }
  finish_row(sum, d, i, c, lanes);
}
template <class T>
void far_row(const ChannelRow<T>& d, int64_t taps, int64_t S) {
  constexpr int B = 8, V = kLine<T>;
  for (int64_t i = 0; i < d.outputs;) {
    const int64_t first = i * S + d.start;
    int64_t c = 0;
    if (i + B > d.outputs) {
      vector_loop(0, d.C, [&, i](int64_t at, int lanes) {
        far_block<true, 1, 1>(d, taps, S, i, at, lanes);
      });
      ++i;
      continue;
    }
    if (first >= 0 && first + (B - 1) * S + taps <= d.width)
      for (; c + V * LANES <= d.C; c += V * LANES) far_block<false, B, V>(d, taps, S, i, c, LANES);
    vector_loop(c, d.C,
                [&, i](int64_t at, int lanes) { far_block<true, B, 1>(d, taps, S, i, at, lanes); });
    i += B;
  }
}

// Rows whose taps are neighbours.
template <class T>
void run_dense(const ChannelRow<T>* rows, int count, int64_t taps, int64_t S) {
  switch (S) {
#define FASTNN_ROWS(KW, S) \
  case KW:                 \
    return depthwise_rows<KW, S>(rows, count, taps);
    case 1:
      switch (taps) {
        FASTNN_ROWS(1, 1)
        FASTNN_ROWS(2, 1)
        FASTNN_ROWS(3, 1)
        FASTNN_ROWS(5, 1)
        default:
          return depthwise_rows<0, 1>(rows, count, taps);
      }
    case 2:
      switch (taps) {
        FASTNN_ROWS(3, 2)
        FASTNN_ROWS(5, 2)
        default:
          return depthwise_rows<0, 2>(rows, count, taps);
      }
#undef FASTNN_ROWS
  }
  for (int i = 0; i < count; ++i) far_row(rows[i], taps, S);
}

// Taps `gap` columns apart: outputs whose columns leave the same remainder of `gap` make a row
// whose taps are neighbours.
template <class T>
void run_rows(const ChannelRow<T>* rows, int count, int64_t taps, int64_t S) {
  const int64_t gap = rows->gap;
  if (gap == 1 || taps == 1) return run_dense(rows, count, taps, S);
  const int64_t phases = steps_between(S, gap);
  for (int64_t phase = 0; phase < phases && phase < rows->outputs; ++phase) {
    ChannelRow<T> some[kTurns];
    for (int i = 0; i < count; ++i) {
      ChannelRow<T>& d = some[i] = rows[i];
      const int64_t column = d.start + phase * S, first = (column % gap + gap) % gap;
      d.in += first * d.C;
      d.next += first * d.C;
      d.pitch = gap * d.C;
      d.start = (column - first) / gap;
      d.width = (d.width - first + gap - 1) / gap;
      d.outputs = (d.outputs - phase + phases - 1) / phases;
      d.at += phase * d.step;
      d.step *= phases;
    }
    run_dense(some, count, taps, phases * S / gap);
  }
}

template <class T>
void forward_typed(const ConvParams& p, const T* x, const T* w, const ConvEpilogue& e, T* y) {
  each_output_row<float>(p, x, w, e, y, [&](const ChannelRow<T>* rows, int count) {
    run_rows(rows, count, p.KW, p.stride_w);
  });
}

template <class T>
void backward_data_typed(const ConvParams& p, const T* g, const T* w, const ConvEpilogue& e,
                         T* grad_input) {
  each_input_row<float>(
      p, g, w, e, grad_input,
      [](const ChannelRow<T>* rows, int count, int64_t taps) { run_rows(rows, count, taps, 1); });
}

// Rows that a task of the weight's gradient takes together, `next` of which lie `x` values of the
// input and `g` of the output's gradient on.
struct Strip {
  int64_t begin, rows;
  int64_t next_x, next_g;
};

// Adds B outputs' share of one row to R x KW sums: in[r] are input rows, null outside the image;
// bit j of `there`: whether input column j is. What the next strip adds is brought meanwhile.
template <bool Checked, int B, int R, int KW, int S, class T>
FASTNN_INLINE void weight_block(const T* const (&in)[R], uint32_t there, const T* g,
                                const Strip& strip, int64_t C, int lanes, vfloat (&sum)[R][KW]) {
  vfloat grad[B];
#pragma GCC unroll 8
  for (int b = 0; b < B; ++b, g += C) {
    __builtin_prefetch(g + strip.next_g, 0, 2);
    grad[b] = load_any(g, lanes);
  }
#pragma GCC unroll 5
  for (int r = 0; r < R; ++r) {
    const T* from = in[r];
    if (!from) continue;
#pragma GCC unroll 32
    for (int j = 0; j < (B - 1) * S + KW; ++j, from += C) {
      if (r < S && j < B * S) __builtin_prefetch(from + strip.next_x, 0, 2);
      if (Checked && !(there >> j & 1)) continue;
      const vfloat v = load_any(from, lanes);
#pragma GCC unroll 8
      for (int b = 0; b < B; ++b)
        if (j - b * S >= 0 && j - b * S < KW) sum[r][j - b * S] += v * grad[b];
    }
  }
}

// Adds the share of outputs i to i + B - 1 to R rows of the kernel from kh on, of all channels; of
// all rows of the strip before the next vector, whose sums rest in registers meanwhile.
template <int B, int R, int KW, int S, class T>
FASTNN_INLINE void weight_blocks(const ConvParams& p, const T* x, const T* g, const Strip& strip,
                                 int64_t i, int64_t kh, float* sums) {
  constexpr int kInputs = (B - 1) * S + KW;
  const int64_t C = p.C, first = i * S - p.pad_left;
  const uint32_t there = columns_there(first, kInputs, p.W);
  const bool inside = B > 1 && there == columns_there(0, kInputs, kInputs);
  vector_loop(0, C, [&](int64_t c, int lanes) FASTNN_INLINED {
    float* const to = sums + kh * KW * C + c;
    vfloat sum[R][KW];
#pragma GCC unroll 32
    for (int t = 0; t < R * KW; ++t) sum[t / KW][t % KW] = load_any(to + t * C, lanes);
    for (int64_t row = strip.begin; row < strip.begin + strip.rows; ++row) {
      const int64_t n = row / p.OH, top = row % p.OH * p.stride_h - p.pad_top;
      const T* in[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const int64_t h = top + (kh + r) * p.dilation_h;
        in[r] = h < 0 || h >= p.H ? nullptr : x + ((n * p.H + h) * p.W + first) * C + c;
      }
      const T* const grad = g + (row * p.OW + i) * C + c;
      if (inside && lanes == LANES)
        weight_block<B == 1, B, R, KW, S>(in, there, grad, strip, C, lanes, sum);
      else
        weight_block<true, B, R, KW, S>(in, there, grad, strip, C, lanes, sum);
    }
#pragma GCC unroll 32
    for (int t = 0; t < R * KW; ++t) store_any(to + t * C, sum[t / KW][t % KW], lanes);
  });
}

// Sums over rows [begin, end) into sums[KH][KW][C], by strips that L2 holds; KH is R, or R is 1.
template <int R, int KW, int S, class T>
void weight_chunk(const ConvParams& p, const T* x, const T* g, int64_t begin, int64_t end,
                  float* sums) {
  constexpr int B = LANES == 16 ? 7 : 4;
  const int64_t C = p.C, x_row = p.stride_h * p.W * C, g_row = p.OW * C;
  const int64_t most = kStripBytes / ((x_row + g_row) * int64_t{sizeof(T)});
  for (int64_t row = begin, rows; row < end; row += rows) {
    rows = p.OH - row % p.OH;  // of this image
    if (rows > end - row) rows = end - row;
    if (rows > most) rows = most > 1 ? most : 1;
    const Strip strip{row, rows, rows * x_row, rows * g_row};
    for (int64_t kh = 0; kh < p.KH; kh += R) {
      int64_t i = 0;
      for (; i + B <= p.OW; i += B) weight_blocks<B, R, KW, S>(p, x, g, strip, i, kh, sums);
      for (; i < p.OW; ++i) weight_blocks<1, R, KW, S>(p, x, g, strip, i, kh, sums);
    }
  }
}

// The same for any kernel.
template <class T>
void weight_chunk_plain(const ConvParams& p, const T* x, const T* g, int64_t begin, int64_t end,
                        float* sums) {
  const int64_t C = p.C;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / p.OH, oh = row % p.OH;
    for (int64_t t = 0; t < p.KH * p.KW; ++t) {
      const int64_t h = oh * p.stride_h - p.pad_top + t / p.KW * p.dilation_h;
      if (h < 0 || h >= p.H) continue;
      const int64_t shift = t % p.KW * p.dilation_w - p.pad_left;
      vector_loop(0, C, [&](int64_t c, int lanes) {
        vfloat sum{};
        for (int64_t ow = 0; ow < p.OW; ++ow) {
          const int64_t v = ow * p.stride_w + shift;
          if (v < 0 || v >= p.W) continue;
          sum += load_any(x + ((n * p.H + h) * p.W + v) * C + c, lanes) *
                 load_any(g + (row * p.OW + ow) * C + c, lanes);
        }
        store_any(sums + t * C + c, load_any(sums + t * C + c, lanes) + sum, lanes);
      });
    }
  }
}

template <class T>
void backward_weight_typed(const ConvParams& p, const T* x, const T* g, WeightGradient gw) {
  const int64_t C = p.C, taps = p.KH * p.KW, rows = p.N * p.OH;
  auto* add = weight_chunk_plain<T>;
  if (p.dilation_w == 1) {
    if (p.KH == 3 && p.KW == 3 && p.stride_w == 1) add = weight_chunk<3, 3, 1, T>;
    if (p.KH == 3 && p.KW == 3 && p.stride_w == 2) add = weight_chunk<3, 3, 2, T>;
    if (p.KH == 2 && p.KW == 2 && p.stride_w == 2) add = weight_chunk<2, 2, 2, T>;
    if (p.KH == 3 && p.KW == 3 && p.stride_w == 3) add = weight_chunk<3, 3, 3, T>;
    if (p.KH == 5 && p.KW == 5 && p.stride_w == 1) add = weight_chunk<5, 5, 1, T>;
    if (p.KH == 5 && p.KW == 5 && p.stride_w == 2) add = weight_chunk<kFiveRows, 5, 2, T>;
    if (p.KW == 7 && p.stride_w == 1) add = weight_chunk<1, 7, 1, T>;
  }
  // Chunks are as large as makes adding their sums cheap.
  int64_t chunks = rows * p.OW / kChunkPixels;
  chunks = chunks > 32 ? 32 : chunks < 1 ? 1 : chunks;
  Workspace partial(chunks * taps * C * 4 + 4);
  parallel_for(chunks, [&](int64_t chunk) {
    float* sums = partial.floats() + chunk * taps * C;
    __builtin_memset(sums, 0, sizeof(float) * static_cast<size_t>(taps * C));
    add(p, x, g, rows * chunk / chunks, rows * (chunk + 1) / chunks, sums);
  });
  parallel_for(ceil_div(C, LANES), [&](int64_t vector) {
    const int64_t c = vector * LANES;
    const int lanes = C - c < LANES ? static_cast<int>(C - c) : LANES;
    for (int64_t t = 0; t < taps; ++t) {
      vfloat total{};
      for (int64_t chunk = 0; chunk < chunks; ++chunk)
        total += load_any(partial.floats() + (chunk * taps + t) * C + c, lanes);
      for (int64_t l = 0; l < lanes; ++l) gw.store((c + l) * taps + t, total[l]);
    }
  });
}

}  // namespace

void depthwise_forward(const ConvParams& p, const void* x, const void* w, const ConvEpilogue& e,
                       void* y) {
  if (p.dtype == DType::bfloat16)
    return forward_typed(p, static_cast<const bfloat16*>(x), static_cast<const bfloat16*>(w), e,
                         static_cast<bfloat16*>(y));
#if defined(FASTNN_ISA_avx512_bf16)
  avx512::depthwise_forward(p, x, w, e, y);
#else
  forward_typed(p, static_cast<const float*>(x), static_cast<const float*>(w), e,
                static_cast<float*>(y));
#endif
}

void depthwise_backward_data(const ConvParams& p, const void* g, const void* w,
                             const ConvEpilogue& e, void* grad_input) {
  if (p.dtype == DType::bfloat16)
    return backward_data_typed(p, static_cast<const bfloat16*>(g), static_cast<const bfloat16*>(w),
                               e, static_cast<bfloat16*>(grad_input));
#if defined(FASTNN_ISA_avx512_bf16)
  avx512::depthwise_backward_data(p, g, w, e, grad_input);
#else
  backward_data_typed(p, static_cast<const float*>(g), static_cast<const float*>(w), e,
                      static_cast<float*>(grad_input));
#endif
}

void depthwise_backward_weight(const ConvParams& p, const void* x, const void* g,
                               void* grad_weight) {
  const WeightGradient gw(p, grad_weight);
  if (p.dtype == DType::bfloat16)
    return backward_weight_typed(p, static_cast<const bfloat16*>(x),
                                 static_cast<const bfloat16*>(g), gw);
#if defined(FASTNN_ISA_avx512_bf16)
  avx512::depthwise_backward_weight(p, x, g, grad_weight);
#else
  backward_weight_typed(p, static_cast<const float*>(x), static_cast<const float*>(g), gw);
#endif
}

void fill_conv_depthwise(Slots& slots) {
  slots.conv.depthwise_forward = depthwise_forward;
  slots.conv.depthwise_backward_data = depthwise_backward_data;
  slots.conv.depthwise_backward_weight = depthwise_backward_weight;
}

}  // namespace fastnn::cpu::FASTNN_ISA
