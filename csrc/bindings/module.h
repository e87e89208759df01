// What every binding file shares. A binding is one row, m.def("op", &ops::op, kNoGil): no logic.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "core/array.h"

namespace fastnn {
namespace py = pybind11;

// Kernels run without the GIL.
using NoGil = py::call_guard<py::gil_scoped_release>;

}  // namespace fastnn

namespace pybind11::detail {

// Dims <-> tuple of int. A size that is no int, or does not fit 64 bits, is refused by the caller's
// functional layer; here it only fails to convert.
template <>
struct type_caster<fastnn::Dims> {
  PYBIND11_TYPE_CASTER(fastnn::Dims, const_name("tuple[int, ...]"));

  bool load(handle source, bool) {
    if (!isinstance<sequence>(source) || isinstance<str>(source)) return false;
    for (const handle item : reinterpret_borrow<sequence>(source)) {
      if (!PyIndex_Check(item.ptr())) return false;
      value.push_back(PyNumber_AsSsize_t(item.ptr(), PyExc_OverflowError));
      if (PyErr_Occurred()) throw error_already_set();
    }
    return true;
  }

  static handle cast(const fastnn::Dims& dims, return_value_policy, handle) {
    tuple out(static_cast<size_t>(dims.rank()));
    for (int i = 0; i < dims.rank(); ++i) out[static_cast<size_t>(i)] = int_(dims[i]);
    return out.release();
  }
};

// DType <-> its name.
template <>
struct type_caster<fastnn::DType> {
  PYBIND11_TYPE_CASTER(fastnn::DType, const_name("str"));

  bool load(handle source, bool) {
    if (!isinstance<str>(source)) return false;
    const auto name = reinterpret_borrow<str>(source).cast<std::string>();
    for (int i = 0; i <= static_cast<int>(fastnn::DType::boolean); ++i) {
      value = static_cast<fastnn::DType>(i);
      if (name == fastnn::name_of(value)) return true;
    }
    return false;
  }

  static handle cast(fastnn::DType dtype, return_value_policy, handle) {
    return str(fastnn::name_of(dtype)).release();
  }
};

}  // namespace pybind11::detail
