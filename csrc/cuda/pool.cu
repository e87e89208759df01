// Max and average pooling: a thread takes a few neighbouring channels of one output pixel
// (backward: of one input pixel).
//
// Max pooling keeps the winner's index within its window in 8 bits. Both backward passes gather: an
// input pixel adds up the windows it is in, in a fixed order, and is written once; no atomics, no
// zeroing. Floor: read x, write y (and indices); for overlapping windows the re-reads come from L1.
//
// One window over each whole image would leave a thread with all pixels: its columns are reduced
// (device/columns.h).
#include "cuda/device/columns.h"
#include "cuda/device/pixels.h"
#include "ops/slots.h"

namespace fastnn::cuda {
namespace {

// The tables in the device's memory.
PoolAxis on_device(const PoolAxis& a) {
  PoolAxis d = a;
  d.start = constant_table(a.start, a.out);
  d.taps = constant_table(a.taps, a.out);
  d.divisor = constant_table(a.divisor, a.out);
  d.first = constant_table(a.first, a.in + 1);
  d.hits = a.first[a.in] ? constant_table(a.hits, 2 * a.first[a.in]) : nullptr;
  return d;
}
PoolParams on_device(const PoolParams& p) {
  PoolParams d = p;
  d.h = on_device(p.h);
  d.w = on_device(p.w);
  return d;
}

template <class T, class I, int N>
struct Max {
  PoolParams p;
  const T* x;
  T* y;
  I* indices;
  __device__ void operator()(const Place& o) const {
    const T* const image = x + o.image * p.h.in * p.w.in * p.C + o.pack * N;
    float best[N];
    int winner[N];
    for (int n = 0; n < N; ++n) best[n] = -INFINITY, winner[n] = -1;
    for (int64_t i = 0; i < p.h.taps[o.h]; ++i) {
      const int64_t h = p.h.start[o.h] + i * p.h.dilation;
      if (h < 0 || h >= p.h.in) continue;
      for (int64_t j = 0; j < p.w.taps[o.w]; ++j) {
        const int64_t w = p.w.start[o.w] + j * p.w.dilation;
        if (w < 0 || w >= p.w.in) continue;
        float v[N];
        load_floats(image + (h * p.w.in + w) * p.C, v);
        const int tap = static_cast<int>(i * p.w.extent + j);
        for (int n = 0; n < N; ++n)
          // The first tap wins even if it is -inf; a NaN wins over anything before it.
          if (v[n] > best[n] || v[n] != v[n] || winner[n] < 0) best[n] = v[n], winner[n] = tap;
      }
    }
    const int64_t at = o.at(p.h.out, p.w.out, p.C / N) * N;
    store_floats(y + at, best);
    Pack<I, N> out;
    // A window that lies in the padding as a whole has no winner: tap 0, which no input meets.
    for (int n = 0; n < N; ++n) out.at[n] = static_cast<I>(winner[n] < 0 ? 0 : winner[n]);
    *reinterpret_cast<Pack<I, N>*>(indices + at) = out;
  }
};

template <class T, class I, int N>
struct MaxBackward {
  PoolParams p;
  const T* g;
  const I* indices;
  T* grad_x;
  __device__ void operator()(const Place& in) const {
    const int64_t c = in.pack * N;
    float sum[N] = {};
    for (int64_t a = p.h.first[in.h]; a < p.h.first[in.h + 1]; ++a)
      for (int64_t b = p.w.first[in.w]; b < p.w.first[in.w + 1]; ++b) {
        const int64_t tap = p.h.hits[2 * a + 1] * p.w.extent + p.w.hits[2 * b + 1];
        const int64_t from =
            ((in.image * p.h.out + p.h.hits[2 * a]) * p.w.out + p.w.hits[2 * b]) * p.C + c;
        float v[N];
        load_floats(g + from, v);
        const auto winner = *reinterpret_cast<const Pack<I, N>*>(indices + from);
        for (int n = 0; n < N; ++n)
          if (winner.at[n] == static_cast<I>(tap)) sum[n] += v[n];
      }
    store_floats(grad_x + in.at(p.h.in, p.w.in, p.C / N) * N, sum);
  }
};

template <class I>
struct Flat {
  PoolParams p;
  const I* indices;
  int64_t* flat;
  __device__ void operator()(const Place& o) const {
    const int64_t at = o.at(p.h.out, p.w.out, p.C);
    const int64_t h = p.h.start[o.h] + indices[at] / p.w.extent * p.h.dilation;
    const int64_t w = p.w.start[o.w] + indices[at] % p.w.extent * p.w.dilation;
    flat[at] = h * p.w.in + w;
  }
};

template <class T, int N>
struct Average {
  PoolParams p;
  const T* x;
  T* y;
  __device__ void operator()(const Place& o) const {
    const T* const image = x + o.image * p.h.in * p.w.in * p.C + o.pack * N;
    float sum[N] = {};
    for (int64_t i = 0; i < p.h.taps[o.h]; ++i) {
      const int64_t h = p.h.start[o.h] + i;
      if (h < 0 || h >= p.h.in) continue;
      for (int64_t j = 0; j < p.w.taps[o.w]; ++j) {
        const int64_t w = p.w.start[o.w] + j;
        if (w < 0 || w >= p.w.in) continue;
        float v[N];
        load_floats(image + (h * p.w.in + w) * p.C, v);
        for (int n = 0; n < N; ++n) sum[n] += v[n];
      }
    }
    const float divisor = p.h.divisor[o.h] * p.w.divisor[o.w];
    for (int n = 0; n < N; ++n) sum[n] /= divisor;
    store_floats(y + o.at(p.h.out, p.w.out, p.C / N) * N, sum);
  }
};

template <class T, int N>
struct AverageBackward {
  PoolParams p;
  const T* g;
  T* grad_x;
  __device__ void operator()(const Place& in) const {
    const int64_t c = in.pack * N;
    float sum[N] = {};
    for (int64_t a = p.h.first[in.h]; a < p.h.first[in.h + 1]; ++a)
      for (int64_t b = p.w.first[in.w]; b < p.w.first[in.w + 1]; ++b) {
        const int64_t oh = p.h.hits[2 * a], ow = p.w.hits[2 * b];
        float v[N];
        load_floats(g + ((in.image * p.h.out + oh) * p.w.out + ow) * p.C + c, v);
        const float divisor = p.h.divisor[oh] * p.w.divisor[ow];
        for (int n = 0; n < N; ++n) sum[n] += v[n] / divisor;
      }
    store_floats(grad_x + in.at(p.h.in, p.w.in, p.C / N) * N, sum);
  }
};

// Whether the one window of each image is all of it; `p` on the host.
bool is_global(const PoolParams& p) {
  const auto whole = [](const PoolAxis& a) {
    return a.out == 1 && a.start[0] == 0 && a.taps[0] == a.in && a.dilation == 1;
  };
  return whole(p.h) && whole(p.w);
}

// The first largest; a NaN wins over what comes before it.
struct Winner {
  float value = -INFINITY;
  int tap = -1;  // none
  FASTNN_MEMBER void add(const Winner& other) {
    const bool nan = value != value, other_nan = other.value != other.value,
               before = tap < other.tap;
    const bool equal = nan || other_nan ? nan && other_nan : value == other.value;
    if (other.tap < 0) return;
    if (tap < 0 || (equal ? before == nan : other_nan || other.value > value)) *this = other;
  }
};
template <class T, class I>
struct WinnerWriter {
  T* y;
  I* indices;
  FASTNN_MEMBER void write(int64_t at, const Winner& w) const {
    from_float(y[at], w.value);
    indices[at] = static_cast<I>(w.tap);
  }
};
template <class T, int N>
struct GlobalMax {
  using State = Winner;
  const T* x;
  int64_t pixels;

