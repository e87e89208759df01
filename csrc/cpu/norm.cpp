// Batch, instance and group norm: vectors run over channels of NHWC pixels.
//
// Segments are cut into chunks of pixels by shape. A chunk computes its channel means, then its
// sums of squared deviations from them while it is still in L2 (two passes, no cancellation, memory
// read once); chunks merge in order by Chan's formula. Apply and backward are one pass each. Bytes,
// forward: 2 reads (moments, apply) and 1 write of x; the floor is these over the copy bandwidth.
#include "core/allocator.h"
#include "cpu/moments.h"
#include "cpu/simd/vec.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// Pixels per chunk: 128 KiB of float32, so that a chunk's second pass finds it in L2.
int64_t chunk_pixels(const NormShape& s) {
  const int64_t fit = 32768 / (s.C > 0 ? s.C : 1);
  return fit < 16 ? 16 : fit;
}

// body(rows, c, i, n) for the vectors of channels c of whole pixels [begin, end): of rows.count
// pixels at once, whose values are at i, i + C, ... What belongs to a channel is loaded once for
// them. Rows of many channels are taken one by one: memory is read and written in order.
constexpr int64_t kFewChannels = 96;

template <int N>
struct Rows {
  static constexpr int count = N;
};
template <class Body>
FASTNN_INLINE void each_row(int64_t C, int64_t begin, int64_t end, const Body& body) {
  int64_t pixel = begin;
  for (; C <= kFewChannels && pixel + 4 * C <= end; pixel += 4 * C)
    vector_loop(0, C, [&](int64_t c, int n) FASTNN_INLINED { body(Rows<4>{}, c, pixel + c, n); });
  for (; pixel < end; pixel += C)
    vector_loop(0, C, [&](int64_t c, int n) FASTNN_INLINED { body(Rows<1>{}, c, pixel + c, n); });
}

template <class T>
void channel_moments_typed(const NormShape& s, const T* x, float* mean, float* m2) {
  const int64_t C = s.C, step = chunk_pixels(s), chunks = (s.P + step - 1) / step;
  Workspace parts((s.S * chunks * 3 * C + 1) * 4);
  parallel_for(s.S * chunks, [&](int64_t task) {
    const int64_t begin = task % chunks * step;
    const int64_t n = begin + step < s.P ? step : s.P - begin;
    const T* from = x + (task / chunks * s.P + begin) * C;
    float* sum = parts.floats() + task * 3 * C;
    float* square = sum + C;
    float* rest = square + C;
    __builtin_memset(sum, 0, sizeof(float) * static_cast<size_t>(3 * C));
    each_row(C, 0, n * C, [&](auto rows, int64_t c, int64_t i, int l) FASTNN_INLINED {
      vfloat total = load_any(sum + c, l);
#pragma GCC unroll 4
      for (int u = 0; u < rows.count; ++u) total += load_ahead(from + i + u * C, l);
      store_any(sum + c, total, l);
    });
    const float inverse = 1.0f / static_cast<float>(n);
    for (int64_t c = 0; c < C; ++c) sum[c] *= inverse;
    each_row(C, 0, n * C, [&](auto rows, int64_t c, int64_t i, int l) FASTNN_INLINED {
      const vfloat m = load_any(sum + c, l);
      vfloat total = load_any(rest + c, l), squares = load_any(square + c, l);
#pragma GCC unroll 4
      for (int u = 0; u < rows.count; ++u) {
        const vfloat away = load_any(from + i + u * C, l) - m;
        total += away;
        squares += away * away;
      }
      store_any(rest + c, total, l);
      store_any(square + c, squares, l);
    });
    // Where the mean is far from zero the first sum was rounded coarsely; what the deviations still
    // add up to is its error (the corrected two-pass algorithm of Chan, Golub and LeVeque, 1983).
    for (int64_t c = 0; c < C; ++c) {
      const float error = rest[c] * inverse;
      sum[c] += error;
      square[c] -= rest[c] * error;
    }
  });
  parallel_for(s.S, [&](int64_t segment) {
    vector_loop(0, C, [&](int64_t c, int l) {
      Moments all;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const float* part = parts.floats() + (segment * chunks + chunk) * 3 * C + c;
        const int64_t begin = chunk * step;
        const float n = static_cast<float>(begin + step < s.P ? step : s.P - begin);
        all.add(n, load_any(part, l), load_any(part + C, l));
      }
      store_any(mean + segment * C + c, all.mean, l);
      store_any(m2 + segment * C + c, all.m2, l);
    });
  });
}

