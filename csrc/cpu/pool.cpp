// Max and average pooling: vectors run over channels of NHWC pixels, one task per image row.
//
// Max pooling keeps the index of the winner within its window in 8 bits (PyTorch: 64), so the
// backward pass reads an eighth of the bytes. Both backward passes gather: an input pixel adds up
// the windows it is in, in a fixed order, and is written once; no atomics, no zeroing. Floor: read
// x, write y (and indices); for overlapping windows the re-reads come from L1.
#include "core/allocator.h"
#include "cpu/simd/vec.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

FASTNN_INLINE void store_index(uint8_t* p, vint v, int n) { store_bytes(p, to_bytes(v), n); }
FASTNN_INLINE void store_index(int32_t* p, vint v, int n) {
  __builtin_memcpy(p, &v, sizeof(int32_t) * static_cast<size_t>(n));
}
FASTNN_INLINE vint load_index(const uint8_t* p, int n) { return from_bytes(load_bytes(p, n)); }
FASTNN_INLINE vint load_index(const int32_t* p, int n) {
  vint v{};
  __builtin_memcpy(&v, p, sizeof(int32_t) * static_cast<size_t>(n));
  return v;
}

// The taps of a window that meet the input: [begin, end).
struct Inside {
  int64_t begin, end;
};
FASTNN_INLINE Inside taps_inside(const PoolAxis& a, int64_t window) {
  const int64_t start = a.start[window], taps = a.taps[window];
  return {start < 0 ? ceil_div(-start, a.dilation) : 0,
          start + (taps - 1) * a.dilation < a.in ? taps : ceil_div(a.in - start, a.dilation)};
}

// One window of an image: its taps inside, and where they lie.
template <class T>
struct Window {
  Inside rows, cols;
  const T* corner;
  int64_t row, col, extent;  // from one tap to the next, and taps of a row

  // body(tap, where its channel 0 lies)
  template <class Body>
  FASTNN_INLINED inline void each(const Body& body) const {
    const T* first = corner + rows.begin * row + cols.begin * col;
    for (int64_t i = rows.begin; i < rows.end; ++i, first += row) {
      const T* from = first;
      auto tap = static_cast<int32_t>(i * extent + cols.begin);
      for (int64_t j = cols.begin; j < cols.end; ++j, ++tap, from += col) body(tap, from);
    }
  }
};

// body(window, oh, ow, output pixel) for all windows.
template <class T, class Body>
FASTNN_INLINE void each_window(const PoolParams& p, const T* x, const Body& body) {
  const int64_t row = p.h.dilation * p.w.in * p.C, col = p.w.dilation * p.C;
  parallel_for(p.N * p.h.out, [&](int64_t task) {
    const int64_t oh = task % p.h.out;
    const T* image = x + task / p.h.out * p.h.in * p.w.in * p.C;
    const Inside rows = taps_inside(p.h, oh);
    for (int64_t ow = 0; ow < p.w.out; ++ow) {
      const T* const corner = image + (p.h.start[oh] * p.w.in + p.w.start[ow]) * p.C;
      body(Window<T>{rows, taps_inside(p.w, ow), corner, row, col, p.w.extent}, oh, ow,
           task * p.w.out + ow);
    }
  });
}

// A NaN wins over anything before it.
template <class T>
__attribute__((noinline)) void max_with_nan(const Window<T>& window, int64_t c, int n, vfloat& best,
                                            vint& winner) {
  window.each([&](int32_t tap, const T* from) FASTNN_INLINED {
    const vfloat v = load_any(from + c, n);
    winner = v > best ? vint{} + tap : winner;
    winner = v != v ? vint{} + tap : winner;
    best = v > best ? v : best;
    best = v != v ? v : best;
  });
}

