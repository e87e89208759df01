// Batch, instance and group norm over NHWC pixels.
//
// Moments and gradient sums are column reductions (device/teams.h): every thread keeps Welford
// moments of its own pixels, combined by Chan's formula, so that no large mean cancels. Apply and
// backward are one pass each, 16 bytes at a time. Bytes, forward: two reads and one write of x; the
// floor is these over the copy bandwidth (the second read comes from L2 for the later stages).
#include "cuda/device/teams.h"
#include "ops/slots.h"

namespace fastnn::cuda {
namespace {

template <class T, int N>
struct MomentsReader {
  using State = Moments;
  const T* x;
  int64_t P, C;
  MomentsReader from(int64_t segment) const { return {x + segment * P * C, P, C}; }
  FASTNN_MEMBER void add(Moments (&state)[N], int64_t segment, int64_t pixel, int64_t c) const {
    float v[N];
    load_floats(x + (segment * P + pixel) * C + c, v);
    const float inverse = 1.0f / (state[0].n + 1.0f);
    for (int n = 0; n < N; ++n) {
      const float delta = v[n] - state[n].mean;
      state[n].n += 1.0f;
      state[n].mean += delta * inverse;
      state[n].m2 += delta * (v[n] - state[n].mean);
    }
  }
};

void channel_moments(const NormShape& s, const void* x, float* mean, float* m2) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    const T* const from = static_cast<const T*>(x);
    with_pack<T>(
        s.C,
        [&](auto pack) {
          constexpr int N = decltype(pack)::value;
          reduce_columns<N>(MomentsReader<T, N>{from, s.P, s.C}, MomentsWriter{mean, m2}, s.S, s.P,
                            s.C);
        },
        from);
  });
}

template <class T, int N>
struct Apply {
  const T* x;
  const T* residual;
  T* y;
  const float* mean;
  const float* scale;
  const float* bias;
  int64_t P, C;
  bool relu;
  __device__ void operator()(int64_t i) const {
    const int64_t packs = C / N, c = i % packs * N, at = i / packs / P * C + c;
    float v[N], r[N] = {};
    load_floats(x + i * N, v);
    if (residual) load_floats(residual + i * N, r);
    for (int n = 0; n < N; ++n) {
      v[n] = (v[n] - mean[at + n]) * scale[at + n] + bias[at + n] + r[n];
      if (relu) v[n] = v[n] < 0 ? 0.0f : v[n];
    }
    store_floats(y + i * N, v);
  }
};

void channel_apply(const NormShape& s, const void* x, const float* mean, const float* scale,
                   const float* bias, const void* residual, bool relu, void* y) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    const T* const from = static_cast<const T*>(x);
    const T* const r = static_cast<const T*>(residual);
    T* const to = static_cast<T*>(y);
    with_pack<T>(
        s.C,
        [&](auto pack) {
          constexpr int N = decltype(pack)::value;
          each(s.S * s.P * s.C / N, Apply<T, N>{from, r, to, mean, scale, bias, s.P, s.C, relu});
        },
        from, r, to);
  });
}

// The gradient where the output of a fused relu was positive, or there is none; and x - mean.
template <class T, int N>
struct Passed {
  const T* g;
  const T* x;
  const T* y;  // the three of NormMask
  const float* mask_scale;
  const float* mask_bias;
  const float* mean;
  FASTNN_MEMBER void load(int64_t element, int64_t column, float (&grad)[N],
                          float (&away)[N]) const {
    load_floats(g + element, grad);
    load_floats(x + element, away);
    for (int n = 0; n < N; ++n) away[n] -= mean[column + n];
    if (y) {
      float out[N];
      load_floats(y + element, out);
      for (int n = 0; n < N; ++n) grad[n] = out[n] <= 0 ? 0.0f : grad[n];
    } else if (mask_scale) {
      for (int n = 0; n < N; ++n) {
        const float out = away[n] * mask_scale[column + n] + mask_bias[column + n];
        grad[n] = out <= 0 ? 0.0f : grad[n];
      }
    }
  }
};

template <class T, int N>
Passed<T, N> passed(const void* g, const void* x, const NormMask& mask, const float* mean) {
  return {static_cast<const T*>(g),
          static_cast<const T*>(x),
          static_cast<const T*>(mask.y),
          mask.y ? nullptr : mask.scale,
          mask.bias,
          mean};
}

template <class T, int N>
struct GradReader {
  using State = TwoSums;
  Passed<T, N> in;
  int64_t P, C, first;
  GradReader from(int64_t segment) const { return {in, P, C, segment}; }
  FASTNN_MEMBER void add(TwoSums (&state)[N], int64_t segment, int64_t pixel, int64_t c) const {
    const int64_t its = first + segment;
    float grad[N], away[N];
    in.load((its * P + pixel) * C + c, its * C + c, grad, away);
    for (int n = 0; n < N; ++n) {
      state[n].a += grad[n];
      state[n].b += grad[n] * away[n];
    }
  }
};

struct TwoSumsWriter {
  float* a;
  float* b;
  TwoSumsWriter from(int64_t segment, int64_t C) const {
    return {a + segment * C, b + segment * C};
  }
  FASTNN_MEMBER void write(int64_t at, const TwoSums& state) const {
    a[at] = state.a;
    b[at] = state.b;
  }
};

void channel_grad_sums(const NormShape& s, const void* g, const void* x, const NormMask& mask,
                       const float* mean, float* sum_g, float* sum_gx) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    with_pack<T>(
        s.C,
        [&](auto pack) {
          constexpr int N = decltype(pack)::value;
          reduce_columns<N>(GradReader<T, N>{passed<T, N>(g, x, mask, mean), s.P, s.C, 0},
                            TwoSumsWriter{sum_g, sum_gx}, s.S, s.P, s.C);
        },
        static_cast<const T*>(g), static_cast<const T*>(x), static_cast<const T*>(mask.y));
  });
}

template <class T, int N>
struct GradApply {
  Passed<T, N> in;
  const float* a;
  const float* b;
  const float* d;
  T* grad_x;
  T* grad_residual;
  int64_t P, C;
  __device__ void operator()(int64_t i) const {
    const int64_t packs = C / N, at = i / packs / P * C + i % packs * N;
    float grad[N], away[N];
    in.load(i * N, at, grad, away);
    if (grad_residual) store_floats(grad_residual + i * N, grad);
    for (int n = 0; n < N; ++n) grad[n] = grad[n] * a[at + n] + away[n] * b[at + n] + d[at + n];
    store_floats(grad_x + i * N, grad);
  }
};

void channel_grad_apply(const NormShape& s, const void* g, const void* x, const NormMask& mask,
                        const float* mean, const float* a, const float* b, const float* d,
                        void* grad_x, void* grad_residual) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    T* const to = static_cast<T*>(grad_x);
    T* const residual = static_cast<T*>(grad_residual);
    with_pack<T>(
        s.C,
        [&](auto pack) {
          constexpr int N = decltype(pack)::value;
          each(s.S * s.P * s.C / N,
               GradApply<T, N>{passed<T, N>(g, x, mask, mean), a, b, d, to, residual, s.P, s.C});
        },
        static_cast<const T*>(g), static_cast<const T*>(x), static_cast<const T*>(mask.y), to,
        residual);
  });
}

}  // namespace

void fill_norm(Slots& slots) {
  slots.norm.channel_moments = channel_moments;
  slots.norm.channel_apply = channel_apply;
  slots.norm.channel_grad_sums = channel_grad_sums;
  slots.norm.channel_grad_apply = channel_grad_apply;
}

}  // namespace fastnn::cuda
