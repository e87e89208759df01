// Kernel slots of the conv family.
#pragma once

namespace fastnn {

struct ConvSlots {};

}  // namespace fastnn
