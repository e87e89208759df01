// Batch, instance and group norm: vectors run over channels of NHWC pixels.
//
// Segments are cut into chunks of pixels by shape. A chunk computes its channel means, then its
// sums of squared deviations from them while it is still in L2 (two passes, no cancellation, memory
// read once); chunks merge in order by Chan's formula. Apply is one pass, backward two; before an
// activation's curve the first of these writes its gradient, for the second. Bytes, forward: 2
// reads (moments, apply) and 1 write of x; the floor is these over the copy bandwidth.
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
// them. Rows of more than `few` channels are taken one by one: memory is read and written in order.
constexpr int64_t kFewChannels = 96, kFewInCache = 512;

template <int N>
struct Rows {
  static constexpr int count = N;
};
template <class Body>
FASTNN_INLINE void each_row(int64_t C, int64_t begin, int64_t end, int64_t few, const Body& body) {
  int64_t pixel = begin;
  for (; C <= few && pixel + 4 * C <= end; pixel += 4 * C)
    vector_loop(0, C, [&](int64_t c, int n) FASTNN_INLINED { body(Rows<4>{}, c, pixel + c, n); });
  for (; pixel < end; pixel += C)
    vector_loop(0, C, [&](int64_t c, int n) FASTNN_INLINED { body(Rows<1>{}, c, pixel + c, n); });
}

