#include "ops/loss.h"

#include "bindings/module.h"

namespace fastnn {

void bind_loss(py::module_& m) {
  def(m, "cross_entropy", &ops::cross_entropy);
  def(m, "cross_entropy_backward", &ops::cross_entropy_backward);
  def(m, "pair_loss", &ops::pair_loss);
  def(m, "pair_loss_backward", &ops::pair_loss_backward);
}

}  // namespace fastnn
