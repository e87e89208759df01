#include "ops/matmul.h"

#include "bindings/module.h"

namespace fastnn {

void bind_matmul(py::module_& m) {
  m.def("matmul", &ops::matmul, NoGil());
  m.def("matmul_backward_a", &ops::matmul_backward_a, NoGil());
  m.def("matmul_backward_b", &ops::matmul_backward_b, NoGil());
  m.def("linear", &ops::linear, NoGil(), py::arg("input"), py::arg("weight"), py::arg("bias"),
        py::arg("keep_packed") = false);
  m.def("linear_backward_input", &ops::linear_backward_input, NoGil());
  m.def("linear_backward_weight", &ops::linear_backward_weight, NoGil());
}

}  // namespace fastnn
