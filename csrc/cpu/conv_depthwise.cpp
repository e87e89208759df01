// Depthwise conv2d (one filter per channel): every pass is a few multiply-adds per element loaded,
// so the floor is the copy bandwidth; vectors run over channels and no product kernel is involved.
//
// Tasks are output (or input) rows (conv_rows.h). A row is worked through four outputs at a time,
// all their channels before the next: every input loaded serves all outputs it reaches (4.5 loads
// for 9 multiply-adds at 3x3, stride 1), and only the blocks at the ends of a row check their
// columns. The weight gradient keeps its sums in registers over a piece of a row; chunks of rows
// are added in order. Dilated columns and rare widths take the plain loops below.
#include "core/allocator.h"
#include "cpu/conv_rows.h"
#include "cpu/conv_weight.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kPiece = 8;  // pixels of a row whose sums stay in registers

// The output index that input index `at` feeds through a tap, or -1.
FASTNN_INLINE int64_t reached(int64_t at, int64_t pad, int64_t tap, int64_t dilation,
                              int64_t stride, int64_t size) {
  const int64_t shifted = at + pad - tap * dilation;
  if (shifted < 0 || shifted % stride) return -1;
  return shifted / stride < size ? shifted / stride : -1;
}

template <bool Checked, int B, int KW, int S, class T>
FASTNN_INLINE void depthwise_block(const ChannelRow<T>& d, int64_t i, int64_t c, int lanes) {
  vfloat sum[B] = {};
  const int64_t first = i * S + d.start;
  bring_next<B, S>(d, i, c);
  for (int64_t r = 0; r < d.rows; ++r) {
    vfloat w[KW];
#pragma GCC unroll 8
    for (int k = 0; k < KW; ++k) w[k] = load(d.weights(r, c) + k * LANES);
    const T* const in = d.in[r] + first * d.C + c;
#pragma GCC unroll 16
    for (int j = 0; j < (B - 1) * S + KW; ++j) {
      if (Checked && (first + j < 0 || first + j >= d.width)) continue;
      const vfloat v = load_any(in + j * d.C, lanes);
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b)
        if (j - b * S >= 0 && j - b * S < KW) sum[b] += v * w[j - b * S];
    }
  }
  finish_row(sum, d, i, c, lanes);
}

// The channels of four outputs are walked before the next four: memory is then read and written in
// order, which the hardware's prefetchers need.
template <int KW, int S, class T>
FASTNN_INLINE void depthwise_row(const ChannelRow<T>& d) {
  constexpr int B = 4;
  int64_t i = 0;
  for (; i + B <= d.outputs; i += B) {
    const int64_t first = i * S + d.start;
    const bool inside = first >= 0 && first + (B - 1) * S + KW <= d.width;
    vector_loop(0, d.C, [&](int64_t c, int lanes) FASTNN_INLINED {
      if (inside)
        depthwise_block<false, B, KW, S>(d, i, c, lanes);
      else
        depthwise_block<true, B, KW, S>(d, i, c, lanes);
    });
  }
  for (; i < d.outputs; ++i)
    vector_loop(0, d.C, [&](int64_t c, int lanes) FASTNN_INLINED {
      depthwise_block<true, 1, KW, S>(d, i, c, lanes);
    });
}

// Runs the row; false if there is no such kernel.
template <class T>
bool run_row(int64_t KW, int64_t S, const ChannelRow<T>& d) {
  switch (KW * 4 + S) {
#define FASTNN_ROW(KW, S)    \
  case KW * 4 + S:           \
    depthwise_row<KW, S>(d); \
    return true;
    FASTNN_ROW(1, 1)
    FASTNN_ROW(2, 1)
    FASTNN_ROW(3, 1)
    FASTNN_ROW(3, 2)
    FASTNN_ROW(5, 1)
    FASTNN_ROW(5, 2)
#undef FASTNN_ROW
  }
  return false;
}

template <class T>
void forward_plain(const ConvParams& p, const T* x, const T* w, const ConvEpilogue& e, T* y) {
  const int64_t C = p.C;
  const int64_t taps = p.KH * p.KW;
  Workspace turned(turned_size(C, taps, 1) * 4);
  turn_weight(w, C, taps, 1, turned.floats());
  parallel_for(p.N * p.OH, [&](int64_t task) {
    const int64_t n = task / p.OH, oh = task % p.OH;
    for (int64_t ow = 0; ow < p.OW; ++ow) {
      const int64_t at = (task * p.OW + ow) * C;
      vector_loop(0, C, [&](int64_t c, int lanes) {
        vfloat sum{};
        for (int64_t kh = 0; kh < p.KH; ++kh) {
          const int64_t h = oh * p.stride_h - p.pad_top + kh * p.dilation_h;
          if (h < 0 || h >= p.H) continue;
          for (int64_t kw = 0; kw < p.KW; ++kw) {
            const int64_t v = ow * p.stride_w - p.pad_left + kw * p.dilation_w;
            if (v < 0 || v >= p.W) continue;
            sum += load_any(x + ((n * p.H + h) * p.W + v) * C + c, lanes) *
                   load(turned.floats() + c * taps + (kh * p.KW + kw) * LANES);
          }
        }
        finish_vector(sum, e, c, at + c, lanes, y, Route::through);
      });
    }
  });
}

