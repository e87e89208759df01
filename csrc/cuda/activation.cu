// Activations: one read and one write per element (backward: two reads), 16 bytes at a time, so the
// floor is the device's copy bandwidth. Formulas are those of the CPU (cpu/activation.cpp).
#include "cuda/device/columns.h"
#include "ops/slots.h"

namespace fastnn::cuda {
namespace {

constexpr float kInverseSqrt2 = 0.70710678118654752f;
constexpr float kInverseSqrt2Pi = 0.39894228040143268f;
constexpr float kSqrt2OverPi = 0.79788456080286536f;
constexpr float kGeluCubic = 0.044715f;

// The logistic function, and one minus it, which does not cancel.
struct Sigmoid {
  float value, rest;
};
FASTNN_DEVICE Sigmoid sigmoids(float x) {
  const float e = expf(-fabsf(x)), large = 1.0f / (1.0f + e), small = e * large;
  return x < 0 ? Sigmoid{small, large} : Sigmoid{large, small};
}
FASTNN_DEVICE float sigmoid(float x) { return sigmoids(x).value; }
FASTNN_DEVICE float sigmoid_slope(float x) {
  const Sigmoid s = sigmoids(x);
  return s.value * s.rest;
}

// (1 + tanh(u)) / 2 is the logistic function of 2 u, which does not cancel for large negative u.
FASTNN_DEVICE float gelu_argument(float x) {
  return 2.0f * kSqrt2OverPi * x * (1.0f + kGeluCubic * x * x);
}

struct Relu {
  __device__ float operator()(float v) const { return v < 0 ? 0.0f : v; }  // a NaN stays
  __device__ float operator()(float g, float y) const { return y <= 0 ? 0.0f : g; }
};

// f(x), and f(g, x): the gradient times g.
template <Activation kind>
struct Function {
  float a, b;

  __device__ float operator()(float v) const {
    if constexpr (kind == Activation::leaky_relu) return v < 0 ? v * a : v;
    if constexpr (kind == Activation::elu) return b * (v < 0 ? a * expm1f(v) : v);
    if constexpr (kind == Activation::gelu) return 0.5f * v * (1.0f + erff(v * kInverseSqrt2));
    if constexpr (kind == Activation::gelu_tanh) return v * sigmoid(gelu_argument(v));
    if constexpr (kind == Activation::silu) return v * sigmoid(v);
    if constexpr (kind == Activation::sigmoid) return sigmoid(v);
    if constexpr (kind == Activation::tanh) return tanhf(v);
    if constexpr (kind == Activation::softplus) {
      const float z = v * a;
      return z > b ? v : (fmaxf(z, 0.0f) + log1pf(expf(-fabsf(z)))) / a;
    }
    if constexpr (kind == Activation::hardswish) return v * clamped(v + 3.0f, 0.0f, 6.0f) / 6.0f;
    if constexpr (kind == Activation::hardsigmoid) return clamped(v + 3.0f, 0.0f, 6.0f) / 6.0f;
    if constexpr (kind == Activation::hardtanh) return clamped(v, a, b);
  }

