// Layer norm over contiguous rows, and local response norm over the channels of a pixel.
//
// Layer norm: a team per row (device/teams.h); the row comes from L1 or L2 for its second pass
// (squared deviations) and third (output). The gradients of weight and bias are column reductions
// over rows. Local response norm: a thread per element, which reads its window's neighbours from
// L1; the backward keeps each element's term in float32 first, so that windows are summed once.
#include "cuda/device/teams.h"
#include "ops/slots.h"

namespace fastnn::cuda {
namespace {

template <class T, class Team>
__global__ void __launch_bounds__(kThreads)
    layer_kernel(const T* x, int64_t rows, int64_t D, float eps, const float* weight,
                 const float* bias, float* mean, float* invstd, T* y) {
  for (int64_t r = Team::first(); r < rows; r += Team::all()) {
    const T* const row = x + r * D;
    const auto count = static_cast<float>(D);
    float sum = 0;
    for (int64_t i = Team::member(); i < D; i += Team::size) sum += to_float(row[i]);
    const float rough = Team::sum(sum) / count;
    // Where the mean is far from zero its sum was rounded coarsely; what the deviations still add
    // up to is its error.
    float rest = 0;
    for (int64_t i = Team::member(); i < D; i += Team::size) rest += to_float(row[i]) - rough;
    const float m = rough + Team::sum(rest) / count;
    float m2 = 0;
    for (int64_t i = Team::member(); i < D; i += Team::size) {
      const float away = to_float(row[i]) - m;
      m2 += away * away;
    }
    const float inverse = 1.0f / sqrtf(Team::sum(m2) / count + eps);
    if (Team::member() == 0) {
      mean[r] = m;
      invstd[r] = inverse;
    }
    for (int64_t i = Team::member(); i < D; i += Team::size) {
      float v = (to_float(row[i]) - m) * inverse;
      if (weight) v *= weight[i];
      if (bias) v += bias[i];
      from_float(y[r * D + i], v);
    }
  }
}

void layer(const void* x, int64_t rows, int64_t D, DType dtype, float eps, const float* weight,
           const float* bias, float* mean, float* invstd, void* y) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    with_team(rows, D, [&](auto team, dim3 grid) {
      launch(layer_kernel<T, decltype(team)>, grid, kThreads, 0, static_cast<const T*>(x), rows, D,
             eps, weight, bias, mean, invstd, static_cast<T*>(y));
    });
  });
}

template <class T, class Team>
__global__ void __launch_bounds__(kThreads)
    layer_backward_kernel(const T* g, const T* x, int64_t rows, int64_t D, const float* weight,
                          const float* mean, const float* invstd, T* grad_x) {
  for (int64_t r = Team::first(); r < rows; r += Team::all()) {
    const T* const row = x + r * D;
    const T* const grad = g + r * D;
    const float m = mean[r], inverse = invstd[r], count = static_cast<float>(D);
    float first = 0, second = 0;
    for (int64_t i = Team::member(); i < D; i += Team::size) {
      const float v = to_float(grad[i]) * (weight ? weight[i] : 1.0f);
      first += v;
      second += v * (to_float(row[i]) - m);
    }
    first = Team::sum(first) / count;
    second = Team::sum(second) * inverse * inverse / count;
    for (int64_t i = Team::member(); i < D; i += Team::size) {
      const float v = to_float(grad[i]) * (weight ? weight[i] : 1.0f);
      from_float(grad_x[r * D + i], (v - first - (to_float(row[i]) - m) * second) * inverse);
    }
  }
}

// Of row `pixel` and column c: g (x - mean) / std, and g.
template <class T>
struct ParameterReader {
  using State = TwoSums;
  const T* g;
  const T* x;
  const float* mean;
  const float* invstd;
  int64_t D;
  ParameterReader from(int64_t) const { return *this; }
  FASTNN_MEMBER void add(TwoSums (&state)[1], int64_t, int64_t row, int64_t c) const {
    const float grad = to_float(g[row * D + c]);
    state[0].a += grad * (to_float(x[row * D + c]) - mean[row]) * invstd[row];
    state[0].b += grad;
  }
};
struct ParameterWriter {
  float* weight;
  float* bias;
  ParameterWriter from(int64_t, int64_t) const { return *this; }
  FASTNN_MEMBER void write(int64_t c, const TwoSums& state) const {
    if (weight) weight[c] = state.a;
    if (bias) bias[c] = state.b;
  }
};

void layer_backward(const void* g, const void* x, int64_t rows, int64_t D, DType dtype,
                    const float* weight, const float* mean, const float* invstd, void* grad_x,
                    float* grad_weight, float* grad_bias) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const T* const grad = static_cast<const T*>(g);
    const T* const in = static_cast<const T*>(x);
    with_team(rows, D, [&](auto team, dim3 grid) {
      launch(layer_backward_kernel<T, decltype(team)>, grid, kThreads, 0, grad, in, rows, D, weight,
             mean, invstd, static_cast<T*>(grad_x));
    });
    if (grad_weight || grad_bias)
      reduce_columns<1>(ParameterReader<T>{grad, in, mean, invstd, D},
                        ParameterWriter{grad_weight, grad_bias}, 1, rows, D);
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
    const int64_t c = i % r.C;
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
    const int64_t c = i % r.C;
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