template <class T, class I>
void max_typed(const PoolParams& p, const T* x, T* y, I* indices) {
  const Route route = route_to(y, p.C);
  each_window(p, x, [&](const Window<T>& window, int64_t, int64_t, int64_t pixel) FASTNN_INLINED {
    const Inside &rows = window.rows, &cols = window.cols;
    const bool empty = rows.begin >= rows.end || cols.begin >= cols.end;
    // The first tap wins even if it is -inf. A window that lies in the padding as a whole has no
    // winner: tap 0, which no input meets.
    const auto first = static_cast<int32_t>(empty ? 0 : rows.begin * p.w.extent + cols.begin);
    vectors_loop<4>(0, p.C, [&](int64_t c, auto vectors, int n) FASTNN_INLINED {
      constexpr int V = decltype(vectors)::count;
      vfloat best[V], any[V] = {};  // any: a NaN if there was one (or both infinities)
      vint winner[V];
      for (int v = 0; v < V; ++v) best[v] = set1(-__builtin_inff()), winner[v] = vint{} + first;
      window.each([&](int32_t tap, const T* from) FASTNN_INLINED {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          const vfloat value = load_ahead(from + c + v * LANES, n);
          const auto larger = value > best[v];
          winner[v] = larger ? vint{} + tap : winner[v];
          best[v] = larger ? value : best[v];
          any[v] += value;
        }
      });
      for (int v = 0; v < V; ++v) {
        const int64_t at = pixel * p.C + c + v * LANES;
        if (any_nan(any[v])) {
          best[v] = set1(-__builtin_inff()), winner[v] = vint{} + first;
          max_with_nan(window, c + v * LANES, n, best[v], winner[v]);
        }
        store_any(y + at, best[v], n, route);
        store_index(indices + at, winner[v], n);
      }
    });
  });
}

// A window that an input pixel is in: where its output lies, which of its taps the pixel is, and
// what its average divides by.
struct Hit {
  int64_t output;
  int32_t tap;
  float divisor;
};
FASTNN_INLINE int64_t most_hits(const PoolAxis& a) {
  int64_t most = 0;
  for (int64_t i = 0; i < a.in; ++i)
    if (a.first[i + 1] - a.first[i] > most) most = a.first[i + 1] - a.first[i];
  return most;
}

// The j-th windows that a vector of an input row is in, whose lanes are several pixels of few
// channels: the outputs lie within a vector too, `n` of them from `base` in their row on.
struct alignas(64) FewHits {
  int32_t lane[LANES];  // where they are in it
  int32_t tap[LANES];  // which of the window's columns the pixel is; kNoTap: not in as many windows
  float divisor[LANES];  // of the column
  int64_t base;
  int n;
};
constexpr int32_t kNoTap = -(1 << 30);

// [vector of an input row][j], for as many windows as a pixel is in at most. False if some outputs
// are further apart than a vector: windows of dilated taps.
bool plan_few(const PoolParams& p, int64_t most, FewHits* to) {
  const PoolAxis& a = p.w;
  for (int64_t i = 0; i < a.in * p.C; i += LANES)
    for (int64_t j = 0; j < most; ++j, ++to) {
      int64_t at[LANES], low = a.out * p.C, high = -1;
      for (int l = 0; l < LANES; ++l) {
        const int64_t pixel = (i + l) / p.C, c = (i + l) % p.C;
        at[l] = -1, to->tap[l] = kNoTap, to->divisor[l] = 1;
        if (pixel >= a.in || a.first[pixel] + j >= a.first[pixel + 1]) continue;
        const int64_t hit = a.first[pixel] + j, window = a.hits[2 * hit];
        at[l] = window * p.C + c;
        to->tap[l] = static_cast<int32_t>(a.hits[2 * hit + 1]);
        to->divisor[l] = a.divisor[window];
        low = at[l] < low ? at[l] : low, high = at[l] > high ? at[l] : high;
      }
      if (high - low >= LANES) return false;
      to->base = low;
      to->n = static_cast<int>(a.out * p.C - low < LANES ? a.out * p.C - low : LANES);
      for (int l = 0; l < LANES; ++l)
        to->lane[l] = at[l] < 0 ? 0 : static_cast<int32_t>(at[l] - low);
    }
  return true;
}

// The gradient of the input: sums of part(hits, output row, kernel row, divisor) over the windows
// that a vector's pixels are in, in the order of sum_windows.
template <class T, class Part>
FASTNN_INLINE void sum_few(const PoolParams& p, const FewHits* plan, int64_t most, T* grad_x,
                           const Part& part) {
  const int64_t width = p.w.in * p.C;
  const Route route = route_to(grad_x, width);
  parallel_for(p.N * p.h.in, [&](int64_t task) {
    const int64_t h = task % p.h.in, image = task / p.h.in;
    const FewHits* hits = plan;
    vector_loop(0, width, [&](int64_t i, int n) FASTNN_INLINED {
      vfloat sum{};
      for (int64_t a = p.h.first[h]; a < p.h.first[h + 1]; ++a) {
        const int64_t oh = p.h.hits[2 * a];
        const int64_t row = (image * p.h.out + oh) * p.w.out * p.C;
        const auto first_tap = static_cast<int32_t>(p.h.hits[2 * a + 1] * p.w.extent);
        for (int64_t j = 0; j < most; ++j) sum += part(hits[j], row, first_tap, p.h.divisor[oh]);
      }
      hits += most;
      store_any(grad_x + task * width + i, sum, n, route);
    });
  });
}

