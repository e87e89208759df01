#include "ops/softmax.h"

#include "bindings/module.h"

namespace fastnn {

void bind_softmax(py::module_& m) {
  def(m, "softmax", &ops::softmax);
  def(m, "softmax_backward", &ops::softmax_backward);
}

}  // namespace fastnn
