// Depthwise convolution: every channel by itself.
//
// No sums over channels, so no matrix product: a thread computes neighbouring channels of one
// pixel, tap by tap, from L1 and L2. With 3 x 3 taps, as nearly always, it computes four neighbours
// of a row (stride 2: two) and loads each input once for all taps in its row: 7 accesses for a
// pixel's 16 bytes instead of 20. The gradient of the input with stride 1 is the same with taps in
// reverse. Floor: one read of the input and one write of the output.
//
// The gradient of the weight is a sum over pixels for each (tap, channel): with 3 x 3 taps a column
// reduction (device/columns.h) over spans of pixels, all taps at once; else blocks take 32
// channels, one tap and a part of the pixels, and a second kernel adds the parts in order.
#include "cuda/conv_epilogue.h"
#include "cuda/conv_operands.h"
#include "cuda/device/columns.h"
#include "cuda/device/pixels.h"
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

// [C][tap] as [tap][C] in float32, so that neighbouring channels' weights are neighbours; turned:
// taps in reverse.
template <class T>
struct ByTap {
  const T* weight;
  float* to;
  int64_t C, taps;
  bool turned;
  __device__ void operator()(int64_t i) const {
    const int64_t c = i % C, tap = i / C;
    to[i] = to_float(weight[c * taps + (turned ? taps - 1 - tap : tap)]);
  }
};

// N channels of a pixel, from c on, which begin at element `at`.
template <class T, int N>
FASTNN_DEVICE void finish_channels(const ConvEpilogue& e, float (&sum)[N], int64_t c, int64_t at,
                                   T* to) {
  finish(sum, e.bias ? e.bias + c : nullptr,
         e.residual ? static_cast<const T*>(e.residual) + at : nullptr, e.relu, to + at);
}

// kForward: from the input to the output; else from the output's gradient to the input's. N
// channels of one pixel.
template <class T, int N, bool kForward>
struct Pixel {
  Depthwise p;
  const T* from;
  const float* weight;  // [tap][C]
  T* to;
  ConvEpilogue e;
  __device__ void operator()(const Place& o) const {
    const int64_t height = kForward ? p.OH : p.H, width = kForward ? p.OW : p.W,
                  from_height = kForward ? p.H : p.OH, from_width = kForward ? p.W : p.OW;
    const int64_t c = o.pack * N;
    float sum[N] = {};
    for (int64_t kh = 0; kh < p.KH; ++kh) {
      const int64_t y = kForward
                            ? Depthwise::source(o.h, kh, p.stride_h, p.pad_top, p.dilation_h, p.H)
                            : Depthwise::target(o.h, kh, p.stride_h, p.pad_top, p.dilation_h, p.OH);
      if (y < 0) continue;
      for (int64_t kw = 0; kw < p.KW; ++kw) {
        const int64_t x =
            kForward ? Depthwise::source(o.w, kw, p.stride_w, p.pad_left, p.dilation_w, p.W)
                     : Depthwise::target(o.w, kw, p.stride_w, p.pad_left, p.dilation_w, p.OW);
        if (x < 0) continue;
        float v[N], by[N];
        load_floats(from + ((o.image * from_height + y) * from_width + x) * p.C + c, v);
        load_terms(weight + (kh * p.KW + kw) * p.C + c, by);
        for (int n = 0; n < N; ++n) sum[n] += v[n] * by[n];
      }
    }
    finish_channels(e, sum, c, o.at(height, width, p.C / N) * N, to);
  }
};

