// Kernel slots of the matmul family.
#pragma once

namespace fastnn {

struct MatmulSlots {};

}  // namespace fastnn