// The gradient of an input pixel: sums of part(hit, c, n), channels c to c + n - 1, over the
// windows that it is in.
template <class T, class Part>
FASTNN_INLINE void sum_windows(const PoolParams& p, T* grad_x, const Part& part) {
  const int64_t C = p.C, most = most_hits(p.h) * most_hits(p.w);
  const Route route = route_to(grad_x, C);
  parallel_for(p.N * p.h.in, [&](int64_t task) {
    auto* const hits = static_cast<Hit*>(thread_scratch(most * int64_t{sizeof(Hit)}));
    const int64_t h = task % p.h.in, image = task / p.h.in;
    for (int64_t w = 0; w < p.w.in; ++w) {
      int64_t count = 0;
      for (int64_t a = p.h.first[h]; a < p.h.first[h + 1]; ++a)
        for (int64_t b = p.w.first[w]; b < p.w.first[w + 1]; ++b) {
          const int64_t oh = p.h.hits[2 * a], ow = p.w.hits[2 * b];
          const int64_t tap = p.h.hits[2 * a + 1] * p.w.extent + p.w.hits[2 * b + 1];
          hits[count++] = {((image * p.h.out + oh) * p.w.out + ow) * C, static_cast<int32_t>(tap),
                           p.h.divisor[oh] * p.w.divisor[ow]};
        }
      T* const to = grad_x + (task * p.w.in + w) * C;
      vectors_loop<4>(0, C, [&](int64_t c, auto vectors, int n) FASTNN_INLINED {
        constexpr int V = decltype(vectors)::count;
        vfloat sums[V] = {};
        for (int64_t i = 0; i < count; ++i) {
          const Hit hit = hits[i];
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) sums[v] += part(hit, c + v * LANES, n);
        }
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store_any(to + c + v * LANES, sums[v], n, route);
      });
    }
  });
}

// The gradient of the input, by vectors of several pixels where those do, which `few` is for.
template <class T, class One, class Few>
FASTNN_INLINE void sum_hits(const PoolParams& p, T* grad_x, const One& one, const Few& few) {
  constexpr int64_t kNearPlan = 1 << 18;  // bytes; every row of the input reads all of it
  const int64_t most = most_hits(p.w), vectors = ceil_div(p.w.in * p.C, LANES);
  const int64_t size = vectors * most * int64_t{sizeof(FewHits)};
  if (p.C < LANES && !p.wide && size <= kNearPlan) {
    Workspace room(size);
    auto* const plan = reinterpret_cast<FewHits*>(room.floats());
    if (plan_few(p, most, plan)) return sum_few(p, plan, most, grad_x, few);
  }
  sum_windows(p, grad_x, one);
}

template <class T, class I>
void max_backward_typed(const PoolParams& p, const T* g, const I* indices, T* grad_x) {
  const auto one = [=](const Hit& hit, int64_t c, int n) FASTNN_INLINED {
    const vint mine = load_index(indices + hit.output + c, n) == hit.tap;
    return select(mine, load_any(g + hit.output + c, n), vfloat{});
  };
  const auto few = [=](const FewHits& hits, int64_t row, int32_t first_tap, float) FASTNN_INLINED {
    const vint lane = load_index(hits.lane, LANES), tap = load_index(hits.tap, LANES);
    const int64_t at = row + hits.base;
    const vfloat winners = as_float(load_index(indices + at, hits.n));
    const vint mine = as_int(permuted(winners, lane)) == tap + first_tap;
    return select(mine, permuted(load_any(g + at, hits.n), lane), vfloat{});
  };
  sum_hits(p, grad_x, one, few);
}

