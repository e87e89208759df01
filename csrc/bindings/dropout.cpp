#include "ops/dropout.h"

#include "bindings/module.h"

namespace fastnn {

void bind_dropout(py::module_& m) { def(m, "dropout", &ops::dropout); }

}  // namespace fastnn
