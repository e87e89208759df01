// Instantiations of the register-blocked kernels of matmul.h, one per tile shape.
#include "cpu/matmul.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// U steps of the reduction, rows outside: there are more pointers than registers to hold them.
template <int M, int V, int U>
FASTNN_INLINE void steps(const float* const (&a)[M], int64_t i, const float* b,
                         vfloat (&acc)[M][V]) {
  vfloat column[U][V];
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) column[u][v] = load(b + (u * V + v) * LANES);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    const float* const row = a[m] + i;
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      const vfloat value = set1(row[u]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) acc[m][v] += value * column[u][v];
    }
  }
}

template <int M, int V>
void product(const float* const* rows, const int64_t* taps, int64_t tap_count, int64_t k,
             const float* b, float* tile, Ahead ahead) {
  constexpr int U = V == 1 ? 4 : 2;
  vfloat acc[M][V] = {};
  for (int64_t t = 0; t < tap_count; ++t) {
    const float* a[M];
    for (int m = 0; m < M; ++m) a[m] = rows[m] + taps[t];
    int64_t i = 0;
    for (; i + U <= k; i += U, b += U * V * LANES) {
      __builtin_prefetch(ahead.from, 0, 2);
      ahead.from = static_cast<const char*>(ahead.from) + U * ahead.step;
      steps<M, V, U>(a, i, b, acc);
    }
    for (; i < k; ++i, b += V * LANES) steps<M, V, 1>(a, i, b, acc);
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(tile + (m * V + v) * LANES, acc[m][v]);
}

template <int M, int V>
void outer(const OuterStrip& s, float* tile, int64_t pitch, int last, bool add) {
  vfloat acc[M][V] = {};
  if (add) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v)
        acc[m][v] = v < V - 1 ? load(tile + m * pitch + v * LANES)
                              : load_any(tile + m * pitch + v * LANES, last);
  }
  const float* g = s.g;
  Ahead ahead = s.ahead;
  for (int64_t image = 0; image < s.images; ++image)
    for (int64_t row = 0; row < s.rows; ++row) {
      const float* x = s.x + image * s.x_image + row * s.x_row;
      for (int64_t col = 0; col < s.cols; ++col, x += s.x_col, g += M) {
        __builtin_prefetch(ahead.from, 0, 2);
        ahead.from = static_cast<const char*>(ahead.from) + ahead.step;
        vfloat column[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) column[v] = load(x + v * LANES);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
          const vfloat value = set1(g[m]);
#pragma GCC unroll 2
          for (int v = 0; v < V; ++v) acc[m][v] += value * column[v];
        }
      }
    }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      if (v < V - 1)
        store(tile + m * pitch + v * LANES, acc[m][v]);
      else
        store_any(tile + m * pitch + v * LANES, acc[m][v], last);
    }
}

}  // namespace

#define FASTNN_TILES(KERNEL, M) {KERNEL<M, 1>, KERNEL<M, 2>}
#define FASTNN_SMALL_TILES(KERNEL)                                           \
  FASTNN_TILES(KERNEL, 1), FASTNN_TILES(KERNEL, 2), FASTNN_TILES(KERNEL, 3), \
      FASTNN_TILES(KERNEL, 4), FASTNN_TILES(KERNEL, 5), FASTNN_TILES(KERNEL, 6)
#if defined(FASTNN_ISA_avx512)
#define FASTNN_ALL_TILES(KERNEL)                                                   \
  FASTNN_SMALL_TILES(KERNEL), FASTNN_TILES(KERNEL, 7), FASTNN_TILES(KERNEL, 8),    \
      FASTNN_TILES(KERNEL, 9), FASTNN_TILES(KERNEL, 10), FASTNN_TILES(KERNEL, 11), \
      FASTNN_TILES(KERNEL, 12), FASTNN_TILES(KERNEL, 13), FASTNN_TILES(KERNEL, 14)
#else
#define FASTNN_ALL_TILES(KERNEL) FASTNN_SMALL_TILES(KERNEL)
#endif

extern const ProductKernel product_kernels[MR][NV] = {FASTNN_ALL_TILES(product)};
extern const OuterKernel outer_kernels[MR][NV] = {FASTNN_ALL_TILES(outer)};
extern const OuterKernel outer_square = outer<LANES, 1>;

}  // namespace fastnn::cpu::FASTNN_ISA
