#include "ops/reduce.h"

#include "bindings/module.h"

namespace fastnn {

void bind_reduce(py::module_& m) {
  def(m, "sum", &ops::sum);
  def(m, "mean", &ops::mean);
  def(m, "prod", &ops::prod);
  for (const bool largest : {true, false}) {
    const char* name = largest ? "max" : "min";
    def(m, name,
        [=](const Array& x, const Dims& dims) { return ops::extreme(name, largest, x, dims); });
    def(m, largest ? "max_dim" : "min_dim",
        [=](const Array& x, int64_t dim) { return ops::pick(name, largest, x, dim); });
    const char* locate = largest ? "argmax" : "argmin";
    def(m, locate, [=](const Array& x) { return ops::pick_flat(locate, largest, x).second; });
    def(m, largest ? "argmax_dim" : "argmin_dim",
        [=](const Array& x, int64_t dim) { return ops::pick(locate, largest, x, dim).second; });
  }
  def(m, "var", &ops::var);
  def(m, "norm", &ops::norm);
  def(m, "any", &ops::any);
  def(m, "all", &ops::all);
  def(m, "max_dim_backward", &ops::pick_backward);
  def(m, "prod_backward", &ops::prod_backward);
}

}  // namespace fastnn
