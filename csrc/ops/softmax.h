// Kernel slots of the softmax family.
#pragma once

namespace fastnn {

struct SoftmaxSlots {};

}  // namespace fastnn
