#include "ops/reduce.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "ops/elementwise.h"
#include "ops/slots.h"

namespace fastnn::ops {
namespace {

const ReduceSlots& slots() { return kernels().reduce; }

// Which dimensions are reduced.
struct Chosen {
  bool at[kMaxRank] = {};
};

Chosen chosen(const char* name, const Dims& dims, int rank) {
  Chosen out;
  for (int64_t dim : dims) {
    check(dim >= -rank && dim < rank, name, ": dim expects values from ", -rank, " to ", rank - 1,
          ", got ", dim);
    const int64_t at = dim < 0 ? dim + rank : dim;
    check(!out.at[at], name, ": dim names dimension ", at, " more than once");
    out.at[at] = true;
  }
  return out;
}

// An array as [outer, count, inner] and the layout of its reduction.
struct Plan {
  Array x;
  int64_t outer = 1, count = 1, inner = 1;
  Dims shape;    // of the result, reduced dimensions kept
  Dims strides;  // of the result as kernels write it

  // An array over the kernel's output in canonical layout.
  Array shaped(const Array& flat) const {
    return canonical(flat.view(flat.offset(), shape, strides));
  }
  Array flat(DType dtype) const { return empty({outer * inner}, dtype); }
};

// Physical order of dimensions: falling strides; dimensions of size 1 wherever they fall.
void physical_order(const Array& x, int* order) {
  for (int i = 0; i < x.rank(); ++i) order[i] = i;
  std::stable_sort(order, order + x.rank(),
                   [&](int a, int b) { return x.strides()[a] > x.strides()[b]; });
}

Plan plan(const char* name, const Array& input, const Dims& dims) {
  const int rank = input.rank();
  const Chosen reduced = chosen(name, dims, rank);
  Plan p;
  p.x = input.is_canonical() || input.is_dense() ? input : canonical(input);
  int order[kMaxRank];
  physical_order(p.x, order);
  // Whether kept dimensions, reduced ones and kept ones follow each other in memory.
  int changes = 0;
  bool last = false, seen = false;
  for (int i = 0; i < rank; ++i) {
    const int dim = order[i];
    if (p.x.size(dim) == 1) continue;
    if (reduced.at[dim] != last) ++changes;
    last = reduced.at[dim];
    seen = seen || last;
  }
  if (changes > 2 || !p.x.is_dense()) {
    std::stable_partition(order, order + rank, [&](int dim) { return !reduced.at[dim]; });
    Dims strides(rank);
    int64_t step = 1;
    for (int i = rank - 1; i >= 0; --i) {
      strides[order[i]] = step;
      step *= std::max<int64_t>(p.x.size(order[i]), 1);
    }
    Array moved = empty_strided(p.x.shape(), strides, p.x.dtype());
    copy_into(moved, p.x);
    p.x = moved;
  }
  bool past = false;
  p.shape = p.x.shape();
  p.strides = Dims(rank, 1);
  for (int i = 0; i < rank; ++i) {
    const int dim = order[i];
    const int64_t size = p.x.size(dim);
    if (reduced.at[dim]) {
      p.count *= size;
      p.shape[dim] = 1;
      past = past || size != 1;
    } else {
      (past ? p.inner : p.outer) *= size;
    }
  }
  if (p.count == 1) std::swap(p.inner, p.outer);  // one long row, whichever comes first
  int64_t step = 1;
  for (int i = rank - 1; i >= 0; --i)
    if (!reduced.at[order[i]]) {
      p.strides[order[i]] = step;
      step *= p.x.size(order[i]);
    }
  return p;
}

DType result_dtype(Reduction op, DType dtype) {
  if (is_floating(dtype)) return DType::float32;
  return op == Reduction::max || op == Reduction::min ? dtype : DType::int64;
}

// What folds the partial results of `op`.
Reduction combiner(Reduction op) {
  switch (op) {
    case Reduction::abs_sum:
    case Reduction::square_sum:
    case Reduction::deviation:
      return Reduction::sum;
    case Reduction::abs_max:
      return Reduction::max;
    default:
      return op;
  }
}

// How many rows of a few columns to take for one wide row, so that vectors are full: NHWC with
// three channels is [count, 3], and as well [count / 16, 48]. A divisor of count; 1 if none will
// do.
int64_t rows_per_wide_row(int64_t count, int64_t inner) {
  constexpr int64_t kNarrow = 64, kWide = 1024;
  int64_t best = 1;
  if (inner == 1 || inner >= kNarrow) return best;
  for (int64_t rows = 2; rows * inner <= kWide; ++rows)
    if (count % rows == 0) best = rows;
  return best;
}

// Each row of `columns` floats repeated `times` times.
Array tiled(const float* rows, int64_t count, int64_t columns, int64_t times) {
  Array out = empty({count * times * columns}, DType::float32);
  float* to = out.data<float>();
  for (int64_t i = 0; i < count; ++i)
    for (int64_t t = 0; t < times; ++t, to += columns) std::copy_n(rows + i * columns, columns, to);
  return out;
}

// [outer, inner], flat. Block lengths: a row of 16 Ki elements, or 256 rows of a matrix; sums
// inside a block run over at most 256 terms per vector lane.
Array fold(const Plan& p, Reduction op, const float* mean = nullptr, double divisor = 1.0) {
  const bool on_cpu = p.x.device() == kCpu;
  const bool whole =
      !on_cpu && is_floating(p.x.dtype()) && shares_columns(p.outer, p.count, p.inner);
  const int64_t block = whole ? p.count : p.inner == 1 ? 16384 : 256;
  int64_t wide = on_cpu ? rows_per_wide_row(p.count, p.inner) : 1;
  const Array means = mean && wide > 1 ? tiled(mean, p.outer, p.inner, wide) : Array();
  if (means.defined()) mean = means.data<float>();
  Array input = p.x;
  int64_t count = p.count;
  while (true) {
    const int64_t rows = count / wide, blocks = (rows + block - 1) / block;
    const bool last = blocks * wide == 1;
    Array output = empty({p.outer * blocks * wide * p.inner}, result_dtype(op, input.dtype()));
    slots().fold({op, input.raw(), input.dtype(), output.raw(), mean, p.outer, rows, wide * p.inner,
                  block, last ? static_cast<float>(divisor) : 1.0f});
    if (last) return output;
    input = output;
    count = blocks * wide;
    wide = 1;
    op = combiner(op);
  }
}

// The reduction, or `empty_value` throughout where nothing is reduced.
Array reduced(const Plan& p, Reduction op, double empty_value, double divisor = 1.0) {
  if (p.outer * p.inner == 0 || p.count == 0)
    return full(p.shape, empty_value, result_dtype(op, p.x.dtype()));
  return p.shaped(fold(p, op, nullptr, divisor));
}

void check_some(const char* name, const Plan& p, const Array& x) {
  check(p.count > 0, name, ": expected at least one element to choose from, got shape ", x.shape());
}

std::pair<Array, Array> picked(const char* name, bool largest, const Plan& p, const Array& x) {
  check_some(name, p, x);
  if (p.outer * p.inner == 0)
    return {p.shaped(p.flat(p.x.dtype())), p.shaped(p.flat(DType::int64))};
  const auto run = [&](const Array& input, int64_t count, int64_t block, const int64_t* at) {
    const int64_t blocks = p.inner == 1 ? (count + block - 1) / block : 1;
    const Array values = empty({p.outer * blocks * p.inner}, input.dtype());
    const Array indices = empty(values.shape(), DType::int64);
    slots().pick({largest, input.raw(), input.dtype(), at, values.raw(), indices.data<int64_t>(),
                  p.outer, count, p.inner, block});
    return std::make_pair(values, indices);
  };
  // Long rows in blocks, for all threads; then the best block of each row.
  constexpr int64_t kBlock = 65536;
  auto [values, indices] = run(p.x, p.count, kBlock, nullptr);
  if (p.inner == 1 && p.count > kBlock) {
    const int64_t blocks = (p.count + kBlock - 1) / kBlock;
    const auto [best, which] = run(values, blocks, blocks, indices.data<int64_t>());
    return {p.shaped(best), p.shaped(which)};
  }
  return {p.shaped(values), p.shaped(indices)};
}

}  // namespace

Array sum(const Array& x, const Dims& dims) {
  return reduced(plan("sum", x, dims), Reduction::sum, 0.0);
}

// The division is fused into the last step of the sum.
Array mean(const Array& x, const Dims& dims) {
  check_floating("mean", "input", x);
  const Plan p = plan("mean", x, dims);
  return reduced(p, Reduction::sum, std::nan(""), static_cast<double>(p.count));
}

Array prod(const Array& x, const Dims& dims) {
  return reduced(plan("prod", x, dims), Reduction::prod, 1.0);
}

Array extreme(const char* name, bool largest, const Array& x, const Dims& dims) {
  const Plan p = plan(name, x, dims);
  check_some(name, p, x);
  return reduced(p, largest ? Reduction::max : Reduction::min, 0.0);
}

std::pair<Array, Array> var(const char* name, const Array& x, const Dims& dims, double correction) {
  check_floating(name, "input", x);
  const Plan p = plan(name, x, dims);
  const double nan = std::nan("");
  if (p.outer * p.inner == 0 || p.count == 0)
    return {full(p.shape, nan, DType::float32), full(p.shape, nan, DType::float32)};
  const Array mean = fold(p, Reduction::sum, nullptr, static_cast<double>(p.count));
  const double freedom = std::max(static_cast<double>(p.count) - correction, 0.0);
  const Array variance = fold(p, Reduction::deviation, mean.data<float>(), freedom);
  return {p.shaped(variance), p.shaped(mean)};
}

Array norm(const Array& x, const Dims& dims, double p) {
  check_floating("norm", "input", x);
  check<NotImplementedError>(p == 1 || p == 2 || p == std::numeric_limits<double>::infinity(),
                             "norm: p expects 1, 2 or infinity, got ", p);
  const Plan layout = plan("norm", x, dims);
  if (p == 1) return reduced(layout, Reduction::abs_sum, 0.0);
  if (p != 2) return reduced(layout, Reduction::abs_max, 0.0);
  const Array squares = reduced(layout, Reduction::square_sum, 0.0);
  return unary("norm", Unary::sqrt, squares, squares);
}

Array any(const Array& x, const Dims& dims) {
  return reduced(plan("any", astype(x, DType::boolean), dims), Reduction::max, 0.0);
}

Array all(const Array& x, const Dims& dims) {
  return reduced(plan("all", astype(x, DType::boolean), dims), Reduction::min, 1.0);
}

std::pair<Array, Array> pick(const char* name, bool largest, const Array& x, int64_t dim) {
  const Dims dims = x.rank() == 0 ? Dims() : Dims{dim};
  if (x.rank() == 0) chosen(name, {dim}, 1);
  return picked(name, largest, plan(name, x, dims), x);
}

std::pair<Array, Array> pick_flat(const char* name, bool largest, const Array& x) {
  const Array dense = row_major(x);
  const Array flat = dense.view(dense.offset(), {dense.count()}, {1});
  check(x.count() > 0, name, ": expected at least one element to choose from, got shape ",
        x.shape());
  return picked(name, largest, plan(name, flat, {0}), x);
}

Array pick_backward(const Array& grad_output, const Array& indices, const Dims& shape,
                    int64_t dim) {
  const Array like = empty(shape, grad_output.dtype());
  const Plan p = plan("pick_backward", like, shape.rank() == 0 ? Dims() : Dims{dim});
  check(grad_output.shape() == p.shape && indices.shape() == p.shape,
        "pick_backward: grad_output expects shape ", p.shape, ", got ", grad_output.shape());
  const Array grad_input = full(shape, 0.0, grad_output.dtype());
  const Array g = canonical(grad_output), at = canonical(indices);
  slots().scatter(g.raw(), at.data<int64_t>(), grad_input.raw(), p.outer, p.count, p.inner,
                  item_size(g.dtype()));
  return grad_input;
}

Array prod_backward(const Array& grad_output, const Array& x, const Dims& dims) {
  check_floating("prod_backward", "input", x);
  const Plan p = plan("prod", x, dims);
  check(grad_output.shape() == p.shape, "prod_backward: grad_output expects shape ", p.shape,
        ", got ", grad_output.shape());
  Array grad_input = empty_strided(p.x.shape(), p.x.strides(), x.dtype());
  if (p.x.count() == 0) return grad_input;
  // grad_output in the order in which the kernel meets [outer, inner].
  Array g = empty_strided(p.shape, p.strides, DType::float32);
  copy_into(g, grad_output);
  slots().prod_backward(g.data<float>(), p.x.raw(), grad_input.raw(), p.outer, p.count, p.inner,
                        x.dtype());
  return canonical(grad_input);
}

}  // namespace fastnn::ops
