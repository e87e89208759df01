// Products of a few rows with a matrix: fully connected layers of small batches. Each number of the
// matrix serves so few multiply-adds that packing it would cost more than they do: it is read once,
// in its own order, by vectors of its type, and multiplied in steps (simd/steps.h).
//
//   out = a w^T + bias   R rows of a by W = LANES / R rows of w are LANES sums, one vector each,
//                        whose lanes are added up at the end of a piece (W + R loads for LANES
//                        multiply-adds). A piece of W rows of w stays in L1 for all rows of a,
//                        which fetch the next meanwhile.
//   out = a w            a task owns some columns, whose sums stay in L1; it adds eight rows of w
//                        at a time.
//   out = a^T g          a row of the output is a sum of a few rows of g, which stay in L1.
//
// Floor: w, or the output of the last, over the bandwidth of memory.
#include "core/allocator.h"
#include "cpu/matmul_rows.h"
#include "cpu/simd/transpose.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kPieceSteps = 512;      // of a w^T, where pieces are used more than once
constexpr int64_t kTaskRows = 2 * LANES;  // of w, of a w^T
constexpr int kDeep = 8;                  // rows of w at a time, of a w
constexpr int64_t kSums = 8192;           // of a task, of a w
constexpr int64_t kWork = 32 << 10;       // multiply-adds that are worth another thread

// sums[r][s] += a piece of row r of a times that of row s of w, for R of the one and LANES / R of
// the other; `first`: = instead. Brings as much of F rows from `next` on.
template <int R, int F, class P, class T>
FASTNN_INLINE void multiply(const P* a, int64_t a_row, const T* w, int64_t w_row, int64_t count,
                            const T* next, bool first, float* sums) {
  constexpr int W = LANES / R;
  constexpr int64_t kValues = LANES * kStep<P>;
  vfloat acc[LANES] = {};
  const auto steps = [&](int64_t i, int64_t n) FASTNN_INLINED {
    vfloat value[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) value[r] = load_steps(a + r * a_row + i);  // zeros beyond the end
#pragma GCC unroll 16
    for (int s = 0; s < W; ++s) {
      if (s < F) __builtin_prefetch(next + s * w_row + i);
      const vfloat row = load_steps_any(w + s * w_row + i, n, P{});
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) add_step(acc[r * W + s], value[r], row, P{});
    }
  };
  int64_t i = 0;
  for (; i + kValues <= count; i += kValues) steps(i, kValues);
  if (i < count) steps(i, count - i);
  const vfloat total = sum_lanes(acc);
  store(sums, first ? total : load(sums) + total);
}

template <int R, class T>
void rows_typed(const MatmulParams& p, const T* a, const T* w, const float* bias, T* out) {
  using P = Operand<T>;
  constexpr int64_t W = LANES / R, kValues = LANES * kStep<P>;
  const int64_t groups = ceil_div(p.rows, R), rows = groups * R;
  const int64_t whole = ceil_div(p.inner, kValues) * kValues;
  const int64_t depth = groups == 1 ? whole : at_most(whole, kPieceSteps * kStep<P>);
  const int64_t pieces = ceil_div(p.inner, depth);
  const bool many = groups >= W;  // one row fetched by each of W groups, or all by the first
  Workspace room(pieces * rows * depth * int64_t{sizeof(P)});
  P* const spread_a = reinterpret_cast<P*>(room.floats());
  spread(p, a, rows, depth, spread_a);
  parallel_ranges(p.columns, kTaskRows, [&](int64_t begin, int64_t end) {
    // The last W rows of w may overlap the ones before.
    const auto row_of = [&](int64_t o) { return at_most(o, p.columns - W); };
    alignas(64) float sums[kTaskRows * kFewRows];  // [W rows of w][group][R][W]
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t from = piece * depth, count = at_most(p.inner - from, depth);
      float* to = sums;
      for (int64_t o = begin; o < end; o += W) {
        const T* const of_w = w + row_of(o) * p.inner + from;
        const T* const next = o + W < end ? w + row_of(o + W) * p.inner + from
                                          : w + row_of(begin) * p.inner + from + depth;
        const P* of_a = spread_a + from * rows;
        for (int64_t group = 0; group < groups; ++group, of_a += R * depth, to += LANES) {
          const bool fetches = group < (many ? W : 1);
          (many ? multiply<R, 1, P, T>
                : multiply<R, W, P, T>)(of_a, depth, of_w, p.inner, count,
                                        fetches ? next + group * p.inner : of_w, piece == 0, to);
        }
      }
    }
    // Whole rows before any is read again: a vector of parts just written would wait for them.
    alignas(64) float turned[kFewRows * kTaskRows];
    for (int64_t r = 0; r < p.rows; ++r)
      for (int64_t o = begin; o < end; o += W) {
        const int64_t again = o - row_of(o);
        __builtin_memcpy(turned + r * kTaskRows + o - begin,
                         sums + (o - begin) * rows + r / R * LANES + r % R * W + again,
                         sizeof(float) * static_cast<size_t>(W - again));
      }
    for (int64_t r = 0; r < p.rows; ++r)
      vector_loop(begin, end, [&](int64_t o, int n) {
        const vfloat sum = load(turned + r * kTaskRows + o - begin);
        store_any(out + r * p.columns + o, bias ? sum + load_any(bias + o, n) : sum, n);
      });
  });
}