// body(segment, first element, last element) over chunks of whole pixels.
template <class Body>
FASTNN_INLINE void each_chunk(const NormShape& s, const Body& body) {
  const int64_t step = chunk_pixels(s), chunks = (s.P + step - 1) / step;
  parallel_for(s.S * chunks, [&](int64_t task) {
    const int64_t segment = task / chunks, begin = task % chunks * step;
    const int64_t end = begin + step < s.P ? begin + step : s.P;
    body(segment, (segment * s.P + begin) * s.C, (segment * s.P + end) * s.C);
  });
}

template <class T>
void channel_apply_typed(const NormShape& s, const T* x, const float* mean, const float* scale,
                         const float* bias, const T* residual, FusedRelu relu, T* y) {
  const Route route = route_to(y, s.C);
  each_chunk(s, [&](int64_t segment, int64_t begin, int64_t end) {
    const int64_t at = segment * s.C;
    each_row(s.C, begin, end, [&](auto rows, int64_t c, int64_t first, int n) FASTNN_INLINED {
      const vfloat m = load_any(mean + at + c, n), factor = load_any(scale + at + c, n);
      const vfloat shift = load_any(bias + at + c, n);
#pragma GCC unroll 4
      for (int u = 0; u < rows.count; ++u) {
        const int64_t i = first + u * s.C;
        vfloat v = (load_ahead(x + i, n) - m) * factor + shift;
        if (residual) v += load_any(residual + i, n);
        if (relu) v = vclamp(v, vfloat{}, set1(relu.ceiling));
        store_any(y + i, v, n, route);
      }
    });
  });
}

// What the gradient needs of one vector of channels: the mean, and the mask's coefficients.
struct ChannelMask {
  vfloat mean, scale, bias;
};
FASTNN_INLINE ChannelMask channel_mask(const NormMask& mask, const float* mean, int64_t c, int n) {
  if (!mask.scale || mask.y) return {load_any(mean + c, n), vfloat{}, vfloat{}};
  return {load_any(mean + c, n), load_any(mask.scale + c, n), load_any(mask.bias + c, n)};
}

// The gradient where a fused relu let its input pass (or there is none); `away` is x - mean.
template <class T>
FASTNN_INLINE vfloat passed(const T* g, const NormMask& mask, const ChannelMask& channel,
                            vfloat away, int64_t i, int n) {
  const vfloat v = load_ahead(g + i, n);
  if (!mask.y && !mask.scale) return v;
  const vfloat out =
      mask.y ? load_any(static_cast<const T*>(mask.y) + i, n) : away * channel.scale + channel.bias;
  const vfloat above = select(out <= 0, vfloat{}, v);
  return mask.relu.capped() ? select(out >= mask.relu.ceiling, vfloat{}, above) : above;
}

