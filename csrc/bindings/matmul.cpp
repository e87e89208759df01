#include "ops/matmul.h"

#include "bindings/module.h"

namespace fastnn {

void bind_matmul(py::module_& m) {
  def(m, "matmul", &ops::matmul);
  def(m, "matmul_backward_a", &ops::matmul_backward_a);
  def(m, "matmul_backward_b", &ops::matmul_backward_b);
  def(m, "linear", &ops::linear, py::arg("input"), py::arg("weight"), py::arg("bias"),
      py::arg("keep_packed") = false);
  def(m, "linear_backward_input", &ops::linear_backward_input);
  def(m, "linear_backward_weight", &ops::linear_backward_weight);
}

}  // namespace fastnn