  __device__ float operator()(float g, float v) const {
    if constexpr (kind == Activation::leaky_relu) return v <= 0 ? g * a : g;
    if constexpr (kind == Activation::elu) return g * b * (v <= 0 ? a * expf(v) : 1.0f);
    if constexpr (kind == Activation::gelu) {
      const float below = 0.5f * (1.0f + erff(v * kInverseSqrt2));
      return g * (below + v * kInverseSqrt2Pi * expf(-0.5f * v * v));
    }
    if constexpr (kind == Activation::gelu_tanh) {
      const Sigmoid s = sigmoids(gelu_argument(v));
      const float a = fminf(20.0f, fabsf(v));  // beyond it s is 0 or 1, and slope may be inf
      const float slope = 2.0f * kSqrt2OverPi * (1.0f + 3.0f * kGeluCubic * a * a);
      return g * s.value * (1.0f + v * s.rest * slope);
    }
    if constexpr (kind == Activation::silu) {
      const Sigmoid s = sigmoids(v);
      return g * s.value * (1.0f + v * s.rest);
    }
    if constexpr (kind == Activation::sigmoid) return g * sigmoid_slope(v);
    if constexpr (kind == Activation::tanh) return g * (4.0f * sigmoid_slope(2.0f * v));
    if constexpr (kind == Activation::softplus) return g * (v * a > b ? 1.0f : sigmoid(v * a));
    if constexpr (kind == Activation::hardswish)
      return v <= -3.0f ? 0.0f : v >= 3.0f ? g : g * (v / 3.0f + 0.5f);
    if constexpr (kind == Activation::hardsigmoid) return v <= -3.0f || v >= 3.0f ? 0.0f : g / 6.0f;
    if constexpr (kind == Activation::hardtanh) return v <= a || v >= b ? 0.0f : g;
  }
};

// y[i] = f(x[i]), or f(g[i], x[i]) where there is a g; N elements at a time.
template <class T, int N, class F>
struct Map {
  const T* g;
  const T* x;
  T* y;
  F f;
  __device__ void operator()(int64_t i) const {
    float in[N], grad[N];
    load_floats(x + i * N, in);
    if (g) {
      load_floats(g + i * N, grad);
      for (int k = 0; k < N; ++k) in[k] = f(grad[k], in[k]);
    } else {
      for (int k = 0; k < N; ++k) in[k] = f(in[k]);
    }
    store_floats(y + i * N, in);
  }
};

template <class F>
void map(const void* g, const void* x, void* y, int64_t count, DType dtype, const F& f) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int N = kPack<T>;
    const T* const grad = static_cast<const T*>(g);
    const T* const in = static_cast<const T*>(x);
    T* const out = static_cast<T*>(y);
    const int64_t packed = aligned(grad, in, out) ? count / N * N : 0;
    each(packed / N, Map<T, N, F>{grad, in, out, f});
    each(count - packed,
         Map<T, 1, F>{grad ? grad + packed : nullptr, in + packed, out + packed, f});
  });
}

void relu(const void* x, void* y, int64_t count, DType dtype) {
  map(nullptr, x, y, count, dtype, Relu{});
}
void relu_backward(const void* g, const void* y, void* grad_x, int64_t count, DType dtype) {
  map(g, y, grad_x, count, dtype, Relu{});
}

void run(Activation kind, float a, float b, const void* g, const void* x, void* y, int64_t count,
         DType dtype) {
  switch (kind) {
    case Activation::leaky_relu:
      return map(g, x, y, count, dtype, Function<Activation::leaky_relu>{a, b});
    case Activation::elu:
      return map(g, x, y, count, dtype, Function<Activation::elu>{a, b});
    case Activation::gelu:
      return map(g, x, y, count, dtype, Function<Activation::gelu>{a, b});
    case Activation::gelu_tanh:
      return map(g, x, y, count, dtype, Function<Activation::gelu_tanh>{a, b});
    case Activation::silu:
      return map(g, x, y, count, dtype, Function<Activation::silu>{a, b});
    case Activation::sigmoid:
      return map(g, x, y, count, dtype, Function<Activation::sigmoid>{a, b});
    case Activation::tanh:
      return map(g, x, y, count, dtype, Function<Activation::tanh>{a, b});
    case Activation::softplus:
      return map(g, x, y, count, dtype, Function<Activation::softplus>{a, b});
    case Activation::hardswish:
      return map(g, x, y, count, dtype, Function<Activation::hardswish>{a, b});
    case Activation::hardsigmoid:
      return map(g, x, y, count, dtype, Function<Activation::hardsigmoid>{a, b});
    case Activation::hardtanh:
      return map(g, x, y, count, dtype, Function<Activation::hardtanh>{a, b});
  }
}

void forward(Activation kind, float a, float b, const void* x, void* y, int64_t count,
             DType dtype) {
  run(kind, a, b, nullptr, x, y, count, dtype);
}
void backward(Activation kind, float a, float b, const void* g, const void* x, void* grad_x,
              int64_t count, DType dtype) {
  run(kind, a, b, g, x, grad_x, count, dtype);
}

template <class T, int N>
struct Prelu {
  const T* g;  // null: forward
  const T* x;
  const float* weight;
  T* y;