template <class I>
void flat_typed(const PoolParams& p, const I* indices, int64_t* flat) {
  parallel_for(p.N * p.h.out, [&](int64_t task) {
    const int64_t oh = task % p.h.out;
    for (int64_t ow = 0; ow < p.w.out; ++ow)
      for (int64_t c = 0; c < p.C; ++c) {
        const int64_t at = (task * p.w.out + ow) * p.C + c;
        const int64_t h = p.h.start[oh] + indices[at] / p.w.extent * p.h.dilation;
        const int64_t w = p.w.start[ow] + indices[at] % p.w.extent * p.w.dilation;
        flat[at] = h * p.w.in + w;
      }
  });
}

template <class T>
void average_typed(const PoolParams& p, const T* x, T* y) {
  const Route route = route_to(y, p.C);
  each_window(p, x,
              [&](const Window<T>& window, int64_t oh, int64_t ow, int64_t pixel) FASTNN_INLINED {
                const float divisor = p.h.divisor[oh] * p.w.divisor[ow];
                vectors_loop<4>(0, p.C, [&](int64_t c, auto vectors, int n) FASTNN_INLINED {
                  constexpr int V = decltype(vectors)::count;
                  vfloat sums[V] = {};
                  window.each([&](int32_t, const T* from) FASTNN_INLINED {
#pragma GCC unroll 4
                    for (int v = 0; v < V; ++v) sums[v] += load_ahead(from + c + v * LANES, n);
                  });
                  for (int v = 0; v < V; ++v)
                    store_any(y + pixel * p.C + c + v * LANES, sums[v] / divisor, n, route);
                });
              });
}

template <class T>
void average_backward_typed(const PoolParams& p, const T* g, T* grad_x) {
  const auto one = [=](const Hit& hit, int64_t c, int n)
                       FASTNN_INLINED { return load_any(g + hit.output + c, n) / hit.divisor; };
  const auto few = [=](const FewHits& hits, int64_t row, int32_t, float divisor) FASTNN_INLINED {
    const vint lane = load_index(hits.lane, LANES), tap = load_index(hits.tap, LANES);
    const vfloat value = permuted(load_any(g + row + hits.base, hits.n), lane);
    return select(tap == kNoTap, vfloat{}, value / (load(hits.divisor) * divisor));
  };
  sum_hits(p, grad_x, one, few);
}

template <class T>
void max_of(const PoolParams& p, const void* x, void* y, void* indices) {
  if (p.wide)
    max_typed(p, static_cast<const T*>(x), static_cast<T*>(y), static_cast<int32_t*>(indices));
  else
    max_typed(p, static_cast<const T*>(x), static_cast<T*>(y), static_cast<uint8_t*>(indices));
}

template <class T>
void max_backward_of(const PoolParams& p, const void* g, const void* indices, void* grad_x) {
  if (p.wide)
    max_backward_typed(p, static_cast<const T*>(g), static_cast<const int32_t*>(indices),
                       static_cast<T*>(grad_x));
  else
    max_backward_typed(p, static_cast<const T*>(g), static_cast<const uint8_t*>(indices),
                       static_cast<T*>(grad_x));
}

void max(const PoolParams& p, const void* x, void* y, void* indices) {
  p.dtype == DType::float32 ? max_of<float>(p, x, y, indices) : max_of<bfloat16>(p, x, y, indices);
}

void max_backward(const PoolParams& p, const void* g, const void* indices, void* grad_x) {
  p.dtype == DType::float32 ? max_backward_of<float>(p, g, indices, grad_x)
                            : max_backward_of<bfloat16>(p, g, indices, grad_x);
}

void flat_indices(const PoolParams& p, const void* indices, int64_t* flat) {
  p.wide ? flat_typed(p, static_cast<const int32_t*>(indices), flat)
         : flat_typed(p, static_cast<const uint8_t*>(indices), flat);
}

void average(const PoolParams& p, const void* x, void* y) {
  if (p.dtype == DType::float32)
    average_typed(p, static_cast<const float*>(x), static_cast<float*>(y));
  else
    average_typed(p, static_cast<const bfloat16*>(x), static_cast<bfloat16*>(y));
}

void average_backward(const PoolParams& p, const void* g, void* grad_x) {
  if (p.dtype == DType::float32)
    average_backward_typed(p, static_cast<const float*>(g), static_cast<float*>(grad_x));
  else
    average_backward_typed(p, static_cast<const bfloat16*>(g), static_cast<bfloat16*>(grad_x));
}

}  // namespace

void fill_pool(Slots& slots) {
  slots.pool = {max, max_backward, flat_indices, average, average_backward};
}

}  // namespace fastnn::cpu::FASTNN_ISA
