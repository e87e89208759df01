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

FASTNN_INLINE int64_t at_most(int64_t x, int64_t limit) { return x < limit ? x : limit; }

}  // namespace fastnn::cpu::FASTNN_ISA
