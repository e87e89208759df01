// Optimizer steps over all parameters in one launch, and gradient clipping.
//
// The tensors' pointers and sizes travel as the kernel's argument, kTensors at a time; blocks take
// chunks of kChunk elements, and each finds its tensor by a binary search among the tensors' first
// chunks. Floor: SGD with momentum 20 bytes per float32 parameter, Adam 28, over the copy
// bandwidth.
#include "cuda/capture.h"
#include "cuda/device/packs.h"
#include "ops/slots.h"

namespace fastnn::cuda {
namespace {

constexpr int64_t kChunk = 4096;
// A kernel's arguments end at 4 KB, from CUDA 12.1 on at 32764 bytes: enough for a ResNet-50 at
// once.
#if !defined(FASTNN_CUDA_EMULATE) && CUDART_VERSION < 12010
constexpr int kTensors = 55;
#else
constexpr int kTensors = 440;
#endif

struct Batch {
  int count;
  int64_t first_chunk[kTensors + 1];
  OptimTensor tensor[kTensors];
};
static_assert(sizeof(Batch) < kTensors * 74 && sizeof(Batch) < 32600, "kernel arguments");

// The tensor of a block's chunk and the elements in it.
struct Chunk {
  const OptimTensor* tensor;
  int64_t begin, end;
  __device__ Chunk(const Batch& batch, int64_t chunk) {
    int low = 0, high = batch.count - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (batch.first_chunk[middle] <= chunk)
        low = middle;
      else
        high = middle - 1;
    }
    tensor = &batch.tensor[low];
    begin = (chunk - batch.first_chunk[low]) * kChunk;
    end = begin + kChunk < tensor->count ? begin + kChunk : tensor->count;
  }
};

// body(batch) for the tensors, kTensors at a time.
template <class Body>
void batches(const OptimTensor* tensors, int64_t count, const Body& body) {
  for (int64_t t = 0; t < count;) {
    Batch batch{};
    int64_t chunks = 0;
    for (; t < count && batch.count < kTensors; ++t) {
      if (tensors[t].count == 0) continue;
      batch.tensor[batch.count] = tensors[t];
      batch.first_chunk[batch.count++] = chunks;
      chunks += (tensors[t].count + kChunk - 1) / kChunk;
    }
    batch.first_chunk[batch.count] = chunks;
    if (chunks) body(batch, dim3(static_cast<unsigned>(chunks)));
  }
}

// Elements [i, i + N) of a chunk's tensor.
template <class T, int N>
FASTNN_DEVICE void step_some(Optimizer which, const OptimStep& s, const OptimTensor& t, int64_t i) {
  T* const param = static_cast<T*>(t.param) + i;
  float p[N], g[N], buffer[3][N] = {};
  load_floats(param, p);
  load_floats(static_cast<const T*>(t.grad) + i, g);
  for (int k = 0; k < 3; ++k)
    if (t.state[k]) load_floats(t.state[k] + i, buffer[k]);
  const auto root = [](float v) { return sqrtf(v); };
  const auto larger = [](float a, float b) { return a > b ? a : b; };
  for (int n = 0; n < N; ++n) {
    if (s.maximize) g[n] = -g[n];
    if (s.weight_decay != 0) {
      if (s.decoupled)
        p[n] = p[n] * (1.0f - s.lr * s.weight_decay);
      else
        g[n] = g[n] + p[n] * s.weight_decay;
    }
    switch (which) {
      case Optimizer::sgd:
        sgd_rule(s, p[n], g[n], buffer[0][n]);
        break;
      case Optimizer::adam:
        adam_rule(s, p[n], g[n], buffer[0][n], buffer[1][n], buffer[2][n], root, larger);
        break;
      case Optimizer::adagrad:
        adagrad_rule(s, p[n], g[n], buffer[0][n], root);
        break;
      case Optimizer::rmsprop:
        rmsprop_rule(s, p[n], g[n], buffer[0][n], buffer[1][n], buffer[2][n], root, larger);
        break;
      case Optimizer::adadelta:
        adadelta_rule(s, p[n], g[n], buffer[0][n], buffer[1][n], root);
        break;
    }
  }
  for (int k = 0; k < 3; ++k)
    if (t.state[k]) store_floats(t.state[k] + i, buffer[k]);
  store_floats(param, p);
}

FASTNN_DEVICE bool is_aligned(const OptimTensor& t) {
  uintptr_t all = reinterpret_cast<uintptr_t>(t.param) | reinterpret_cast<uintptr_t>(t.grad);
  for (int k = 0; k < 3; ++k) all |= reinterpret_cast<uintptr_t>(t.state[k]);
  return all % 16 == 0;
}

// f(type, i, n) for the block's threads: n elements from i on of the chunk's tensor, four at a time
// where they lie so.
template <class F>
FASTNN_DEVICE void over_chunk(const Chunk& c, const F& f) {
  const auto typed = [&](auto type) {
    int64_t i = c.begin;
    if (is_aligned(*c.tensor)) {
      const int64_t packed = c.begin + (c.end - c.begin) / 4 * 4;
      for (i += 4 * threadIdx.x; i < packed; i += 4 * kThreads)
        f(type, i, std::integral_constant<int, 4>{});
      i = packed;
    }
    for (i += threadIdx.x; i < c.end; i += kThreads) f(type, i, std::integral_constant<int, 1>{});
  };
  if (c.tensor->dtype == DType::float32)
    typed(float{});
  else
    typed(bfloat16{});
}

// In a graph the settings come from `live`, where each replay finds new ones.
__global__ void __launch_bounds__(kThreads)
    step_kernel(Optimizer which, OptimStep given, const OptimStep* live, Batch batch) {
  const OptimStep s = live ? *live : given;
  const Chunk c(batch, blockIdx.x);
  over_chunk(c, [&](auto type, int64_t i, auto n) {
    step_some<decltype(type), decltype(n)::value>(which, s, *c.tensor, i);
  });
}

void step(Optimizer which, const OptimStep& s, const OptimTensor* tensors, int64_t count) {
  const auto* const live = static_cast<const OptimStep*>(live_value(&s, sizeof(s)));
  batches(tensors, count, [&](const Batch& batch, dim3 blocks) {
    launch(step_kernel, blocks, kThreads, 0, which, s, live, batch);
  });
}

__global__ void __launch_bounds__(kThreads) square_kernel(Batch batch, double* parts) {
  const Chunk c(batch, blockIdx.x);
  float sum = 0;
  over_chunk(c, [&](auto type, int64_t i, auto n) {
    float x[decltype(n)::value];
    load_floats(static_cast<const decltype(type)*>(c.tensor->param) + i, x);
    for (const float v : x) sum += v * v;
  });
  sum = block_sum(sum);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    add_parts_kernel(const double* parts, int64_t count, double* total) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += parts[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *total += sum;
}

struct SetZero {
  double* x;
  __device__ void operator()(int64_t i) const { x[i] = 0; }
};

struct Norm {
  const double* squares;
  float* norm;
  __device__ void operator()(int64_t) const { *norm = static_cast<float>(sqrt(*squares)); }
};

// What is done to every element, from the settings.
// By what the sum of squares says, so that the host need not know it.
struct Clipped {
  const double* squares;
  double max_norm;
  __device__ auto change() const {
    const double factor = max_norm / (sqrt(*squares) + 1e-6);
    // A norm that is NaN makes all NaN.
    return [by = factor >= 1 ? 1.0f : static_cast<float>(factor)](float x) { return x * by; };
  }
};
struct Clamped {
  float limit;
  __device__ auto change() const {
    return [limit = limit](float x) {
      const float low = x > limit ? limit : x;  // a NaN fails both comparisons and stays
      return low < -limit ? -limit : low;
    };
  }
};

template <class F>
__global__ void __launch_bounds__(kThreads) update_kernel(Batch batch, F f) {
  const Chunk c(batch, blockIdx.x);
  const auto change = f.change();
  over_chunk(c, [&](auto type, int64_t i, auto n) {
    auto* const at = static_cast<decltype(type)*>(c.tensor->param) + i;
    float x[decltype(n)::value];
    load_floats(at, x);
    for (float& v : x) v = change(v);
    store_floats(at, x);
  });
}

template <class F>
void update(const OptimTensor* tensors, int64_t count, const F& f) {
  batches(tensors, count, [&](const Batch& batch, dim3 blocks) {
    launch(update_kernel<F>, blocks, kThreads, 0, batch, f);
  });
}

void clip_norm(const OptimTensor* tensors, int64_t count, float max_norm, float* norm) {
  Workspace total(8);
  double* const squares = total.as<double>();
  each(1, SetZero{squares});
  batches(tensors, count, [&](const Batch& batch, dim3 blocks) {
    Workspace parts(int64_t{blocks.x} * 8);
    launch(square_kernel, blocks, kThreads, 0, batch, parts.as<double>());
    launch(add_parts_kernel, dim3(1), kThreads, 0, parts.as<double>(), int64_t{blocks.x}, squares);
  });
  each(1, Norm{squares, norm});
  update(tensors, count, Clipped{squares, max_norm});
}
void clamp(const OptimTensor* tensors, int64_t count, float limit) {
  update(tensors, count, Clamped{limit});
}

}  // namespace

void fill_optim(Slots& slots) { slots.optim = {step, clip_norm, clamp}; }

}  // namespace fastnn::cuda
