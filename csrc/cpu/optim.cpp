// Optimizer steps: one pass over every parameter, gradient and state buffer, in one parallel loop
// over chunks of all tensors together, so that a network of many small tensors costs no more than a
// large one. Floor: SGD with momentum 20 bytes per parameter, Adam 28, over the copy bandwidth.
#include "cpu/simd/vec.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kChunk = 16384;

// body(tensor, begin, end, chunk) over fixed chunks of every tensor, in parallel.
template <class Body>
void each_chunk(const OptimTensor* tensors, int64_t count, const Body& body) {
  int64_t chunks = 0;
  for (int64_t t = 0; t < count; ++t) chunks += (tensors[t].count + kChunk - 1) / kChunk;
  parallel_for(chunks, [&](int64_t chunk) {
    int64_t first = 0, t = 0;
    for (;; ++t) {
      const int64_t here = (tensors[t].count + kChunk - 1) / kChunk;
      if (chunk < first + here) break;
      first += here;
    }
    const int64_t begin = (chunk - first) * kChunk;
    const int64_t end = begin + kChunk < tensors[t].count ? begin + kChunk : tensors[t].count;
    body(tensors[t], begin, end, chunk);
  });
}

template <class T>
void step_range(Optimizer which, const OptimStep& s, const OptimTensor& t, int64_t begin,
                int64_t end) {
  T* const param = static_cast<T*>(t.param);
  const T* const grad = static_cast<const T*>(t.grad);
  auto root = [](vfloat v) { return vsqrt(v); };
  auto larger = [](vfloat a, vfloat b) { return vmax(a, b); };
  vector_loop(begin, end, [&](int64_t i, int n) {
    vfloat p = load_any(param + i, n), g = load_any(grad + i, n);
    if (s.maximize) g = -g;
    if (s.weight_decay != 0) {
      if (s.decoupled)
        p = p * (1.0f - s.lr * s.weight_decay);
      else
        g = g + p * s.weight_decay;
    }
    vfloat buffer[3] = {};
    for (int k = 0; k < 3; ++k)
      if (t.state[k]) buffer[k] = load_any(t.state[k] + i, n);
    switch (which) {
      case Optimizer::sgd:
        sgd_rule(s, p, g, buffer[0]);
        break;
      case Optimizer::adam:
        adam_rule(s, p, g, buffer[0], buffer[1], buffer[2], root, larger);
        break;
      case Optimizer::adagrad:
        adagrad_rule(s, p, g, buffer[0], root);
        break;
      case Optimizer::rmsprop:
        rmsprop_rule(s, p, g, buffer[0], buffer[1], buffer[2], root, larger);
        break;
      case Optimizer::adadelta:
        adadelta_rule(s, p, g, buffer[0], buffer[1], root);
        break;
    }
    for (int k = 0; k < 3; ++k)
      if (t.state[k]) store_any(t.state[k] + i, buffer[k], n);
    store_any(param + i, p, n);
    if (t.low) store_any(t.low + i, p, n);
  });
}

void step(Optimizer which, const OptimStep& s, const OptimTensor* tensors, int64_t count) {
  each_chunk(tensors, count, [&](const OptimTensor& t, int64_t begin, int64_t end, int64_t) {
    if (t.dtype == DType::float32)
      step_range<float>(which, s, t, begin, end);
    else
      step_range<bfloat16>(which, s, t, begin, end);
  });
}

template <class T>
double square_range(const T* x, int64_t begin, int64_t end) {
  double total = 0;
  // Short runs in float, joined in double.
  for (int64_t i = begin; i < end; i += 1024) {
    vfloat v{};
    vector_loop(i, i + 1024 < end ? i + 1024 : end, [&](int64_t j, int n) {
      const vfloat a = load_any(x + j, n);
      v += a * a;
    });
    total += static_cast<double>(sum(v));
  }
  return total;
}

double square_sum(const OptimTensor* tensors, int64_t count) {
  // The chunks of one tensor are added in order, then the tensors: one buffer of a tensor's chunks.
  double total = 0;
  for (int64_t t = 0; t < count; ++t) {
    const OptimTensor& tensor = tensors[t];
    const int64_t chunks = (tensor.count + kChunk - 1) / kChunk;
    double* parts = static_cast<double*>(thread_scratch(chunks * 8 + 8, 2));
    parallel_ranges(tensor.count, kChunk, [&](int64_t begin, int64_t end) {
      parts[begin / kChunk] =
          tensor.dtype == DType::float32
              ? square_range(static_cast<const float*>(tensor.param), begin, end)
              : square_range(static_cast<const bfloat16*>(tensor.param), begin, end);
    });
    for (int64_t c = 0; c < chunks; ++c) total += parts[c];
  }
  return total;
}

template <class F>
void update(const OptimTensor* tensors, int64_t count, const F& f) {
  each_chunk(tensors, count, [&](const OptimTensor& t, int64_t begin, int64_t end, int64_t) {
    vector_loop(begin, end, [&](int64_t i, int n) {
      if (t.dtype == DType::float32) {
        float* x = static_cast<float*>(t.param) + i;
        store_any(x, f(load_any(x, n)), n);
      } else {
        bfloat16* x = static_cast<bfloat16*>(t.param) + i;
        store_any(x, f(load_any(x, n)), n);
      }
    });
  });
}

void clip_norm(const OptimTensor* tensors, int64_t count, float max_norm, float* norm) {
  const double found = __builtin_sqrt(square_sum(tensors, count));
  *norm = static_cast<float>(found);
  const double factor = static_cast<double>(max_norm) / (found + 1e-6);
  if (factor >= 1) return;
  const auto f = static_cast<float>(factor);
  update(tensors, count, [=](vfloat v) { return v * f; });
}

void clamp(const OptimTensor* tensors, int64_t count, float limit) {
  // A NaN fails both comparisons and stays.
  update(tensors, count, [=](vfloat v) { return vclamp(v, set1(-limit), set1(limit)); });
}

}  // namespace

void fill_optim(Slots& slots) { slots.optim = {step, clip_norm, clamp}; }

}  // namespace fastnn::cpu::FASTNN_ISA
