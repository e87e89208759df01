// Layer norm over contiguous rows, and local response norm over the channels of a pixel.
//
// Layer norm: a team per row (device/teams.h); the row comes from L1 or L2 for its second pass
// (squared deviations) and third (output). The gradients of weight and bias are column reductions
// over rows. Local response norm: a thread per element, which reads its window's neighbours from
// L1; the backward keeps each element's term in float32 first, so that windows are summed once.
#include "cuda/device/columns.h"
#include "cuda/device/teams.h"
#include "ops/slots.h"

namespace fastnn::cuda {
namespace {

template <class T, int N, class Team>
__global__ void __launch_bounds__(kThreads)
    layer_kernel(const T* x, int64_t rows, int64_t D, float eps, const float* weight,
                 const float* bias, float* mean, float* invstd, T* y) {
  Team::over_rows(rows, [&](int64_t r, bool there) {
    const T* const row = x + r * D;
    const auto count = static_cast<float>(D);
    // The sum over the row of f(element).
    const auto sum_of = [&](const auto& f) {
      float sum = 0;
      for (int64_t i = Team::member() * N; i < D; i += Team::size * N) {
        float v[N];
        load_floats(row + i, v);
        for (int n = 0; n < N; ++n) sum += f(v[n]);
      }
      return Team::sum(sum);
    };
    const float rough = sum_of([](float v) { return v; }) / count;
    // Where the mean is far from zero its sum was rounded coarsely; what the deviations still add
    // up to is its error.
    const float m = rough + sum_of([&](float v) { return v - rough; }) / count;
    const float m2 = sum_of([&](float v) { return (v - m) * (v - m); });
    if (!there) return;
    const float inverse = 1.0f / sqrtf(m2 / count + eps);
    if (Team::member() == 0) {
      mean[r] = m;
      invstd[r] = inverse;
    }
    for (int64_t i = Team::member() * N; i < D; i += Team::size * N) {
      float v[N], term[N];
      load_floats(row + i, v);
      for (int n = 0; n < N; ++n) v[n] = (v[n] - m) * inverse;
      if (weight) {
        load_terms(weight + i, term);
        for (int n = 0; n < N; ++n) v[n] *= term[n];
      }
      if (bias) {
        load_terms(bias + i, term);
        for (int n = 0; n < N; ++n) v[n] += term[n];
      }
      store_floats(y + r * D + i, v);
    }
  });
}

void layer(const void* x, int64_t rows, int64_t D, DType dtype, float eps, const float* weight,
           const float* bias, float* mean, float* invstd, void* y) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const T* const in = static_cast<const T*>(x);
    T* const out = static_cast<T*>(y);
    with_row_team<T>(
        rows, D,
        [&](auto pack, auto team, dim3 grid) {
          constexpr int N = decltype(pack)::value;
          launch(layer_kernel<T, N, decltype(team)>, grid, kThreads, 0, in, rows, D, eps, weight,
                 bias, mean, invstd, out);
        },
        in, out, weight, bias);
  });
}

template <class T, int N, class Team>
__global__ void __launch_bounds__(kThreads)
    layer_backward_kernel(const T* g, const T* x, int64_t rows, int64_t D, const float* weight,
                          const float* mean, const float* invstd, T* grad_x) {
  Team::over_rows(rows, [&](int64_t r, bool there) {
    const float m = mean[r], inverse = invstd[r], count = static_cast<float>(D);
    // The gradient of the normalized elements from i on, and x - mean.
    const auto load = [&](int64_t i, float (&grad)[N], float (&away)[N]) {
      load_floats(g + r * D + i, grad);
      load_floats(x + r * D + i, away);
      for (int n = 0; n < N; ++n) away[n] -= m;
      if (!weight) return;
      float w[N];
      load_terms(weight + i, w);
      for (int n = 0; n < N; ++n) grad[n] *= w[n];
    };
    float first = 0, second = 0, grad[N], away[N];
    for (int64_t i = Team::member() * N; i < D; i += Team::size * N) {
      load(i, grad, away);
      for (int n = 0; n < N; ++n) {
        first += grad[n];
        second += grad[n] * away[n];
      }
    }
    first = Team::sum(first) / count;
    second = Team::sum(second) * inverse * inverse / count;
    if (!there) return;
    // Of a short row a member has one pack: unrolling would only make registers spill.
#pragma unroll(Team::size < 32 ? 1 : 4)
    for (int64_t i = Team::member() * N; i < D; i += Team::size * N) {
      load(i, grad, away);
      for (int n = 0; n < N; ++n) grad[n] = (grad[n] - first - away[n] * second) * inverse;
      store_floats(grad_x + r * D + i, grad);
    }
  });
}

// Of every column: the sums over rows of g (x - mean) / std, and of g.
template <class T, int N>
struct ParameterSums {
  using State = TwoSums;
  const T* g;
  const T* x;
  const float* mean;
  const float* invstd;

