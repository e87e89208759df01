#include "ops/loss.h"

#include "bindings/module.h"

namespace fastnn {

void bind_loss(py::module_& m) {
  m.def("cross_entropy", &ops::cross_entropy, NoGil());
  m.def("cross_entropy_backward", &ops::cross_entropy_backward, NoGil());
  m.def("pair_loss", &ops::pair_loss, NoGil());
  m.def("pair_loss_backward", &ops::pair_loss_backward, NoGil());
}

}  // namespace fastnn
