// The Array type, its views, and NumPy in and out without a copy.
#include "bindings/module.h"

#include "core/error.h"
#include "ops/copy.h"

namespace fastnn {
namespace {

DType dtype_of(const py::dtype& dtype) {
  const char kind = dtype.kind();
  const auto size = dtype.itemsize();
  if (kind == 'f' && size == 4) return DType::float32;
  if (kind == 'i' && size == 8) return DType::int64;
  if (kind == 'i' && size == 4) return DType::int32;
  if (kind == 'u' && size == 1) return DType::uint8;
  if (kind == 'b') return DType::boolean;
  throw TypeError(
      text("from_numpy: expected dtype float32, bfloat16, int64, int32, uint8 or bool, got ",
           py::str(dtype).cast<std::string>(), "; fastnn.tensor(...) converts other types"));
}

// bfloat16 travels through NumPy as uint16; Python's side views it as ml_dtypes.bfloat16.
py::dtype numpy_dtype(DType dtype) {
  return py::dtype(dtype == DType::bfloat16  ? "uint16"
                   : dtype == DType::boolean ? "bool"
                                             : name_of(dtype));
}

// A view of a NumPy array that keeps it alive. Its strides must be multiples of the item size.
Array from_numpy(const py::array& source, bool is_bfloat16) {
  const DType dtype = is_bfloat16 ? DType::bfloat16 : dtype_of(source.dtype());
  Dims shape, strides;
  for (py::ssize_t i = 0; i < source.ndim(); ++i) {
    shape.push_back(source.shape(i));
    strides.push_back(source.strides(i) / item_size(dtype));
  }
  auto storage = std::make_shared<Storage>();
  storage->data = const_cast<void*>(source.data());
  storage->writable = source.writeable();
  storage->release = [owner = new py::object(source)] {
    if (!Py_IsInitialized()) return;
    py::gil_scoped_acquire gil;
    delete owner;
  };
  return Array(std::move(storage), 0, shape, strides, dtype);
}

py::array to_numpy(const Array& x) {
  check<TypeError>(x.device() == kCpu, "numpy: the tensor is on ", device_name(x.device()),
                   ", NumPy's arrays are in the CPU's memory; use .cpu().numpy()");
  std::vector<py::ssize_t> shape, strides;
  for (int i = 0; i < x.rank(); ++i) {
    shape.push_back(x.size(i));
    strides.push_back(x.strides()[i] * item_size(x.dtype()));
  }
  const py::capsule owner(new Exposed(x), [](void* own) { delete static_cast<Exposed*>(own); });
  py::array out(numpy_dtype(x.dtype()), shape, strides, x.raw(), owner);
  if (!x.storage()->writable) out.attr("setflags")(py::arg("write") = false);
  return out;
}

Array as_strided(const Array& x, const Dims& shape, const Dims& strides, int64_t offset) {
  return x.view(x.offset() + offset, shape, strides);
}

// A view if the elements' row-major order can be kept without moving them, else a copy. Sizes are
// checked by functional/view.py.
Array reshape(const Array& x, const Dims& shape) {
  if (element_count(shape) != x.count())
    throw ValueError(text("reshape: shape ", shape, " is invalid for a tensor of shape ", x.shape(),
                          " with ", x.count(), " elements"));
  const Array dense = ops::row_major(x);
  const Array flat = dense.view(dense.offset(), shape, row_major_strides(shape));
  return flat;
}

}  // namespace

void bind_array(py::module_& m) {
  py::class_<Array>(m, "Array")
      .def_property_readonly("shape", [](const Array& x) { return x.shape(); })
      .def_property_readonly("strides", [](const Array& x) { return x.strides(); })
      .def_property_readonly("dtype", &Array::dtype)
      .def_property_readonly("device", &Array::device)
      .def_property_readonly("offset", &Array::offset)
      .def_property_readonly("count", &Array::count)
      .def_property_readonly("pointer",
                             [](const Array& x) { return reinterpret_cast<uintptr_t>(x.raw()); })
      .def_property_readonly("kept_blocks",
                             [](const Array& x) {
                               KeptWorkspaces* const kept = kept_with(x);
                               return kept ? kept->count() : 0;
                             })
      // Whoever gets the address may write for as long as the memory is there.
      .def("expose", [](const Array& x) { x.storage()->expose(); })
      // Whether others may write to it without our notice: memory of theirs, or in their hands.
      .def_property_readonly("exposed",
                             [](const Array& x) {
                               const Storage& s = *x.storage();
                               return s.exposed.load() > 0 || (s.release && !s.owners_kept);
                             })
      .def_property_readonly("pinned", [](const Array& x) { return x.storage()->pinned; })
      .def_property_readonly("writable", [](const Array& x) { return x.storage()->writable; })
      .def_property_readonly("owners", [](const Array& x) { return x.storage().use_count(); })
      .def_property_readonly("version", [](const Array& x) { return x.storage()->version.load(); })
      .def("bump_version", [](const Array& x) { ++x.storage()->version; })
      .def("shares_storage",
           [](const Array& x, const Array& y) { return x.storage() == y.storage(); })
      .def("is_row_major", &Array::is_row_major)
      .def("is_canonical", &Array::is_canonical)
      .def("is_dense", &Array::is_dense)
      .def("overlaps_itself", &Array::overlaps_itself)
      .def("as_strided", &as_strided)
      .def("reshape",
           on_its_device("reshape", &reshape,
                         static_cast<Array (*)(const Array&, const Dims&)>(nullptr)),
           NoGil())
      .def("numpy", &to_numpy);

  m.def("from_numpy", &from_numpy);
  m.def(
      "empty",
      [](const Dims& shape, DType dtype, int device) {
        const DeviceScope scope(device);
        return empty(shape, dtype);
      },
      py::arg("shape"), py::arg("dtype"), py::arg("device") = kCpu);
  m.def(
      "full",
      [](const Dims& shape, double value, DType dtype, int device) {
        const DeviceScope scope(device);
        Array made = ops::full(shape, value, dtype);
        check_device();
        return made;
      },
      py::arg("shape"), py::arg("value"), py::arg("dtype"), py::arg("device") = kCpu);
  m.def(
      "to_device",
      [](const Array& input, int device, bool later) {
        ArgumentDevice("to_device").see(input);  // a recording keeps it
        return ops::to_device(input, device, later);
      },
      NoGil(), py::arg("input"), py::arg("device"), py::arg("later") = false);
  m.def("pinned", &ops::pinned, NoGil());
  // As empty_like() and full() on the device of x.
  def(m, "empty_like", [](const Array& x, DType dtype) {
    return x.is_dense() ? empty_strided(x.shape(), x.strides(), dtype) : empty(x.shape(), dtype);
  });
  def(m, "new_empty",
      [](const Array&, const Dims& shape, DType dtype) { return empty(shape, dtype); });
  def(m, "new_full", [](const Array&, const Dims& shape, double value, DType dtype) {
    return ops::full(shape, value, dtype);
  });
  def(m, "new_whole", [](const Array&, const Dims& shape, int64_t value, DType dtype) {
    return ops::full_whole(shape, value, dtype);
  });
  def(m, "astype", &ops::astype);
  def(m, "lowered", &ops::lowered);
  def(m, "canonical", &ops::canonical);
  def(m, "row_major", &ops::row_major);
  def(m, "clone", &ops::clone);
  def(m, "copy_into", &ops::copy_into);
  def(m, "accumulate", &ops::accumulate);
}

}  // namespace fastnn
