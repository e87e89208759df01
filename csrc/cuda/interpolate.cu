// Nearest and bilinear resampling of NHWC images: a thread takes a few neighbouring channels of one
// output pixel. The backward gathers: an input pixel adds up the outputs that read it, in a fixed
// order. Floor: the larger image written or read once; the smaller one comes from cache.
#include "cuda/device/pixels.h"
#include "ops/slots.h"

namespace fastnn::cuda {
namespace {

ResampleAxis on_device(const ResampleAxis& a) {
  ResampleAxis d = a;
  d.low = constant_table(a.low, a.out);
  d.high = constant_table(a.high, a.out);
  d.share = constant_table(a.share, a.out);
  d.first = constant_table(a.first, a.in + 1);
  d.outputs = constant_table(a.outputs, a.first[a.in]);
  d.weights = constant_table(a.weights, a.first[a.in]);
  return d;
}

template <class T, int N>
struct Forward {
  ResampleParams p;
  const T* x;
  T* y;
  __device__ void operator()(const Place& o) const {
    const T* const image = x + o.image * p.h.in * p.w.in * p.C + o.pack * N;
    const T* const top = image + p.h.low[o.h] * p.w.in * p.C;
    const T* const bottom = image + p.h.high[o.h] * p.w.in * p.C;
    const int64_t left = p.w.low[o.w] * p.C, right = p.w.high[o.w] * p.C;
    float a[N], b[N];
    load_floats(top + left, a);
    if (!p.nearest) {
      const float u = p.w.share[o.w], v = p.h.share[o.h];
      load_floats(top + right, b);
      for (int n = 0; n < N; ++n) a[n] = (a[n] * (1 - u) + b[n] * u) * (1 - v);
      float d[N];
      load_floats(bottom + left, b);
      load_floats(bottom + right, d);
      for (int n = 0; n < N; ++n) a[n] += (b[n] * (1 - u) + d[n] * u) * v;
    }
    store_floats(y + o.at(p.h.out, p.w.out, p.C / N) * N, a);
  }
};

template <class T, int N>
struct Backward {
  ResampleParams p;
  const T* g;
  T* grad_x;
  __device__ void operator()(const Place& in) const {
    const T* const image = g + in.image * p.h.out * p.w.out * p.C + in.pack * N;
    float sum[N] = {};
    for (int64_t a = p.h.first[in.h]; a < p.h.first[in.h + 1]; ++a)
      for (int64_t b = p.w.first[in.w]; b < p.w.first[in.w + 1]; ++b) {
        float v[N];
        load_floats(image + (p.h.outputs[a] * p.w.out + p.w.outputs[b]) * p.C, v);
        for (int n = 0; n < N; ++n) sum[n] += v[n] * (p.h.weights[a] * p.w.weights[b]);
      }
    store_floats(grad_x + in.at(p.h.in, p.w.in, p.C / N) * N, sum);
  }
};

// For images of height x width pixels, those that are written.
template <template <class, int> class Kernel>
void run(const ResampleParams& host, int64_t height, int64_t width, const void* from, void* to) {
  ResampleParams p = host;
  p.h = on_device(host.h);
  p.w = on_device(host.w);
  with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    const T* const source = static_cast<const T*>(from);
    T* const out = static_cast<T*>(to);
    with_pack<T>(
        p.C,
        [&](auto pack) {
          constexpr int N = decltype(pack)::value;
          each_place(p.N, height, width, p.C / N, Kernel<T, N>{p, source, out});
        },
        source, out);
  });
}

void forward(const ResampleParams& p, const void* x, void* y) {
  run<Forward>(p, p.h.out, p.w.out, x, y);
}
void backward(const ResampleParams& p, const void* g, void* grad_x) {
  run<Backward>(p, p.h.in, p.w.in, g, grad_x);
}

}  // namespace

void fill_interpolate(Slots& slots) { slots.interpolate = {forward, backward}; }

}  // namespace fastnn::cuda