// sums[r] += the kDeep numbers of row r of a times as many rows of w, of which `left` exist, over
// `count` columns.
template <class P, class T>
FASTNN_INLINE void add_rows(const MatmulParams& p, const P* a, const T* w, int64_t left,
                            int64_t count, float* sums, int64_t pitch) {
  constexpr int64_t step = kStep<P>;
  vector_loop(0, count, [&](int64_t i, int n) FASTNN_INLINED {
    const auto row = [&](int64_t k) FASTNN_INLINED {
      __builtin_prefetch(w + (kDeep + k) * p.columns + i);
      return k < left ? load_any(w + k * p.columns + i, n) : vfloat{};
    };
    vfloat rows[kDeep / step];
#pragma GCC unroll 8
    for (int64_t k = 0; k < kDeep; k += step)
      rows[k / step] = step == 2 ? paired(row(k), row(k + 1)) : row(k);
    for (int64_t r = 0; r < p.rows; ++r) {
      vfloat sum = load(sums + r * pitch + i);
#pragma GCC unroll 8
      for (int64_t k = 0; k < kDeep; k += step)
        add_step(sum, set1_step(a + r * kDeep + k), rows[k / step], P{});
      store(sums + r * pitch + i, sum);
    }
  });
}

template <class T>
void columns_typed(const MatmulParams& p, const T* a, const T* w, T* out) {
  // a as [eight of the reduction][row][8], padded with zeros.
  using P = Operand<T>;
  const int64_t depth = ceil_div(p.inner, kDeep);
  Workspace room(depth * p.rows * kDeep * int64_t{sizeof(P)});
  P* const turned = reinterpret_cast<P*>(room.floats());
  for (int64_t d = 0; d < depth; ++d)
    for (int64_t r = 0; r < p.rows; ++r)
      for (int64_t k = 0; k < kDeep; ++k) {
        const bool there = d * kDeep + k < p.inner;
        from_float(turned[(d * p.rows + r) * kDeep + k],
                   there ? to_float(a[r * p.inner + d * kDeep + k]) : 0.0f);
      }
  // Where they end changes no result.
  const int64_t least = ceil_div(kWork, depth * kDeep * p.rows * LANES) * LANES;
  const int64_t even = ceil_div(p.columns, 4 * get_num_threads() * LANES) * LANES;
  const int64_t share = even > least ? even : least;
  const int64_t pitch = at_most(share, kSums / p.rows / LANES * LANES);
  parallel_ranges(p.columns, pitch, [&](int64_t begin, int64_t end) {
    alignas(64) float sums[kSums] = {};
    for (int64_t d = 0; d < depth; ++d) {
      const P* const numbers = turned + d * p.rows * kDeep;
      const T* const from = w + d * kDeep * p.columns + begin;
      const int64_t left = p.inner - d * kDeep;
      if (left >= kDeep)  // as a constant: no row is asked for
        add_rows(p, numbers, from, kDeep, end - begin, sums, pitch);
      else
        add_rows(p, numbers, from, left, end - begin, sums, pitch);
    }
    for (int64_t r = 0; r < p.rows; ++r)
      vector_loop(begin, end, [&](int64_t i, int n) {
        store_any(out + r * p.columns + i, load(sums + r * pitch + i - begin), n);
      });
  });
}

template <class T, class D>
void outer_typed(const MatmulParams& p, const T* a, const T* g, D* out) {
  const Route route = route_to(out, p.columns);
  parallel_ranges(p.inner, ceil_div(kWork, p.rows * p.columns), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k)
      vectors_loop<4>(0, p.columns, [&](int64_t i, auto vectors, int n) FASTNN_INLINED {
        constexpr int V = decltype(vectors)::count;
        vfloat sums[V] = {};
        for (int64_t r = 0; r < p.rows; ++r)
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v)
            sums[v] +=
                to_float(a[r * p.inner + k]) * load_any(g + r * p.columns + i + v * LANES, n);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
          store_any(out + k * p.columns + i + v * LANES, sums[v], n, route);
      });
  });
}

template <class T>
void rows_of(const MatmulParams& p, const void* a, const void* w, const float* bias, void* out) {
  const auto kernel = p.rows == 1   ? rows_typed<1, T>
                      : p.rows == 2 ? rows_typed<2, T>
                                    : rows_typed<4, T>;
  kernel(p, static_cast<const T*>(a), static_cast<const T*>(w), bias, static_cast<T*>(out));
}
template <class T>
void columns_of(const MatmulParams& p, const void* a, const void* w, void* out) {
  columns_typed(p, static_cast<const T*>(a), static_cast<const T*>(w), static_cast<T*>(out));
}

template <class T>
void outer_of(const MatmulParams& p, const void* a, const void* g, DType dtype, void* out) {
  const auto *const left = static_cast<const T*>(a), *const grad = static_cast<const T*>(g);
  dtype == DType::float32 ? outer_typed(p, left, grad, static_cast<float*>(out))
                          : outer_typed(p, left, grad, static_cast<bfloat16*>(out));
}

}  // namespace

void few_rows(const MatmulParams& p, const void* a, const void* w, const float* bias, void* out) {
  (p.dtype == DType::float32 ? rows_of<float> : rows_of<bfloat16>)(p, a, w, bias, out);
}

void few_rows_turned(const MatmulParams& p, const void* a, const void* w, void* out) {
  (p.dtype == DType::float32 ? columns_of<float> : columns_of<bfloat16>)(p, a, w, out);
}

void few_rows_outer(const MatmulParams& p, const void* a, const void* g, DType dtype, void* out) {
  (p.dtype == DType::float32 ? outer_of<float> : outer_of<bfloat16>)(p, a, g, dtype, out);
}

}  // namespace fastnn::cpu::FASTNN_ISA
