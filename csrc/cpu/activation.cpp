// Activations: one read and one write per element (backward: two reads), so the floor is the
// streaming copy bandwidth wherever the polynomial of math.h is cheaper than that.
#include "core/allocator.h"
#include "cpu/simd/math.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr float kSqrt2OverPi = 0.79788456080286536f;
constexpr float kGeluCubic = 0.044715f;
// 0.5 (1 + tanh(u)) is the logistic function at 2 u, which loses nothing where tanh is near -1.
FASTNN_INLINE vfloat gelu_argument(vfloat v) {
  return 2.0f * kSqrt2OverPi * (v + kGeluCubic * v * v * v);
}

// The gradient of vclamp: nothing at and beyond the limits.
FASTNN_INLINE vfloat within(vfloat v, float low, float high, vfloat grad) {
  return select(v <= low, vfloat{}, select(v >= high, vfloat{}, grad));
}

// y[i] = f(x[i]).
template <class T, class F>
void map(const T* x, T* y, int64_t count, const F& f) {
  const Route route = route_to(y, count);
  parallel_ranges(count, kGrain, [&](int64_t begin, int64_t end) {
    vectors_loop<2>(begin, end, [&](int64_t i, auto vectors, int n) FASTNN_INLINED {
      if constexpr (decltype(vectors)::count == 2) {
        const TwoVectors v = load_mixed(x + i);
        store_mixed(y + i, {f(v.first), f(v.second)}, route);
      } else {
        store_any(y + i, f(load_any(x + i, n)), n, route);
      }
    });
  });
}

// y[i] = f(a[i], b[i]).
template <class T, class F>
void map(const T* a, const T* b, T* y, int64_t count, const F& f) {
  const Route route = route_to(y, count);
  parallel_ranges(count, kGrain, [&](int64_t begin, int64_t end) {
    vectors_loop<2>(begin, end, [&](int64_t i, auto vectors, int n) FASTNN_INLINED {
      if constexpr (decltype(vectors)::count == 2) {
        const TwoVectors v = load_mixed(a + i), w = load_mixed(b + i);
        store_mixed(y + i, {f(v.first, w.first), f(v.second, w.second)}, route);
      } else {
        store_any(y + i, f(load_any(a + i, n), load_any(b + i, n)), n, route);
      }
    });
  });
}

template <class T>
void relu_typed(const T* x, T* y, int64_t count) {
  // A NaN fails the comparison and stays.
  map(x, y, count, [](vfloat v) { return select(v < 0, vfloat{}, v); });
}

template <class T>
void relu_backward_typed(const T* g, const T* y, T* grad_x, int64_t count) {
  map(g, y, grad_x, count, [](vfloat grad, vfloat v) { return select(v <= 0, vfloat{}, grad); });
}

// Calls each(f) with the activation f, as accurate as values stored in T want it.
template <class T, class Each>
FASTNN_INLINE void with_activation(Activation kind, float a, float b, const Each& each) {
  switch (kind) {
    case Activation::leaky_relu:
      return each([=](vfloat v) { return select(v < 0, v * a, v); });
    case Activation::elu:
      return each([=](vfloat v) { return b * select(v < 0, a * vexpm1<T>(v), v); });
    case Activation::gelu:
      return each([](vfloat v) { return v * vnormal<T>(v).below; });
    case Activation::gelu_tanh:
      return each([](vfloat v) { return v * vsigmoid<T>(gelu_argument(v)); });
    case Activation::silu:
      return each([](vfloat v) { return v * vsigmoid<T>(v); });
    case Activation::sigmoid:
      return each([](vfloat v) { return vsigmoid<T>(v); });
    case Activation::tanh:
      return each([](vfloat v) { return vtanh<T>(v); });
    case Activation::softplus:
      return each([=](vfloat v) {
        const vfloat z = v * a;
        const vfloat soft = (vmax(z, vfloat{}) + vlog1p(vexp_low<T>(-vabs(z)))) * (1 / a);
        return select(z > b, v, soft);
      });
    case Activation::hardswish:
      return each([](vfloat v) { return v * vclamp(v + 3.0f, vfloat{}, set1(6.0f)) / 6.0f; });
    case Activation::hardsigmoid:
      return each([](vfloat v) { return vclamp(v + 3.0f, vfloat{}, set1(6.0f)) / 6.0f; });
    case Activation::hardtanh:
      return each([=](vfloat v) { return vclamp(v, set1(a), set1(b)); });
  }
}

