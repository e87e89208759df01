// The extension module of CUDA devices: the table for fastnn._core, and the runtime for
// fastnn.cuda.
#include <pybind11/pybind11.h>

#include "cuda/capture.h"
#include "cuda/runtime.h"
#include "cuda/slots.h"

namespace fastnn::cuda {
namespace py = pybind11;

namespace {

// MemoryError or RuntimeError for what has been noted.
void check() {
  bool out_of_memory = false;
  if (const char* message = take_error(&out_of_memory)) {
    py::set_error(out_of_memory ? PyExc_MemoryError : PyExc_RuntimeError, message);
    throw py::error_already_set();
  }
}

uintptr_t handle(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }
template <class T>
T pointer(uintptr_t handle) {
  return reinterpret_cast<T>(handle);
}

void checked(cudaError_t result, const char* what) {
  note(result, what);
  check();
}

// Events tie streams together, which a recording may not be: what waits for one of them, or is
// waited for, would be drawn into it.
void refuse_recorded(uintptr_t stream, const char* other = "no event") {
  if (is_recorded(pointer<cudaStream_t>(stream)))
    note_text(std::string("a graph is being recorded, which ") + other +
              " can wait for, nor be waited for");
  check();
}

// Whether what was queried is done. What is not is no failure, though the driver notes it as one.
bool is_done(cudaError_t result, const char* what) {
  if (result == cudaErrorNotReady)
    cudaGetLastError();
  else
    checked(result, what);
  return result == cudaSuccess;
}

void bind_streams(py::module_& m) {
  m.def("current_stream", [](int device) {
    const Selected there(device);
    check();
    return handle(current_stream());
  });
  m.def("set_stream", [](int device, uintptr_t stream) {
    const Selected there(device);
    if (recorded_graph() && pointer<cudaStream_t>(stream) != current_stream())
      note_text(
          "stream: a graph is being recorded, and work on another stream would be no part of it; "
          "record on one stream");
    check();
    set_current_stream(pointer<cudaStream_t>(stream));
    check();
  });
  m.def("new_stream", [](int device) {
    cudaStream_t const stream = new_stream(device);
    check();
    return handle(stream);
  });
  m.def(
      "synchronize_stream",
      [](int device, uintptr_t stream) {
        const Selected there(device);
        cudaStream_t const before = current_stream();
        set_current_stream(pointer<cudaStream_t>(stream));
        synchronize();
        set_current_stream(before);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def("query_stream", [](int device, uintptr_t stream) {
    refuse_recorded(stream, "nobody");
    const Selected there(device);
    const Unrecorded outside;
    return is_done(cudaStreamQuery(pointer<cudaStream_t>(stream)), "whether a stream is done");
  });
  m.def(
      "synchronize", [](int device) { synchronize_device(device); },
      py::call_guard<py::gil_scoped_release>());
  m.def("check", &check);
  // Later work on `later` follows what is queued on `earlier` by now; both are of the device, or
  // `later` is of another.
  m.def(
      "follow",
      [](int device, uintptr_t later, uintptr_t earlier, int later_device) {
        refuse_recorded(later, "no other stream");
        refuse_recorded(earlier, "no other stream");
        follow(pointer<cudaStream_t>(later), later_device < 0 ? device : later_device,
               pointer<cudaStream_t>(earlier), device);
        check();
      },
      py::arg("device"), py::arg("later"), py::arg("earlier"), py::arg("later_device") = -1);
  m.def("wait_event", [](int device, uintptr_t stream, uintptr_t event) {
    refuse_recorded(stream);
    const Selected there(device);
    checked(cudaStreamWaitEvent(pointer<cudaStream_t>(stream), pointer<cudaEvent_t>(event), 0),
            "waiting for an event");
  });
  m.def("new_event", [](int device, bool timing) {
    const Selected there(device);
    cudaEvent_t event = nullptr;
    checked(cudaEventCreateWithFlags(&event, timing ? 0 : cudaEventDisableTiming),
            "making an event");
    return handle(event);
  });
  m.def("destroy_event", [](uintptr_t event) { cudaEventDestroy(pointer<cudaEvent_t>(event)); });
  m.def("record_event", [](int device, uintptr_t event, uintptr_t stream) {
    refuse_recorded(stream);
    const Selected there(device);
    checked(cudaEventRecord(pointer<cudaEvent_t>(event), pointer<cudaStream_t>(stream)),
            "recording an event");
  });
  m.def(
      "synchronize_event",
      [](int device, uintptr_t event) {
        const Selected there(device);
        synchronize(pointer<cudaEvent_t>(event));
      },
      py::call_guard<py::gil_scoped_release>());
  m.def("query_event", [](int device, uintptr_t event) {
    const Selected there(device);
    const Unrecorded outside;
    return is_done(cudaEventQuery(pointer<cudaEvent_t>(event)), "whether an event has come");
  });
  m.def("elapsed", [](uintptr_t from, uintptr_t to) {
    float milliseconds = 0;
    checked(
        cudaEventElapsedTime(&milliseconds, pointer<cudaEvent_t>(from), pointer<cudaEvent_t>(to)),
        "the time between two events");
    return milliseconds;
  });
}

void bind_graphs(py::module_& m) {
  // Of this module alone: the emulated one may be loaded beside it.
  py::class_<WorkPlace>(m, "WorkPlace", py::module_local())
      .def_property_readonly("recorded", [](const WorkPlace& place) { return place.number != 0; })
      .def("__eq__", [](const WorkPlace& a, const WorkPlace& b) { return a == b; });
  m.def("here", [](int device) {
    const Selected there(device);
    check();
    return here();
  });
  m.def("move_to", [](int device, const WorkPlace& place) {
    const Selected there(device);
    return move_to(place);
  });
  m.def("begin_capture", [](int device) {
    {
      // Another thread may wait for the device and hold up recordings meanwhile.
      const py::gil_scoped_release others;
      begin_capture(device);
    }
    check();
  });
  m.def("end_capture", [] {
    const Graph* const graph = end_capture();
    check();
    return handle(graph);
  });
  m.def("abandon_capture", &abandon_capture);
  m.def("recording", [] { return recorded_graph() != nullptr; });
  m.def("replay", [](uintptr_t graph, uint64_t seed, uint64_t offset) {
    replay(pointer<Graph*>(graph), {seed, offset});
    check();
  });
  m.def("destroy_graph", [](uintptr_t graph) { destroy(pointer<Graph*>(graph)); });
  m.def("begin_rehearsal", [](uintptr_t graph) { begin_rehearsal(pointer<Graph*>(graph)); });
  m.def("end_rehearsal", &end_rehearsal);
}

void bind_memory(py::module_& m) {
  m.def("memory_stats", [](int device) {
    const MemoryUse use = memory_use(device);
    check();
    py::dict out;
    out["allocated"] = use.allocated;
    out["peak_allocated"] = use.highest;
    out["cached"] = use.cached;
    out["free"] = use.free;
    out["total"] = use.total;
    return out;
  });
  m.def("reset_peak_memory_stats", [](int device) {
    reset_highest(device);
    check();
  });
  m.def(
      "empty_cache",
      [](int device) {
        const Selected there(device);
        free_constants(device);
        if (!synchronize()) return;
        note(gather_memory(device), "the memory pool");  // what other streams have freed, too
        free_pinned();
      },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace

PYBIND11_MODULE(FASTNN_CUDA_MODULE, m) {
  m.doc() = "fastnn's CUDA kernels. Private: see fastnn.cuda.";
  m.attr("table") = py::capsule(&table(), "fastnn.DeviceTable");
#if defined(FASTNN_CUDA_EMULATE)
  m.attr("emulated") = true;
#else
  m.attr("emulated") = false;
#endif
  m.def("device_count", [] {
    const int count = device_count();
    check();
    return count;
  });
  m.def("device_properties", [](int device) {
    cudaDeviceProp properties;
    checked(cudaGetDeviceProperties(&properties, device), "the device's properties");
    py::dict out;
    out["name"] = std::string(properties.name);
    out["capability"] = py::make_tuple(properties.major, properties.minor);
    out["multiprocessors"] = properties.multiProcessorCount;
    out["memory"] = properties.totalGlobalMem;
    return out;
  });
  m.def("device_of", [](uintptr_t memory) {
    cudaPointerAttributes attributes;
    checked(cudaPointerGetAttributes(&attributes, pointer<void*>(memory)), "whose memory it is");
    if (attributes.type == cudaMemoryTypeUnregistered)
      throw py::value_error("as_tensor: expected memory of a GPU, got other memory");
    return attributes.device;
  });
  // For this thread, and the driver's with it, from now on.
  m.def("set_device", [](int device) {
    enter(device);
    check();
  });
  m.def("leave_device", &leave);  // for one that was the driver's before
  // The driver's, which other libraries go by.
  m.def("current_device", [] {
    int device = 0;
    checked(cudaGetDevice(&device), "the current device");
    return device;
  });
  m.def("allow_tf32", &allow_tf32);
  m.def("set_allow_tf32", &set_allow_tf32);
  m.def("use_tensor_cores", &use_tensor_cores);
  m.def("set_use_tensor_cores", &set_use_tensor_cores);
  m.def("tensor_cores", [](int device) {
    const Selected there(device);
    check();
    return tensor_cores();
  });
  m.def("wrong_primitives", [](int device) {
    const Selected there(device);
    check();
    return wrong_primitives();
  });
  m.def("has_wgmma", [](int device) {
    const Selected there(device);
    check();
    return has_wgmma();
  });
  m.def("use_wgmma", &use_wgmma);
  m.def("set_use_wgmma", &set_use_wgmma);
  m.def("launches", [] { return launches().load(); });
  m.def("wgmma_products", [] { return wgmma_products().load(); });
  bind_streams(m);
  bind_graphs(m);
  bind_memory(m);
}

}  // namespace fastnn::cuda
