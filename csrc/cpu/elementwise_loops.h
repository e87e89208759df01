// The loop nests that all elementwise kernels share.
//
// ops/elementwise.cpp has sorted and merged the dimensions, so the innermost one is as long as it
// can be. It is cut into blocks of kGrain elements, and blocks of all rows are dealt to threads. In
// a row, two loops: operands contiguous and of one dtype (plain vector loads), and the general one,
// where each operand is contiguous, constant along the row, or strided, float32 or bfloat16; its
// branches are the same at every step of a row and cost nothing beside memory.
#pragma once

#include "cpu/simd/vec.h"
#include "ops/elementwise.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// `rows` rows one after the other along the last dimension but one.
typedef void (*RowsCall)(const void* row, const ElementwiseParams& p, char* out,
                         const char* const* in, int64_t n, int64_t rows);

// Once, out of line, for all operators.
__attribute__((noinline, unused)) void walk_rows(const ElementwiseParams& p, RowsCall call,
                                                 const void* row) {
  const int last = p.rank - 1;
  const int64_t columns = p.shape[last];
  int64_t rows = 1;
  for (int i = 0; i < last; ++i) rows *= p.shape[i];
  const int64_t width = columns < kGrain ? columns : kGrain;
  const int64_t blocks = (columns + width - 1) / width;
  parallel_ranges(rows * blocks, (kGrain + width - 1) / width, [&](int64_t begin, int64_t end) {
    int64_t index[kMaxRank];
    char* out = static_cast<char*>(p.out);
    const char* in[kMaxOperands];
    for (int k = 0; k < p.operands; ++k) in[k] = static_cast<const char*>(p.in[k]);
    const auto advance = [&](int dim, int64_t by) {
      out += by * p.out_steps[dim];
      for (int k = 0; k < p.operands; ++k)
        if (in[k]) in[k] += by * p.in_steps[k][dim];
    };
    int64_t block = begin % blocks, rest = begin / blocks;
    for (int i = last - 1; i >= 0; --i) {
      index[i] = rest % p.shape[i];
      rest /= p.shape[i];
      advance(i, index[i]);
    }
    advance(last, block * width);
    for (int64_t task = begin, some; task < end; task += some) {
      const int64_t left = columns - block * width;
      some = last > 0 && blocks == 1 ? p.shape[last - 1] - index[last - 1] : 1;
      some = some < end - task ? some : end - task;
      call(row, p, out, in, left < width ? left : width, some);
      if (++block < blocks) {
        advance(last, width);
        continue;
      }
      advance(last, -(blocks - 1) * width);
      block = 0;
      int64_t steps = some;
      for (int i = last - 1; i >= 0; --i, steps = 1) {
        advance(i, steps);
        if ((index[i] += steps) < p.shape[i]) break;
        advance(i, -p.shape[i]);
        index[i] = 0;
      }
    }
  });
}

// row(out, in, n): n elements from out and from each operand (null where it is a number).
template <class Row>
void for_rows(const ElementwiseParams& p, const Row& row) {
  const RowsCall call = [](const void* context, const ElementwiseParams& all, char* out,
                           const char* const* first, int64_t n, int64_t rows) {
    const char* in[kMaxOperands];
    for (int k = 0; k < all.operands; ++k) in[k] = first[k];
    for (int64_t i = 0;;) {
      (*static_cast<const Row*>(context))(out, in, n);
      if (++i == rows) return;
      const int dim = all.rank - 2;
      out += all.out_steps[dim];
      for (int k = 0; k < all.operands; ++k)
        if (in[k]) in[k] += all.in_steps[k][dim];
    }
  };
  walk_rows(p, call, &row);
}

// One operand of a floating row.
struct Stream {
  const void* data;
  int64_t step;  // in elements; 0: `value` throughout
  bool half;     // bfloat16
  vfloat value;
};

