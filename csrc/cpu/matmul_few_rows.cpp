// Products of a few rows with a large matrix: fully connected layers of small batches. Each number
// of the matrix serves so few multiply-adds that packing it would cost more than they do: it is
// read once, in its own order, by vectors of its type, and multiplied in steps (simd/steps.h).
//
//   out = a w^T + bias   a row of w at a time: LANES / 2 rows of a by two rows of w are LANES sums,
//                        one vector each, which one transposition adds up. a is cut into pieces
//                        that stay in L1 while all rows of a task pass over them.
//   out = a w            a task owns some columns, whose sums stay in L1; it adds eight rows of w
//                        at a time.
//
// Floor: w over the bandwidth of memory.
#include "core/allocator.h"
#include "cpu/simd/transpose.h"
#include "cpu/simd/steps.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int kTogether = LANES / 2;  // rows of a
constexpr int64_t kPiece = 512;       // of the reduction, of a w^T
constexpr int64_t kTaskRows = 32;     // of w
constexpr int kDeep = 8;              // rows of w at a time, of a w
constexpr int64_t kSums = 8192;       // of a task, of a w

FASTNN_INLINE int64_t at_most(int64_t x, int64_t limit) { return x < limit ? x : limit; }

// a as [piece][row][kPiece], rows padded to whole groups and all of it with zeros.
template <class T, class P>
void spread(const FewRows& p, const T* a, P* to, int64_t rows) {
  parallel_for(ceil_div(p.inner, kPiece), [&](int64_t piece) {
    const int64_t from = piece * kPiece, count = at_most(p.inner - from, kPiece);
    P* const out = to + piece * rows * kPiece;
    __builtin_memset(static_cast<void*>(out), 0, sizeof(P) * static_cast<size_t>(rows * kPiece));
    for (int64_t r = 0; r < p.rows; ++r)
      vector_loop(0, count, [&](int64_t i, int n) {
        store_any(out + r * kPiece + i, load_any(a + r * p.inner + from + i, n), n);
      });
  });
}

// sums[s * kTogether + r] += a piece of row r of a times that of row s of w, s in {0, 1}.
template <class P, class T>
FASTNN_INLINE void multiply(const P* a, const T* w0, const T* w1, int64_t count, const T* next0,
                            const T* next1, float* sums) {
  vfloat acc[LANES] = {};
  constexpr int64_t kValues = LANES * kStep<P>;
  const auto steps = [&](int64_t i, int64_t n) FASTNN_INLINED {
    __builtin_prefetch(next0 + i);
    __builtin_prefetch(next1 + i);
    const vfloat first = load_steps_any(w0 + i, n, P{});
    const vfloat second = load_steps_any(w1 + i, n, P{});
#pragma GCC unroll 8
    for (int r = 0; r < kTogether; ++r) {
      const vfloat value = load_steps(a + r * kPiece + i);  // zeros beyond the end
      add_step(acc[r], value, first, P{});
      add_step(acc[kTogether + r], value, second, P{});
    }
  };
  int64_t i = 0;
  for (; i + kValues <= count; i += kValues) steps(i, kValues);
  if (i < count) steps(i, count - i);
  transpose(acc);
  vfloat total = acc[0];
  for (int i = 1; i < LANES; ++i) total += acc[i];
  store(sums, load(sums) + total);
}

template <class T>
void rows_typed(const FewRows& p, const T* a, const T* w, const float* bias, T* out) {
  const int64_t groups = ceil_div(p.rows, kTogether), rows = groups * kTogether;
  const int64_t pieces = ceil_div(p.inner, kPiece);
  using P = Operand<T>;
  Workspace room(pieces * rows * kPiece * int64_t{sizeof(P)});
  P* const spread_a = reinterpret_cast<P*>(room.floats());
  spread(p, a, spread_a, rows);
  parallel_ranges(p.columns, kTaskRows, [&](int64_t begin, int64_t end) {
    // [pair of rows of w][group of rows of a][LANES]
    alignas(64) float sums[kTaskRows / 2 * kFewRows / kTogether * LANES] = {};
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t from = piece * kPiece, count = at_most(p.inner - from, kPiece);
      for (int64_t o = begin; o < end; o += 2) {
        const T* const w0 = w + o * p.inner + from;
        const T* const w1 = o + 1 < end ? w0 + p.inner : w0;
        const T* const next = o + 2 < end ? w0 + 2 * p.inner : w + begin * p.inner + from + kPiece;
        for (int64_t group = 0; group < groups; ++group)
          multiply(spread_a + (piece * rows + group * kTogether) * kPiece, w0, w1, count, next,
                   next + p.inner, sums + ((o - begin) / 2 * groups + group) * LANES);
      }
    }
    for (int64_t r = 0; r < p.rows; ++r)
      for (int64_t o = begin; o < end; ++o) {
        const int64_t place = ((o - begin) / 2 * groups + r / kTogether) * LANES;
        const float sum = sums[place + (o - begin) % 2 * kTogether + r % kTogether];
        from_float(out[r * p.columns + o], bias ? sum + bias[o] : sum);
      }
  });
}

// sums[r] += the kDeep numbers of row r of a times as many rows of w, of which `left` exist, over
// `count` columns.
template <class P, class T>
FASTNN_INLINE void add_rows(const FewRows& p, const P* a, const T* w, int64_t left, int64_t count,
                            float* sums, int64_t pitch) {
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
void columns_typed(const FewRows& p, const T* a, const T* w, T* out) {
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
  const int64_t share = ceil_div(p.columns, 4 * get_num_threads() * LANES) * LANES;
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

void few_rows(const FewRows& p, const void* a, const void* w, const float* bias, void* out) {
  if (p.dtype == DType::float32)
    rows_typed(p, static_cast<const float*>(a), static_cast<const float*>(w), bias,
               static_cast<float*>(out));
  else
    rows_typed(p, static_cast<const bfloat16*>(a), static_cast<const bfloat16*>(w), bias,
               static_cast<bfloat16*>(out));
}

void few_rows_turned(const FewRows& p, const void* a, const void* w, void* out) {
  if (p.dtype == DType::float32)
    columns_typed(p, static_cast<const float*>(a), static_cast<const float*>(w),
                  static_cast<float*>(out));
  else
    columns_typed(p, static_cast<const bfloat16*>(a), static_cast<const bfloat16*>(w),
                  static_cast<bfloat16*>(out));
}

}  // namespace

void fill_matmul_few_rows(Slots& slots) { slots.matmul = {few_rows, few_rows_turned}; }

}  // namespace fastnn::cpu::FASTNN_ISA
