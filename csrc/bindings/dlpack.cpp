// DLPack exchange (https://dmlc.github.io/dlpack), and NVIDIA's array interface: tensors in and out
// without a copy. The order of work on streams is settled in tensor.py.
// The structs below are the protocol's C ABI, version 0 ("dltensor" capsules).
#include "bindings/module.h"

#include "core/error.h"

namespace fastnn {
namespace {

struct DLDevice {
  int32_t device_type;  // 1 = CPU, 2 = CUDA, 3 = CPU memory that CUDA has pinned
  int32_t device_id;
};
struct DLDataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensor* self);
};

constexpr uint8_t kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6;

DLDataType to_dlpack_dtype(DType dtype) {
  const auto bits = static_cast<uint8_t>(8 * item_size(dtype));
  switch (dtype) {
    case DType::float32:
      return {kFloat, bits, 1};
    case DType::bfloat16:
      return {kBfloat, bits, 1};
    case DType::uint8:
      return {kUInt, bits, 1};
    case DType::boolean:
      return {kBool, bits, 1};
    default:
      return {kInt, bits, 1};
  }
}

DType from_dlpack_dtype(const DLDataType& t) {
  if (t.lanes == 1) {
    if (t.code == kFloat && t.bits == 32) return DType::float32;
    if (t.code == kBfloat && t.bits == 16) return DType::bfloat16;
    if (t.code == kInt && t.bits == 64) return DType::int64;
    if (t.code == kInt && t.bits == 32) return DType::int32;
    if (t.code == kUInt && t.bits == 8) return DType::uint8;
    if (t.code == kBool && t.bits == 8) return DType::boolean;
  }
  throw TypeError(
      text("from_dlpack: expected float32, bfloat16, int64, int32, uint8 or bool, got "
           "DLPack type code ",
           int{t.code}, " with ", int{t.bits}, " bits and ", t.lanes, " lanes"));
}

struct Exported {
  DLManagedTensor managed;
  Exposed exposed;
  bool on_default_stream;  // the consumer's work; another stream of its may be gone by the end
  Dims shape, strides;
  ~Exported() {
    const Array& x = exposed.array();
    if (x.device() == kCpu) return;
    // The consumer's kernels may still be reading.
    if (on_default_stream)
      device_table()->used(x.device(), x.storage()->data);
    else
      device_table()->wait(x.device());
  }
};

py::capsule to_dlpack(const Array& x, bool on_default_stream) {
  if (!x.storage()->writable)
    throw py::buffer_error(
        "__dlpack__: this tensor views read-only memory, which this DLPack version cannot "
        "express; export a .clone()");
  auto* out = new Exported{{}, Exposed(x), on_default_stream, x.shape(), x.strides()};
  DLTensor& t = out->managed.dl_tensor;
  t.data = x.raw();
  t.device = x.device() == kCpu ? DLDevice{1, 0} : DLDevice{2, x.device()};
  t.ndim = x.rank();
  t.dtype = to_dlpack_dtype(x.dtype());
  t.shape = &out->shape[0];
  t.strides = &out->strides[0];
  t.byte_offset = 0;
  out->managed.manager_ctx = out;
  out->managed.deleter = [](DLManagedTensor* self) {
    delete static_cast<Exported*>(self->manager_ctx);
  };
  return py::capsule(&out->managed, "dltensor", [](PyObject* capsule) {
    // A consumer renames the capsule to "used_dltensor" and takes over the deleter.
    if (!PyCapsule_IsValid(capsule, "dltensor")) return;
    auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
    managed->deleter(managed);
  });
}

Array from_dlpack(const py::capsule& capsule) {
  check(PyCapsule_IsValid(capsule.ptr(), "dltensor"),
        "from_dlpack: expected an unused \"dltensor\" capsule, got one named \"",
        PyCapsule_GetName(capsule.ptr()) ? PyCapsule_GetName(capsule.ptr()) : "", "\"");
  auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  const DLTensor& t = managed->dl_tensor;
  const int32_t kind = t.device.device_type;
  check<NotImplementedError>(kind >= 1 && kind <= 3,
                             "from_dlpack: expected a CPU or CUDA tensor, got device type ", kind);
  const int device = kind == 2 ? t.device.device_id : kCpu;
  check<RuntimeError>(device == kCpu || device_table(),
                      "from_dlpack: this tensor is on a GPU, and fastnn has none in use");
  const DType dtype = from_dlpack_dtype(t.dtype);
  const auto address = reinterpret_cast<uintptr_t>(t.data) + t.byte_offset;
  check(address % static_cast<uintptr_t>(item_size(dtype)) == 0,
        "from_dlpack: expected memory aligned to ", item_size(dtype), " bytes, got address ",
        address);
  Dims shape, strides;
  for (int i = 0; i < t.ndim; ++i) shape.push_back(t.shape[i]);
  if (t.strides)
    for (int i = 0; i < t.ndim; ++i) strides.push_back(t.strides[i]);
  else
    strides = row_major_strides(shape);
  auto storage = std::make_shared<Storage>();
  storage->data = reinterpret_cast<void*>(address);
  storage->device = device;
  storage->release = [managed, device] {
    if (!managed->deleter || !Py_IsInitialized()) return;
    if (device != kCpu) device_table()->wait(device);  // kernels may still be reading
    py::gil_scoped_acquire gil;  // the producer's deleter may drop Python references
    managed->deleter(managed);
  };
  PyCapsule_SetName(capsule.ptr(), "used_dltensor");
  return Array(std::move(storage), 0, shape, strides, dtype);
}

// An array over a CUDA device's memory, kept alive by `owner`.
Array from_cuda(uintptr_t address, const Dims& shape, const Dims& strides, DType dtype, int device,
                bool writable, const py::object& owner) {
  auto storage = std::make_shared<Storage>();
  storage->data = reinterpret_cast<void*>(address);
  storage->device = device;
  storage->writable = writable;
  storage->release = [kept = new py::object(owner), device] {
    if (!Py_IsInitialized()) return;
    device_table()->wait(device);
    py::gil_scoped_acquire gil;
    delete kept;
  };
  return Array(std::move(storage), 0, shape, strides, dtype);
}

}  // namespace

void bind_dlpack(py::module_& m) {
  m.def("from_cuda", &from_cuda);
  m.def("to_dlpack", &to_dlpack);
  m.def("from_dlpack", &from_dlpack);
}

}  // namespace fastnn