// Neighbouring outputs of a row that a thread takes of 3 x 3 taps with stride S, and the inputs
// that they meet.
template <int S>
struct Span {
  static constexpr int kOutputs = S == 1 ? 4 : 2, kInputs = (kOutputs - 1) * S + 3;
  int64_t image, h, w;  // of the first output
  // Span i of rows of `OW` outputs.
  static FASTNN_MEMBER Span of(int64_t i, const Depthwise& p) {
    const int64_t spans = across(p), row = i / spans;
    return {row / p.OH, row % p.OH, i % spans * kOutputs};
  }
  static __host__ __device__ int64_t across(const Depthwise& p) {
    return (p.OW + kOutputs - 1) / kOutputs;
  }
  // The inputs under row kh of the taps, zeros outside; false if that row is outside.
  template <class T, int N>
  FASTNN_MEMBER bool load(const Depthwise& p, const T* x, int64_t c, int kh,
                          Pack<T, N> (&in)[kInputs]) const {
    const int64_t y = h * S - p.pad_top + kh, first = w * S - p.pad_left;
    if (y < 0 || y >= p.H) return false;
    const T* const row = x + ((image * p.H + y) * p.W + first) * p.C + c;
#pragma unroll
    for (int j = 0; j < kInputs; ++j) {
      in[j] = {};
      if (first + j >= 0 && first + j < p.W) in[j] = load_pack<N>(row + j * p.C);
    }
    return true;
  }
};

template <class T, int N, int S>
struct SpanForward {
  Depthwise p;
  const T* x;
  const float* weight;  // [tap][C]
  T* to;
  ConvEpilogue e;
  __device__ void operator()(const Place& o) const {
    constexpr int kOutputs = Span<S>::kOutputs, kInputs = Span<S>::kInputs;
    const int64_t c = o.pack * N;
    const Span<S> at{o.image, o.h, o.w * kOutputs};
    float sum[kOutputs][N] = {};
#pragma unroll
    for (int kh = 0; kh < 3; ++kh) {
      Pack<T, N> in[kInputs];
      if (!at.load(p, x, c, kh, in)) continue;
#pragma unroll
      for (int kw = 0; kw < 3; ++kw) {
        float by[N];
        load_terms(weight + (kh * 3 + kw) * p.C + c, by);
#pragma unroll
        for (int s = 0; s < kOutputs; ++s) {
          float v[N];
          to_floats(in[s * S + kw], v);
          for (int n = 0; n < N; ++n) sum[s][n] += v[n] * by[n];
        }
      }
    }
    const int64_t first = ((at.image * p.OH + at.h) * p.OW + at.w) * p.C + c;
#pragma unroll
    for (int s = 0; s < kOutputs; ++s)
      if (at.w + s < p.OW) finish_channels(e, sum[s], c, first + s * p.C, to);
  }
};

// Whether Span serves: its stride, or 0.
int64_t span_stride(const Depthwise& p) {
  const bool serves = p.KH == 3 && p.KW == 3 && p.dilation_h == 1 && p.dilation_w == 1 &&
                      p.stride_h == p.stride_w && p.stride_h <= 2;
  return serves ? p.stride_h : 0;
}

// The gradient of the input with stride 1 as a forward pass, taps in reverse.
Depthwise reversed(const Depthwise& p) {
  Depthwise r = p;
  r.H = p.OH, r.W = p.OW, r.OH = p.H, r.OW = p.W;
  r.pad_top = (p.KH - 1) * p.dilation_h - p.pad_top;
  r.pad_left = (p.KW - 1) * p.dilation_w - p.pad_left;
  return r;
}

