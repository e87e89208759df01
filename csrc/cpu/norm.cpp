// Batch, instance and group norm: vectors run over channels of NHWC pixels.
//
// Segments are cut into chunks of pixels by shape. A chunk computes its channel means, then its
// sums of squared deviations from them while it is still in L2 (two passes, no cancellation, memory
// read once); chunks merge in order by Chan's formula. Apply and backward are one pass each. Bytes,
// forward: 2 reads (moments, apply) and 1 write of x; the floor is these over the copy bandwidth.
#include "core/allocator.h"
#include "cpu/simd/vec.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// Pixels per chunk: 128 KiB of float32, so that a chunk's second pass finds it in L2.
int64_t chunk_pixels(const NormShape& s) {
  const int64_t fit = 32768 / (s.C > 0 ? s.C : 1);
  return fit < 16 ? 16 : fit;
}

template <class T>
void channel_moments_typed(const NormShape& s, const T* x, float* mean, float* m2) {
  const int64_t C = s.C, step = chunk_pixels(s), chunks = (s.P + step - 1) / step;
  Workspace parts((s.S * chunks * 3 * C + 1) * 4);
  parallel_for(s.S * chunks, [&](int64_t task) {
    const int64_t begin = task % chunks * step;
    const int64_t n = begin + step < s.P ? step : s.P - begin;
    const T* from = x + (task / chunks * s.P + begin) * C;
    float* sum = parts.floats() + task * 3 * C;
    float* square = sum + C;
    float* rest = square + C;
    __builtin_memset(sum, 0, sizeof(float) * static_cast<size_t>(3 * C));
    for (int64_t p = 0; p < n; ++p)
      vector_loop(0, C, [&](int64_t c, int l) {
        store_any(sum + c, load_any(sum + c, l) + load_any(from + p * C + c, l), l);
      });
    const float inverse = 1.0f / static_cast<float>(n);
    for (int64_t c = 0; c < C; ++c) sum[c] *= inverse;
    for (int64_t p = 0; p < n; ++p)
      vector_loop(0, C, [&](int64_t c, int l) {
        const vfloat away = load_any(from + p * C + c, l) - load_any(sum + c, l);
        store_any(rest + c, load_any(rest + c, l) + away, l);
        store_any(square + c, load_any(square + c, l) + away * away, l);
      });
    // Where the mean is far from zero the first sum was rounded coarsely; what the deviations still
    // add up to is its error (the corrected two-pass algorithm of Chan, Golub and LeVeque, 1983).
    for (int64_t c = 0; c < C; ++c) {
      const float error = rest[c] * inverse;
      sum[c] += error;
      square[c] -= rest[c] * error;
    }
  });
  for (int64_t segment = 0; segment < s.S; ++segment)
    for (int64_t c = 0; c < C; ++c) {
      float count = 0, average = 0, spread = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const float* part = parts.floats() + (segment * chunks + chunk) * 3 * C;
        const int64_t begin = chunk * step;
        const float n = static_cast<float>(begin + step < s.P ? step : s.P - begin);
        const float delta = part[c] - average, total = count + n;
        spread += part[C + c] + delta * delta * (count * n / total);
        average += delta * (n / total);
        count = total;
      }
      mean[segment * C + c] = average;
      m2[segment * C + c] = spread;
    }
}

// body(segment, first element, last element) over chunks of whole pixels.
template <class Body>
FASTNN_INLINE void each_chunk(const NormShape& s, const Body& body) {
  const int64_t step = chunk_pixels(s), chunks = (s.P + step - 1) / step;
  parallel_for(s.S * chunks, [&](int64_t task) {
    const int64_t segment = task / chunks, begin = task % chunks * step;
    const int64_t end = begin + step < s.P ? begin + step : s.P;
    body(segment, (segment * s.P + begin) * s.C, (segment * s.P + end) * s.C);
  });
}

template <class T>
void channel_apply_typed(const NormShape& s, const T* x, const float* mean, const float* scale,
                         const float* bias, const T* residual, bool relu, T* y) {
  each_chunk(s, [&](int64_t segment, int64_t begin, int64_t end) {
    const int64_t at = segment * s.C;
    for (int64_t pixel = begin; pixel < end; pixel += s.C)
      vector_loop(0, s.C, [&](int64_t c, int n) {
        const int64_t i = pixel + c;
        vfloat v = (load_any(x + i, n) - load_any(mean + at + c, n)) * load_any(scale + at + c, n) +
                   load_any(bias + at + c, n);
        if (residual) v += load_any(residual + i, n);
        if (relu) v = select(v < 0, vfloat{}, v);
        store_any(y + i, v, n);
      });
  });
}

// The gradient where the output of a fused relu was positive (or there is none); `away` is x -
// mean.
template <class T>
FASTNN_INLINE vfloat passed(const T* g, const NormMask& mask, vfloat away, int64_t i, int64_t c,
                            int n) {
  const vfloat v = load_any(g + i, n);
  if (mask.y) return select(load_any(static_cast<const T*>(mask.y) + i, n) <= 0, vfloat{}, v);
  if (!mask.scale) return v;
  const vfloat y = away * load_any(mask.scale + c, n) + load_any(mask.bias + c, n);
  return select(y <= 0, vfloat{}, v);
}