template <class T>
void channel_grad_sums_typed(const NormShape& s, const T* g, const T* x, const NormMask& mask,
                             const float* mean, float* sum_g, float* sum_gx) {
  const int64_t C = s.C, step = chunk_pixels(s), chunks = (s.P + step - 1) / step;
  Workspace parts((s.S * chunks * 2 * C + 1) * 4);
  each_chunk(s, [&](int64_t segment, int64_t begin, int64_t end) {
    const int64_t chunk = (begin / C - segment * s.P) / step;
    float* sums = parts.floats() + (segment * chunks + chunk) * 2 * C;
    __builtin_memset(sums, 0, sizeof(float) * static_cast<size_t>(2 * C));
    each_row(C, begin, end, [&](auto rows, int64_t c, int64_t i, int n) FASTNN_INLINED {
      const ChannelMask channel = channel_mask(mask, mean, segment * C + c, n);
      vfloat first = load_any(sums + c, n), second = load_any(sums + C + c, n);
#pragma GCC unroll 4
      for (int u = 0; u < rows.count; ++u) {
        const vfloat away = load_ahead(x + i + u * C, n) - channel.mean;
        const vfloat grad = passed(g, mask, channel, away, i + u * C, n);
        first += grad;
        second += grad * away;
      }
      store_any(sums + c, first, n);
      store_any(sums + C + c, second, n);
    });
  });
  parallel_for(s.S, [&](int64_t segment) {
    vector_loop(0, C, [&](int64_t c, int n) {
      vfloat first{}, second{};
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const float* sums = parts.floats() + (segment * chunks + chunk) * 2 * C;
        first += load_any(sums + c, n);
        second += load_any(sums + C + c, n);
      }
      store_any(sum_g + segment * C + c, first, n);
      store_any(sum_gx + segment * C + c, second, n);
    });
  });
}

template <class T>
void channel_grad_apply_typed(const NormShape& s, const T* g, const T* x, const NormMask& mask,
                              const float* mean, const float* a, const float* b, const float* d,
                              T* grad_x, T* grad_residual) {
  const Route route = route_to(grad_x, s.C), residual_route = route_to(grad_residual, s.C);
  each_chunk(s, [&](int64_t segment, int64_t begin, int64_t end) {
    const int64_t at = segment * s.C;
    each_row(s.C, begin, end, [&](auto rows, int64_t c, int64_t first, int n) FASTNN_INLINED {
      const ChannelMask channel = channel_mask(mask, mean, at + c, n);
      const vfloat factor = load_any(a + at + c, n), slope = load_any(b + at + c, n);
      const vfloat shift = load_any(d + at + c, n);
#pragma GCC unroll 4
      for (int u = 0; u < rows.count; ++u) {
        const int64_t i = first + u * s.C;
        const vfloat away = load_ahead(x + i, n) - channel.mean;
        const vfloat grad = passed(g, mask, channel, away, i, n);
        store_any(grad_x + i, grad * factor + away * slope + shift, n, route);
        if (grad_residual) store_any(grad_residual + i, grad, n, residual_route);
      }
    });
  });
}

// Few channels fill no vector: `together` neighbouring pixels are then taken as one of that many
// times the channels, which a segment's pixels fall into without a rest.
struct Widened {
  int64_t together = 1;
  NormShape s;

  explicit Widened(const NormShape& of) : s(of) {
    constexpr int64_t kWide = 256;  // channels, at most
    if (of.C >= 2 * LANES || of.C % LANES == 0) return;
    const auto idle = [&](int64_t m) { return -of.C * m & (LANES - 1); };  // lanes
    for (int64_t m = 2; m * of.C <= kWide && m <= of.P; ++m) {
      if (of.P % m) continue;
      const int64_t more = idle(m) * together - idle(together) * m;
      if (more < 0 || (more == 0 && m * of.C <= kFewChannels)) together = m;
    }
    s.P /= together;
    s.C *= together;
  }
  // Sums of S x C channels, of those of the pixels together.
  void add(const float* from, float* to) const {
    const int64_t C = s.C / together;
    for (int64_t i = 0; i < s.S; ++i, from += s.C, to += C)
      for (int64_t c = 0; c < C; ++c) {
        float sum = 0;
        for (int64_t m = 0; m < together; ++m) sum += from[m * C + c];
        to[c] = sum;
      }
  }
  // Moments likewise (Chan's formula for parts of equal size).
  void merge(const float* means, const float* m2s, float* mean, float* m2) const {
    const int64_t C = s.C / together;
    add(m2s, m2);
    for (int64_t i = 0; i < s.S; ++i, means += s.C, mean += C, m2 += C)
      for (int64_t c = 0; c < C; ++c) {
        float sum = 0, squares = 0;
        for (int64_t m = 1; m < together; ++m) sum += means[m * C + c] - means[c];
        mean[c] = means[c] + sum / static_cast<float>(together);
        for (int64_t m = 0; m < together; ++m) {
          const float away = means[m * C + c] - mean[c];
          squares += away * away;
        }
        m2[c] += squares * static_cast<float>(s.P);
      }
  }
};

