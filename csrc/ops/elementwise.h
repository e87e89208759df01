// Kernel slots of the elementwise family.
#pragma once

namespace fastnn {

struct ElementwiseSlots {};

}  // namespace fastnn
