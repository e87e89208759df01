// Layer norm over contiguous rows, and local response norm over the channels of a pixel.
//
// Layer norm: a row is in cache for its second pass (deviations from a first mean, and their
// squares) and third (output). The weight gradient sums rows in fixed chunks, added in order. Local
// response norm: squares go to a zero-padded row, so that the window sum needs no edge cases; the
// power is exp(-beta log(.)).
#include "core/allocator.h"
#include "cpu/simd/math.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// Sums over i < D of value(i, lanes), in four accumulators a row: one would wait for itself. Lanes
// beyond a tail of values have to be zero.
template <int N, class Value>
FASTNN_INLINE void row_sums(int64_t D, float (&sums)[N], const Value& value) {
  vfloat total[4][N] = {};
  int64_t i = 0;
  for (; i + 4 * LANES <= D; i += 4 * LANES)
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) value(i + u * LANES, LANES, total[u]);
  for (; i < D; i += LANES)
    value(i, static_cast<int>(D - i < LANES ? D - i : LANES), total[i / LANES % 4]);
  for (int n = 0; n < N; ++n)
    sums[n] = sum((total[0][n] + total[1][n]) + (total[2][n] + total[3][n]));
}

template <class T>
void layer_typed(const T* x, int64_t rows, int64_t D, float eps, const float* weight,
                 const float* bias, float* mean, float* invstd, T* y) {
  parallel_ranges(rows, kGrain / (D + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T* row = x + r * D;
      const float count = static_cast<float>(D);
      float first[1], away[2];
      row_sums(D, first,
               [&](int64_t i, int n, vfloat* total) { total[0] += load_any(row + i, n); });
      const float rough = first[0] / count;
      // The deviations' own sum is the error of the first mean; see norm.cpp.
      alignas(64) float rough_lanes[LANES];
      store(rough_lanes, set1(rough));
      row_sums(D, away, [&](int64_t i, int n, vfloat* total) {
        const vfloat v = load_any(row + i, n) - load_any(rough_lanes, n);
        total[0] += v;
        total[1] += v * v;
      });
      const float m = rough + away[0] / count, lost = away[0] * (away[0] / count);
      const float m2 = away[1] < lost ? 0.0f : away[1] - lost;
      const float inverse = 1.0f / __builtin_sqrtf(m2 / count + eps);
      mean[r] = m;
      invstd[r] = inverse;
      vector_loop(0, D, [&](int64_t i, int n) {
        vfloat v = (load_any(row + i, n) - m) * inverse;
        if (weight) v *= load_any(weight + i, n);
        if (bias) v += load_any(bias + i, n);
        store_any(y + r * D + i, v, n);
      });
    }
  });
}

template <class T>
void layer_backward_typed(const T* g, const T* x, int64_t rows, int64_t D, const float* weight,
                          const float* mean, const float* invstd, T* grad_x, float* grad_weight,
                          float* grad_bias) {
  const int64_t step = kGrain / (D + 1) + 1, chunks = (rows + step - 1) / step;
  const bool sums_wanted = grad_weight || grad_bias;
  Workspace parts(((sums_wanted ? chunks * 2 * D : 0) + 1) * 4);
  parallel_ranges(rows, step, [&](int64_t begin, int64_t end) {
    float* sums = parts.floats() + begin / step * 2 * D;
    if (sums_wanted) __builtin_memset(sums, 0, sizeof(float) * static_cast<size_t>(2 * D));
    for (int64_t r = begin; r < end; ++r) {
      const T* row = x + r * D;
      const T* grad = g + r * D;
      const float m = mean[r], inverse = invstd[r];
      auto weighted = [&](int64_t i, int n) {
        const vfloat v = load_any(grad + i, n);
        return weight ? v * load_any(weight + i, n) : v;
      };
      float sum_of[2];
      row_sums(D, sum_of, [&](int64_t i, int n, vfloat* total) {
        const vfloat v = weighted(i, n);
        total[0] += v;
        total[1] += v * (load_any(row + i, n) - m);  // v is zero beyond a tail
      });
      const float first = sum_of[0] / static_cast<float>(D);
      const float second = sum_of[1] * inverse * inverse / static_cast<float>(D);
      vector_loop(0, D, [&](int64_t i, int n) {
        const vfloat away = load_any(row + i, n) - m;
        store_any(grad_x + r * D + i, (weighted(i, n) - first - away * second) * inverse, n);
        if (sums_wanted) {
          const vfloat v = load_any(grad + i, n);
          store_any(sums + i, load_any(sums + i, n) + v * away * inverse, n);
          store_any(sums + D + i, load_any(sums + D + i, n) + v, n);
        }
      });
    }
  });
  if (!sums_wanted) return;
  vector_loop(0, D, [&](int64_t i, int n) {
    vfloat first{}, second{};
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      first += load_any(parts.floats() + chunk * 2 * D + i, n);
      second += load_any(parts.floats() + (chunk * 2 + 1) * D + i, n);
    }
    if (grad_weight) store_any(grad_weight + i, first, n);
    if (grad_bias) store_any(grad_bias + i, second, n);
  });
}

// out[c] = sum of in[c - before .. c + after], `in` padded with zeros on both sides.
FASTNN_INLINE void window_sums(float* padded, int64_t C, int64_t before, int64_t after,
                               float* out) {
  vector_loop(0, C, [&](int64_t c, int n) {
    vfloat total{};
    for (int64_t o = 0; o <= before + after; ++o) total += load_any(padded + c + o, n);
    store_any(out + c, total, n);
  });
}

