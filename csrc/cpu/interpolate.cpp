// Nearest and bilinear resampling of NHWC images; vectors run over channels, one task per image
// row. The backward pass gathers: an input pixel adds up the outputs that read it, in a fixed
// order. Floor: the larger image written or read once; the smaller one comes from cache.
#include "cpu/simd/vec.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

template <class T>
void forward_typed(const ResampleParams& p, const T* x, T* y) {
  parallel_for(p.N * p.h.out, [&](int64_t task) {
    const int64_t oh = task % p.h.out;
    const T* image = x + task / p.h.out * p.h.in * p.w.in * p.C;
    const T* top = image + p.h.low[oh] * p.w.in * p.C;
    const T* bottom = image + p.h.high[oh] * p.w.in * p.C;
    const float v = p.h.share[oh];
    for (int64_t ow = 0; ow < p.w.out; ++ow) {
      const int64_t left = p.w.low[ow] * p.C, right = p.w.high[ow] * p.C;
      const float u = p.w.share[ow];
      T* to = y + (task * p.w.out + ow) * p.C;
      if (p.nearest) {
        __builtin_memcpy(to, top + left, sizeof(T) * static_cast<size_t>(p.C));
        continue;
      }
      vector_loop(0, p.C, [&](int64_t c, int n) {
        const vfloat upper =
            load_any(top + left + c, n) * (1 - u) + load_any(top + right + c, n) * u;
        const vfloat lower =
            load_any(bottom + left + c, n) * (1 - u) + load_any(bottom + right + c, n) * u;
        store_any(to + c, upper * (1 - v) + lower * v, n);
      });
    }
  });
}

template <class T>
void backward_typed(const ResampleParams& p, const T* g, T* grad_x) {
  parallel_for(p.N * p.h.in, [&](int64_t task) {
    const int64_t h = task % p.h.in;
    const T* image = g + task / p.h.in * p.h.out * p.w.out * p.C;
    for (int64_t w = 0; w < p.w.in; ++w)
      vector_loop(0, p.C, [&](int64_t c, int n) {
        vfloat sum{};
        for (int64_t a = p.h.first[h]; a < p.h.first[h + 1]; ++a)
          for (int64_t b = p.w.first[w]; b < p.w.first[w + 1]; ++b)
            sum += load_any(image + (p.h.outputs[a] * p.w.out + p.w.outputs[b]) * p.C + c, n) *
                   (p.h.weights[a] * p.w.weights[b]);
        store_any(grad_x + (task * p.w.in + w) * p.C + c, sum, n);
      });
  });
}

void forward(const ResampleParams& p, const void* x, void* y) {
  if (p.dtype == DType::float32)
    forward_typed(p, static_cast<const float*>(x), static_cast<float*>(y));
  else
    forward_typed(p, static_cast<const bfloat16*>(x), static_cast<bfloat16*>(y));
}

void backward(const ResampleParams& p, const void* g, void* grad_x) {
  if (p.dtype == DType::float32)
    backward_typed(p, static_cast<const float*>(g), static_cast<float*>(grad_x));
  else
    backward_typed(p, static_cast<const bfloat16*>(g), static_cast<bfloat16*>(grad_x));
}

}  // namespace

void fill_interpolate(Slots& slots) { slots.interpolate = {forward, backward}; }

}  // namespace fastnn::cpu::FASTNN_ISA
