// Softmax: y = exp(x - max) / sum, log softmax: y = x - max - log(sum).
//
// Memory order is (outer, D, inner). Where inner is 1 (channels of NHWC, or the last dimension)
// vectors run along D and end in a fixed tree; else they run along inner and the sum over D is a
// plain loop. Rows of a few numbers go one per lane (few_columns.h). The row is in cache for all
// three passes; floor: one read and one write.
#include "cpu/few_columns.h"
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
    const vfloat e = filled(vexp_low(load_any(x + i, n) - highest), n, 0.0f);
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
    store_any(y + i, log ? (v - highest) - log_sum : vexp_low(v - highest) * inverse, n);
  });
}

template <class T>
void forward_columns(const T* x, int64_t D, int64_t inner, int64_t begin, int64_t end, bool log,
                     T* y) {
  vector_loop(begin, end, [&](int64_t c, int n) {
    vfloat top = set1(-__builtin_inff()), total{};
    for (int64_t i = 0; i < D; ++i) top = vmax(top, load_any(x + i * inner + c, n));
    for (int64_t i = 0; i < D; ++i) total += vexp_low(load_any(x + i * inner + c, n) - top);
    const vfloat log_sum = vlog(total), inverse = 1.0f / total;
    for (int64_t i = 0; i < D; ++i) {
      const vfloat v = load_any(x + i * inner + c, n);
      store_any(y + i * inner + c, log ? (v - top) - log_sum : vexp_low(v - top) * inverse, n);
    }
  });
}

// softmax: grad_x = y (g - sum(g y)); log softmax: grad_x = g - exp(y) sum(g).
template <class T>
FASTNN_INLINE void finish_row(const T* g, const T* y, int64_t D, bool log, float all, T* grad_x) {
  vector_loop(0, D, [&](int64_t i, int n) {
    const vfloat v = load_any(g + i, n), out = load_any(y + i, n);
    store_any(grad_x + i, log ? v - vexp_low(out) * all : out * (v - all), n);
  });
}
template <class T>
void backward_rows(const T* g, const T* y, int64_t D, bool log, T* grad_x) {
  vfloat total{};
  vector_loop(0, D, [&](int64_t i, int n) {
    const vfloat v = load_any(g + i, n);
    total += filled(log ? v : v * load_any(y + i, n), n, 0.0f);
  });
  finish_row(g, y, D, log, sum(total), grad_x);
}

template <class T>
void backward_columns(const T* g, const T* y, int64_t D, int64_t inner, int64_t begin, int64_t end,
                      bool log, T* grad_x) {
  vector_loop(begin, end, [&](int64_t c, int n) {
    vfloat total{};
    for (int64_t i = 0; i < D; ++i) {
      const vfloat v = load_any(g + i * inner + c, n);
      total += log ? v : v * load_any(y + i * inner + c, n);
    }
    for (int64_t i = 0; i < D; ++i) {
      const int64_t at = i * inner + c;
      const vfloat v = load_any(g + at, n), out = load_any(y + at, n);
      store_any(grad_x + at, log ? v - vexp_low(out) * total : out * (v - total), n);
    }
  });
}

// LANES rows of D numbers.
template <class T>
void forward_block(const T* x, int64_t D, bool log, T* y) {
  Block block, e;
  load_block(x, D, block);
  const RowExponents all = exponents(block, D, e);
  const vfloat other = log ? vlog(all.sum) : 1.0f / all.sum;
  for (int64_t c = 0; c < D; ++c) e.set(c, log ? (block[c] - all.highest) - other : e[c] * other);
  store_block(e, D, y);
}

template <class T>
void backward_block(const T* g, const T* y, int64_t D, bool log, T* grad_x) {
  vfloat total{};
  Block turned;
  if (log) {  // everything is turned: exponentials fill their vectors
    Block out;
    load_block(g, D, turned);
    load_block(y, D, out);
    for (int64_t c = 0; c < D; ++c) total += turned[c];
    for (int64_t c = 0; c < D; ++c) turned.set(c, turned[c] - vexp_low(out[c]) * total);
    return store_block(turned, D, grad_x);
  }
  alignas(64) float products[kFewColumns * LANES];
  for (int64_t i = 0; i < D * LANES; i += LANES) store(products + i, load(g + i) * load(y + i));
  load_block(products, D, turned);
  for (int64_t c = 0; c < D; ++c) total += turned[c];
  for (int r = 0; r < LANES; ++r)
    finish_row(g + r * D, y + r * D, D, log, total[r], grad_x + r * D);
}

// body(o, begin, end) over ranges of columns of every matrix (D, inner), in parallel.
template <class Body>
void each_columns(int64_t outer, int64_t D, int64_t inner, const Body& body) {
  const int64_t width = (kGrain / (4 * D) / LANES + 1) * LANES,
                ranges = (inner + width - 1) / width;
  parallel_for(outer * ranges, [&](int64_t task) {
    const int64_t begin = task % ranges * width;
    body(task / ranges, begin, begin + width < inner ? begin + width : inner);
  });
}

template <class T>
void forward_typed(const T* x, int64_t outer, int64_t D, int64_t inner, bool log, T* y) {
  if (inner == 1)
    each_row(
        outer, D, [&](int64_t r) { forward_block(x + r * D, D, log, y + r * D); },
        [&](int64_t r) { forward_rows(x + r * D, D, log, y + r * D); });
  else
    each_columns(outer, D, inner, [&](int64_t o, int64_t begin, int64_t end) {
      const int64_t at = o * D * inner;
      forward_columns(x + at, D, inner, begin, end, log, y + at);
    });
}

template <class T>
void backward_typed(const T* g, const T* y, int64_t outer, int64_t D, int64_t inner, bool log,
                    T* grad_x) {
  if (inner == 1)
    each_row(
        outer, D, [&](int64_t r) { backward_block(g + r * D, y + r * D, D, log, grad_x + r * D); },
        [&](int64_t r) { backward_rows(g + r * D, y + r * D, D, log, grad_x + r * D); });
  else
    each_columns(outer, D, inner, [&](int64_t o, int64_t begin, int64_t end) {
      const int64_t at = o * D * inner;
      backward_columns(g + at, y + at, D, inner, begin, end, log, grad_x + at);
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
