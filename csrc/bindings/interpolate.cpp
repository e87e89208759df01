#include "ops/interpolate.h"

#include "bindings/module.h"

namespace fastnn {

void bind_interpolate(py::module_& m) {
  m.def("interpolate", &ops::interpolate, NoGil());
  m.def("interpolate_backward", &ops::interpolate_backward, NoGil());
}

}  // namespace fastnn
