// Batch, instance and group norm over NHWC pixels.
//
// All walk down columns (device/columns.h). For the moments every thread keeps Welford's of its own
// pixels, combined by Chan's formula, so that no large mean cancels. Bytes, forward: two reads and
// one write of x; backward: two of g and x and one write. The floor is these over the copy
// bandwidth (the second read comes from L2 for the later stages).
#include "cuda/device/columns.h"
#include "ops/slots.h"

namespace fastnn::cuda {
namespace {

template <class T, int N>
struct ChannelMoments {
  using State = Moments;
  const T* x;

  struct Column : OneOperand<T, N> {
    static constexpr int kAhead = 8;
    Moments state[N];
    FASTNN_MEMBER Column(const ChannelMoments& body, int64_t, int64_t) : OneOperand<T, N>{body.x} {}
    FASTNN_MEMBER void use(int64_t, const Pack<T, N>& from) {
      float v[N];
      to_floats(from, v);
      const float inverse = 1.0f / (state[0].n + 1.0f);
      for (int n = 0; n < N; ++n) {
        const float delta = v[n] - state[n].mean;
        state[n].n += 1.0f;
        state[n].mean += delta * inverse;
        state[n].m2 += delta * (v[n] - state[n].mean);
      }
    }
  };
};

void channel_moments(const NormShape& s, const void* x, float* mean, float* m2) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    const T* const from = static_cast<const T*>(x);
    with_pack<T>(
        s.C,
        [&](auto pack) {
          constexpr int N = decltype(pack)::value;
          reduce_columns<N>(ChannelMoments<T, N>{from}, MomentsWriter{mean, m2}, s.S, s.P, s.C);
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
  int64_t C;
  FusedRelu relu;

  struct Column {
    static constexpr int kAhead = 4;
    struct Fetched {
      Pack<T, N> x, residual;
    };
    Apply in;
    float mean[N], scale[N], bias[N];
    FASTNN_MEMBER Column(const Apply& body, int64_t segment, int64_t c) : in(body) {
      const int64_t column = segment * in.C + c;
      load_terms(in.mean + column, mean);
      load_terms(in.scale + column, scale);
      load_terms(in.bias + column, bias);
    }
    FASTNN_MEMBER void fetch(int64_t, int64_t at, Fetched& to) const {
      to.x = load_pack<N>(in.x + at);
      if (in.residual) to.residual = load_pack<N>(in.residual + at);
    }
    FASTNN_MEMBER void use(int64_t at, const Fetched& from) const {
      float v[N], r[N] = {};
      to_floats(from.x, v);
      if (in.residual) to_floats(from.residual, r);
      for (int n = 0; n < N; ++n) {
        v[n] = (v[n] - mean[n]) * scale[n] + bias[n] + r[n];
        if (in.relu.on) v[n] = clamped(v[n], 0.0f, in.relu.ceiling);
      }
      store_floats(in.y + at, v);
    }
  };
};

void channel_apply(const NormShape& s, const void* x, const float* mean, const float* scale,
                   const float* bias, const void* residual, const FusedActivation& fused, void* y) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    const T* const from = static_cast<const T*>(x);
    const T* const r = static_cast<const T*>(residual);
    T* const to = static_cast<T*>(y);
    with_pack<T>(
        s.C,
        [&](auto pack) {
          constexpr int N = decltype(pack)::value;
          walk_columns<N>(Apply<T, N>{from, r, to, mean, scale, bias, s.C, fused.relu}, s.S, s.P,
                          s.C);
        },
        from, r, to, mean, scale, bias);
  });
}

// What both passes of the backward read.
template <class T>
struct Gradient {
  const T* g;
  const T* x;
  NormMask mask;
  const float* mean;
  int64_t C;

  // f(pack) with the channels that a thread takes.
  template <class F, class... P>
  void with_channels(const F& f, const P*... pointers) const {
    with_pack<T>(C, f, g, x, static_cast<const T*>(mask.y), mask.scale, mask.bias, mean,
                 pointers...);
  }
};

