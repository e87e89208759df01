// Kernel slots of the dropout family.
#pragma once

namespace fastnn {

struct DropoutSlots {};

}  // namespace fastnn
