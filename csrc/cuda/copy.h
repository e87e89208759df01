// Of copy.cu, what other kernels' launches use.
#pragma once

#include "core/dtype.h"

namespace fastnn::cuda {

// dst[matrix][column][row] = src[matrix][row][column].
void transpose(const void* src, int64_t matrices, int64_t rows, int64_t columns, DType dtype,
               void* dst);

}  // namespace fastnn::cuda
