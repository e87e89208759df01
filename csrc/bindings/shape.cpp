#include "bindings/module.h"

namespace fastnn {

void bind_shape(py::module_&) {}

}  // namespace fastnn
