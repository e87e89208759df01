// Depthwise convolution: every channel by itself.
//
// No sums over channels, so no matrix product: a thread computes neighbouring channels of one
// pixel, tap by tap, from L1 and L2. Floor: one read of the input and one write of the output. The
// gradient of the weight is a sum over pixels for each (tap, channel): blocks take 32 channels, one
// tap and a part of the pixels, and a second kernel adds the parts in order.
#include "cuda/conv_operands.h"
#include "cuda/device/device.h"
#include "ops/slots.h"

namespace fastnn::cuda {
namespace {

struct Depthwise {
  int64_t C, H, W, OH, OW, KH, KW, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
  explicit Depthwise(const ConvParams& p)
      : C(p.C),
        H(p.H),
        W(p.W),
        OH(p.OH),
        OW(p.OW),
        KH(p.KH),
        KW(p.KW),
        stride_h(p.stride_h),
        stride_w(p.stride_w),
        pad_top(p.pad_top),
        pad_left(p.pad_left),
        dilation_h(p.dilation_h),
        dilation_w(p.dilation_w) {}

  // The input row or column of tap k for output o; the output's for input i, or -1.
  static FASTNN_MEMBER int64_t source(int64_t o, int64_t k, int64_t stride, int64_t pad,
                                      int64_t dilation, int64_t size) {
    const int64_t at = o * stride - pad + k * dilation;
    return at < size ? at : -1;
  }
  static FASTNN_MEMBER int64_t target(int64_t i, int64_t k, int64_t stride, int64_t pad,
                                      int64_t dilation, int64_t size) {
    const int64_t at = i + pad - k * dilation;
    return at >= 0 && at % stride == 0 && at / stride < size ? at / stride : -1;
  }
};

// kForward: from the input to the output; else from the output's gradient to the input's. N
// channels of one pixel.
template <class T, int N, bool kForward>
struct Pixel {
  Depthwise p;
  const T* from;
  const T* weight;  // [C][KH][KW]
  T* to;
  ConvEpilogue e;
  __device__ void operator()(int64_t i) const {
    const int64_t packs = p.C / N, c = i % packs * N, pixel = i / packs;
    const int64_t height = kForward ? p.OH : p.H, width = kForward ? p.OW : p.W,
                  from_height = kForward ? p.H : p.OH, from_width = kForward ? p.W : p.OW;
    const int64_t w = pixel % width, h = pixel / width % height, image = pixel / width / height;
    float sum[N] = {};
    for (int64_t kh = 0; kh < p.KH; ++kh) {
      const int64_t y = kForward
                            ? Depthwise::source(h, kh, p.stride_h, p.pad_top, p.dilation_h, p.H)
                            : Depthwise::target(h, kh, p.stride_h, p.pad_top, p.dilation_h, p.OH);
      if (y < 0) continue;
      for (int64_t kw = 0; kw < p.KW; ++kw) {
        const int64_t x =
            kForward ? Depthwise::source(w, kw, p.stride_w, p.pad_left, p.dilation_w, p.W)
                     : Depthwise::target(w, kw, p.stride_w, p.pad_left, p.dilation_w, p.OW);
        if (x < 0) continue;
        float v[N];
        load_floats(from + ((image * from_height + y) * from_width + x) * p.C + c, v);
        for (int n = 0; n < N; ++n)
          sum[n] += v[n] * to_float(weight[((c + n) * p.KH + kh) * p.KW + kw]);
      }
    }
    const int64_t at = pixel * p.C + c;
    if (e.bias)
      for (int n = 0; n < N; ++n) sum[n] += e.bias[c + n];
    if (e.residual) {
      float r[N];
      load_floats(static_cast<const T*>(e.residual) + at, r);
      for (int n = 0; n < N; ++n) sum[n] += r[n];
    }
    if (e.relu)
      for (int n = 0; n < N; ++n) sum[n] = sum[n] < 0 ? 0.0f : sum[n];
    store_floats(to + at, sum);
  }
};

template <bool kForward>
void pixels(const ConvParams& p, const void* from, const void* weight, const ConvEpilogue& e,
            void* to) {
  const int64_t count = p.N * (kForward ? p.OH * p.OW : p.H * p.W);
  with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int N = kPack<T>;
    const T* const source = static_cast<const T*>(from);
    const T* const w = static_cast<const T*>(weight);
    T* const out = static_cast<T*>(to);
    if (p.C % N == 0 && aligned(source, out, static_cast<const T*>(e.residual)))
      each(count * p.C / N, Pixel<T, N, kForward>{Depthwise(p), source, w, out, e});
    else
      each(count * p.C, Pixel<T, 1, kForward>{Depthwise(p), source, w, out, e});
  });
}

