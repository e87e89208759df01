// Depthwise convolution: every channel by itself.
//
// No sums over channels, so no matrix product: a thread computes neighbouring channels of one
// pixel, tap by tap, from L1 and L2. With 3 x 3 taps, as nearly always, it computes four neighbours
// of a row (stride 2: two) and loads each input once for all taps in its row: 7 accesses for a
// pixel's 16 bytes instead of 20. The gradient of the input with stride 1 is the same with taps in
// reverse. Floor: one read of the input and one write of the output.
//
// The gradient of the weight is a sum over pixels for each (tap, channel): a column reduction
// (device/columns.h) over spans of pixels, with 3 x 3 taps all at once, else up to seven of one of
// the kernel's rows. Those of other rows read the same pixels at about the same time, from L2.
#include "cuda/conv_epilogue.h"
#include "cuda/conv_operands.h"
#include "cuda/device/columns.h"
#include "cuda/device/pixels.h"
#include "ops/slots.h"

namespace fastnn::cuda {
namespace {

// Where sizes_fit. The dilation of a single tap, which may be any, is 1.
struct Depthwise {
  int64_t C;
  int H, W, OH, OW, KH, KW, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
  explicit Depthwise(const ConvParams& p)
      : C(p.C),
        H(static_cast<int>(p.H)),
        W(static_cast<int>(p.W)),
        OH(static_cast<int>(p.OH)),
        OW(static_cast<int>(p.OW)),
        KH(static_cast<int>(p.KH)),
        KW(static_cast<int>(p.KW)),
        stride_h(static_cast<int>(p.stride_h)),
        stride_w(static_cast<int>(p.stride_w)),
        pad_top(static_cast<int>(p.pad_top)),
        pad_left(static_cast<int>(p.pad_left)),
        dilation_h(p.KH > 1 ? static_cast<int>(p.dilation_h) : 1),
        dilation_w(p.KW > 1 ? static_cast<int>(p.dilation_w) : 1) {}
};

// Whether a row or column is one of `size`, at a comparison.
FASTNN_DEVICE bool inside(int at, int size) {
  return static_cast<unsigned>(at) < static_cast<unsigned>(size);
}

// What taps do along one axis; dilation = strides * stride + rest.
struct Axis {
  int stride, pad, dilation, strides, rest;
  Axis(int stride_, int pad_, int dilation_)
      : stride(stride_),
        pad(pad_),
        dilation(dilation_),
        strides(dilation_ / stride_),
        rest(dilation_ % stride_) {}
};

// The taps of an axis in turn: where each one's input lies for an output, or (not kForward) each
// one's output for an input, which is `behind` beyond one: then no output has this tap.
template <bool kForward>
struct Taps {
  int at, behind = 0;
  FASTNN_MEMBER Taps(int64_t place_, const Axis& axis) {
    const int place = static_cast<int>(place_);
    if constexpr (kForward) {
      at = place * axis.stride - axis.pad;
    } else {
      at = (place + axis.pad) / axis.stride;
      behind = place + axis.pad - at * axis.stride;
    }
  }
  FASTNN_MEMBER bool reach(int size) const { return behind == 0 && inside(at, size); }
  FASTNN_MEMBER void next(const Axis& axis) {
    if constexpr (kForward) {
      at += axis.dilation;
    } else {
      at -= axis.strides, behind -= axis.rest;
      if (behind < 0) behind += axis.stride, --at;
    }
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
  Axis down, across;
  const T* from;
  const float* weight;  // [tap][C]
  T* to;
  ConvEpilogue e;
  __device__ void operator()(const Place& o) const {
    const int height = kForward ? p.OH : p.H, width = kForward ? p.OW : p.W,
              from_height = kForward ? p.H : p.OH, from_width = kForward ? p.W : p.OW;
    const int64_t c = o.pack * N;
    float sum[N] = {};
    Taps<kForward> y(o.h, down);
    const Taps<kForward> first(o.w, across);
    for (int kh = 0; kh < p.KH; ++kh, y.next(down)) {
      if (!y.reach(from_height)) continue;
      const T* const row = from + (o.image * from_height + y.at) * from_width * p.C + c;
      Taps<kForward> x = first;
      for (int kw = 0; kw < p.KW; ++kw, x.next(across)) {
        if (!x.reach(from_width)) continue;
        float v[N], by[N];
        load_floats(row + x.at * p.C, v);
        load_terms(weight + (int64_t{kh} * p.KW + kw) * p.C + c, by);
        for (int n = 0; n < N; ++n) sum[n] += v[n] * by[n];
      }
    }
    finish_channels(e, sum, c, o.at(height, width, p.C / N) * N, to);
  }
};

// The first output of span i, where `length` neighbours of a row are a span.
struct SpanStart {
  int64_t image;
  int h, w;
  FASTNN_MEMBER SpanStart(int64_t i, int length, const Depthwise& p) {
    const Divided of_row = divide(i, (p.OW + length - 1) / length),
                  of_image = divide(of_row.quotient, p.OH);
    image = of_image.quotient;
    h = static_cast<int>(of_image.rest), w = static_cast<int>(of_row.rest) * length;
  }
  // The gradients of the span's outputs, zeros beyond the row.
  template <class T, int kOutputs, int N>
  FASTNN_MEMBER void load(const Depthwise& p, const T* g, int64_t c,
                          float (&grad)[kOutputs][N]) const {
    const T* const first = g + ((image * p.OH + h) * p.OW + w) * p.C + c;
#pragma unroll
    for (int s = 0; s < kOutputs; ++s)
      if (w + s < p.OW) load_floats(first + s * p.C, grad[s]);
  }
};

// Neighbouring outputs of a row that a thread takes of 3 x 3 taps with stride S, and the inputs
// that they meet.
template <int S>
struct Span {
  static constexpr int kOutputs = S == 1 ? 4 : 2, kInputs = (kOutputs - 1) * S + 3;
  int64_t image;  // of the first output
  int h, w;
  static int64_t across(const Depthwise& p) { return (p.OW + kOutputs - 1) / kOutputs; }
  // The inputs under row kh of the taps, zeros outside; false if that row is outside.
  template <class T, int N>
  FASTNN_MEMBER bool load(const Depthwise& p, const T* x, int64_t c, int kh,
                          Pack<T, N> (&in)[kInputs]) const {
    const int y = h * S - p.pad_top + kh, first = w * S - p.pad_left;
    if (!inside(y, p.H)) return false;
    const T* const row = x + ((image * p.H + y) * p.W + first) * p.C + c;
#pragma unroll
    for (int j = 0; j < kInputs; ++j) {
      in[j] = {};
      if (inside(first + j, p.W)) in[j] = load_pack<N>(row + j * p.C);
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
    const Span<S> at{o.image, static_cast<int>(o.h), static_cast<int>(o.w) * kOutputs};
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
int span_stride(const Depthwise& p) {
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
  if (!sizes_fit(params)) return;
  Depthwise p(params);
  const bool turned = !kForward && p.stride_h == 1 && p.stride_w == 1;
  if (turned) p = reversed(p);
  const int64_t taps = int64_t{p.KH} * p.KW;
  const int stride = kForward || turned ? span_stride(p) : 0;
  const Axis down(p.stride_h, p.pad_top, p.dilation_h),
      across(p.stride_w, p.pad_left, p.dilation_w);
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
            each_place(params.N, p.OH, p.OW, packs,
                       Pixel<T, N, true>{p, down, across, source, by_tap, out, e});
          else
            each_place(params.N, p.H, p.W, packs,
                       Pixel<T, N, false>{p, down, across, source, by_tap, out, e});
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

// Sums over pixels of input times gradient, of kTaps taps.
template <int kTaps>
struct TapSums {
  float tap[kTaps] = {};
  FASTNN_MEMBER void add(const TapSums& other) {
    for (int k = 0; k < kTaps; ++k) tap[k] += other.tap[k];
  }
};
struct NineWriter {
  float* to;  // [C][tap]
  FASTNN_MEMBER void write(int64_t c, const TapSums<9>& sums) const {
    for (int k = 0; k < 9; ++k) to[c * 9 + k] = sums.tap[k];
  }
};

template <class T, int N, int S>
struct SpanWeight {
  using State = TapSums<9>;
  Depthwise p;
  const T* x;
  const T* g;

  struct Column {
    static constexpr int kAhead = 1;
    using Fetched = int64_t;  // the span: its inputs are many enough to wait for together
    SpanWeight in;
    int64_t c;
    State state[N];
    FASTNN_MEMBER Column(const SpanWeight& body, int64_t, int64_t first) : in(body), c(first) {}
    FASTNN_MEMBER void fetch(int64_t span, int64_t, Fetched& to) const { to = span; }
    FASTNN_MEMBER void use(int64_t, const Fetched& span) {
      constexpr int kOutputs = Span<S>::kOutputs, kInputs = Span<S>::kInputs;
      const Depthwise& p = in.p;
      const SpanStart start(span, kOutputs, p);
      const Span<S> at{start.image, start.h, start.w};
      float grad[kOutputs][N] = {};
      start.load(p, in.g, c, grad);
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

constexpr int kWeightChannels = 4;  // of a thread: the sums of more do not fit in registers

template <class T, int S>
void span_weight(const Depthwise& p, int64_t images, const T* x, const T* g, float* grad_weight) {
  const int64_t spans = images * p.OH * Span<S>::across(p);
  const NineWriter writer{grad_weight};
  if (p.C % kWeightChannels == 0 && aligned(x, g))
    reduce_columns<kWeightChannels>(SpanWeight<T, kWeightChannels, S>{p, x, g}, writer, 1, spans,
                                    p.C, 2);
  else
    reduce_columns<1>(SpanWeight<T, 1, S>{p, x, g}, writer, 1, spans, p.C, 2);
}

// A piece of a kernel's row: the taps from `first` on of row kh.
struct Piece {
  static constexpr int kTaps = 7;
  int kh, first;
  FASTNN_MEMBER Piece(int64_t i, int KW) {
    const Divided at = divide(i, (KW + kTaps - 1) / kTaps);
    kh = static_cast<int>(at.quotient), first = static_cast<int>(at.rest) * kTaps;
  }
};
struct PieceWriter {
  float* to;  // [C][KH][KW]
  int64_t C;
  int KH, KW;
  FASTNN_MEMBER void write(int64_t i, const TapSums<Piece::kTaps>& sums) const {
    const auto [segment, c] = divide(i, C);
    const Piece piece(segment, KW);
    float* const row = to + (c * KH + piece.kh) * KW + piece.first;
    for (int k = 0; k < Piece::kTaps; ++k)
      if (piece.first + k < KW) row[k] = sums.tap[k];
  }
};

// A segment is a piece. Of more than one output, stride and dilation are the same across: then
// neighbours share inputs, of which tap k of output s has that of number s + k.
template <class T, int N, int kOutputs>
struct PieceWeight {
  using State = TapSums<Piece::kTaps>;
  static constexpr int kInputs = kOutputs - 1 + Piece::kTaps;
  Depthwise p;
  const T* x;
  const T* g;
  int64_t spans;

  struct Column {
    static constexpr int kAhead = 1;
    using Fetched = int64_t;  // the row, of a walk over the spans of all pieces
    PieceWeight in;
    Piece piece;
    int64_t segment, c;
    State state[N];
    FASTNN_MEMBER Column(const PieceWeight& body, int64_t segment_, int64_t first)
        : in(body), piece(segment_, body.p.KW), segment(segment_), c(first) {}
    FASTNN_MEMBER void fetch(int64_t row, int64_t, Fetched& to) const { to = row; }
    FASTNN_MEMBER void use(int64_t, const Fetched& row) {
      const Depthwise& p = in.p;
      const SpanStart at(row - segment * in.spans, kOutputs, p);
      const int y = at.h * p.stride_h - p.pad_top + piece.kh * p.dilation_h;
      if (!inside(y, p.H)) return;
      const T* const from = in.x + (at.image * p.H + y) * p.W * p.C + c;
      // Unsigned, for the last input may be three dilations beyond what sizes_fit looks at.
      const unsigned first = at.w * p.stride_w - p.pad_left + piece.first * p.dilation_w;
      Pack<T, N> inputs[kInputs];
#pragma unroll
      for (int j = 0; j < kInputs; ++j) {
        const unsigned w = first + j * static_cast<unsigned>(p.dilation_w);
        inputs[j] = {};
        if (j < kOutputs - 1 + p.KW - piece.first && w < static_cast<unsigned>(p.W))
          inputs[j] = load_pack<N>(from + w * p.C);
      }
      float grad[kOutputs][N] = {};
      at.load(p, in.g, c, grad);
#pragma unroll
      for (int j = 0; j < kInputs; ++j) {
        float v[N];
        to_floats(inputs[j], v);
#pragma unroll
        for (int s = 0; s < kOutputs; ++s)
          if (j >= s && j - s < Piece::kTaps)
            for (int n = 0; n < N; ++n) state[n].tap[j - s] += grad[s][n] * v[n];
      }
    }
  };
};

template <class T, int kOutputs>
void piece_weight(const Depthwise& p, int64_t images, const T* x, const T* g, float* grad_weight) {
  const int64_t spans = images * p.OH * ((p.OW + kOutputs - 1) / kOutputs);
  const int64_t pieces = int64_t{p.KH} * ((p.KW + Piece::kTaps - 1) / Piece::kTaps);
  const PieceWriter writer{grad_weight, p.C, p.KH, p.KW};
  constexpr int N = kWeightChannels, kLeast = 8 / kOutputs;
  if (p.C % N == 0 && aligned(x, g))
    reduce_columns<N>(PieceWeight<T, N, kOutputs>{p, x, g, spans}, writer, pieces, spans, p.C,
                      kLeast);
  else
    reduce_columns<1>(PieceWeight<T, 1, kOutputs>{p, x, g, spans}, writer, pieces, spans, p.C,
                      kLeast);
}

void backward_weight(const ConvParams& params, const void* input, const void* grad_output,
                     void* grad_weight) {
  if (!sizes_fit(params)) return;
  const Depthwise p(params);
  const int64_t count = p.C * p.KH * p.KW;
  Workspace sums(count * 4);
  with_type(params.dtype, [&](auto type) {
    using T = decltype(type);
    const int stride = span_stride(p);
    const auto run = stride == 1                  ? span_weight<T, 1>
                     : stride == 2                ? span_weight<T, 2>
                     : p.stride_w == p.dilation_w ? piece_weight<T, 4>
                                                  : piece_weight<T, 1>;
    run(p, params.N, static_cast<const T*>(input), static_cast<const T*>(grad_output),
        sums.as<float>());
  });
  add_parts(sums.as<float>(), 1, count, params.grad_dtype, grad_weight);
}

}  // namespace

void fill_conv_depthwise(Slots& slots) {
  slots.conv.depthwise_forward = forward;
  slots.conv.depthwise_backward_data = backward_data;
  slots.conv.depthwise_backward_weight = backward_weight;
}

}  // namespace fastnn::cuda