template <class T>
void forward_typed(const ConvParams& p, const T* x, const T* w, const ConvEpilogue& e, T* y) {
  const bool quick =
      p.dilation_w == 1 && p.KH <= kMaxRows && p.stride_w <= 2 && (p.KW == 3 || p.KW == 5);
  if (!quick) return forward_plain(p, x, w, e, y);
  each_output_row<float>(p, x, w, e, y,
                         [&](const ChannelRow<T>& d) { run_row(p.KW, p.stride_w, d); });
}

template <class T>
void backward_data_plain(const ConvParams& p, const T* g, const T* w, const ConvEpilogue& e,
                         T* grad_input) {
  const int64_t C = p.C;
  const int64_t taps = p.KH * p.KW;
  Workspace turned(turned_size(C, taps, 1) * 4);
  turn_weight(w, C, taps, 1, turned.floats());
  parallel_for(p.N * p.H, [&](int64_t task) {
    const int64_t n = task / p.H, h = task % p.H;
    for (int64_t v = 0; v < p.W; ++v) {
      const int64_t at = (task * p.W + v) * C;
      vector_loop(0, C, [&](int64_t c, int lanes) {
        vfloat sum{};
        for (int64_t kh = 0; kh < p.KH; ++kh) {
          const int64_t oh = reached(h, p.pad_top, kh, p.dilation_h, p.stride_h, p.OH);
          if (oh < 0) continue;
          for (int64_t kw = 0; kw < p.KW; ++kw) {
            const int64_t ow = reached(v, p.pad_left, kw, p.dilation_w, p.stride_w, p.OW);
            if (ow < 0) continue;
            sum += load_any(g + ((n * p.OH + oh) * p.OW + ow) * C + c, lanes) *
                   load(turned.floats() + c * taps + (kh * p.KW + kw) * LANES);
          }
        }
        finish_vector(sum, e, c, at + c, lanes, grad_input, Route::through);
      });
    }
  });
}

template <class T>
void backward_data_typed(const ConvParams& p, const T* g, const T* w, const ConvEpilogue& e,
                         T* grad_input) {
  const int64_t S = p.stride_w;
  const bool quick = p.dilation_w == 1 && p.KH <= kMaxRows && p.KW > 1 &&
                     ((S == 1 && (p.KW == 3 || p.KW == 5)) || (S == 2 && p.KW == 3));
  if (!quick) return backward_data_plain(p, g, w, e, grad_input);
  each_input_row<float>(p, g, w, e, grad_input,
                        [](const ChannelRow<T>& d, int64_t taps) { run_row(taps, 1, d); });
}

// Adds one row's share to KH x KW sums: in[kh] are input rows, null outside the image. What the
// next row adds to the input and to g is brought meanwhile.
template <bool Checked, int B, int KH, int KW, int S, class T>
FASTNN_INLINE void weight_block(const T* const* in, const T* g, int64_t g_row, int64_t first,
                                int64_t width, int64_t C, int lanes, vfloat (&sum)[KH][KW]) {
  vfloat grad[B];
#pragma GCC unroll 4
  for (int b = 0; b < B; ++b) {
    __builtin_prefetch(g + (g_row + b) * C, 0, 2);
    grad[b] = load_any(g + b * C, lanes);
  }
  if (in[KH - 1])
#pragma GCC unroll 8
    for (int j = 0; j < B * S * S; ++j)
      __builtin_prefetch(in[KH - 1] + ((1 + j / (B * S)) * width + first + j % (B * S)) * C, 0, 2);
#pragma GCC unroll 5
  for (int r = 0; r < KH; ++r) {
    if (!in[r]) continue;
    const T* const from = in[r] + first * C;
#pragma GCC unroll 16
    for (int j = 0; j < (B - 1) * S + KW; ++j) {
      if (Checked && (first + j < 0 || first + j >= width)) continue;
      const vfloat v = load_any(from + j * C, lanes);
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b)
        if (j - b * S >= 0 && j - b * S < KW) sum[r][j - b * S] += v * grad[b];
    }
  }
}