FASTNN_INLINE Stream stream(const ElementwiseParams& p, int k, const char* data) {
  const bool half = p.in_dtype[k] == DType::bfloat16;
  Stream s{data, 0, half, {}};
  if (data) s.step = p.in_steps[k][p.rank - 1] / (half ? 2 : 4);
  if (s.step == 0) {
    const float value = !data  ? static_cast<float>(p.number[k])
                        : half ? to_float(*reinterpret_cast<const bfloat16*>(data))
                               : *reinterpret_cast<const float*>(data);
    s.value = set1(value);
  }
  return s;
}

// Strided rows are rare: gathers and scatters stay out of line, or their unrolled lanes would make
// up most of the module.
template <class T>
__attribute__((noinline)) vfloat gather(const T* data, int64_t step, int n) {
  vfloat v{};
  for (int l = 0; l < n; ++l) v[l] = to_float(data[l * step]);
  return v;
}

FASTNN_INLINE vfloat fetch(const Stream& s, int64_t i, int n) {
  if (s.step == 0) return s.value;
  if (s.half) {
    const auto* data = static_cast<const bfloat16*>(s.data) + i * s.step;
    return s.step == 1 ? load_any(data, n) : gather(data, s.step, n);
  }
  const auto* data = static_cast<const float*>(s.data) + i * s.step;
  return s.step == 1 ? load_any(data, n) : gather(data, s.step, n);
}

template <class T>
__attribute__((noinline)) void scatter(T* data, int64_t step, vfloat v, int n) {
  for (int l = 0; l < n; ++l) from_float(data[l * step], v[l]);
}

template <class T>
FASTNN_INLINE void put(void* out, int64_t i, int64_t step, vfloat v, int n) {
  T* const to = static_cast<T*>(out) + i * step;
  if (step == 1)
    store_any(to, v, n);
  else
    scatter(to, step, v, n);
}

// result(i, n, op(operands)) along one general row.
template <int N, class Op, class Result>
FASTNN_INLINE void general_row(const ElementwiseParams& p, const char* const* in, int64_t n,
                               const Op& op, const Result& result) {
  Stream streams[N];
  for (int k = 0; k < N; ++k) streams[k] = stream(p, k, in[k]);
  vector_loop(0, n, [&](int64_t i, int lanes) FASTNN_INLINED {
    vfloat x[N];
    for (int k = 0; k < N; ++k) x[k] = fetch(streams[k], i, lanes);
    result(i, lanes, op(x));
  });
}

// Operands of type T: contiguous, or constant along a row where their bit in Constant is set.
template <int N, class T, unsigned Constant, class Op>
void fast_rows(const ElementwiseParams& p, const Op& op) {
  const Route route = route_to(p.out, p.shape[p.rank - 1]);
  for_rows(p, [&](char* out, const char* const* in, int64_t n) {
    vfloat constant[N];
    for (int k = 0; k < N; ++k)
      if (Constant >> k & 1) constant[k] = stream(p, k, in[k]).value;
    vectors_loop<2>(0, n, [&](int64_t i, auto vectors, int lanes) FASTNN_INLINED {
      const auto operand = [&](int k) { return reinterpret_cast<const T*>(in[k]) + i; };
      T* const to = reinterpret_cast<T*>(out) + i;
      vfloat x[N];
      if constexpr (decltype(vectors)::count == 2) {
        vfloat z[N];
        for (int k = 0; k < N; ++k) {
          const TwoVectors v =
              Constant >> k & 1 ? TwoVectors{constant[k], constant[k]} : load_mixed(operand(k));
          x[k] = v.first, z[k] = v.second;
        }
        store_mixed(to, {op(x), op(z)}, route);
      } else {
        for (int k = 0; k < N; ++k)
          x[k] = Constant >> k & 1 ? constant[k] : load_any(operand(k), lanes);
        store_any(to, op(x), lanes, route);
      }
    });
  });
}

