#include "ops/matmul.h"

#include "core/error.h"
#include "core/parallel.h"
#include "ops/conv.h"
#include "ops/copy.h"
#include "ops/elementwise.h"
#include "ops/slots.h"

namespace fastnn::ops {
namespace {

// A 1x1 convolution from `in` to `out` channels over `rows` pixels.
ConvParams pointwise(int64_t rows, int64_t in, int64_t out, DType dtype) {
  ConvParams p{};
  p.N = rows, p.C = in, p.OC = out;
  p.H = p.W = p.OH = p.OW = p.KH = p.KW = 1;
  p.stride_h = p.stride_w = p.dilation_h = p.dilation_w = p.groups = 1;
  p.dtype = dtype;
  return p;
}

void check_operands(const char* op, const char* first, const Array& a, const char* second,
                    const Array& b) {
  check_floating(op, first, a);
  check_floating(op, second, b);
  check<TypeError>(a.dtype() == b.dtype(), op, ": ", second, " expects the dtype of ", first, ", ",
                   name_of(a.dtype()), ", got ", name_of(b.dtype()));
}

// Calls product() for each matrix of the batch with pointers to the i-th matrices. Where there are
// enough of them, each is one thread's.
template <class Product>
void each(const Array& x, const Array& y, const Array& out, const Product& product) {
  if (out.count() == 0) return;
  if (x.count() == 0)  // sums of nothing
    return kernels().copy.fill(out.raw(), out.count(), item_size(out.dtype()), 0);
  const int64_t batch = out.rank() == 3 ? out.size(0) : 1;
  const auto at = [&](const Array& a, int64_t i) {
    return static_cast<char*>(a.raw()) + i * (a.count() / batch) * item_size(a.dtype());
  };
  const auto one = [&](int64_t i) { product(at(x, i), at(y, i), at(out, i)); };
  if (current_device() != kCpu || batch < 4 * get_num_threads()) {
    for (int64_t i = 0; i < batch; ++i) one(i);
    return;
  }
  parallel_for_dynamic(batch, one);
}

Array matrices(const Array& like, int64_t rows, int64_t columns, DType dtype) {
  return like.rank() == 3 ? empty({like.size(0), rows, columns}, dtype)
                          : empty({rows, columns}, dtype);
}

// Whether kernels().matmul takes this product.
bool takes(const MatmulParams& p, bool turned) {
  return current_device() == kCpu && p.rows * p.inner * p.columns > 0 &&
         kernels().matmul.takes(p, turned);
}

}  // namespace

Array matmul(const Array& a, const Array& b) {
  check_operands("matmul", "input", a, "other", b);
  const int r = a.rank();
  check((r == 2 || r == 3) && b.rank() == r, "matmul: expected two matrices or two batches, got ",
        a.shape(), " and ", b.shape());
  const int64_t m = a.size(r - 2), k = a.size(r - 1), n = b.size(r - 1);
  check(b.size(r - 2) == k && (r == 2 || a.size(0) == b.size(0)), "matmul: other expects ", k,
        " rows, got shapes ", a.shape(), " and ", b.shape());
  const Array x = canonical(a), y = canonical(b);
  Array out = matrices(a, m, n, a.dtype());
  const MatmulParams p{m, k, n, a.dtype()};
  const bool by_rows = takes(p, true);
  each(x, y, out, [&, &use = kernels()](const void* left, const void* right, void* to) {
    if (by_rows) return use.matmul.rows_turned(p, left, right, to);
    use.conv.backward_data(pointwise(m, n, k, p.dtype), left, right, {}, to);
  });
  return out;
}

Array matmul_backward_a(const Array& grad_output, const Array& b) {
  const int r = b.rank();
  const int64_t m = grad_output.size(r - 2), k = b.size(r - 2), n = b.size(r - 1);
  const Array g = canonical(astype(grad_output, b.dtype())), y = canonical(b);
  Array out = matrices(b, m, k, b.dtype());
  const MatmulParams p{m, n, k, b.dtype()};
  const bool by_rows = takes(p, false);
  each(g, y, out, [&, &use = kernels()](const void* grad, const void* right, void* to) {
    if (by_rows) return use.matmul.rows(p, grad, right, nullptr, to);
    use.conv.forward(pointwise(m, n, k, p.dtype), grad, right, {}, to);
  });
  return out;
}

// a^T grad_output.
static Array weight_gradient(const Array& grad_output, const Array& a, DType dtype) {
  const int r = a.rank();
  const int64_t m = a.size(r - 2), k = a.size(r - 1), n = grad_output.size(r - 1);
  const Array g = canonical(astype(grad_output, a.dtype())), x = canonical(a);
  Array out = matrices(a, k, n, dtype);
  ConvParams p = pointwise(m, n, k, a.dtype());
  p.grad_dtype = dtype;
  const bool by_rows = current_device() == kCpu && m <= kOuterRows;
  each(g, x, out, [&, &use = kernels()](const void* grad, const void* left, void* to) {
    if (by_rows) return use.matmul.outer({m, k, n, a.dtype()}, left, grad, dtype, to);
    use.conv.backward_weight(p, grad, left, to);
  });
  return out;
}

Array matmul_backward_b(const Array& grad_output, const Array& a) {
  return weight_gradient(grad_output, a, a.dtype());
}

Array linear(const Array& input, const Array& weight, const Array* bias, bool keep_packed) {
  check_operands("linear", "input", input, "weight", weight);
  check(weight.rank() == 2, "linear: weight expects shape (out_features, in_features), got ",
        weight.shape());
  check(input.rank() == 2 && input.size(1) == weight.size(1), "linear: weight expects ",
        weight.size(1), " input features, got input of shape ", input.shape());
  Array b;
  if (bias) {
    check_floating("linear", "bias", *bias);
    check(bias->rank() == 1 && bias->size(0) == weight.size(0), "linear: bias expects shape (",
          weight.size(0), ",), got ", bias->shape());
    b = canonical(astype(*bias, DType::float32));
  }
  const Array x = canonical(input), w = canonical(weight);
  Array out = empty({x.size(0), w.size(0)}, x.dtype());
  if (out.count() && x.count() == 0) {
    const Array sums =
        bias ? b.view(b.offset(), out.shape(), {0, 1}) : full(out.shape(), 0, x.dtype());
    copy_into(out, sums);
    return out;
  }
  const float* const shift = bias ? b.data<float>() : nullptr;
  const MatmulParams m{x.size(0), w.size(1), w.size(0), x.dtype()};
  if (!keep_packed && takes(m, false)) {
    kernels().matmul.rows(m, x.raw(), w.raw(), shift, out.raw());
    return out;
  }
  ConvParams p = pointwise(m.rows, m.inner, m.columns, m.dtype);
  p.kept = keep_packed ? kept_with(w) : nullptr;
  if (out.count()) kernels().conv.forward(p, x.raw(), w.raw(), {shift}, out.raw());
  return out;
}

Array linear_backward_input(const Array& grad_output, const Array& weight) {
  return matmul(astype(grad_output, weight.dtype()), weight);
}

Array linear_backward_weight(const Array& grad_output, const Array& input, DType dtype) {
  return weight_gradient(input, astype(grad_output, input.dtype()),
                         checked_grad_dtype("linear", input.dtype(), dtype));
}

}  // namespace fastnn::ops
