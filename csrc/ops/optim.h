// Kernel slots of the optim family.
#pragma once

namespace fastnn {

struct OptimSlots {};

}  // namespace fastnn