  struct Column {
    static constexpr int kAhead = 4;
    struct Fetched {
      Pack<T, N> g, x;
    };
    Prelu in;
    float weight[N];
    FASTNN_MEMBER Column(const Prelu& body, int64_t, int64_t c) : in(body) {
      load_terms(body.weight + c, weight);
    }
    FASTNN_MEMBER void fetch(int64_t, int64_t at, Fetched& to) const {
      to.x = load_pack<N>(in.x + at);
      if (in.g) to.g = load_pack<N>(in.g + at);
    }
    FASTNN_MEMBER void use(int64_t at, const Fetched& from) const {
      float v[N], grad[N];
      to_floats(from.x, v);
      if (in.g) {
        to_floats(from.g, grad);
        for (int n = 0; n < N; ++n) v[n] = v[n] <= 0 ? grad[n] * weight[n] : grad[n];
      } else {
        for (int n = 0; n < N; ++n) v[n] = v[n] < 0 ? v[n] * weight[n] : v[n];
      }
      store_floats(in.y + at, v);
    }
  };
};

template <class T>
void run_prelu(const T* g, const void* x, const float* weight, void* y, int64_t pixels, int64_t C) {
  const T* const in = static_cast<const T*>(x);
  T* const out = static_cast<T*>(y);
  with_pack<T>(
      C,
      [&](auto pack) {
        constexpr int N = decltype(pack)::value;
        walk_columns<N>(Prelu<T, N>{g, in, weight, out}, 1, pixels, C);
      },
      g, in, weight, out);
}

void prelu(const void* x, const float* weight, void* y, int64_t pixels, int64_t C, DType dtype) {
  with_type(dtype, [&](auto type) {
    run_prelu(static_cast<const decltype(type)*>(nullptr), x, weight, y, pixels, C);
  });
}

// Sums of g x where x < 0, for every channel.
template <class T, int N>
struct PreluSums {
  using State = OneSum;
  const T* g;
  const T* x;

  struct Column {
    static constexpr int kAhead = 4;
    struct Fetched {
      Pack<T, N> g, x;
    };
    PreluSums in;
    OneSum state[N];
    FASTNN_MEMBER Column(const PreluSums& body, int64_t, int64_t) : in(body) {}
    FASTNN_MEMBER void fetch(int64_t, int64_t at, Fetched& to) const {
      to = {load_pack<N>(in.g + at), load_pack<N>(in.x + at)};
    }
    FASTNN_MEMBER void use(int64_t, const Fetched& from) {
      float grad[N], v[N];
      to_floats(from.g, grad);
      to_floats(from.x, v);
      for (int n = 0; n < N; ++n)
        if (v[n] < 0) state[n].sum += grad[n] * v[n];
    }
  };
};

void prelu_backward(const void* g, const void* x, const float* weight, void* grad_x,
                    float* grad_weight, int64_t pixels, int64_t C, DType dtype) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const T* const grad = static_cast<const T*>(g);
    const T* const in = static_cast<const T*>(x);
    run_prelu(grad, x, weight, grad_x, pixels, C);
    with_pack<T>(
        C,
        [&](auto pack) {
          constexpr int N = decltype(pack)::value;
          reduce_columns<N>(PreluSums<T, N>{grad, in}, OneSumWriter{grad_weight}, 1, pixels, C);
        },
        grad, in);
  });
}

template <class T>
struct Maxout {
  const T* g;  // null: forward
  const T* x;
  T* y;
  int64_t pool;
  __device__ void operator()(int64_t i) const {
    int64_t best = 0;
    for (int64_t k = 1; k < pool; ++k) {
      const float v = to_float(x[i * pool + k]), held = to_float(x[i * pool + best]);
      if (v > held || (v != v && held == held)) best = k;
    }
    if (!g)
      y[i] = x[i * pool + best];
    else
      for (int64_t k = 0; k < pool; ++k) y[i * pool + k] = k == best ? g[i] : T{};
  }
};

void maxout(const void* x, void* y, int64_t count, int64_t pool, DType dtype) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    each(count, Maxout<T>{nullptr, static_cast<const T*>(x), static_cast<T*>(y), pool});
  });
}
void maxout_backward(const void* g, const void* x, void* grad_x, int64_t count, int64_t pool,
                     DType dtype) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    each(count, Maxout<T>{static_cast<const T*>(g), static_cast<const T*>(x),
                          static_cast<T*>(grad_x), pool});
  });
}

}  // namespace

void fill_activation(Slots& slots) {
  slots.activation = {relu,  relu_backward,  forward, backward,
                      prelu, prelu_backward, maxout,  maxout_backward};
}

}  // namespace fastnn::cuda
