// Nearest and bilinear resampling of NHWC images, one task per image row: first down the columns,
// for all pixels that the row is made of at once, then along the row. Both passes are in float32 in
// a buffer of the first cache, for a strip of the row at a time. There a pixel takes whole vectors,
// whose rest the next pixel overwrites, so that images of few channels need no masks. The backward
// pass does the same with the outputs that read a pixel, in a fixed order. Floor: the larger image
// written or read once; the smaller one comes from cache.
#include "cpu/simd/vec.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kStrip = 2048;  // numbers

// Pixels of a strip that has about kStrip numbers, `wide` being those of one pixel; of few channels
// a multiple of LANES, so that strips end where vectors do.
int64_t strip_pixels(int64_t wide) {
  const int64_t pixels = kStrip / wide;
  return pixels >= LANES ? pixels / LANES * LANES : pixels > 0 ? pixels : 1;
}

// to[i] = a * first[i] + b * second[i], or the first product alone; past `count` up to a vector.
template <class T>
void blend(const T* first, float a, const T* second, float b, int64_t count, float* to) {
  vector_loop(0, count, [&](int64_t i, int n) FASTNN_INLINED {
    vfloat v = load_any(first + i, n) * a;
    if (second) v += load_any(second + i, n) * b;
    store(to + i, v);
  });
}

template <class T>
void flush(const float* from, int64_t count, T* to, Route route) {
  vector_loop(0, count, [&](int64_t i, int n) FASTNN_INLINED {
    store_any(to + i, load(from + i), n, route);
  });
}

// Numbers `from` to `to` - 1 along an axis.
struct Span {
  int64_t from, to;
  int64_t size() const { return to - from; }
};
// The largest span(begin, end) of the strips along an axis of n.
template <class F>
int64_t largest(int64_t n, int64_t strip, const F& span) {
  int64_t most = 0;
  for (int64_t begin = 0; begin < n; begin += strip) {
    const int64_t size = span(begin, begin + strip < n ? begin + strip : n).size();
    if (size > most) most = size;
  }
  return most;
}

template <class T>
void bilinear(const ResampleParams& p, const T* x, T* y) {
  const int64_t C = p.C, strip = strip_pixels(C);
  const bool sparse = p.w.in > 2 * p.w.out;  // most pixels between two that are read are not
  const auto read = [&](int64_t begin, int64_t end) {
    return Span{p.w.low[begin], p.w.high[end - 1] + 1};
  };
  const int64_t most = sparse ? 2 * strip : largest(p.w.out, strip, read);
  const Route route = route_to(y, strip * C);
  parallel_for(p.N * p.h.out, [&](int64_t task) {
    const int64_t oh = task % p.h.out;
    const T* const image = x + task / p.h.out * p.h.in * p.w.in * C;
    const T* const top = image + p.h.low[oh] * p.w.in * C;
    const T* const bottom = image + p.h.high[oh] * p.w.in * C;
    const float v = p.h.share[oh];
    auto* const mixed = static_cast<float*>(thread_scratch(((most + strip) * C + 2 * LANES) * 4));
    float* const line = mixed + most * C + LANES;
    const auto mix = [&](int64_t pixel, int64_t pixels, float* to) {
      blend(top + pixel * C, 1 - v, bottom + pixel * C, v, pixels * C, to);
    };
    for (int64_t begin = 0; begin < p.w.out; begin += strip) {
      const int64_t end = begin + strip < p.w.out ? begin + strip : p.w.out;
      const Span columns = read(begin, end);
      if (!sparse) mix(columns.from, columns.size(), mixed);
      for (int64_t ow = begin; ow < end; ++ow) {
        const float* left = mixed + (p.w.low[ow] - columns.from) * C;
        const float* right = mixed + (p.w.high[ow] - columns.from) * C;
        if (sparse) {
          float* const pair = mixed + (ow - begin) * 2 * C;
          mix(p.w.low[ow], 1, pair);
          mix(p.w.high[ow], 1, pair + C);
          left = pair, right = pair + C;
        }
        const float u = p.w.share[ow];
        float* const to = line + (ow - begin) * C;
        for (int64_t c = 0; c < C; c += LANES)
          store(to + c, load(left + c) * (1 - u) + load(right + c) * u);
      }
      flush(line, (end - begin) * C, y + (task * p.w.out + begin) * C, route);
    }
  });
}

