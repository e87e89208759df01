#include "bindings/module.h"

namespace fastnn {

void bind_optim(py::module_&) {}

}  // namespace fastnn