template <class Body>
FASTNN_INLINE void each_row(int64_t C, int64_t begin, int64_t end, const Body& body) {
  each_row(C, begin, end, kFewChannels, body);
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
    each_row(C, 0, n * C, kFewInCache, [&](auto rows, int64_t c, int64_t i, int l) FASTNN_INLINED {
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

// Values that go through an activation's curve at a time, in float32: so few that a core works on
// the memory of the next ones meanwhile (1024: 0.8 of the speed).
constexpr int64_t kCurved = 256;

// body(begin, end, room) over pieces of elements [first, last): whole pixels, or channels of one,
// with room for the floats of a piece.
template <class Body>
FASTNN_INLINE void each_piece(int64_t C, int64_t first, int64_t last, const Body& body) {
  alignas(64) float room[kCurved];
  const int64_t pixels = C < kCurved ? kCurved / C * C : C;
  for (int64_t pixel = first; pixel < last; pixel += pixels) {
    const int64_t end = pixel + pixels < last ? pixel + pixels : last;
    for (int64_t i = pixel; i < end; i += kCurved)
      body(i, i + kCurved < end ? i + kCurved : end, room);
  }
}

// each_row() over whole pixels or a piece.
template <class Body>
FASTNN_INLINE void each_row_of_piece(int64_t C, int64_t begin, int64_t end, const Body& body) {
  if (end - begin >= C) return each_row(C, begin, end, body);
  const int64_t c = begin % C;
  vector_loop(c, c + end - begin,
              [&](int64_t at, int n) FASTNN_INLINED { body(Rows<1>{}, at, begin - c + at, n); });
}

// What the apply pass computes of each element, before a curve: store(i, value, n) takes it.
template <class T>
struct Applied {
  const T* x;
  const float *mean, *scale, *bias;  // of a segment
  const T* residual;
  FusedRelu relu;

  template <class Store>
  FASTNN_INLINED inline void each(int64_t C, int64_t begin, int64_t end, const Store& store) const {
    each_row_of_piece(C, begin, end, [&](auto rows, int64_t c, int64_t at, int n) FASTNN_INLINED {
      const vfloat m = load_any(mean + c, n), factor = load_any(scale + c, n);
      const vfloat shift = load_any(bias + c, n);
#pragma GCC unroll 4
      for (int u = 0; u < rows.count; ++u) {
        const int64_t i = at + u * C;
        vfloat v = (load_ahead(x + i, n) - m) * factor + shift;
        if (residual) v += load_any(residual + i, n);
        if (relu) v = vclamp(v, vfloat{}, set1(relu.ceiling));
        store(i, v, n);
      }
    });
  }
};

template <class T>
void channel_apply_typed(const NormShape& s, const T* x, const float* mean, const float* scale,
                         const float* bias, const T* residual, const FusedActivation& fused, T* y) {
  const Route route = route_to(y, s.C);
  const FusedCurve curve = fused.curve;
  each_chunk(s, [&](int64_t segment, int64_t begin, int64_t end) {
    const int64_t at = segment * s.C;
    const Applied<T> values{x, mean + at, scale + at, bias + at, residual, fused.relu};
    if (!curve)
      return values.each(s.C, begin, end, [&](int64_t i, vfloat v, int n) FASTNN_INLINED {
        store_any(y + i, v, n, route);
      });
    each_piece(s.C, begin, end, [&](int64_t from, int64_t to, float* room) {
      values.each(s.C, from, to, [&](int64_t i, vfloat v, int n) FASTNN_INLINED {
        store_any(room + (i - from), v, n);
      });
      curve.apply(curve.kind, room, to - from, s.dtype);
      // One by one: a piece may begin within a cache line, of which all has to take the same way.
      vector_loop(from, to, [&](int64_t i, int n) FASTNN_INLINED {
        store_any(y + i, load_any(room + (i - from), n), n, route);
      });
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

// The gradient before a fused ReLU (or there is none); `away` is x - mean.
template <class T>
FASTNN_INLINE vfloat passed(const T* g, const NormMask& mask, const ChannelMask& channel,
                            vfloat away, int64_t i, int n) {
  const vfloat v = load_ahead(g + i, n);
  if (!mask.y && !mask.scale) return v;
  const vfloat out =
      mask.y ? load_any(static_cast<const T*>(mask.y) + i, n) : away * channel.scale + channel.bias;
  const vfloat above = select(out <= 0, vfloat{}, v);
  const FusedRelu relu = mask.activation.relu;
  return relu.capped() ? select(out >= relu.ceiling, vfloat{}, above) : above;
}

// Adds up what each chunk of pixels wrote to 2 C floats of `parts`, in order.
void add_chunks(const NormShape& s, const float* parts, float* sum_g, float* sum_gx) {
  const int64_t C = s.C, step = chunk_pixels(s), chunks = (s.P + step - 1) / step;
  parallel_for(s.S, [&](int64_t segment) {
    vector_loop(0, C, [&](int64_t c, int n) {
      vfloat first{}, second{};
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const float* sums = parts + (segment * chunks + chunk) * 2 * C;
        first += load_any(sums + c, n);
        second += load_any(sums + C + c, n);
      }
      store_any(sum_g + segment * C + c, first, n);
      store_any(sum_gx + segment * C + c, second, n);
    });
  });
}

// body(segment, first element, last element, sums) over chunks, whose sums are then added up.
template <class Body>
FASTNN_INLINE void each_summed_chunk(const NormShape& s, float* sum_g, float* sum_gx,
                                     const Body& body) {
  const int64_t C = s.C, step = chunk_pixels(s), chunks = (s.P + step - 1) / step;
  Workspace parts((s.S * chunks * 2 * C + 1) * 4);
  each_chunk(s, [&](int64_t segment, int64_t begin, int64_t end) {
    const int64_t chunk = (begin / C - segment * s.P) / step;
    float* sums = parts.floats() + (segment * chunks + chunk) * 2 * C;
    __builtin_memset(sums, 0, sizeof(float) * static_cast<size_t>(2 * C));
    body(segment, begin, end, sums);
  });
  add_chunks(s, parts.floats(), sum_g, sum_gx);
}

template <class T>
void channel_grad_sums_typed(const NormShape& s, const T* g, const T* x, const NormMask& mask,
                             const float* mean, float* sum_g, float* sum_gx) {
  const int64_t C = s.C;
  each_summed_chunk(
      s, sum_g, sum_gx, [&](int64_t segment, int64_t begin, int64_t end, float* sums) {
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
}

template <class T>
void channel_grad_curve_typed(const NormShape& s, const T* g, const T* x, const NormMask& mask,
                              const float* mean, float* sum_g, float* sum_gx, T* before) {
  const int64_t C = s.C;
  const FusedCurve curve = mask.activation.curve;
  const Route route = route_to(before, C);
  each_summed_chunk(
      s, sum_g, sum_gx, [&](int64_t segment, int64_t begin, int64_t end, float* sums) {
        each_piece(C, begin, end, [&](int64_t from, int64_t to, float* slopes) {
          each_row_of_piece(
              C, from, to, [&](auto rows, int64_t c, int64_t first, int n) FASTNN_INLINED {
                const ChannelMask channel = channel_mask(mask, mean, segment * C + c, n);
#pragma GCC unroll 4
                for (int u = 0; u < rows.count; ++u) {
                  const int64_t i = first + u * C;
                  const vfloat away = load_ahead(x + i, n) - channel.mean;
                  store_any(slopes + (i - from), away * channel.scale + channel.bias, n);
                }
              });
          curve.slope(curve.kind, slopes, to - from, s.dtype);
          each_row_of_piece(
              C, from, to, [&](auto rows, int64_t c, int64_t first, int n) FASTNN_INLINED {
                const vfloat m = load_any(mean + segment * C + c, n);
                vfloat sum = load_any(sums + c, n), product = load_any(sums + C + c, n);
#pragma GCC unroll 4
                for (int u = 0; u < rows.count; ++u) {
                  const int64_t i = first + u * C;
                  const vfloat slope = load_any(slopes + (i - from), n);
                  // An infinite gradient does not pass where the curve is flat.
                  const vfloat grad = select(slope == 0, vfloat{}, load_ahead(g + i, n) * slope);
                  store_any(before + i, grad, n, route);
                  sum += grad;
                  product += grad * (load_any(x + i, n) - m);
                }
                store_any(sums + c, sum, n);
                store_any(sums + C + c, product, n);
              });
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

  // `sums`: of a single vector, too, whose sums would wait for each other.
  explicit Widened(const NormShape& of, bool sums = false) : s(of) {
    constexpr int64_t kWide = 256;  // channels, at most
    if (of.C >= 2 * LANES || (of.C == LANES && !sums)) return;
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

// Room for both sums of the widened kernels, added up to those of the channels at the end.
class WidenedSums {
 public:
  WidenedSums(const Widened& w, float* sum_g, float* sum_gx)
      : w_(w), room_(w.together > 1 ? 2 * w.s.S * w.s.C * 4 : 0), to_{sum_g, sum_gx} {
    const bool wide = w.together > 1;
    g = wide ? room_.floats() : sum_g;
    gx = wide ? g + w.s.S * w.s.C : sum_gx;
  }
  ~WidenedSums() {
    if (w_.together > 1) w_.add(g, to_[0]), w_.add(gx, to_[1]);
  }
  float *g, *gx;

 private:
  const Widened& w_;
  Workspace room_;
  float* to_[2];
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
  const Widened w(s, true);
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
                   const float* bias, const void* residual, const FusedActivation& fused, void* y) {
  const Widened w(s);
  const Repeated means(w, mean), scales(w, scale), biases(w, bias);
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    channel_apply_typed(w.s, static_cast<const T*>(x), means, scales, biases,
                        static_cast<const T*>(residual), fused, static_cast<T*>(y));
  });
}

void channel_grad_sums(const NormShape& s, const void* g, const void* x, const NormMask& mask,
                       const float* mean, float* sum_g, float* sum_gx) {
  const Widened w(s);
  const Repeated means(w, mean), scales(w, mask.scale), biases(w, mask.bias);
  const WidenedSums sums(w, sum_g, sum_gx);
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    channel_grad_sums_typed(w.s, static_cast<const T*>(g), static_cast<const T*>(x),
                            {mask.y, scales, biases, mask.activation}, means, sums.g, sums.gx);
  });
}

void channel_grad_curve(const NormShape& s, const void* g, const void* x, const NormMask& mask,
                        const float* mean, float* sum_g, float* sum_gx, void* before) {
  const Widened w(s);
  const Repeated means(w, mean), scales(w, mask.scale), biases(w, mask.bias);
  const WidenedSums sums(w, sum_g, sum_gx);
  with_type(s.dtype, [&](auto type) {
    using T = decltype(type);
    channel_grad_curve_typed(w.s, static_cast<const T*>(g), static_cast<const T*>(x),
                             {nullptr, scales, biases, mask.activation}, means, sums.g, sums.gx,
                             static_cast<T*>(before));
  });
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
                             {mask.y, scales, biases, mask.activation}, means, factors, slopes,
                             shifts, static_cast<T*>(grad_x), static_cast<T*>(grad_residual));
  });
}

}  // namespace

void fill_norm(Slots& slots) {
  slots.norm.channel_moments = channel_moments;
  slots.norm.channel_apply = channel_apply;
  slots.norm.channel_grad_sums = channel_grad_sums;
  slots.curves.channel_grad_sums = channel_grad_curve;
  slots.norm.channel_grad_apply = channel_grad_apply;
}

}  // namespace fastnn::cpu::FASTNN_ISA
