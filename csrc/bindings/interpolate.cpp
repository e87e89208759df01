#include "bindings/module.h"

namespace fastnn {

void bind_interpolate(py::module_&) {}

}  // namespace fastnn
