#include "ops/activation.h"

#include "core/error.h"
#include "ops/slots.h"

namespace fastnn::ops {

Array relu(const Array& input) {
  check_floating("relu", "input", input);
  const Array x = canonical(input);
  Array output = empty(x.shape(), x.dtype());
  cpu_slots().activation.relu(x.raw(), output.raw(), x.count(), x.dtype());
  return output;
}

Array relu_backward(const Array& grad_output, const Array& output) {
  check(grad_output.shape() == output.shape(), "relu_backward: grad_output expects shape ",
        output.shape().str(), ", got ", grad_output.shape().str());
  const Array g = canonical(astype(grad_output, output.dtype()));
  const Array y = canonical(output);
  Array grad_input = empty(y.shape(), y.dtype());
  cpu_slots().activation.relu_backward(g.raw(), y.raw(), grad_input.raw(), y.count(), y.dtype());
  return grad_input;
}

}  // namespace fastnn::ops
