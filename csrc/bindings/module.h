// What every binding file shares. A binding is one row, def(m, "op", &ops::op): no logic. It runs
// the operator without the GIL, on the device of its arguments.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "core/array.h"
#include "core/error.h"
#include "ops/elementwise.h"

namespace fastnn {
namespace py = pybind11;

// Kernels run without the GIL.
using NoGil = py::call_guard<py::gil_scoped_release>;

// The one device of an operator's arguments. A graph that is being recorded keeps what it sees: its
// replays use the same memory.
class ArgumentDevice {
 public:
  explicit ArgumentDevice(const char* op) : op_(op) {}
  int device() const { return found_ ? device_ : current_device(); }

  void see(const Array& x) {
    if (!x.defined()) return;
    if (!found_) device_ = x.device(), found_ = true;
    check<RuntimeError>(device_ == x.device(), op_, ": expected all tensors on one device, got ",
                        device_name(device_), " and ", device_name(x.device()),
                        "; move them with .to(device)");
    if (device_ != kCpu && device_table()->recording())
      device_table()->keep(x.storage()->data, x.storage(), &x.storage()->version);
  }
  void see(const Array* x) {
    if (x) see(*x);
  }
  void see(const ops::Operand& x) { see(x.array); }
  template <class T>
  void see(const std::optional<T>& x) {
    if (x) see(*x);
  }
  template <class T>
  void see(const std::vector<T>& several) {
    for (const T& x : several) see(x);
  }
  // What comes first, where one binding serves several operators, is the operator's name.
  void see(const std::string& name) {
    if (!found_) op_ = name.c_str();
  }
  template <class Other>
  void see(const Other&) {}  // sizes, numbers

 private:
  const char* op_;
  int device_ = kCpu;
  bool found_ = false;
};

template <class F, class R, class... Args>
auto on_its_device(const char* name, F f, R (*)(Args...)) {
  return [name, f](Args... args) -> R {
    ArgumentDevice place(name);
    (place.see(args), ...);
    const DeviceScope scope(place.device());
    if constexpr (std::is_void_v<R>) {
      f(std::forward<Args>(args)...);
      check_device();
    } else {
      R result = f(std::forward<Args>(args)...);
      check_device();
      return result;
    }
  };
}

// m.def for operators; `name` is a literal.
template <class F, class... Extra>
void def(py::module_& m, const char* name, F f, const Extra&... extra) {
  using Signature = py::detail::function_signature_t<F>;
  m.def(name, on_its_device(name, f, static_cast<Signature*>(nullptr)), NoGil(), extra...);
}

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
