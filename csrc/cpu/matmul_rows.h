// Products of some rows with a matrix as it lies: fully connected layers. The matrix serves too few
// of them for a packed copy in memory.
#pragma once

#include "cpu/simd/steps.h"
#include "ops/matmul.h"

namespace fastnn::cpu::FASTNN_ISA {

// matmul_few_rows.cpp: so few rows, 32 at most, that w is not packed at all.
constexpr int64_t kFewRows = 32;
void few_rows(const MatmulParams& p, const void* a, const void* w, const float* bias, void* out);
void few_rows_turned(const MatmulParams& p, const void* a, const void* w, void* out);
void few_rows_outer(const MatmulParams& p, const void* a, const void* g, DType dtype, void* out);

namespace {

FASTNN_INLINE int64_t at_most(int64_t x, int64_t limit) { return x < limit ? x : limit; }

// a as [piece][row][depth], whole vectors, with zeros behind its end and in rows beyond its own.
template <class T, class P>
void spread(const MatmulParams& p, const T* a, int64_t rows, int64_t depth, P* to) {
  parallel_for(ceil_div(p.inner, depth), [&](int64_t piece) {
    const int64_t from = piece * depth, count = at_most(p.inner - from, depth);
    P* const out = to + piece * rows * depth;
    for (int64_t r = 0; r < rows; ++r)
      vector_loop(0, depth, [&](int64_t i, int) FASTNN_INLINED {
        const int n = r < p.rows && i < count ? static_cast<int>(at_most(count - i, LANES)) : 0;
        store_any(out + r * depth + i, load_any(a + r * p.inner + from + i, n), LANES);
      });
  });
}

}  // namespace

}  // namespace fastnn::cpu::FASTNN_ISA
