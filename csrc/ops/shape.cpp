#include "ops/shape.h"

#include "core/error.h"
#include "ops/slots.h"

namespace fastnn::ops {
namespace {

void check_positions(const Array& positions, int64_t rows) {
  check<TypeError>(positions.dtype() == DType::int64, "take: positions expect dtype int64, got ",
                   name_of(positions.dtype()));
  check(rows > 0 || positions.count() == 0, "take: no position is in range of 0 rows");
  const int64_t* at = positions.data<int64_t>();
  const int64_t bad = kernels().shape.first_outside(at, positions.count(), rows, 0, "take");
  check(bad < 0, "take: position ", bad < 0 ? 0 : at[bad], " is out of range for ", rows, " rows");
}

}  // namespace

Array take(const Array& x, const Array& positions, int64_t width, const Dims& shape,
           bool canonical_rows) {
  const Array index = row_major(positions);
  check(width > 0 && x.is_dense() && element_count(shape) == index.count() * width,
        "take: sizes do not fit");
  const int64_t rows = x.count() / width;
  check_positions(index, rows);
  Array out = empty_strided(
      shape, canonical_rows ? canonical_strides(shape) : row_major_strides(shape), x.dtype());
  kernels().shape.take(x.raw(), rows, index.data<int64_t>(), index.count(),
                       width * item_size(x.dtype()), out.raw());
  return out;
}

Array take_backward(const Array& grad_output, const Array& positions, int64_t width,
                    const Dims& shape, bool canonical_rows) {
  const Array g = canonical_rows ? canonical(grad_output) : row_major(grad_output);
  const Array index = row_major(positions);
  check(width > 0 && g.count() == index.count() * width, "take: sizes do not fit");
  const int64_t rows = element_count(shape) / width;
  check_positions(index, rows);
  Array grad_x = empty_strided(
      shape, canonical_rows ? canonical_strides(shape) : row_major_strides(shape), DType::float32);
  if (grad_x.count()) kernels().copy.fill(grad_x.raw(), grad_x.count(), 4, 0);
  kernels().shape.take_backward(g.raw(), g.dtype(), index.data<int64_t>(), index.count(), rows,
                                width, grad_x.data<float>());
  if (g.dtype() == DType::float32) return grad_x;
  Array narrow = empty_strided(shape, grad_x.strides(), g.dtype());
  copy_into(narrow, grad_x);
  return narrow;
}

}  // namespace fastnn::ops
