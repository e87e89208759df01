// ISA levels: which were compiled, which this machine has, which is in use.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace fastnn {

std::vector<std::string> compiled_isas();   // lowest first
std::vector<std::string> available_isas();  // compiled and runnable here, lowest first
std::string active_isa();
// Multiply-adds of bfloat16 that the active level does in the time of one of float32.
double bfloat16_rate();
// Multiply-adds of float32 that a core begins in a cycle at the active level, as far as is known.
int multiply_adds_per_cycle();
// Has every thread multiply and add values of its registers, as the active level's kernels do it,
// so many rounds; returns the number of floating-point operations.
double multiply_adds(DType dtype, int64_t rounds);
// Throws ValueError for a level that is not available. Not to be called while kernels run.
void set_isa(const std::string& name);

}  // namespace fastnn
