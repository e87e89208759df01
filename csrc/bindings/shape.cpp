#include "ops/shape.h"

#include "bindings/module.h"

namespace fastnn {

void bind_shape(py::module_& m) {
  m.def("take", &ops::take, NoGil());
  m.def("take_backward", &ops::take_backward, NoGil());
}

}  // namespace fastnn
