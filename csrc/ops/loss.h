// Kernel slots of the loss family.
#pragma once

namespace fastnn {

struct LossSlots {};

}  // namespace fastnn
