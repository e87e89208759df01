#include "ops/optim.h"

#include "bindings/module.h"

namespace fastnn {

void bind_optim(py::module_& m) {
  m.def("optimizer_step", &ops::optimizer_step, NoGil());
  m.def("clip_grad_norm", &ops::clip_grad_norm, NoGil());
  m.def("clip_grad_value", &ops::clip_grad_value, NoGil());
}

}  // namespace fastnn
