#include "bindings/module.h"

namespace fastnn {

void bind_pool(py::module_&) {}

}  // namespace fastnn
