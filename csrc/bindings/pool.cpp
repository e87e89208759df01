#include "ops/pool.h"

#include "bindings/module.h"

namespace fastnn {

void bind_pool(py::module_& m) {
  def(m, "max_pool2d", &ops::max_pool2d);
  def(m, "max_pool2d_backward", &ops::max_pool2d_backward);
  def(m, "max_pool2d_flat_indices", &ops::max_pool2d_flat_indices);
  def(m, "avg_pool2d", &ops::avg_pool2d);
  def(m, "avg_pool2d_backward", &ops::avg_pool2d_backward);
  def(m, "adaptive_avg_pool2d", &ops::adaptive_avg_pool2d);
  def(m, "adaptive_avg_pool2d_backward", &ops::adaptive_avg_pool2d_backward);
  def(m, "adaptive_max_pool2d", &ops::adaptive_max_pool2d);
  def(m, "adaptive_max_pool2d_backward", &ops::adaptive_max_pool2d_backward);
  def(m, "adaptive_max_pool2d_flat_indices", &ops::adaptive_max_pool2d_flat_indices);
}

}  // namespace fastnn