// The same with f(grad, v), the gradient at v.
template <class T, class Each>
FASTNN_INLINE void with_slope(Activation kind, float a, float b, const Each& each) {
  switch (kind) {
    case Activation::leaky_relu:
      return each([=](vfloat grad, vfloat v) { return select(v <= 0, grad * a, grad); });
    case Activation::elu:
      return each([=](vfloat grad, vfloat v) {
        return grad * b * select(v <= 0, a * vexp_low<T>(v), set1(1.0f));
      });
    case Activation::gelu:
      return each([](vfloat grad, vfloat v) {
        const Normal normal = vnormal<T>(v);
        return grad * (normal.below + v * normal.density);
      });
    case Activation::gelu_tanh:
      return each([](vfloat grad, vfloat v) {
        const Sigmoid s = vsigmoids<T>(gelu_argument(v));
        const vfloat a = vmin(set1(20.0f), vabs(v));  // beyond it s is 0 or 1, and slope may be inf
        const vfloat slope = 2.0f * kSqrt2OverPi * (1.0f + 3.0f * kGeluCubic * a * a);
        return grad * s.value * (1.0f + v * s.rest * slope);
      });
    case Activation::silu:
      return each([](vfloat grad, vfloat v) {
        const Sigmoid s = vsigmoids<T>(v);
        return grad * s.value * (1.0f + v * s.rest);
      });
    case Activation::sigmoid:
      return each([](vfloat grad, vfloat v) { return grad * vsigmoid_slope<T>(v); });
    case Activation::tanh:  // 1 - tanh(v)^2 is four times the slope of the logistic function at 2 v
      return each([](vfloat grad, vfloat v) { return grad * 4.0f * vsigmoid_slope<T>(v + v); });
    case Activation::softplus:
      return each([=](vfloat grad, vfloat v) {
        return grad * select(v * a > b, set1(1.0f), vsigmoid<T>(v * a));
      });
    case Activation::hardswish:
      return each([](vfloat grad, vfloat v) {
        const vfloat inside = grad * (v / 3.0f + 0.5f);
        return select(v <= -3.0f, vfloat{}, select(v >= 3.0f, grad, inside));
      });
    case Activation::hardsigmoid:
      return each([](vfloat grad, vfloat v) { return within(v, -3, 3, grad / 6.0f); });
    case Activation::hardtanh:
      return each([=](vfloat grad, vfloat v) { return within(v, a, b, grad); });
  }
}

template <class T>
void forward_typed(Activation kind, float a, float b, const T* x, T* y, int64_t count) {
  with_activation<T>(kind, a, b, [&](auto f) { map(x, y, count, f); });
}

template <class T>
void backward_typed(Activation kind, float a, float b, const T* g, const T* x, T* grad_x,
                    int64_t count) {
  with_slope<T>(kind, a, b, [&](auto f) { map(g, x, grad_x, count, f); });
}

// values[i] = f(values[i]), within another kernel's pass.
template <class F>
FASTNN_INLINE void map_values(float* values, int64_t count, const F& f) {
  vectors_loop<2>(0, count, [&](int64_t i, auto vectors, int n) FASTNN_INLINED {
    if constexpr (decltype(vectors)::count == 2) {
      const vfloat low = f(load(values + i)), high = f(load(values + i + LANES));
      store(values + i, low);
      store(values + i + LANES, high);
    } else {
      store_any(values + i, f(load_any(values + i, n)), n);
    }
  });
}
template <class T>
void apply_curve_typed(Activation kind, float* values, int64_t count) {
  with_activation<T>(kind, 0, 0, [&](auto f) { map_values(values, count, f); });
}
template <class T>
void curve_slope_typed(Activation kind, float* values, int64_t count) {
  with_slope<T>(kind, 0, 0, [&](auto f) {
    map_values(values, count, [&](vfloat v) FASTNN_INLINED { return f(set1(1.0f), v); });
  });
}

