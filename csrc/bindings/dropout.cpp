#include "ops/dropout.h"

#include "bindings/module.h"

namespace fastnn {

void bind_dropout(py::module_& m) { m.def("dropout", &ops::dropout, NoGil()); }

}  // namespace fastnn
