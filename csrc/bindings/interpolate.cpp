#include "ops/interpolate.h"

#include "bindings/module.h"

namespace fastnn {

void bind_interpolate(py::module_& m) {
  def(m, "interpolate", &ops::interpolate);
  def(m, "interpolate_backward", &ops::interpolate_backward);
}

}  // namespace fastnn
