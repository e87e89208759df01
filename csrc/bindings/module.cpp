// The extension module: exceptions, the array type, the runtime, and one bind_<family> per family.
#include "bindings/module.h"

#include "core/allocator.h"
#include "core/device.h"
#include "core/error.h"
#include "core/isa.h"
#include "core/parallel.h"

namespace fastnn {

#define FASTNN_BINDINGS(X) \
  X(activation)            \
  X(array)                 \
  X(conv)                  \
  X(dlpack)                \
  X(dropout)               \
  X(elementwise)           \
  X(interpolate)           \
  X(loss)                  \
  X(matmul)                \
  X(norm)                  \
  X(optim)                 \
  X(pool)                  \
  X(random)                \
  X(reduce)                \
  X(shape)                 \
  X(softmax)

#define FASTNN_DECLARE(family) void bind_##family(py::module_& m);
FASTNN_BINDINGS(FASTNN_DECLARE)

namespace {

void bind_exceptions() {
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const ValueError& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    } catch (const TypeError& e) {
      PyErr_SetString(PyExc_TypeError, e.what());
    } catch (const RuntimeError& e) {
      PyErr_SetString(PyExc_RuntimeError, e.what());
    } catch (const NotImplementedError& e) {
      PyErr_SetString(PyExc_NotImplementedError, e.what());
    } catch (const MemoryError& e) {
      PyErr_SetString(PyExc_MemoryError, e.what());
    }
  });
}

void bind_runtime(py::module_& m) {
  m.def("get_num_threads", &get_num_threads);
  m.def("set_serial", &set_serial);
  m.def("set_num_threads", &set_num_threads);

  m.def("compiled_isas", &compiled_isas);
  m.def("available_isas", &available_isas);
  m.def("active_isa", &active_isa);
  m.def("set_isa", &set_isa);
  m.def(
      "multiply_adds",
      [](bool is_bfloat16, int64_t rounds) {
        return multiply_adds(is_bfloat16 ? DType::bfloat16 : DType::float32, rounds);
      },
      NoGil());

  m.def("memory_stats", [] {
    const MemoryStats stats = memory_stats();
    py::dict out;
    out["allocated"] = stats.allocated;
    out["peak_allocated"] = stats.peak_allocated;
    out["cached"] = stats.cached;
    out["allocations"] = stats.allocations;
    out["cache_hits"] = stats.cache_hits;
    out["streamed"] = stats.streamed;
    return out;
  });
  m.def("reset_peak_memory_stats", &reset_peak_memory_stats);
  m.def("empty_cache", &empty_cache);
  m.def("assume_left_caches", [](std::optional<bool> answer) {
    assume_left_caches(!answer   ? LeftCaches::by_distance
                       : *answer ? LeftCaches::always
                                 : LeftCaches::never);
  });

  m.def("set_device_table", [](const py::capsule& capsule) {
    set_device_table(capsule.get_pointer<const DeviceTable>());
  });

  m.attr("compiler") = __VERSION__;
  m.attr("cuda_option") = FASTNN_CUDA_OPTION;
  m.attr("cuda_status") = FASTNN_CUDA_STATUS;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "fastnn's CPU kernels. Private: the public functions are in fastnn.nn.functional.";
  bind_exceptions();
  bind_runtime(m);
#define FASTNN_BIND(family) bind_##family(m);
  FASTNN_BINDINGS(FASTNN_BIND)
}

}  // namespace fastnn