// Bytes as they are. Pixels of whole vectors go straight to the output; others through the buffer,
// in blocks of which the next pixel overwrites the rest.
template <class T>
void nearest(const ResampleParams& p, const T* x, T* y) {
  constexpr int64_t vector = LANES * 4, block = 32;
  const int64_t C = p.C, bytes = C * int64_t{sizeof(T)}, strip = strip_pixels(C);
  const auto* const last =
      reinterpret_cast<const char*>(x + p.N * p.h.in * p.w.in * C) - ceil_div(bytes, block) * block;
  const Route route = route_to(y, C);
  parallel_for(p.N * p.h.out, [&](int64_t task) {
    const int64_t oh = task % p.h.out;
    const T* const row = x + (task / p.h.out * p.h.in + p.h.low[oh]) * p.w.in * C;
    char* const out = reinterpret_cast<char*>(y + task * p.w.out * C);
    const auto pixel = [&](int64_t ow) {
      return reinterpret_cast<const char*>(row + p.w.low[ow] * C);
    };
    if (bytes % vector == 0) {
      for (int64_t ow = 0; ow < p.w.out; ++ow)
        for (int64_t i = 0; i < bytes; i += vector)
          store_any(reinterpret_cast<float*>(out + ow * bytes + i),
                    load(reinterpret_cast<const float*>(pixel(ow) + i)), LANES, route);
      return;
    }
    auto* const line = static_cast<char*>(thread_scratch(strip * bytes + block));
    for (int64_t begin = 0; begin < p.w.out; begin += strip) {
      const int64_t end = begin + strip < p.w.out ? begin + strip : p.w.out;
      char* to = line;
      for (int64_t ow = begin; ow < end; ++ow, to += bytes)
        if (pixel(ow) <= last)
          for (int64_t i = 0; i < bytes; i += block) __builtin_memcpy(to + i, pixel(ow) + i, block);
        else
          __builtin_memcpy(to, pixel(ow), static_cast<size_t>(bytes));
      __builtin_memcpy(out + begin * bytes, line, static_cast<size_t>((end - begin) * bytes));
    }
  });
}

template <class T>
void forward_typed(const ResampleParams& p, const T* x, T* y) {
  if (p.nearest)
    nearest(p, x, y);
  else
    bilinear(p, x, y);
}

template <class T>
void backward_typed(const ResampleParams& p, const T* g, T* grad_x) {
  const int64_t C = p.C, strip = strip_pixels(ceil_div(p.w.out, p.w.in) * C);
  const ResampleAxis &h = p.h, &w = p.w;
  // Outputs that read pixels begin to end - 1: their lists start and end in rising order.
  const auto reached = [&](int64_t begin, int64_t end) {
    const int64_t first = w.first[begin], last = w.first[end];
    return first < last ? Span{w.outputs[first], w.outputs[last - 1] + 1} : Span{0, 0};
  };
  const int64_t most = largest(w.in, strip, reached);
  const Route route = route_to(grad_x, strip * C);
  parallel_for(p.N * h.in, [&](int64_t task) {
    const int64_t row = task % h.in;
    const T* const image = g + task / h.in * h.out * w.out * C;
    if (h.first[row] == h.first[row + 1]) {
      __builtin_memset(grad_x + task * w.in * C, 0, sizeof(T) * static_cast<size_t>(w.in * C));
      return;
    }
    auto* const mixed = static_cast<float*>(thread_scratch(((most + strip) * C + 2 * LANES) * 4));
    float* const line = mixed + most * C + LANES;
    for (int64_t begin = 0; begin < w.in; begin += strip) {
      const int64_t end = begin + strip < w.in ? begin + strip : w.in;
      const Span outputs = reached(begin, end);
      const int64_t count = outputs.size() * C;
      for (int64_t i = 0; i < count; i += LANES) store(mixed + i, vfloat{});
      for (int64_t a = h.first[row]; a < h.first[row + 1]; ++a) {
        const T* const from = image + (h.outputs[a] * w.out + outputs.from) * C;
        vector_loop(0, count, [&](int64_t i, int n) FASTNN_INLINED {
          store(mixed + i, load(mixed + i) + load_ahead(from + i, n) * h.weights[a]);
        });
      }
      for (int64_t i = begin; i < end; ++i)
        for (int64_t c = 0; c < C; c += LANES) {
          vfloat sum{};
          for (int64_t b = w.first[i]; b < w.first[i + 1]; ++b)
            sum += load(mixed + (w.outputs[b] - outputs.from) * C + c) * w.weights[b];
          store(line + (i - begin) * C + c, sum);
        }
      flush(line, (end - begin) * C, grad_x + (task * w.in + begin) * C, route);
    }
  });
}

void forward(const ResampleParams& p, const void* x, void* y) {
  if (p.dtype == DType::float32)
    forward_typed(p, static_cast<const float*>(x), static_cast<float*>(y));
  else
    forward_typed(p, static_cast<const bfloat16*>(x), static_cast<bfloat16*>(y));
}

void backward(const ResampleParams& p, const void* g, void* grad_x) {
  if (p.dtype == DType::float32)
    backward_typed(p, static_cast<const float*>(g), static_cast<float*>(grad_x));
  else
    backward_typed(p, static_cast<const bfloat16*>(g), static_cast<bfloat16*>(grad_x));
}

}  // namespace

void fill_interpolate(Slots& slots) { slots.interpolate = {forward, backward}; }

}  // namespace fastnn::cpu::FASTNN_ISA
