#include "ops/pool.h"

#include "bindings/module.h"

namespace fastnn {

void bind_pool(py::module_& m) {
  m.def("max_pool2d", &ops::max_pool2d, NoGil());
  m.def("max_pool2d_backward", &ops::max_pool2d_backward, NoGil());
  m.def("max_pool2d_flat_indices", &ops::max_pool2d_flat_indices, NoGil());
  m.def("avg_pool2d", &ops::avg_pool2d, NoGil());
  m.def("avg_pool2d_backward", &ops::avg_pool2d_backward, NoGil());
  m.def("adaptive_avg_pool2d", &ops::adaptive_avg_pool2d, NoGil());
  m.def("adaptive_avg_pool2d_backward", &ops::adaptive_avg_pool2d_backward, NoGil());
  m.def("adaptive_max_pool2d", &ops::adaptive_max_pool2d, NoGil());
  m.def("adaptive_max_pool2d_backward", &ops::adaptive_max_pool2d_backward, NoGil());
  m.def("adaptive_max_pool2d_flat_indices", &ops::adaptive_max_pool2d_flat_indices, NoGil());
}

}  // namespace fastnn