template <bool kForward>
void pixels(const ConvParams& params, const void* from, const void* weight, const ConvEpilogue& e,
            void* to) {
  Depthwise p(params);
  const bool turned = !kForward && p.stride_h == 1 && p.stride_w == 1;
  if (turned) p = reversed(p);
  const int64_t taps = p.KH * p.KW, stride = kForward || turned ? span_stride(p) : 0;
  Workspace memory(p.C * taps * 4);
  float* const by_tap = memory.as<float>();
  with_type(params.dtype, [&](auto type) {
    using T = decltype(type);
    const T* const source = static_cast<const T*>(from);
    T* const out = static_cast<T*>(to);
    each(p.C * taps, ByTap<T>{static_cast<const T*>(weight), by_tap, p.C, taps, turned});
    with_pack<T>(
        p.C,
        [&](auto pack) {
          constexpr int N = decltype(pack)::value;
          const int64_t packs = p.C / N;
          if (stride == 1)
            each_place<2>(params.N, p.OH, Span<1>::across(p), packs,
                          SpanForward<T, N, 1>{p, source, by_tap, out, e});
          else if (stride == 2)
            each_place<2>(params.N, p.OH, Span<2>::across(p), packs,
                          SpanForward<T, N, 2>{p, source, by_tap, out, e});
          else if (kForward || turned)
            each_place(params.N, p.OH, p.OW, packs, Pixel<T, N, true>{p, source, by_tap, out, e});
          else
            each_place(params.N, p.H, p.W, packs, Pixel<T, N, false>{p, source, by_tap, out, e});
        },
        source, out, e.bias, static_cast<const T*>(e.residual));
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

// Of 3 x 3 taps: the sums over pixels of input times gradient, a span of pixels at a time.
struct NineSums {
  float tap[9] = {};
  FASTNN_MEMBER void add(const NineSums& other) {
    for (int k = 0; k < 9; ++k) tap[k] += other.tap[k];
  }
};
struct NineWriter {
  float* to;  // [C][tap]
  FASTNN_MEMBER void write(int64_t c, const NineSums& sums) const {
    for (int k = 0; k < 9; ++k) to[c * 9 + k] = sums.tap[k];
  }
};

template <class T, int N, int S>
struct SpanWeight {
  using State = NineSums;
  Depthwise p;
  const T* x;
  const T* g;

  struct Column {
    static constexpr int kAhead = 1;
    using Fetched = int64_t;  // the span: its inputs are many enough to wait for together
    SpanWeight in;
    int64_t c;
    NineSums state[N];
    FASTNN_MEMBER Column(const SpanWeight& body, int64_t, int64_t first) : in(body), c(first) {}
    FASTNN_MEMBER void fetch(int64_t span, int64_t, Fetched& to) const { to = span; }
    FASTNN_MEMBER void use(int64_t, const Fetched& span) {
      constexpr int kOutputs = Span<S>::kOutputs, kInputs = Span<S>::kInputs;
      const Depthwise& p = in.p;
      const auto at = Span<S>::of(span, p);
      const T* const first = in.g + ((at.image * p.OH + at.h) * p.OW + at.w) * p.C + c;
      float grad[kOutputs][N] = {};
#pragma unroll
      for (int s = 0; s < kOutputs; ++s)
        if (at.w + s < p.OW) load_floats(first + s * p.C, grad[s]);
#pragma unroll
      for (int kh = 0; kh < 3; ++kh) {
        Pack<T, N> inputs[kInputs];
        if (!at.load(p, in.x, c, kh, inputs)) continue;
#pragma unroll
        for (int j = 0; j < kInputs; ++j) {
          float v[N];
          to_floats(inputs[j], v);
#pragma unroll
          for (int kw = 0; kw < 3; ++kw)
            if (j >= kw && (j - kw) % S == 0 && (j - kw) / S < kOutputs)
              for (int n = 0; n < N; ++n) state[n].tap[kh * 3 + kw] += grad[(j - kw) / S][n] * v[n];
        }
      }
    }
  };
};

template <class T, int S>
void span_weight(const Depthwise& p, int64_t images, const T* x, const T* g, float* grad_weight) {
  constexpr int kChannels = 4;  // more sums than 9 of 4 channels do not fit in registers
  const int64_t spans = images * p.OH * Span<S>::across(p);
  const NineWriter writer{grad_weight};
  if (p.C % kChannels == 0 && aligned(x, g))
    reduce_columns<kChannels>(SpanWeight<T, kChannels, S>{p, x, g}, writer, 1, spans, p.C, 2);
  else
    reduce_columns<1>(SpanWeight<T, 1, S>{p, x, g}, writer, 1, spans, p.C, 2);
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
  if (const int64_t stride = span_stride(Depthwise(p))) {
    Workspace sums(p.C * 9 * 4);
    with_type(p.dtype, [&](auto type) {
      using T = decltype(type);
      const auto run = stride == 1 ? span_weight<T, 1> : span_weight<T, 2>;
      run(Depthwise(p), p.N, static_cast<const T*>(input), static_cast<const T*>(grad_output),
          sums.as<float>());
    });
    return add_parts(sums.as<float>(), 1, p.C * 9, p.grad_dtype, grad_weight);
  }
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
