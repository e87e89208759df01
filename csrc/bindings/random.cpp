#include "ops/random.h"

#include "bindings/module.h"

namespace fastnn {

void bind_random(py::module_& m) {
  const auto pair = [](const RandomState& state) {
    return py::make_tuple(state.seed, state.offset);
  };
  m.def("manual_seed", &manual_seed);
  m.def("random_state", [=] { return pair(random_state()); });
  m.def("set_random_state",
        [](uint64_t seed, uint64_t offset) { set_random_state({seed, offset}); });
  m.def(
      "next_random", [=](uint64_t draws) { return pair(next_random(draws)); },
      py::arg("draws") = 1);
  m.def("begin_random_apart", [=] { return pair(begin_random_apart()); });
  m.def("end_random_apart", [=] { return pair(end_random_apart()); });

  const auto draw = [&](const char* name, auto make, auto bound) {
    using Bound = decltype(bound);
    m.def(
        name,
        [=](const Dims& shape, Bound a, Bound b, int device) {
          const DeviceScope scope(device);
          Array made = make(shape, a, b);
          check_device();
          return made;
        },
        NoGil());
  };
  draw("random_uniform", &ops::random_uniform, double{});
  draw("random_normal", &ops::random_normal, double{});
  draw("random_integers", &ops::random_integers, int64_t{});
  m.def("random_permutation", &ops::random_permutation, NoGil());
}

}  // namespace fastnn
