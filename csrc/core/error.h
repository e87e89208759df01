// Exceptions and check(): every message is "<public name>: expected ..., got ...", built only on
// failure. Kernels throw nothing but MemoryError, of memory to work in.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace fastnn {

// Mapped to Python exceptions of the same name in bindings/module.cpp.
struct ValueError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct TypeError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct RuntimeError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct NotImplementedError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct MemoryError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Concatenates its arguments as a stream would print them.
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// check<ValueError>(k > 0, "max_pool2d: kernel_size expects values > 0, got ", k);
template <class Error = ValueError, class... Parts>
void check(bool ok, const Parts&... parts) {
  if (!ok) throw Error(text(parts...));
}

}  // namespace fastnn
