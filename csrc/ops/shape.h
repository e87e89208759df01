// Kernel slots of the shape family.
#pragma once

namespace fastnn {

struct ShapeSlots {};

}  // namespace fastnn
