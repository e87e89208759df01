// Instantiations of the register-blocked kernels of matmul.h, one per tile shape.
#include "cpu/matmul.h"

#include "cpu/conv_epilogue.h"
#include "cpu/simd/transpose.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// U steps of the reduction, rows outside: there are more pointers than registers to hold them. Of
// 16 vector registers the accumulators leave four, for the columns of one step: an accumulator that
// goes to memory and back in every turn takes a third of the speed.
constexpr int kSteps = LANES == 16 ? 2 : 1;
template <int M, int U, class P>
FASTNN_INLINE void steps(const P* const (&a)[M], int64_t i, const P* b, vfloat (&acc)[M][NV]) {
  vfloat column[U][NV];
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) column[u][v] = load_steps(b + (u * NV + v) * LANES * kStep<P>);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    const P* const row = a[m] + i;
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      const vfloat value = set1_step(row + u * kStep<P>);
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) add_step(acc[m][v], value, column[u][v], P{});
    }
  }
}

template <class P, int M>
FASTNN_INLINE void accumulate(const P* const* rows, const Terms& terms, const P* b, Ahead ahead,
                              vfloat (&acc)[M][NV]) {
  constexpr int64_t step = kStep<P>;
  const int64_t k = terms.k, rest = (terms.pitch - k - k % step) * NR;
  for (int64_t t = 0; t < terms.tap_count; ++t, b += rest) {
    const P* a[M];
    for (int m = 0; m < M; ++m) a[m] = rows[m] + terms.taps[t];
    int64_t i = 0;
    for (; i + 2 * step <= k; i += 2 * step, b += 2 * NR * step) {
      __builtin_prefetch(ahead.from, 0, 2);
      ahead.from = static_cast<const char*>(ahead.from) + 2 * ahead.step;
#pragma GCC unroll 2
      for (int s = 0; s < 2; s += kSteps) steps<M, kSteps>(a, i + s * step, b + s * NR * step, acc);
    }
    for (; i < k; i += step, b += NR * step) steps<M, 1>(a, i + step <= k ? i : k - step, b, acc);
  }
}

template <class P, int M>
void product(const P* const* rows, const Terms& terms, const P* b, float* tile, Ahead ahead) {
  vfloat acc[M][NV] = {};
  accumulate(rows, terms, b, ahead, acc);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) store(tile + (m * NV + v) * LANES, acc[m][v]);
}

template <class P, class T, int M>
void finished_product(const P* const* rows, const Terms& terms, const P* b, const Output<T>& to,
                      Ahead ahead) {
  vfloat acc[M][NV] = {};
  accumulate(rows, terms, b, ahead, acc);
  const Rows<T> out(to.epilogue, to.channel, NR, to.y, to.around ? Route::around : Route::through);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) out.store(acc[m][0], acc[m][1], to.where[m]);
}

// A tile of one vector would load as much as it multiplies. It takes two steps at a time: one load
// of a row brings both, in alternating lanes, for two vectors of B with both steps of half the
// columns each. The two sums of a column are added at the end.
template <class P, int M>
FASTNN_INLINE void accumulate_narrow(const P* const* rows, const Terms& terms, const P* b,
                                     Ahead ahead, vfloat (&acc)[M][2]) {
  constexpr int64_t step = kStep<P>;
  const int64_t k = terms.k, rest = (terms.pitch - k - k % step) * LANES;
  const auto add = [&](int m, vfloat value, vfloat low, vfloat high) FASTNN_INLINED {
    add_step(acc[m][0], value, low, P{});
    add_step(acc[m][1], value, high, P{});
  };
  for (int64_t t = 0; t < terms.tap_count; ++t, b += rest) {
    const P* a[M];
    for (int m = 0; m < M; ++m) a[m] = rows[m] + terms.taps[t];
    int64_t i = 0;
    for (; i + 2 * step <= k; i += 2 * step, b += 2 * LANES * step) {
      __builtin_prefetch(ahead.from, 0, 2);
      ahead.from = static_cast<const char*>(ahead.from) + 2 * ahead.step;
      const vfloat first = load_steps(b), second = load_steps(b + LANES * step);
      const vfloat low = interleave_low(first, second), high = interleave_high(first, second);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) add(m, set1_two(a[m] + i), low, high);
    }
    for (; i < k; i += step, b += LANES * step) {
      const int64_t at = i + step <= k ? i : k - step;
      const vfloat last = load_steps(b), none{};
      const vfloat low = interleave_low(last, none), high = interleave_high(last, none);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) add(m, interleave_low(set1_step(a[m] + at), none), low, high);
    }
  }
}

