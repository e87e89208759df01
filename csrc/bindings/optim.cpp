#include "ops/optim.h"

#include "bindings/module.h"

namespace fastnn {

void bind_optim(py::module_& m) {
  def(m, "optimizer_step", &ops::optimizer_step);
  def(m, "clip_grad_norm", &ops::clip_grad_norm);
  def(m, "clip_grad_value", &ops::clip_grad_value);
}

}  // namespace fastnn