  struct Column : OneOperand<T, N> {
    static constexpr int kAhead = 4;
    struct Fetched {
      Pack<T, N> x;
      int tap;
    };
    int64_t first;  // the image's first pixel
    Winner state[N];
    FASTNN_MEMBER Column(const GlobalMax& body, int64_t segment, int64_t)
        : OneOperand<T, N>{body.x}, first(segment * body.pixels) {}
    FASTNN_MEMBER void fetch(int64_t row, int64_t at, Fetched& to) const {
      to = {load_pack<N>(this->x + at), static_cast<int>(row - first)};
    }
    FASTNN_MEMBER void use(int64_t, const Fetched& from) {
      float v[N];
      to_floats(from.x, v);
      for (int n = 0; n < N; ++n) state[n].add({v[n], from.tap});
    }
  };
};

template <class T>
struct AverageWriter {
  T* y;
  float divisor;
  FASTNN_MEMBER void write(int64_t at, const OneSum& s) const {
    from_float(y[at], s.sum / divisor);
  }
};

template <class F>
void each_output(const PoolParams& p, int N, const F& f) {
  each_place(p.N, p.h.out, p.w.out, p.C / N, f);
}
template <class F>
void each_input(const PoolParams& p, int N, const F& f) {
  each_place(p.N, p.h.in, p.w.in, p.C / N, f);
}

// f(T, index type, N) with the channels that a thread takes at a time.
template <class F>
void typed(const PoolParams& p, const F& f, const void* x, const void* y,
           const void* indices = nullptr) {
  with_type(p.dtype, [&](auto type) {
    const auto indexed = [&](auto index) {
      with_pack<decltype(type)>(p.C, [&](auto pack) { f(type, index, pack); }, x, y, indices);
    };
    p.wide ? indexed(int32_t{}) : indexed(uint8_t{});
  });
}

void max(const PoolParams& host, const void* x, void* y, void* indices) {
  const bool global = is_global(host);
  const PoolParams p = global ? host : on_device(host);
  typed(
      p,
      [&](auto t, auto i, auto n) {
        using T = decltype(t);
        using I = decltype(i);
        constexpr int N = decltype(n)::value;
        const T* const from = static_cast<const T*>(x);
        T* const to = static_cast<T*>(y);
        I* const winners = static_cast<I*>(indices);
        const int64_t pixels = p.h.in * p.w.in;
        if (global)
          reduce_columns<N>(GlobalMax<T, N>{from, pixels}, WinnerWriter<T, I>{to, winners}, p.N,
                            pixels, p.C);
        else
          each_output(p, N, Max<T, I, N>{p, from, to, winners});
      },
      x, y, indices);
}

void max_backward(const PoolParams& host, const void* g, const void* indices, void* grad_x) {
  const PoolParams p = on_device(host);
  typed(
      p,
      [&](auto t, auto i, auto n) {
        using T = decltype(t);
        using I = decltype(i);
        constexpr int N = decltype(n)::value;
        each_input(p, N,
                   MaxBackward<T, I, N>{p, static_cast<const T*>(g), static_cast<const I*>(indices),
                                        static_cast<T*>(grad_x)});
      },
      g, grad_x, indices);
}

void flat_indices(const PoolParams& host, const void* indices, int64_t* flat) {
  const PoolParams p = on_device(host);
  if (p.wide)
    each_output(p, 1, Flat<int32_t>{p, static_cast<const int32_t*>(indices), flat});
  else
    each_output(p, 1, Flat<uint8_t>{p, static_cast<const uint8_t*>(indices), flat});
}

void average(const PoolParams& host, const void* x, void* y) {
  const bool global = is_global(host);
  const PoolParams p = global ? host : on_device(host);
  typed(
      p,
      [&](auto t, auto, auto n) {
        using T = decltype(t);
        constexpr int N = decltype(n)::value;
        const T* const from = static_cast<const T*>(x);
        T* const to = static_cast<T*>(y);
        if (global)
          reduce_columns<N>(ColumnSums<T, N>{from},
                            AverageWriter<T>{to, host.h.divisor[0] * host.w.divisor[0]}, p.N,
                            p.h.in * p.w.in, p.C);
        else
          each_output(p, N, Average<T, N>{p, from, to});
      },
      x, y);
}

void average_backward(const PoolParams& host, const void* g, void* grad_x) {
  const PoolParams p = on_device(host);
  typed(
      p,
      [&](auto t, auto, auto n) {
        using T = decltype(t);
        constexpr int N = decltype(n)::value;
        each_input(p, N,
                   AverageBackward<T, N>{p, static_cast<const T*>(g), static_cast<T*>(grad_x)});
      },
      g, grad_x);
}

}  // namespace

void fill_pool(Slots& slots) {
  slots.pool = {max, max_backward, flat_indices, average, average_backward};
}

}  // namespace fastnn::cuda