// Takes the fast loop if there is one for these operands: the constant ones, if any, come last.
template <int N, class T, class Op>
bool try_fast_rows(const ElementwiseParams& p, const Op& op) {
  const int last = p.rank - 1;
  if (p.out_steps[last] != int64_t{sizeof(T)}) return false;
  unsigned constant = 0;
  for (int k = 0; k < N; ++k) {
    if (!p.in[k] || p.in_steps[k][last] == 0)
      constant |= 1u << k;
    else if (p.in_dtype[k] != p.out_dtype || p.in_steps[k][last] != int64_t{sizeof(T)})
      return false;
  }
  if (constant == 0) return fast_rows<N, T, 0>(p, op), true;
  if constexpr (N > 1) {
    constexpr unsigned kLast = 1u << (N - 1);
    if (constant == kLast) return fast_rows<N, T, kLast>(p, op), true;
    if constexpr (N > 2) {
      constexpr unsigned kLastTwo = kLast | kLast >> 1;
      if (constant == kLastTwo) return fast_rows<N, T, kLastTwo>(p, op), true;
    }
  }
  return false;
}

// out = op(x), a floating operator of N operands: op takes and gives vfloat.
template <int N, class Op>
void float_rows(const ElementwiseParams& p, const Op& op) {
  const bool half = p.out_dtype == DType::bfloat16;
  if (half ? try_fast_rows<N, bfloat16>(p, op) : try_fast_rows<N, float>(p, op)) return;
  const int64_t step = p.out_steps[p.rank - 1] / (half ? 2 : 4);
  for_rows(p, [&](char* out, const char* const* in, int64_t n) {
    general_row<N>(p, in, n, op, [&](int64_t i, int lanes, vfloat v) FASTNN_INLINED {
      if (half)
        put<bfloat16>(out, i, step, v, lanes);
      else
        put<float>(out, i, step, v, lanes);
    });
  });
}

// out = op(x) as bool, a floating predicate of N operands: op gives lanes of 0 or -1. The output is
// canonical, so its innermost step is 1.
template <int N, class Op>
void predicate_rows(const ElementwiseParams& p, const Op& op) {
  for_rows(p, [&](char* out, const char* const* in, int64_t n) {
    general_row<N>(p, in, n, op, [&](int64_t i, int lanes, vint mask) FASTNN_INLINED {
      store_bytes(reinterpret_cast<uint8_t*>(out) + i, to_bytes(mask & 1), lanes);
    });
  });
}

// out = op(x) on integers: op takes N values of T and gives R.
template <int N, class T, class R, class Op>
void integer_rows(const ElementwiseParams& p, const Op& op) {
  const int last = p.rank - 1;
  int64_t step[N];
  bool contiguous = p.out_steps[last] == static_cast<int64_t>(sizeof(R));
  for (int k = 0; k < N; ++k) {
    step[k] = p.in[k] ? p.in_steps[k][last] / static_cast<int64_t>(sizeof(T)) : 0;
    contiguous = contiguous && step[k] == 1;
  }
  const int64_t to = p.out_steps[last] / static_cast<int64_t>(sizeof(R));
  for_rows(p, [&](char* out_bytes, const char* const* in, int64_t n) {
    R* const out = reinterpret_cast<R*>(out_bytes);
    T number[N];
    const T* data[N];
    for (int k = 0; k < N; ++k) {
      number[k] = static_cast<T>(p.integer[k]);
      data[k] = in[k] ? reinterpret_cast<const T*>(in[k]) : &number[k];
    }
    T x[N];
    if (contiguous) {
      for (int64_t i = 0; i < n; ++i) {
        for (int k = 0; k < N; ++k) x[k] = data[k][i];
        out[i] = op(x);
      }
    } else {
      for (int64_t i = 0; i < n; ++i) {
        for (int k = 0; k < N; ++k) x[k] = data[k][i * step[k]];
        out[i * to] = op(x);
      }
    }
  });
}

// f of every lane, for functions without a vector form.
template <class F>
FASTNN_INLINE vfloat by_lane(vfloat x, const F& f) {
  for (int l = 0; l < LANES; ++l) x[l] = f(x[l]);
  return x;
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
