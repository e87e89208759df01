#include "ops/softmax.h"

#include "core/error.h"
#include "ops/slots.h"

namespace fastnn::ops {
namespace {

struct Extent {
  int64_t outer, D, inner;
};

// In canonical memory every dimension has one stride; what lies inside it is that many elements.
Extent extent(const Array& x, int64_t dim) {
  const int d = static_cast<int>(dim);
  const int64_t D = x.size(d), inner = canonical_strides(x.shape())[d];
  return {x.count() / (D * inner), D, inner};
}

}  // namespace

Array softmax(const Array& input, int64_t dim, bool log) {
  const char* op = log ? "log_softmax" : "softmax";
  check_floating(op, "input", input);
  check(dim >= 0 && dim < input.rank(), op, ": dim expects a dimension of shape ", input.shape(),
        ", got ", dim);
  const Array x = canonical(input);
  Array y = empty(x.shape(), x.dtype());
  if (x.count() == 0) return y;
  const Extent e = extent(x, dim);
  kernels().softmax.forward(x.raw(), e.outer, e.D, e.inner, x.dtype(), log, y.raw());
  return y;
}

Array softmax_backward(const Array& grad_output, const Array& output, int64_t dim, bool log) {
  check(grad_output.shape() == output.shape(), "softmax: grad_output expects shape ",
        output.shape(), ", got ", grad_output.shape());
  const Array y = canonical(output), g = canonical(astype(grad_output, y.dtype()));
  Array grad_input = empty(y.shape(), y.dtype());
  if (y.count() == 0) return grad_input;
  const Extent e = extent(y, dim);
  kernels().softmax.backward(g.raw(), y.raw(), e.outer, e.D, e.inner, y.dtype(), log,
                             grad_input.raw());
  return grad_input;
}

}  // namespace fastnn::ops