template <class T>
void prelu_typed(const T* x, const float* weight, T* y, int64_t pixels, int64_t C) {
  parallel_ranges(pixels, kGrain / (C + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      vector_loop(0, C, [&](int64_t c, int n) {
        const vfloat v = load_any(x + p * C + c, n);
        store_any(y + p * C + c, select(v < 0, v * load_any(weight + c, n), v), n);
      });
  });
}

template <class T>
void prelu_backward_typed(const T* g, const T* x, const float* weight, T* grad_x,
                          float* grad_weight, int64_t pixels, int64_t C) {
  const int64_t step = kGrain / (C + 1) + 1, chunks = (pixels + step - 1) / step;
  Workspace parts(chunks * C * 4);
  parallel_ranges(pixels, step, [&](int64_t begin, int64_t end) {
    float* sums = parts.floats() + begin / step * C;
    __builtin_memset(sums, 0, sizeof(float) * static_cast<size_t>(C));
    for (int64_t p = begin; p < end; ++p)
      vector_loop(0, C, [&](int64_t c, int n) {
        const vfloat v = load_any(x + p * C + c, n), grad = load_any(g + p * C + c, n);
        store_any(grad_x + p * C + c, select(v <= 0, grad * load_any(weight + c, n), grad), n);
        store_any(sums + c, load_any(sums + c, n) + select(v < 0, grad * v, vfloat{}), n);
      });
  });
  for (int64_t c = 0; c < C; ++c)
    for (int64_t i = 0; i < chunks; ++i) grad_weight[c] += parts.floats()[i * C + c];
}

// Maxout, LANES groups at a time: their values turned, so that value k of all of them is a vector.
// The first of the largest counts, and a NaN is the largest.
struct Largest {
  vfloat value;
  vint at;
};
template <class T>
FASTNN_INLINE Largest largest(const T* x, int groups, int64_t pool, float* turned) {
  for (int i = 0; i < groups; ++i)
    for (int64_t k = 0; k < pool; ++k) turned[k * LANES + i] = to_float(x[i * pool + k]);
  Largest held{load(turned), vint{}};
  for (int64_t k = 1; k < pool; ++k) {
    const vfloat v = load(turned + k * LANES);
    const vint larger = (v > held.value) | ((v != v) & (held.value == held.value));
    held.value = select(larger, v, held.value);
    held.at = (larger & (static_cast<int32_t>(k) - vint{})) | (~larger & held.at);
  }
  return held;
}

// body(i, n, turned) for the groups from i on, with room for their values.
template <class Body>
FASTNN_INLINE void each_groups(int64_t count, int64_t pool, const Body& body) {
  parallel_ranges(count, kGrain / pool + 1, [&](int64_t begin, int64_t end) {
    const int64_t bytes = pool * LANES * int64_t{sizeof(float)};
    float* const turned = static_cast<float*>(thread_scratch(bytes, 0));
    __builtin_memset(turned, 0, static_cast<size_t>(bytes));
    vector_loop(begin, end, [&](int64_t i, int n) { body(i, n, turned); });
  });
}

template <class T>
void maxout_typed(const T* x, T* y, int64_t count, int64_t pool) {
  each_groups(count, pool, [&](int64_t i, int n, float* turned) {
    store_any(y + i, largest(x + i * pool, n, pool, turned).value, n);
  });
}

template <class T>
void maxout_backward_typed(const T* g, const T* x, T* grad_x, int64_t count, int64_t pool) {
  each_groups(count, pool, [&](int64_t i, int n, float* turned) {
    const vint at = largest(x + i * pool, n, pool, turned).at;
    const vfloat grad = load_any(g + i, n);
    for (int64_t k = 0; k < pool; ++k)
      store(turned + k * LANES, select(at == static_cast<int32_t>(k) - vint{}, grad, vfloat{}));
    for (int j = 0; j < n; ++j)
      for (int64_t k = 0; k < pool; ++k)
        from_float(grad_x[(i + j) * pool + k], turned[k * LANES + j]);
  });
}

