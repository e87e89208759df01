#include "ops/conv.h"

#include "bindings/module.h"

namespace fastnn {

void bind_conv(py::module_& m) {
  m.def("conv2d", &ops::conv2d, NoGil());
  m.def("conv2d_backward_input", &ops::conv2d_backward_input, NoGil());
  m.def("conv2d_backward_weight", &ops::conv2d_backward_weight, NoGil());
  m.def("conv2d_backward_bias", &ops::conv2d_backward_bias, NoGil());
  m.def("set_winograd", &ops::set_winograd);
  m.def("winograd", &ops::winograd);
  m.def("conv_transpose2d", &ops::conv_transpose2d, NoGil());
}

}  // namespace fastnn
