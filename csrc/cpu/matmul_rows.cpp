// Products of up to some hundred rows with a large matrix. A packed copy of it would go to memory
// and come back, so every task owns some columns of the product, and packs the matrix under them
// piece by piece, into its L2, just before it multiplies (matmul.h):
//
//   task: kWide columns
//     for each piece of kDepth values of the reduction
//       pack it: [block of NR columns][value][NR]
//       for each block, for each MR rows of a: product kernel, added to the sums in L2
//
// Meanwhile the kernels fetch what is packed next. a is copied once, to [piece][row][kDepth]: its
// rows may lie a power of two apart, where they share a few sets of the caches.
// Cost: 2 rows inner columns flops; w comes from memory once, packing is 1 / rows of the work.
#include "cpu/matmul_rows.h"

#include "core/allocator.h"
#include "cpu/matmul.h"
#include "cpu/turned_weight.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kBlocks = 4;
constexpr int64_t kWide = kBlocks * NR;
// A kernel fetches a cache line per two steps: one of as many rows of w as a task has columns.
template <class P>
constexpr int64_t kDepth = 2 * kWide * kStep<P>;
template <class T>
constexpr int64_t kLine = 64 / int64_t{sizeof(T)};

// Where vector v of a task's columns begins in a packed piece, and how wide its block is.
template <class P>
FASTNN_INLINE P* packed_vector(P* packed, int64_t v) {
  return packed + v / NR * NR * kDepth<P> + v % NR * kStep<P>;
}
FASTNN_INLINE int64_t packed_width(int64_t columns, int64_t v) {
  return columns - v / NR * NR > LANES ? NR : LANES;
}

// The two ways w lies. pack() takes `count` values of the reduction from k on; ahead() is what a
// kernel fetches of kDepth of them in each of kCalls calls.
template <class T>
struct ByColumn {
  const T* w;
  int64_t inner;

  template <class P>
  FASTNN_INLINED void pack(int64_t k, int64_t count, int64_t column, int64_t columns, P* to) const {
    for (int64_t v = 0; v < columns; v += LANES)
      turn_outputs(w + (column + v) * inner + k, columns - v, inner, 0, count, packed_vector(to, v),
                   packed_width(columns, v));
  }
  Ahead ahead(int64_t k, int64_t column, int64_t call) const {
    return {w + column * inner + k + call * kLine<T>, inner * int64_t{sizeof(T)} / 2};
  }
};

template <class T>
struct ByRow {
  const T* w;
  int64_t all_columns;

  template <class P>
  FASTNN_INLINED void pack(int64_t k, int64_t count, int64_t column, int64_t columns, P* to) const {
    const T* row = w + k * all_columns + column;
    for (int64_t i = 0; i < count; i += kStep<P>, row += kStep<P> * all_columns)
      vector_loop(0, columns, [&](int64_t v, int n) FASTNN_INLINED {
        vfloat step[1];
        load_columns(row + v, all_columns, i + 1 < count, n, step, P{});
        P* const out = packed_vector(to, v) + i * packed_width(columns, v);
        store(reinterpret_cast<float*>(out), step[0]);
      });
  }
  Ahead ahead(int64_t k, int64_t column, int64_t call) const {
    constexpr int64_t lines = kWide / kLine<T>;
    return {w + (k + call / lines * kWide) * all_columns + column + call % lines * kLine<T>,
            all_columns * int64_t{sizeof(T)} / 2};
  }
};
template <class T, class P>
constexpr int64_t kCalls = kDepth<P> / kLine<T>;

// sums (+)= m rows of a tile.
FASTNN_INLINE void add_tile(const float* tile, int m, int vectors, bool add, float* sums) {
  for (int i = 0; i < m; ++i, sums += kWide)
    for (int v = 0; v < vectors; ++v, tile += LANES) {
      const vfloat product = load(tile);
      store(sums + v * LANES, add ? load(sums + v * LANES) + product : product);
    }
}