// Calls f with a null pointer of the dtype's C++ type, to be named with decltype.
template <class F>
FASTNN_INLINE void with_type(DType dtype, const F& f) {
  if (dtype == DType::float32)
    f(static_cast<float*>(nullptr));
  else
    f(static_cast<bfloat16*>(nullptr));
}

void relu(const void* x, void* y, int64_t count, DType dtype) {
  with_type(dtype, [&](auto* t) {
    relu_typed(static_cast<decltype(t)>(const_cast<void*>(x)), static_cast<decltype(t)>(y), count);
  });
}

void relu_backward(const void* g, const void* y, void* grad_x, int64_t count, DType dtype) {
  with_type(dtype, [&](auto* t) {
    using P = decltype(t);
    relu_backward_typed(static_cast<P>(const_cast<void*>(g)), static_cast<P>(const_cast<void*>(y)),
                        static_cast<P>(grad_x), count);
  });
}

void forward(Activation kind, float a, float b, const void* x, void* y, int64_t count,
             DType dtype) {
  with_type(dtype, [&](auto* t) {
    using P = decltype(t);
    forward_typed(kind, a, b, static_cast<P>(const_cast<void*>(x)), static_cast<P>(y), count);
  });
}

void backward(Activation kind, float a, float b, const void* g, const void* x, void* grad_x,
              int64_t count, DType dtype) {
  with_type(dtype, [&](auto* t) {
    using P = decltype(t);
    backward_typed(kind, a, b, static_cast<P>(const_cast<void*>(g)),
                   static_cast<P>(const_cast<void*>(x)), static_cast<P>(grad_x), count);
  });
}

void apply_curve(Activation kind, float* values, int64_t count, DType stored) {
  if (stored == DType::float32)
    apply_curve_typed<float>(kind, values, count);
  else
    apply_curve_typed<bfloat16>(kind, values, count);
}

void curve_slope(Activation kind, float* values, int64_t count, DType stored) {
  if (stored == DType::float32)
    curve_slope_typed<float>(kind, values, count);
  else
    curve_slope_typed<bfloat16>(kind, values, count);
}

void prelu(const void* x, const float* weight, void* y, int64_t pixels, int64_t C, DType dtype) {
  with_type(dtype, [&](auto* t) {
    using P = decltype(t);
    prelu_typed(static_cast<P>(const_cast<void*>(x)), weight, static_cast<P>(y), pixels, C);
  });
}

void prelu_backward(const void* g, const void* x, const float* weight, void* grad_x,
                    float* grad_weight, int64_t pixels, int64_t C, DType dtype) {
  with_type(dtype, [&](auto* t) {
    using P = decltype(t);
    prelu_backward_typed(static_cast<P>(const_cast<void*>(g)), static_cast<P>(const_cast<void*>(x)),
                         weight, static_cast<P>(grad_x), grad_weight, pixels, C);
  });
}

void maxout(const void* x, void* y, int64_t count, int64_t pool, DType dtype) {
  with_type(dtype, [&](auto* t) {
    using P = decltype(t);
    maxout_typed(static_cast<P>(const_cast<void*>(x)), static_cast<P>(y), count, pool);
  });
}

void maxout_backward(const void* g, const void* x, void* grad_x, int64_t count, int64_t pool,
                     DType dtype) {
  with_type(dtype, [&](auto* t) {
    using P = decltype(t);
    maxout_backward_typed(static_cast<P>(const_cast<void*>(g)),
                          static_cast<P>(const_cast<void*>(x)), static_cast<P>(grad_x), count,
                          pool);
  });
}

}  // namespace

void fill_activation(Slots& slots) {
  slots.activation = {relu,  relu_backward,  forward, backward,
                      prelu, prelu_backward, maxout,  maxout_backward};
  slots.curves.apply = apply_curve;
  slots.curves.slope = curve_slope;
}

}  // namespace fastnn::cpu::FASTNN_ISA
