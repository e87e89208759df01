#include "ops/activation.h"

#include "bindings/module.h"

namespace fastnn {

void bind_activation(py::module_& m) {
  m.def("relu", &ops::relu, NoGil());
  m.def("relu_backward", &ops::relu_backward, NoGil());
}

}  // namespace fastnn
