#include "ops/reduce.h"

#include "bindings/module.h"

namespace fastnn {

void bind_reduce(py::module_& m) {
  m.def("sum", &ops::sum, NoGil());
  m.def("mean", &ops::mean, NoGil());
  m.def("prod", &ops::prod, NoGil());
  for (const bool largest : {true, false}) {
    const char* name = largest ? "max" : "min";
    m.def(
        name,
        [=](const Array& x, const Dims& dims) { return ops::extreme(name, largest, x, dims); },
        NoGil());
    m.def(
        largest ? "max_dim" : "min_dim",
        [=](const Array& x, int64_t dim) { return ops::pick(name, largest, x, dim); }, NoGil());
    const char* locate = largest ? "argmax" : "argmin";
    m.def(
        locate, [=](const Array& x) { return ops::pick_flat(locate, largest, x).second; }, NoGil());
    m.def(
        largest ? "argmax_dim" : "argmin_dim",
        [=](const Array& x, int64_t dim) { return ops::pick(locate, largest, x, dim).second; },
        NoGil());
  }
  m.def("var", &ops::var, NoGil());
  m.def("norm", &ops::norm, NoGil());
  m.def("any", &ops::any, NoGil());
  m.def("all", &ops::all, NoGil());
  m.def("max_dim_backward", &ops::pick_backward, NoGil());
  m.def("prod_backward", &ops::prod_backward, NoGil());
}

}  // namespace fastnn
