// Softmax and its logarithm along one dimension of memory order (outer, D, inner). Where inner is 1
// a row is one team's (device/teams.h); else a thread per column goes down it, neighbouring threads
// on neighbouring columns, or, of few long columns, a team, once they are turned into rows. The row
// comes from cache for all but the first of its passes; floor: one read and one write.
#include "cuda/copy.h"
#include "cuda/device/teams.h"
#include "ops/slots.h"

namespace fastnn::cuda {
namespace {

template <class T, int N, class Team>
__global__ void __launch_bounds__(kThreads)
    forward_rows_kernel(const T* x, int64_t rows, int64_t D, bool log, T* y) {
  Team::over_rows(rows, [&](int64_t r, bool there) {
    // Calls f(i, v) with the row's elements v from i on, for the member's share.
    const auto over_row = [&](const auto& f) {
      for (int64_t i = Team::member() * N; i < D; i += Team::size * N) {
        float v[N];
        load_floats(x + r * D + i, v);
        f(i, v);
      }
    };
    float top = -INFINITY, total = 0;
    over_row([&](int64_t, const float (&v)[N]) {
      for (int n = 0; n < N; ++n) top = fmaxf(top, v[n]);
    });
    top = Team::largest(top);
    over_row([&](int64_t, const float (&v)[N]) {
      for (int n = 0; n < N; ++n) total += expf(v[n] - top);
    });
    total = Team::sum(total);
    if (!there) return;
    const float log_sum = logf(total), inverse = 1.0f / total;
    over_row([&](int64_t i, float (&v)[N]) {
      for (int n = 0; n < N; ++n) v[n] = log ? v[n] - top - log_sum : expf(v[n] - top) * inverse;
      store_floats(y + r * D + i, v);
    });
  });
}

template <class T>
struct ForwardColumn {
  const T* x;
  T* y;
  int64_t D, inner;
  bool log;
  __device__ void operator()(int64_t at) const {
    const auto [row, column] = divide(at, inner);
    const int64_t base = row * D * inner + column;
    float top = -INFINITY, total = 0;
    for (int64_t i = 0; i < D; ++i) top = fmaxf(top, to_float(x[base + i * inner]));
    for (int64_t i = 0; i < D; ++i) total += expf(to_float(x[base + i * inner]) - top);
    const float log_sum = logf(total), inverse = 1.0f / total;
    for (int64_t i = 0; i < D; ++i) {
      const float v = to_float(x[base + i * inner]) - top;
      from_float(y[base + i * inner], log ? v - log_sum : expf(v) * inverse);
    }
  }
};

// softmax: grad_x = y (g - sum(g y)); log softmax: grad_x = g - exp(y) sum(g).
template <class T, int N, class Team>
__global__ void __launch_bounds__(kThreads)
    backward_rows_kernel(const T* g, const T* y, int64_t rows, int64_t D, bool log, T* grad_x) {
  Team::over_rows(rows, [&](int64_t r, bool there) {
    float total = 0, grad[N], out[N];
    for (int64_t i = Team::member() * N; i < D; i += Team::size * N) {
      load_floats(g + r * D + i, grad);
      if (!log) load_floats(y + r * D + i, out);
      for (int n = 0; n < N; ++n) total += log ? grad[n] : grad[n] * out[n];
    }
    total = Team::sum(total);
    if (!there) return;
    for (int64_t i = Team::member() * N; i < D; i += Team::size * N) {
      load_floats(g + r * D + i, grad);
      load_floats(y + r * D + i, out);
      for (int n = 0; n < N; ++n)
        grad[n] = log ? grad[n] - expf(out[n]) * total : out[n] * (grad[n] - total);
      store_floats(grad_x + r * D + i, grad);
    }
  });
}

template <class T>
struct BackwardColumn {
  const T* g;
  const T* y;
  T* grad_x;
  int64_t D, inner;
  bool log;
  __device__ void operator()(int64_t at) const {
    const auto [row, column] = divide(at, inner);
    const int64_t base = row * D * inner + column;
    float total = 0;
    for (int64_t i = 0; i < D; ++i) {
      const float v = to_float(g[base + i * inner]);
      total += log ? v : v * to_float(y[base + i * inner]);
    }
    for (int64_t i = 0; i < D; ++i) {
      const float v = to_float(g[base + i * inner]), out = to_float(y[base + i * inner]);
      from_float(grad_x[base + i * inner], log ? v - expf(out) * total : out * (v - total));
    }
  }
};

// Whether columns are long, and too few for a thread each to fill a quarter of the device: turning
// them there and back reads and writes everything twice more.
// The rows are overwritten in place: a kernel's thread writes what it alone reads in the last pass.
bool worth_turning(int64_t outer, int64_t D, int64_t inner) {
  return inner > 1 && D >= 64 && outer * inner < int64_t{multiprocessors()} * 512;
}

void forward(const void* x, int64_t outer, int64_t D, int64_t inner, DType dtype, bool log,
             void* y) {
  if (worth_turning(outer, D, inner)) {
    const Workspace memory(outer * D * inner * item_size(dtype));
    void* const rows = memory.as<char>();
    transpose(x, outer, D, inner, dtype, rows);
    forward(rows, outer * inner, D, 1, dtype, log, rows);
    return transpose(rows, outer, inner, D, dtype, y);
  }
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const T* const from = static_cast<const T*>(x);
    T* const to = static_cast<T*>(y);
    if (inner != 1) return each(outer * inner, ForwardColumn<T>{from, to, D, inner, log});
    with_row_team<T>(
        outer, D,
        [&](auto pack, auto team, dim3 grid) {
          launch(forward_rows_kernel<T, decltype(pack)::value, decltype(team)>, grid, kThreads, 0,
                 from, outer, D, log, to);
        },
        from, to);
  });
}

void backward(const void* g, const void* y, int64_t outer, int64_t D, int64_t inner, DType dtype,
              bool log, void* grad_x) {
  if (worth_turning(outer, D, inner)) {
    const int64_t bytes = outer * D * inner * item_size(dtype);
    const Workspace grads(bytes), outputs(bytes);
    void *const grad_rows = grads.as<char>(), *const rows = outputs.as<char>();
    transpose(g, outer, D, inner, dtype, grad_rows);
    transpose(y, outer, D, inner, dtype, rows);
    backward(grad_rows, rows, outer * inner, D, 1, dtype, log, grad_rows);
    return transpose(grad_rows, outer, inner, D, dtype, grad_x);
  }
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const T* const grad = static_cast<const T*>(g);
    const T* const out = static_cast<const T*>(y);
    T* const to = static_cast<T*>(grad_x);
    if (inner != 1) return each(outer * inner, BackwardColumn<T>{grad, out, to, D, inner, log});
    with_row_team<T>(
        outer, D,
        [&](auto pack, auto team, dim3 grid) {
          launch(backward_rows_kernel<T, decltype(pack)::value, decltype(team)>, grid, kThreads, 0,
                 grad, out, outer, D, log, to);
        },
        grad, out, to);
  });
}

}  // namespace

void fill_softmax(Slots& slots) { slots.softmax = {forward, backward}; }

}  // namespace fastnn::cuda
