// Kernel slots of the interpolate family.
#pragma once

namespace fastnn {

struct InterpolateSlots {};

}  // namespace fastnn
