// Depthwise conv2d (one filter per channel): every pass is a few multiply-adds per element loaded,
// so the floor is the copy bandwidth; vectors run over channels and no product kernel is involved.
//
// Weights are turned once per call from [C][KH][KW] to [KH][KW][C]. Tasks are output (or input)
// rows; the weight gradient sums rows into fixed chunks and adds the chunks in order.
#include "core/allocator.h"
#include "cpu/simd/vec.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

template <class T>
void turn_weight(const T* w, int64_t channels, int64_t taps, float* turned) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t t = 0; t < taps; ++t) turned[t * channels + c] = to_float(w[c * taps + t]);
}

// The output index that input index `at` feeds through a tap, or -1.
FASTNN_INLINE int64_t reached(int64_t at, int64_t pad, int64_t tap, int64_t dilation,
                              int64_t stride, int64_t size) {
  const int64_t shifted = at + pad - tap * dilation;
  if (shifted < 0 || shifted % stride) return -1;
  return shifted / stride < size ? shifted / stride : -1;
}

template <class T>
FASTNN_INLINE void finish(vfloat value, const ConvEpilogue& e, int64_t c, int64_t at, int n, T* y) {
  if (e.bias) value += load_any(e.bias + c, n);
  if (e.residual) value += load_any(static_cast<const T*>(e.residual) + at, n);
  if (e.relu) value = select(value < 0, vfloat{}, value);
  store_any(y + at, value, n);
}

template <class T>
void forward_typed(const ConvParams& p, const T* x, const T* w, const ConvEpilogue& e, T* y) {
  const int64_t C = p.C;
  Workspace turned(C * p.KH * p.KW * 4);
  turn_weight(w, C, p.KH * p.KW, turned.floats());
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
                   load_any(turned.floats() + (kh * p.KW + kw) * C + c, lanes);
          }
        }
        finish(sum, e, c, at + c, lanes, y);
      });
    }
  });
}

template <class T>
void backward_data_typed(const ConvParams& p, const T* g, const T* w, const ConvEpilogue& e,
                         T* grad_input) {
  const int64_t C = p.C;
  Workspace turned(C * p.KH * p.KW * 4);
  turn_weight(w, C, p.KH * p.KW, turned.floats());
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
                   load_any(turned.floats() + (kh * p.KW + kw) * C + c, lanes);
          }
        }
        finish(sum, e, c, at + c, lanes, grad_input);
      });
    }
  });
}

template <class T>
void backward_weight_typed(const ConvParams& p, const T* x, const T* g, T* gw) {
  const int64_t C = p.C, taps = p.KH * p.KW, rows = p.N * p.OH;
  const int64_t chunks = rows < 32 ? rows : 32;
  Workspace partial((chunks * taps * C + 1) * 4);
  parallel_for(chunks, [&](int64_t chunk) {
    float* sums = partial.floats() + chunk * taps * C;
    __builtin_memset(sums, 0, sizeof(float) * static_cast<size_t>(taps * C));
    for (int64_t row = rows * chunk / chunks; row < rows * (chunk + 1) / chunks; ++row) {
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
  for (int64_t c = 0; c < C; ++c)
    for (int64_t t = 0; t < taps; ++t) {
      float total = 0;
      for (int64_t i = 0; i < chunks; ++i) total += partial.floats()[(i * taps + t) * C + c];
      from_float(gw[c * taps + t], total);
    }
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

void backward_weight(const ConvParams& p, const void* x, const void* g, void* gw) {
  if (p.dtype == DType::float32)
    backward_weight_typed(p, static_cast<const float*>(x), static_cast<const float*>(g),
                          static_cast<float*>(gw));
  else
    backward_weight_typed(p, static_cast<const bfloat16*>(x), static_cast<const bfloat16*>(g),
                          static_cast<bfloat16*>(gw));
}

}  // namespace

void fill_conv_depthwise(Slots& slots) {
  slots.conv.depthwise_forward = forward;
  slots.conv.depthwise_backward_data = backward_data;
  slots.conv.depthwise_backward_weight = backward_weight;
}

}  // namespace fastnn::cpu::FASTNN_ISA