template <class T>
void channel_grad_sums_typed(const NormShape& s, const T* g, const T* x, const NormMask& mask,
                             const float* mean, float* sum_g, float* sum_gx) {
  const int64_t C = s.C, step = chunk_pixels(s), chunks = (s.P + step - 1) / step;
  Workspace parts((s.S * chunks * 2 * C + 1) * 4);
  each_chunk(s, [&](int64_t segment, int64_t begin, int64_t end) {
    const int64_t chunk = (begin / C - segment * s.P) / step;
    float* sums = parts.floats() + (segment * chunks + chunk) * 2 * C;
    __builtin_memset(sums, 0, sizeof(float) * static_cast<size_t>(2 * C));
    for (int64_t pixel = begin; pixel < end; pixel += C)
      vector_loop(0, C, [&](int64_t c, int n) {
        const vfloat away = load_any(x + pixel + c, n) - load_any(mean + segment * C + c, n);
        const vfloat grad = passed(g, mask, away, pixel + c, segment * C + c, n);
        store_any(sums + c, load_any(sums + c, n) + grad, n);
        store_any(sums + C + c, load_any(sums + C + c, n) + grad * away, n);
      });
  });
  for (int64_t segment = 0; segment < s.S; ++segment)
    vector_loop(0, C, [&](int64_t c, int n) {
      vfloat first{}, second{};
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const float* sums = parts.floats() + (segment * chunks + chunk) * 2 * C;
        first += load_any(sums + c, n);
        second += load_any(sums + C + c, n);
      }
      store_any(sum_g + segment * C + c, first, n);
      store_any(sum_gx + segment * C + c, second, n);
    });
}

template <class T>
void channel_grad_apply_typed(const NormShape& s, const T* g, const T* x, const NormMask& mask,
                              const float* mean, const float* a, const float* b, const float* d,
                              T* grad_x, T* grad_residual) {
  each_chunk(s, [&](int64_t segment, int64_t begin, int64_t end) {
    const int64_t at = segment * s.C;
    for (int64_t pixel = begin; pixel < end; pixel += s.C)
      vector_loop(0, s.C, [&](int64_t c, int n) {
        const int64_t i = pixel + c;
        const vfloat away = load_any(x + i, n) - load_any(mean + at + c, n);
        const vfloat grad = passed(g, mask, away, i, at + c, n);
        store_any(grad_x + i,
                  grad * load_any(a + at + c, n) + away * load_any(b + at + c, n) +
                      load_any(d + at + c, n),
                  n);
        if (grad_residual) store_any(grad_residual + i, grad, n);
      });
  });
}

void channel_moments(const NormShape& s, const void* x, float* mean, float* m2) {
  if (s.dtype == DType::float32)
    channel_moments_typed(s, static_cast<const float*>(x), mean, m2);
  else
    channel_moments_typed(s, static_cast<const bfloat16*>(x), mean, m2);
}

void channel_apply(const NormShape& s, const void* x, const float* mean, const float* scale,
                   const float* bias, const void* residual, bool relu, void* y) {
  if (s.dtype == DType::float32)
    channel_apply_typed(s, static_cast<const float*>(x), mean, scale, bias,
                        static_cast<const float*>(residual), relu, static_cast<float*>(y));
  else
    channel_apply_typed(s, static_cast<const bfloat16*>(x), mean, scale, bias,
                        static_cast<const bfloat16*>(residual), relu, static_cast<bfloat16*>(y));
}

void channel_grad_sums(const NormShape& s, const void* g, const void* x, const NormMask& mask,
                       const float* mean, float* sum_g, float* sum_gx) {
  if (s.dtype == DType::float32)
    channel_grad_sums_typed(s, static_cast<const float*>(g), static_cast<const float*>(x), mask,
                            mean, sum_g, sum_gx);
  else
    channel_grad_sums_typed(s, static_cast<const bfloat16*>(g), static_cast<const bfloat16*>(x),
                            mask, mean, sum_g, sum_gx);
}

void channel_grad_apply(const NormShape& s, const void* g, const void* x, const NormMask& mask,
                        const float* mean, const float* a, const float* b, const float* d,
                        void* grad_x, void* grad_residual) {
  if (s.dtype == DType::float32)
    channel_grad_apply_typed(s, static_cast<const float*>(g), static_cast<const float*>(x), mask,
                             mean, a, b, d, static_cast<float*>(grad_x),
                             static_cast<float*>(grad_residual));
  else
    channel_grad_apply_typed(s, static_cast<const bfloat16*>(g), static_cast<const bfloat16*>(x),
                             mask, mean, a, b, d, static_cast<bfloat16*>(grad_x),
                             static_cast<bfloat16*>(grad_residual));
}

}  // namespace

void fill_norm(Slots& slots) {
  slots.norm.channel_moments = channel_moments;
  slots.norm.channel_apply = channel_apply;
  slots.norm.channel_grad_sums = channel_grad_sums;
  slots.norm.channel_grad_apply = channel_grad_apply;
}

}  // namespace fastnn::cpu::FASTNN_ISA
