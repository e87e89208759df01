// What the CUDA module hands to fastnn._core.
#pragma once

#include "core/device.h"

namespace fastnn::cuda {

const DeviceTable& table();

}  // namespace fastnn::cuda
