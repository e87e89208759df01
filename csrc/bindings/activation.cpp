#include "ops/activation.h"

#include "bindings/module.h"

namespace fastnn {

void bind_activation(py::module_& m) {
  m.def("relu", &ops::relu, NoGil());
  m.def("relu_backward", &ops::relu_backward, NoGil());
  m.def("activation", &ops::activation, NoGil());
  m.def("activation_backward", &ops::activation_backward, NoGil());
  m.def("prelu", &ops::prelu, NoGil());
  m.def("prelu_backward", &ops::prelu_backward, NoGil());
  m.def("maxout", &ops::maxout, NoGil());
  m.def("maxout_backward", &ops::maxout_backward, NoGil());
}

}  // namespace fastnn