// S x C values as the widened kernels read them: themselves, or a repeated copy; null stays null.
class Repeated {
 public:
  Repeated(const Widened& w, const float* values)
      : room_(w.together > 1 && values ? w.s.S * w.s.C * 4 : 0), at_(values) {
    if (w.together == 1 || !values) return;
    const int64_t C = w.s.C / w.together;
    float* to = room_.floats();
    at_ = to;
    for (int64_t i = 0; i < w.s.S * w.together; ++i, to += C)
      __builtin_memcpy(to, values + i / w.together * C, sizeof(float) * static_cast<size_t>(C));
  }
  operator const float*() const { return at_; }

 private:
  Workspace room_;
  const float* at_;
};

// f(T{}) with the type of the values.
template <class F>
FASTNN_INLINE void with_type(DType dtype, const F& f) {
  if (dtype == DType::float32)
    f(float{});
  else
    f(bfloat16{});
}

void channel_moments(const NormShape& s, const void* x, float* mean, float* m2) {
  const Widened w(s);
  const bool wide = w.together > 1;
  Workspace room(wide ? 2 * w.s.S * w.s.C * 4 : 0);
  float* const means = wide ? room.floats() : mean;
  float* const m2s = wide ? means + w.s.S * w.s.C : m2;
  with_type(s.dtype, [&](auto type) {
    channel_moments_typed(w.s, static_cast<const decltype(type)*>(x), means, m2s);
  });
  if (wide) w.merge(means, m2s, mean, m2);
}

void channel_apply(const NormShape& s, const void* x, const float* mean, const float* scale,
                   const float* bias, const void* residual, FusedRelu relu, void* y) {
  const Widened w(s);
  const Repeated means(w, mean), scales(w, scale), biases(w, bias);
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    channel_apply_typed(w.s, static_cast<const T*>(x), means, scales, biases,
                        static_cast<const T*>(residual), relu, static_cast<T*>(y));
  });
}

void channel_grad_sums(const NormShape& s, const void* g, const void* x, const NormMask& mask,
                       const float* mean, float* sum_g, float* sum_gx) {
  const Widened w(s);
  const Repeated means(w, mean), scales(w, mask.scale), biases(w, mask.bias);
  const bool wide = w.together > 1;
  Workspace room(wide ? 2 * w.s.S * w.s.C * 4 : 0);
  float* const sums_g = wide ? room.floats() : sum_g;
  float* const sums_gx = wide ? sums_g + w.s.S * w.s.C : sum_gx;
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    channel_grad_sums_typed(w.s, static_cast<const T*>(g), static_cast<const T*>(x),
                            {mask.y, scales, biases, mask.relu}, means, sums_g, sums_gx);
  });
  if (wide) w.add(sums_g, sum_g), w.add(sums_gx, sum_gx);
}

void channel_grad_apply(const NormShape& s, const void* g, const void* x, const NormMask& mask,
                        const float* mean, const float* a, const float* b, const float* d,
                        void* grad_x, void* grad_residual) {
  const Widened w(s);
  const Repeated means(w, mean), scales(w, mask.scale), biases(w, mask.bias);
  const Repeated factors(w, a), slopes(w, b), shifts(w, d);
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    channel_grad_apply_typed(w.s, static_cast<const T*>(g), static_cast<const T*>(x),
                             {mask.y, scales, biases, mask.relu}, means, factors, slopes, shifts,
                             static_cast<T*>(grad_x), static_cast<T*>(grad_residual));
  });
}

}  // namespace

void fill_norm(Slots& slots) {
  slots.norm.channel_moments = channel_moments;
  slots.norm.channel_apply = channel_apply;
  slots.norm.channel_grad_sums = channel_grad_sums;
  slots.norm.channel_grad_apply = channel_grad_apply;
}

}  // namespace fastnn::cpu::FASTNN_ISA