template <class T, class Matrix>
void multiply(const MatmulParams& p, const T* a, const Matrix& w, const float* bias, T* out) {
  using P = Operand<T>;
  const int64_t pieces = ceil_div(p.inner, kDepth<P>), tasks = ceil_div(p.columns, kWide);
  Workspace room(pieces * p.rows * kDepth<P> * int64_t{sizeof(P)});
  P* const rows = reinterpret_cast<P*>(room.floats());
  spread(p, a, p.rows, kDepth<P>, rows);
  const int block_m = even_block(p.rows);
  parallel_for_dynamic(tasks, [&](int64_t task) {
    constexpr int64_t packed_size = kWide * kDepth<P> * int64_t{sizeof(P)};
    void* const scratch = thread_scratch(packed_size + p.rows * kWide * int64_t{sizeof(float)});
    P* const packed = static_cast<P*>(scratch);
    float* const sums = reinterpret_cast<float*>(static_cast<char*>(scratch) + packed_size);
    const int64_t first = task * kWide, columns = at_most(p.columns - first, kWide);
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t k = piece * kDepth<P>, count = at_most(p.inner - k, kDepth<P>);
      w.pack(k, count, first, columns, packed);
      const bool last = piece + 1 == pieces;  // then it is the next task's first
      const int64_t next_k = last ? 0 : k + kDepth<P>, next_first = last ? first + kWide : first;
      const int64_t tap = 0, even = ceil_div(count, kStep<P>) * kStep<P>;
      const Terms terms{&tap, 1, even, even};
      int64_t call = next_first < p.columns ? 0 : kCalls<T, P>;
      for (int64_t column = 0; column < columns; column += NR)
        for (int64_t r = 0; r < p.rows; r += block_m, ++call) {
          const int m = static_cast<int>(at_most(p.rows - r, block_m));
          const int vectors = columns - column > LANES ? NV : 1;
          const P* at[MR];
          for (int i = 0; i < m; ++i) at[i] = rows + k * p.rows + (r + i) * kDepth<P>;
          alignas(64) float tile[MR * NR];
          Kernels<P>::product[m - 1][vectors - 1](
              at, terms, packed_vector(packed, column), tile,
              call < kCalls<T, P> ? w.ahead(next_k, next_first, call) : Ahead::nothing(tile));
          add_tile(tile, m, vectors, piece > 0, sums + r * kWide + column);
        }
    }
    for (int64_t r = 0; r < p.rows; ++r)
      vector_loop(0, columns, [&](int64_t i, int n) {
        const vfloat sum = load(sums + r * kWide + i);
        store_any(out + r * p.columns + first + i, bias ? sum + load_any(bias + first + i, n) : sum,
                  n);
      });
  });
}

template <class T>
void rows_typed(const MatmulParams& p, const void* a, const void* w, const float* bias, void* out) {
  multiply(p, static_cast<const T*>(a), ByColumn<T>{static_cast<const T*>(w), p.inner}, bias,
           static_cast<T*>(out));
}
template <class T>
void turned_typed(const MatmulParams& p, const void* a, const void* w, void* out) {
  multiply(p, static_cast<const T*>(a), ByRow<T>{static_cast<const T*>(w), p.columns}, nullptr,
           static_cast<T*>(out));
}

constexpr int64_t kVeryFewRows = 8, kSomeRows = 512;
constexpr int64_t kLarge = 256 << 10, kVeryLarge = 4 << 20;  // numbers of w

// Adding rows of pairs takes a multiplication per two loads: packed pieces are faster from fewer
// rows on.
FASTNN_INLINE bool is_few(const MatmulParams& p, bool turned) {
  return p.rows <= (turned && step_of(p.dtype) == 2 ? kVeryFewRows : kFewRows);
}

bool takes(const MatmulParams& p, bool turned) {
  const int64_t size = p.inner * p.columns;
  if (p.columns < LANES) return false;
  if (!turned && p.inner % 2 != 0 && !is_few(p, turned)) return false;  // pairs are turned whole
  // On AVX2 packing takes twice as many vectors, and these kernels win for longer.
  const int64_t few = LANES == 8 ? 2 * kVeryFewRows : turned ? kVeryFewRows / 2 : kVeryFewRows;
  if (p.rows <= few) return true;
  if (p.rows <= kFewRows) return size >= kLarge;
  return p.rows <= kSomeRows && size >= (turned ? 2 * kLarge : kVeryLarge);
}

void rows(const MatmulParams& p, const void* a, const void* w, const float* bias, void* out) {
  if (is_few(p, false)) return few_rows(p, a, w, bias, out);
  (p.dtype == DType::float32 ? rows_typed<float> : rows_typed<bfloat16>)(p, a, w, bias, out);
}
void rows_turned(const MatmulParams& p, const void* a, const void* w, void* out) {
  if (is_few(p, true)) return few_rows_turned(p, a, w, out);
  (p.dtype == DType::float32 ? turned_typed<float> : turned_typed<bfloat16>)(p, a, w, out);
}

}  // namespace

void fill_matmul_rows(Slots& slots) { slots.matmul = {takes, rows, rows_turned, few_rows_outer}; }

}  // namespace fastnn::cpu::FASTNN_ISA
