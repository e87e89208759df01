#include "ops/norm.h"

#include "bindings/module.h"

namespace fastnn {

void bind_norm(py::module_& m) {
  py::class_<ops::Normed>(m, "Normed")
      .def_readonly("y", &ops::Normed::y)
      .def_readonly("mean", &ops::Normed::mean)
      .def_readonly("invstd", &ops::Normed::invstd);
  py::class_<ops::BatchStatistics>(m, "BatchStatistics")
      .def_readonly("mean", &ops::BatchStatistics::mean)
      .def_readonly("invstd", &ops::BatchStatistics::invstd);
  py::class_<ops::NormGrads>(m, "NormGrads")
      .def_readonly("input", &ops::NormGrads::input)
      .def_readonly("weight", &ops::NormGrads::weight)
      .def_readonly("bias", &ops::NormGrads::bias)
      .def_readonly("residual", &ops::NormGrads::residual);
  def(m, "batch_norm", &ops::batch_norm);
  def(m, "batch_norm_statistics", &ops::batch_norm_statistics);
  def(m, "batch_norm_apply", &ops::batch_norm_apply);
  def(m, "batch_norm_backward", &ops::batch_norm_backward);
  def(m, "group_norm", &ops::group_norm);
  def(m, "group_norm_backward", &ops::group_norm_backward);
  def(m, "layer_norm", &ops::layer_norm);
  def(m, "layer_norm_backward", &ops::layer_norm_backward);
  def(m, "local_response_norm", &ops::local_response_norm);
  def(m, "local_response_norm_backward", &ops::local_response_norm_backward);
}

}  // namespace fastnn
