// Kernel slots of the norm family.
#pragma once

namespace fastnn {

struct NormSlots {};

}  // namespace fastnn