  struct Column {
    static constexpr int kAhead = 4;
    struct Fetched {
      Pack<T, N> g, x;
      float mean, invstd;
    };
    ParameterSums in;
    TwoSums state[N];
    FASTNN_MEMBER Column(const ParameterSums& body, int64_t, int64_t) : in(body) {}
    FASTNN_MEMBER void fetch(int64_t row, int64_t at, Fetched& to) const {
      to = {load_pack<N>(in.g + at), load_pack<N>(in.x + at), in.mean[row], in.invstd[row]};
    }
    FASTNN_MEMBER void use(int64_t, const Fetched& from) {
      float grad[N], v[N];
      to_floats(from.g, grad);
      to_floats(from.x, v);
      for (int n = 0; n < N; ++n) {
        state[n].a += grad[n] * (v[n] - from.mean) * from.invstd;
        state[n].b += grad[n];
      }
    }
  };
};
void layer_backward(const void* g, const void* x, int64_t rows, int64_t D, DType dtype,
                    const float* weight, const float* mean, const float* invstd, void* grad_x,
                    float* grad_weight, float* grad_bias) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const T* const grad = static_cast<const T*>(g);
    const T* const in = static_cast<const T*>(x);
    T* const out = static_cast<T*>(grad_x);
    with_row_team<T>(
        rows, D,
        [&](auto pack, auto team, dim3 grid) {
          constexpr int N = decltype(pack)::value;
          launch(layer_backward_kernel<T, N, decltype(team)>, grid, kThreads, 0, grad, in, rows, D,
                 weight, mean, invstd, out);
        },
        grad, in, out, weight);
    if (!grad_weight && !grad_bias) return;
    with_pack<T>(
        D,
        [&](auto pack) {
          constexpr int N = decltype(pack)::value;
          reduce_columns<N>(ParameterSums<T, N>{grad, in, mean, invstd},
                            TwoSumsWriter{grad_weight, grad_bias}, 1, rows, D);
        },
        grad, in);
  });
}

struct Response {
  int64_t C, size;
  float rate, beta, k;  // rate: alpha / size
  // k + rate * sum of squares over the window of channel c.
  template <class T>
  FASTNN_MEMBER float base(const T* pixel, int64_t c) const {
    const int64_t low = c - size / 2, high = c + (size - 1) / 2;
    float sum = 0;
    for (int64_t i = low < 0 ? 0 : low; i <= high && i < C; ++i) {
      const float v = to_float(pixel[i]);
      sum += v * v;
    }
    return k + rate * sum;
  }
};

template <class T>
struct ResponseForward {
  Response r;
  const T* x;
  T* y;
  __device__ void operator()(int64_t i) const {
    const int64_t c = divide(i, r.C).rest;
    from_float(y[i], to_float(x[i]) * powf(r.base(x + i - c, c), -r.beta));
  }
};

// terms[i] = g x base^(-beta - 1), kept[i] = g base^-beta
template <class T>
struct ResponseTerms {
  Response r;
  const T* g;
  const T* x;
  float* terms;
  float* kept;
  __device__ void operator()(int64_t i) const {
    const int64_t c = divide(i, r.C).rest;
    const float base = r.base(x + i - c, c), power = powf(base, -r.beta), grad = to_float(g[i]);
    terms[i] = grad * to_float(x[i]) * power / base;
    kept[i] = grad * power;
  }
};

// The windows that hold channel c are those of c - (size - 1) / 2 .. c + size / 2.
template <class T>
struct ResponseBackward {
  Response r;
  const T* x;
  const float* terms;
  const float* kept;
  T* grad_x;
  __device__ void operator()(int64_t i) const {
    const int64_t c = i % r.C, low = c - (r.size - 1) / 2, high = c + r.size / 2;
    float sum = 0;
    for (int64_t j = low < 0 ? 0 : low; j <= high && j < r.C; ++j) sum += terms[i - c + j];
    from_float(grad_x[i], kept[i] - 2 * r.rate * r.beta * to_float(x[i]) * sum);
  }
};

void local_response(const void* x, int64_t pixels, int64_t C, DType dtype, int64_t size,
                    float alpha, float beta, float k, void* y) {
  const Response r{C, size, alpha / static_cast<float>(size), beta, k};
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    each(pixels * C, ResponseForward<T>{r, static_cast<const T*>(x), static_cast<T*>(y)});
  });
}

void local_response_backward(const void* g, const void* x, int64_t pixels, int64_t C, DType dtype,
                             int64_t size, float alpha, float beta, float k, void* grad_x) {
  const Response r{C, size, alpha / static_cast<float>(size), beta, k};
  const int64_t count = pixels * C;
  Workspace memory(count * 8);
  float* const terms = memory.as<float>();
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const T* const in = static_cast<const T*>(x);
    each(count, ResponseTerms<T>{r, static_cast<const T*>(g), in, terms, terms + count});
    each(count, ResponseBackward<T>{r, in, terms, terms + count, static_cast<T*>(grad_x)});
  });
}

}  // namespace

void fill_norm_layer(Slots& slots) {
  slots.norm.layer = layer;
  slots.norm.layer_backward = layer_backward;
  slots.norm.local_response = local_response;
  slots.norm.local_response_backward = local_response_backward;
}

}  // namespace fastnn::cuda
