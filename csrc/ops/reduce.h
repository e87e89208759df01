// Kernel slots of the reduce family.
#pragma once

namespace fastnn {

struct ReduceSlots {};

}  // namespace fastnn
