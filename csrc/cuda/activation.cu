// Activations: one read and one write per element (backward: two reads), 16 bytes at a time, so the
// floor is the device's copy bandwidth. Formulas are those of the CPU (cpu/activation.cpp).
#include "cuda/device/teams.h"
#include "ops/slots.h"

namespace fastnn::cuda {
namespace {

constexpr float kInverseSqrt2 = 0.70710678118654752f;
constexpr float kInverseSqrt2Pi = 0.39894228040143268f;
constexpr float kSqrt2OverPi = 0.79788456080286536f;
constexpr float kGeluCubic = 0.044715f;

FASTNN_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

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
    if constexpr (kind == Activation::gelu_tanh)
      return 0.5f * v * (1.0f + tanhf(kSqrt2OverPi * (v + kGeluCubic * v * v * v)));
    if constexpr (kind == Activation::silu) return v * sigmoid(v);
    if constexpr (kind == Activation::sigmoid) return sigmoid(v);
    if constexpr (kind == Activation::tanh) return tanhf(v);
    if constexpr (kind == Activation::softplus) {
      const float z = v * a;
      return z > b ? v : (fmaxf(z, 0.0f) + log1pf(expf(-fabsf(z)))) / a;
    }
    if constexpr (kind == Activation::hardswish)
      return v * (v != v ? v : fmaxf(0.0f, fminf(6.0f, v + 3.0f))) / 6.0f;
  }

  __device__ float operator()(float g, float v) const {
    if constexpr (kind == Activation::leaky_relu) return v <= 0 ? g * a : g;
    if constexpr (kind == Activation::elu) return g * b * (v <= 0 ? a * expf(v) : 1.0f);
    if constexpr (kind == Activation::gelu) {
      const float below = 0.5f * (1.0f + erff(v * kInverseSqrt2));
      return g * (below + v * kInverseSqrt2Pi * expf(-0.5f * v * v));
    }
    if constexpr (kind == Activation::gelu_tanh) {
      const float t = tanhf(kSqrt2OverPi * (v + kGeluCubic * v * v * v));
      const float slope = kSqrt2OverPi * (1.0f + 3.0f * kGeluCubic * v * v);
      return g * (0.5f * (1.0f + t) + 0.5f * v * (1.0f - t * t) * slope);
    }
    if constexpr (kind == Activation::silu) {
      const float s = sigmoid(v);
      return g * s * (1.0f + v * (1.0f - s));
    }
    if constexpr (kind == Activation::sigmoid) {
      const float s = sigmoid(v);
      return g * s * (1.0f - s);
    }
    if constexpr (kind == Activation::tanh) {
      const float t = tanhf(v);
      return g * (1.0f - t * t);
    }
    if constexpr (kind == Activation::softplus) return g * (v * a > b ? 1.0f : sigmoid(v * a));
    if constexpr (kind == Activation::hardswish)
      return v <= -3.0f ? 0.0f : v >= 3.0f ? g : g * (v / 3.0f + 0.5f);
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

template <class T>
struct Prelu {
  const T* g;  // null: forward
  const T* x;
  const float* weight;
  T* y;
  int64_t C;
  __device__ void operator()(int64_t i) const {
    const float v = to_float(x[i]), w = weight[i % C];
    if (g)
      from_float(y[i], v <= 0 ? to_float(g[i]) * w : to_float(g[i]));
    else
      from_float(y[i], v < 0 ? v * w : v);
  }
};

void prelu(const void* x, const float* weight, void* y, int64_t pixels, int64_t C, DType dtype) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    each(pixels * C, Prelu<T>{nullptr, static_cast<const T*>(x), weight, static_cast<T*>(y), C});
  });
}

// Sums of g x where x < 0, for every channel.
template <class T>
struct PreluReader {
  using State = OneSum;
  const T* g;
  const T* x;
  int64_t C;
  PreluReader from(int64_t) const { return *this; }
  FASTNN_MEMBER void add(OneSum (&state)[1], int64_t, int64_t pixel, int64_t c) const {
    const float v = to_float(x[pixel * C + c]);
    if (v < 0) state[0].sum += to_float(g[pixel * C + c]) * v;
  }
};

void prelu_backward(const void* g, const void* x, const float* weight, void* grad_x,
                    float* grad_weight, int64_t pixels, int64_t C, DType dtype) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const T* const grad = static_cast<const T*>(g);
    const T* const in = static_cast<const T*>(x);
    each(pixels * C, Prelu<T>{grad, in, weight, static_cast<T*>(grad_x), C});
    reduce_columns<1>(PreluReader<T>{grad, in, C}, OneSumWriter{grad_weight}, 1, pixels, C);
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