template <class T>
void local_response_typed(const T* x, int64_t pixels, int64_t C, int64_t size, float alpha,
                          float beta, float k, T* y) {
  const int64_t before = size / 2, after = (size - 1) / 2;
  parallel_ranges(pixels, kGrain / (C + 1) + 1, [&](int64_t begin, int64_t end) {
    float* padded = static_cast<float*>(thread_scratch((2 * C + size + LANES) * 4, 0));
    float* total = padded + C + size;
    __builtin_memset(padded, 0, sizeof(float) * static_cast<size_t>(C + size));
    for (int64_t p = begin; p < end; ++p) {
      vector_loop(0, C, [&](int64_t c, int n) {
        const vfloat v = load_any(x + p * C + c, n);
        store_any(padded + before + c, v * v, n);
      });
      window_sums(padded, C, before, after, total);
      vector_loop(0, C, [&](int64_t c, int n) {
        const vfloat d = k + alpha / static_cast<float>(size) * load_any(total + c, n);
        store_any(y + p * C + c, load_any(x + p * C + c, n) * vexp(-beta * vlog(d)), n);
      });
    }
  });
}

template <class T>
void local_response_backward_typed(const T* g, const T* x, int64_t pixels, int64_t C, int64_t size,
                                   float alpha, float beta, float k, T* grad_x) {
  const int64_t before = size / 2, after = (size - 1) / 2;
  const float rate = alpha / static_cast<float>(size);
  parallel_ranges(pixels, kGrain / (C + 1) + 1, [&](int64_t begin, int64_t end) {
    float* padded = static_cast<float*>(thread_scratch((4 * C + 2 * size + LANES) * 4, 0));
    float* mirrored = padded + C + size;  // terms of the sum over windows that contain a channel
    float* total = mirrored + C + size;
    float* base = total + C;
    __builtin_memset(padded, 0, sizeof(float) * static_cast<size_t>(2 * (C + size)));
    for (int64_t p = begin; p < end; ++p) {
      vector_loop(0, C, [&](int64_t c, int n) {
        const vfloat v = load_any(x + p * C + c, n);
        store_any(padded + before + c, v * v, n);
      });
      window_sums(padded, C, before, after, base);
      vector_loop(0, C, [&](int64_t c, int n) {
        const vfloat d = k + rate * load_any(base + c, n);
        const vfloat power = vexp(-beta * vlog(d));
        const vfloat v = load_any(x + p * C + c, n), grad = load_any(g + p * C + c, n);
        store_any(mirrored + after + c, grad * v * power / d, n);
        store_any(base + c, grad * power, n);
      });
      window_sums(mirrored, C, after, before, total);
      vector_loop(0, C, [&](int64_t c, int n) {
        store_any(grad_x + p * C + c,
                  load_any(base + c, n) -
                      2 * rate * beta * load_any(x + p * C + c, n) * load_any(total + c, n),
                  n);
      });
    }
  });
}

void layer(const void* x, int64_t rows, int64_t D, DType dtype, float eps, const float* weight,
           const float* bias, float* mean, float* invstd, void* y) {
  if (dtype == DType::float32)
    layer_typed(static_cast<const float*>(x), rows, D, eps, weight, bias, mean, invstd,
                static_cast<float*>(y));
  else
    layer_typed(static_cast<const bfloat16*>(x), rows, D, eps, weight, bias, mean, invstd,
                static_cast<bfloat16*>(y));
}

void layer_backward(const void* g, const void* x, int64_t rows, int64_t D, DType dtype,
                    const float* weight, const float* mean, const float* invstd, void* grad_x,
                    float* grad_weight, float* grad_bias) {
  if (dtype == DType::float32)
    layer_backward_typed(static_cast<const float*>(g), static_cast<const float*>(x), rows, D,
                         weight, mean, invstd, static_cast<float*>(grad_x), grad_weight, grad_bias);
  else
    layer_backward_typed(static_cast<const bfloat16*>(g), static_cast<const bfloat16*>(x), rows, D,
                         weight, mean, invstd, static_cast<bfloat16*>(grad_x), grad_weight,
                         grad_bias);
}

void local_response(const void* x, int64_t pixels, int64_t C, DType dtype, int64_t size,
                    float alpha, float beta, float k, void* y) {
  if (dtype == DType::float32)
    local_response_typed(static_cast<const float*>(x), pixels, C, size, alpha, beta, k,
                         static_cast<float*>(y));
  else
    local_response_typed(static_cast<const bfloat16*>(x), pixels, C, size, alpha, beta, k,
                         static_cast<bfloat16*>(y));
}

void local_response_backward(const void* g, const void* x, int64_t pixels, int64_t C, DType dtype,
                             int64_t size, float alpha, float beta, float k, void* grad_x) {
  if (dtype == DType::float32)
    local_response_backward_typed(static_cast<const float*>(g), static_cast<const float*>(x),
                                  pixels, C, size, alpha, beta, k, static_cast<float*>(grad_x));
  else
    local_response_backward_typed(static_cast<const bfloat16*>(g), static_cast<const bfloat16*>(x),
                                  pixels, C, size, alpha, beta, k, static_cast<bfloat16*>(grad_x));
}

}  // namespace

void fill_norm_layer(Slots& slots) {
  slots.norm.layer = layer;
  slots.norm.layer_backward = layer_backward;
  slots.norm.local_response = local_response;
  slots.norm.local_response_backward = local_response_backward;
}

}  // namespace fastnn::cpu::FASTNN_ISA