template <class P, int M>
void narrow_product(const P* const* rows, const Terms& terms, const P* b, float* tile,
                    Ahead ahead) {
  vfloat acc[M][2] = {};
  accumulate_narrow(rows, terms, b, ahead, acc);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) store(tile + m * LANES, add_interleaved(acc[m][0], acc[m][1]));
}

template <class P, class T, int M>
void finished_narrow_product(const P* const* rows, const Terms& terms, const P* b,
                             const Output<T>& to, Ahead ahead) {
  vfloat acc[M][2] = {};
  accumulate_narrow(rows, terms, b, ahead, acc);
  const Rows<T> out(to.epilogue, to.channel, LANES, to.y,
                    to.around ? Route::around : Route::through);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) out.store(add_interleaved(acc[m][0], acc[m][1]), to.where[m]);
}

template <class P, int M, int V>
void outer(const OuterStrip<P>& s, float* tile, int64_t pitch, int last, bool add) {
  constexpr int64_t step = kStep<P>;
  vfloat acc[M][V] = {};
  const P* g = s.g;
  Ahead ahead = s.ahead;
  for (int64_t image = 0; image < s.images; ++image, g += s.g_rest)
    for (int64_t row = 0; row < s.rows; ++row) {
      const P* x = s.x + image * s.x_image + row * s.x_row;
      for (int64_t col = 0; col < s.cols; col += step, x += step * s.x_col, g += s.g_next) {
        __builtin_prefetch(ahead.from, 0, 2);
        ahead.from = static_cast<const char*>(ahead.from) + ahead.step;
        vfloat column[V];
        load_columns(x, s.x_col, col + 1 < s.cols, LANES, column, P{});
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
          const vfloat value = set1_step(g + m * step);
#pragma GCC unroll 2
          for (int v = 0; v < V; ++v) add_step(acc[m][v], value, column[v], P{});
        }
      }
    }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) write_sums<P>(acc[m], tile + m * pitch, last, add);
}

}  // namespace

#define FASTNN_PRODUCTS(M) {narrow_product<P, M>, FASTNN_ISA::product<P, M>}
#define FASTNN_FINISHED(M) {finished_narrow_product<P, T, M>, finished_product<P, T, M>}
#define FASTNN_OUTERS(M) {FASTNN_ISA::outer<P, M, 1>, FASTNN_ISA::outer<P, M, NV>}
#define FASTNN_SMALL_TILES(TILES) TILES(1), TILES(2), TILES(3), TILES(4), TILES(5), TILES(6)
#if defined(FASTNN_ISA_avx512)
#define FASTNN_ALL_TILES(TILES)                                                             \
  FASTNN_SMALL_TILES(TILES), TILES(7), TILES(8), TILES(9), TILES(10), TILES(11), TILES(12), \
      TILES(13), TILES(14)
#else
#define FASTNN_ALL_TILES(TILES) FASTNN_SMALL_TILES(TILES)
#endif

template <class P>
const ProductKernel<P> Kernels<P>::product[MR][NV] = {FASTNN_ALL_TILES(FASTNN_PRODUCTS)};
template <class P>
const OuterKernel<P> Kernels<P>::outer[MR][NV] = {FASTNN_ALL_TILES(FASTNN_OUTERS)};
template <class P, class T>
const FinishedKernel<P, T> Finished<P, T>::product[MR][NV] = {FASTNN_ALL_TILES(FASTNN_FINISHED)};
template struct Kernels<float>;
template struct Finished<float, float>;
template struct Finished<Operand<bfloat16>, bfloat16>;
#if defined(FASTNN_ISA_avx512_bf16)
template struct Kernels<bfloat16>;
#endif
extern const OuterKernel<float> outer_square = FASTNN_ISA::outer<float, LANES, 1>;

}  // namespace fastnn::cpu::FASTNN_ISA
