// Softmax: y = exp(x - max) / sum, log softmax: y = x - max - log(sum).
//
// Memory order is (outer, D, inner). Where inner is 1 (channels of NHWC, or the last dimension)
// vectors run along D and end in a fixed tree; else they run along inner and the sum over D is a
// plain loop. The row is in cache for all three passes; floor: one read and one write.
#include "cpu/simd/math.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kKept = 1024;  // exponentials of a row that are kept from the sum to the result

template <class T>
void forward_rows(const T* x, int64_t D, bool log, T* y) {
  alignas(64) float kept[kKept];
  const bool keep = !log && D <= kKept;
  vfloat top = set1(-__builtin_inff()), total{};
  vector_loop(0, D, [&](int64_t i, int n) {
    top = vmax(top, filled(load_any(x + i, n), n, -__builtin_inff()));
  });
  const float highest = max_lane(top);
  vector_loop(0, D, [&](int64_t i, int n) {
    const vfloat e = filled(vexp(load_any(x + i, n) - highest), n, 0.0f);
    if (keep) store_any(kept + i, e, n);
    total += e;
  });
  const float all = sum(total), inverse = 1.0f / all;
  if (keep) {
    vector_loop(0, D,
                [&](int64_t i, int n) { store_any(y + i, load_any(kept + i, n) * inverse, n); });
    return;
  }
  const float log_sum = vlog(set1(all))[0];
  vector_loop(0, D, [&](int64_t i, int n) {
    const vfloat v = load_any(x + i, n);
    store_any(y + i, log ? (v - highest) - log_sum : vexp(v - highest) * inverse, n);
  });
}

template <class T>
void forward_columns(const T* x, int64_t D, int64_t inner, bool log, T* y) {
  vector_loop(0, inner, [&](int64_t c, int n) {
    vfloat top = set1(-__builtin_inff()), total{};
    for (int64_t i = 0; i < D; ++i) top = vmax(top, load_any(x + i * inner + c, n));
    for (int64_t i = 0; i < D; ++i) total += vexp(load_any(x + i * inner + c, n) - top);
    const vfloat log_sum = vlog(total), inverse = 1.0f / total;
    for (int64_t i = 0; i < D; ++i) {
      const vfloat v = load_any(x + i * inner + c, n);
      store_any(y + i * inner + c, log ? (v - top) - log_sum : vexp(v - top) * inverse, n);
    }
  });
}

// softmax: grad_x = y (g - sum(g y)); log softmax: grad_x = g - exp(y) sum(g).
template <class T>
void backward_rows(const T* g, const T* y, int64_t D, bool log, T* grad_x) {
  vfloat total{};
  vector_loop(0, D, [&](int64_t i, int n) {
    const vfloat v = load_any(g + i, n);
    total += filled(log ? v : v * load_any(y + i, n), n, 0.0f);
  });
  const float all = sum(total);
  vector_loop(0, D, [&](int64_t i, int n) {
    const vfloat v = load_any(g + i, n), out = load_any(y + i, n);
    store_any(grad_x + i, log ? v - vexp(out) * all : out * (v - all), n);
  });
}

template <class T>
void backward_columns(const T* g, const T* y, int64_t D, int64_t inner, bool log, T* grad_x) {
  vector_loop(0, inner, [&](int64_t c, int n) {
    vfloat total{};
    for (int64_t i = 0; i < D; ++i) {
      const vfloat v = load_any(g + i * inner + c, n);
      total += log ? v : v * load_any(y + i * inner + c, n);
    }
    for (int64_t i = 0; i < D; ++i) {
      const int64_t at = i * inner + c;
      const vfloat v = load_any(g + at, n), out = load_any(y + at, n);
      store_any(grad_x + at, log ? v - vexp(out) * total : out * (v - total), n);
    }
  });
}

template <class T>
void forward_typed(const T* x, int64_t outer, int64_t D, int64_t inner, bool log, T* y) {
  const int64_t size = D * inner;
  parallel_ranges(outer, kGrain / (4 * size) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o)
      if (inner == 1)
        forward_rows(x + o * size, D, log, y + o * size);
      else
        forward_columns(x + o * size, D, inner, log, y + o * size);
  });
}

template <class T>
void backward_typed(const T* g, const T* y, int64_t outer, int64_t D, int64_t inner, bool log,
                    T* grad_x) {
  const int64_t size = D * inner;
  parallel_ranges(outer, kGrain / (4 * size) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o)
      if (inner == 1)
        backward_rows(g + o * size, y + o * size, D, log, grad_x + o * size);
      else
        backward_columns(g + o * size, y + o * size, D, inner, log, grad_x + o * size);
  });
}

void forward(const void* x, int64_t outer, int64_t D, int64_t inner, DType dtype, bool log,
             void* y) {
  if (dtype == DType::float32)
    forward_typed(static_cast<const float*>(x), outer, D, inner, log, static_cast<float*>(y));
  else
    forward_typed(static_cast<const bfloat16*>(x), outer, D, inner, log, static_cast<bfloat16*>(y));
}

void backward(const void* g, const void* y, int64_t outer, int64_t D, int64_t inner, DType dtype,
              bool log, void* grad_x) {
  if (dtype == DType::float32)
    backward_typed(static_cast<const float*>(g), static_cast<const float*>(y), outer, D, inner, log,
                   static_cast<float*>(grad_x));
  else
    backward_typed(static_cast<const bfloat16*>(g), static_cast<const bfloat16*>(y), outer, D,
                   inner, log, static_cast<bfloat16*>(grad_x));
}

}  // namespace

void fill_softmax(Slots& slots) { slots.softmax = {forward, backward}; }

}  // namespace fastnn::cpu::FASTNN_ISA
