#include "ops/shape.h"

#include "bindings/module.h"
#include "ops/copy.h"

namespace fastnn {

void bind_shape(py::module_& m) {
  def(m, "cat", &ops::cat);
  def(m, "take", &ops::take);
  def(m, "take_backward", &ops::take_backward);
}

}  // namespace fastnn
