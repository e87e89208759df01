#include "ops/conv.h"

#include "bindings/module.h"

namespace fastnn {

void bind_conv(py::module_& m) {
  def(m, "conv2d", &ops::conv2d, py::arg("input"), py::arg("weight"), py::arg("bias"),
      py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("groups"),
      py::arg("activation"), py::arg("residual"), py::arg("keep_packed") = false,
      py::arg("want_moments") = false);
  def(m, "conv2d_shape", &ops::conv2d_shape);
  def(m, "conv2d_backward_input", &ops::conv2d_backward_input, py::arg("grad_output"),
      py::arg("weight"), py::arg("input_shape"), py::arg("stride"), py::arg("padding"),
      py::arg("dilation"), py::arg("groups"), py::arg("so_far") = nullptr);
  def(m, "conv2d_backward_weight", &ops::conv2d_backward_weight);
  def(m, "conv2d_backward_bias", &ops::conv2d_backward_bias);
  def(m, "set_winograd", &ops::set_winograd);
  def(m, "winograd", &ops::winograd);
  def(m, "conv_transpose2d", &ops::conv_transpose2d);
}

}  // namespace fastnn
