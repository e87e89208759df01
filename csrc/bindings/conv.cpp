#include "ops/conv.h"

#include "bindings/module.h"

namespace fastnn {

void bind_conv(py::module_& m) {
  m.def("conv2d", &ops::conv2d, NoGil(), py::arg("input"), py::arg("weight"), py::arg("bias"),
        py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("groups"),
        py::arg("activation"), py::arg("residual"), py::arg("keep_packed") = false);
  m.def("conv2d_backward_input", &ops::conv2d_backward_input, NoGil(), py::arg("grad_output"),
        py::arg("weight"), py::arg("input_shape"), py::arg("stride"), py::arg("padding"),
        py::arg("dilation"), py::arg("groups"), py::arg("so_far") = nullptr);
  m.def("conv2d_backward_weight", &ops::conv2d_backward_weight, NoGil());
  m.def("conv2d_backward_bias", &ops::conv2d_backward_bias, NoGil());
  m.def("set_winograd", &ops::set_winograd);
  m.def("winograd", &ops::winograd);
  m.def("conv_transpose2d", &ops::conv_transpose2d, NoGil());
}

}  // namespace fastnn
