#include "ops/softmax.h"

#include "bindings/module.h"

namespace fastnn {

void bind_softmax(py::module_& m) {
  m.def("softmax", &ops::softmax, NoGil());
  m.def("softmax_backward", &ops::softmax_backward, NoGil());
}

}  // namespace fastnn
