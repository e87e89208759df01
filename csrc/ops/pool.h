// Kernel slots of the pool family.
#pragma once

namespace fastnn {

struct PoolSlots {};

}  // namespace fastnn
