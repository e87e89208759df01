#include "ops/activation.h"

#include "bindings/module.h"

namespace fastnn {

void bind_activation(py::module_& m) {
  def(m, "relu", &ops::relu);
  def(m, "relu_backward", &ops::relu_backward);
  def(m, "activation", &ops::activation);
  def(m, "activation_backward", &ops::activation_backward);
  def(m, "prelu", &ops::prelu);
  def(m, "prelu_backward", &ops::prelu_backward);
  def(m, "maxout", &ops::maxout);
  def(m, "maxout_backward", &ops::maxout_backward);
}

}  // namespace fastnn