// The gradient where a fused relu let its input pass, or there is none; and x - mean.
template <class T, int N>
struct GradientColumn {
  struct Fetched {
    Pack<T, N> g, x, y;
  };
  const T* g;
  const T* x;
  const T* y;
  bool masked, capped;
  float ceiling;
  float mean[N], scale[N], bias[N];
  FASTNN_MEMBER GradientColumn(const Gradient<T>& in, int64_t column)
      : g(in.g),
        x(in.x),
        y(static_cast<const T*>(in.mask.y)),
        masked(!in.mask.y && in.mask.scale),
        capped(in.mask.activation.relu.ceiling < INFINITY),
        ceiling(in.mask.activation.relu.ceiling) {
    load_terms(in.mean + column, mean);
    if (!masked) return;
    load_terms(in.mask.scale + column, scale);
    load_terms(in.mask.bias + column, bias);
  }
  FASTNN_MEMBER void fetch(int64_t, int64_t at, Fetched& to) const {
    to.g = load_pack<N>(g + at);
    to.x = load_pack<N>(x + at);
    if (y) to.y = load_pack<N>(y + at);
  }
  FASTNN_MEMBER void pass(const Fetched& from, float (&grad)[N], float (&away)[N]) const {
    to_floats(from.g, grad);
    to_floats(from.x, away);
    for (int n = 0; n < N; ++n) away[n] -= mean[n];
    if (!y && !masked) return;
    float out[N];
    if (y)
      to_floats(from.y, out);
    else
      for (int n = 0; n < N; ++n) out[n] = away[n] * scale[n] + bias[n];
    for (int n = 0; n < N; ++n)
      if (out[n] <= 0 || (capped && out[n] >= ceiling)) grad[n] = 0;
  }
};

template <class T, int N>
struct GradSums {
  using State = TwoSums;
  Gradient<T> in;

  struct Column : GradientColumn<T, N> {
    static constexpr int kAhead = 4;
    TwoSums state[N];
    FASTNN_MEMBER Column(const GradSums& body, int64_t segment, int64_t c)
        : GradientColumn<T, N>(body.in, segment * body.in.C + c) {}
    FASTNN_MEMBER void use(int64_t, const typename GradientColumn<T, N>::Fetched& from) {
      float grad[N], away[N];
      this->pass(from, grad, away);
      for (int n = 0; n < N; ++n) {
        state[n].a += grad[n];
        state[n].b += grad[n] * away[n];
      }
    }
  };
};

void channel_grad_sums(const NormShape& s, const void* g, const void* x, const NormMask& mask,
                       const float* mean, float* sum_g, float* sum_gx) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    const Gradient<T> in{static_cast<const T*>(g), static_cast<const T*>(x), mask, mean, s.C};
    in.with_channels([&](auto pack) {
      constexpr int N = decltype(pack)::value;
      reduce_columns<N>(GradSums<T, N>{in}, TwoSumsWriter{sum_g, sum_gx}, s.S, s.P, s.C);
    });
  });
}

template <class T, int N>
struct GradApply {
  Gradient<T> in;
  const float* a;
  const float* b;
  const float* d;
  T* grad_x;
  T* grad_residual;

  struct Column : GradientColumn<T, N> {
    static constexpr int kAhead = 2;
    T* grad_x;
    T* grad_residual;
    float a[N], b[N], d[N];
    FASTNN_MEMBER Column(const GradApply& body, int64_t segment, int64_t c)
        : GradientColumn<T, N>(body.in, segment * body.in.C + c),
          grad_x(body.grad_x),
          grad_residual(body.grad_residual) {
      const int64_t column = segment * body.in.C + c;
      load_terms(body.a + column, a);
      load_terms(body.b + column, b);
      load_terms(body.d + column, d);
    }
    FASTNN_MEMBER void use(int64_t at, const typename GradientColumn<T, N>::Fetched& from) const {
      float grad[N], away[N];
      this->pass(from, grad, away);
      if (grad_residual) store_floats(grad_residual + at, grad);
      for (int n = 0; n < N; ++n) grad[n] = grad[n] * a[n] + away[n] * b[n] + d[n];
      store_floats(grad_x + at, grad);
    }
  };
};

void channel_grad_apply(const NormShape& s, const void* g, const void* x, const NormMask& mask,
                        const float* mean, const float* a, const float* b, const float* d,
                        void* grad_x, void* grad_residual) {
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    const Gradient<T> in{static_cast<const T*>(g), static_cast<const T*>(x), mask, mean, s.C};
    T* const to = static_cast<T*>(grad_x);
    T* const residual = static_cast<T*>(grad_residual);
    in.with_channels(
        [&](auto pack) {
          constexpr int N = decltype(pack)::value;
          walk_columns<N>(GradApply<T, N>{in, a, b, d, to, residual}, s.S, s.P, s.C);
        },
        a, b, d, to, residual);
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