// Sums over rows [begin, end) into sums[KH][KW][C]. All channels of a piece of a row are walked
// before the next piece, for the order of memory; the sums of a vector rest in registers for a
// piece.
template <int KH, int KW, int S, class T>
void weight_chunk(const ConvParams& p, const T* x, const T* g, int64_t begin, int64_t end,
                  float* sums) {
  constexpr int B = 4;
  const int64_t C = p.C;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / p.OH, oh = row % p.OH;
    const T* rows[KH];
    for (int r = 0; r < KH; ++r) {
      const int64_t h = oh * p.stride_h - p.pad_top + r * p.dilation_h;
      rows[r] = h < 0 || h >= p.H ? nullptr : x + (n * p.H + h) * p.W * C;
    }
    for (int64_t piece = 0; piece < p.OW; piece += kPiece) {
      const int64_t piece_end = piece + kPiece < p.OW ? piece + kPiece : p.OW;
      vector_loop(0, C, [&](int64_t c, int lanes) FASTNN_INLINED {
        vfloat sum[KH][KW];
        const T* in[KH];
        for (int r = 0; r < KH; ++r) {
          in[r] = rows[r] ? rows[r] + c : nullptr;
          for (int k = 0; k < KW; ++k) sum[r][k] = load_any(sums + (r * KW + k) * C + c, lanes);
        }
        const T* const grad = g + row * p.OW * C + c;
        int64_t i = piece;
        for (; i + B <= piece_end; i += B) {
          const int64_t first = i * S - p.pad_left;
          if (first >= 0 && first + (B - 1) * S + KW <= p.W)
            weight_block<false, B, KH, KW, S>(in, grad + i * C, p.OW, first, p.W, C, lanes, sum);
          else
            weight_block<true, B, KH, KW, S>(in, grad + i * C, p.OW, first, p.W, C, lanes, sum);
        }
        for (; i < piece_end; ++i)
          weight_block<true, 1, KH, KW, S>(in, grad + i * C, p.OW, i * S - p.pad_left, p.W, C,
                                           lanes, sum);
        for (int r = 0; r < KH; ++r)
          for (int k = 0; k < KW; ++k) store_any(sums + (r * KW + k) * C + c, sum[r][k], lanes);
      });
    }
  }
}

template <class T>
void backward_weight_typed(const ConvParams& p, const T* x, const T* g, WeightGradient gw) {
  const int64_t C = p.C, taps = p.KH * p.KW, rows = p.N * p.OH;
  const int64_t chunks = rows < 32 ? rows : 32;
  Workspace partial((chunks + (chunks == 0)) * taps * C * 4 + 4);
  parallel_for(chunks, [&](int64_t chunk) {
    float* sums = partial.floats() + chunk * taps * C;
    const int64_t begin = rows * chunk / chunks, end = rows * (chunk + 1) / chunks;
    __builtin_memset(sums, 0, sizeof(float) * static_cast<size_t>(taps * C));
    if (p.dilation_w == 1 && p.KH == 3 && p.KW == 3 && p.stride_w == 1)
      return weight_chunk<3, 3, 1>(p, x, g, begin, end, sums);
    if (p.dilation_w == 1 && p.KH == 3 && p.KW == 3 && p.stride_w == 2)
      return weight_chunk<3, 3, 2>(p, x, g, begin, end, sums);
    if (p.dilation_w == 1 && p.KH == 5 && p.KW == 5 && p.stride_w == 1)
      return weight_chunk<5, 5, 1>(p, x, g, begin, end, sums);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / p.OH, oh = row % p.OH;
      for (int64_t t = 0; t < taps; ++t) {
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
  });
  vector_loop(0, taps * C, [&](int64_t i, int n) {
    vfloat total{};
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      total += load_any(partial.floats() + chunk * taps * C + i, n);
    store_any(partial.floats() + i, total, n);
  });
  for (int64_t c = 0; c < C; ++c)
    for (int64_t t = 0; t < taps; ++t) gw.store(c * taps + t, partial.floats()[t * C + c]);
}

void forward(const ConvParams& p, const void* x, const void* w, const ConvEpilogue& e, void* y) {
  if (p.dtype == DType::float32)
    forward_typed(p, static_cast<const float*>(x), static_cast<const float*>(w), e,
                  static_cast<float*>(y));
  else
    forward_typed(p, static_cast<const bfloat16*>(x), static_cast<const bfloat16*>(w), e,
                  static_cast<bfloat16*>(y));
}

void backward_data(const ConvParams& p, const void* g, const void* w, const ConvEpilogue& e,
                   void* grad_input) {
  if (p.dtype == DType::float32)
    backward_data_typed(p, static_cast<const float*>(g), static_cast<const float*>(w), e,
                        static_cast<float*>(grad_input));
  else
    backward_data_typed(p, static_cast<const bfloat16*>(g), static_cast<const bfloat16*>(w), e,
                        static_cast<bfloat16*>(grad_input));
}

void backward_weight(const ConvParams& p, const void* x, const void* g, void* grad_weight) {
  const WeightGradient gw(p, grad_weight);
  if (p.dtype == DType::float32)
    backward_weight_typed(p, static_cast<const float*>(x), static_cast<const float*>(g), gw);
  else
    backward_weight_typed(p, static_cast<const bfloat16*>(x), static_cast<const bfloat16*>(g), gw);
}

}  // namespace

void fill_conv_depthwise(Slots& slots) {
  slots.conv.depthwise_forward = forward;
  slots.conv.depthwise_backward_data = backward_data;
  slots.conv.depthwise_backward_weight = backward_weight;
}

}  // namespace fastnn::cpu::FASTNN_ISA