void forward(const ConvParams& p, const void* input, const void* weight, const ConvEpilogue& e,
             void* output) {
  pixels<true>(p, input, weight, e, output);
}
void backward_data(const ConvParams& p, const void* grad_output, const void* weight,
                   const ConvEpilogue& e, void* grad_input) {
  pixels<false>(p, grad_output, weight, e, grad_input);
}

// Block (channels, tap, part): parts[part][C][tap].
template <class T>
__global__ void __launch_bounds__(kThreads)
    weight_kernel(Depthwise p, const T* input, const T* grad, int64_t pixels, int64_t split,
                  float* parts) {
  using Sums = float[8][32];
  FASTNN_SHARED(Sums, sums);
  const int lane = static_cast<int>(threadIdx.x) % 32, line = static_cast<int>(threadIdx.x) / 32;
  const int64_t c = int64_t{blockIdx.x} * 32 + lane, tap = blockIdx.y, kh = tap / p.KW,
                kw = tap % p.KW;
  const int64_t begin = blockIdx.z * split, end = begin + split < pixels ? begin + split : pixels;
  float sum = 0;
  if (c < p.C)
    for (int64_t pixel = begin + line; pixel < end; pixel += 8) {
      const int64_t w = pixel % p.OW, h = pixel / p.OW % p.OH, image = pixel / p.OW / p.OH;
      const int64_t y = Depthwise::source(h, kh, p.stride_h, p.pad_top, p.dilation_h, p.H),
                    x = Depthwise::source(w, kw, p.stride_w, p.pad_left, p.dilation_w, p.W);
      if (y >= 0 && x >= 0)
        sum += to_float(grad[pixel * p.C + c]) *
               to_float(input[((image * p.H + y) * p.W + x) * p.C + c]);
    }
  sums[line][lane] = sum;
  __syncthreads();
  if (line == 0 && c < p.C) {
    float total = 0;
    for (int i = 0; i < 8; ++i) total += sums[i][lane];
    parts[(blockIdx.z * p.C + c) * p.KH * p.KW + tap] = total;
  }
}

void backward_weight(const ConvParams& p, const void* input, const void* grad_output,
                     void* grad_weight) {
  const int64_t pixels = p.N * p.OH * p.OW, taps = p.KH * p.KW, count = p.C * taps;
  const int64_t split = pixels > int64_t{1024} * 512 ? (pixels + 1023) / 1024 : 512;
  const int64_t splits = pixels ? (pixels + split - 1) / split : 1;
  Workspace parts(splits * count * 4);
  with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    launch(weight_kernel<T>,
           dim3(static_cast<unsigned>((p.C + 31) / 32), static_cast<unsigned>(taps),
                static_cast<unsigned>(splits)),
           kThreads, 0, Depthwise(p), static_cast<const T*>(input),
           static_cast<const T*>(grad_output), pixels, split, parts.as<float>());
  });
  add_parts(parts.as<float>(), splits, count, p.grad_dtype, grad_weight);
}

}  // namespace

void fill_conv_depthwise(Slots& slots) {
  slots.conv.depthwise_forward = forward;
  slots.conv.depthwise_backward_data = backward_data;
  slots.conv.depthwise_backward_weight = backward_weight;
}

}  // namespace fastnn::cuda
