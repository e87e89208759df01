// Reductions over some dimensions of an array.
//
// The dimensions are brought to [outer, count, inner], dense, with the reduced ones in the middle;
// for one dimension, for the channels' sums of NHWC and for the pixels' sums of each image that
// takes no copy. Sums are cut into blocks of fixed length whose partial sums are folded again until
// one is left: the rounding error grows with the logarithm of the length, and no bit depends on
// threads.
#pragma once

#include <utility>

#include "core/array.h"

namespace fastnn {

enum class Reduction : int {
  sum,   // floating: float32; integers: int64
  prod,  // likewise
  max,   // NaN if there is one; floating: float32; integers: their own dtype
  min,
  abs_sum,  // floating only, from here on
  square_sum,
  abs_max,
  deviation,  // sum of (x - mean)^2
};

// Whether a GPU folds all rows at once, floating ones, with several threads to a column: so few are
// the columns of [outer, count, inner], and so long.
inline bool shares_columns(int64_t outer, int64_t count, int64_t inner) {
  return inner > 1 && count >= 32 && outer * inner < 1 << 17;
}

// One level: input [outer, count, inner] to output [outer, ceil(count / block), inner].
struct ReduceParams {
  Reduction op;
  const void* input;
  DType dtype;
  void* output;       // of the dtype stated above
  const float* mean;  // [outer, inner], for `deviation`
  int64_t outer, count, inner;
  int64_t block;  // `count` on a GPU that shares columns
  float divisor;  // of the last level's sums; 1 elsewhere
};

// The first largest (or smallest) along the middle dimension; where inner is 1, of each block of it
// (at most 2^30 elements), and then values and indices are [outer, ceil(count / block)].
struct PickParams {
  bool largest;
  const void* input;
  DType dtype;
  const int64_t* positions;  // of the input's elements, like the input; null for their own
  void* values;              // [outer, inner], the input's dtype
  int64_t* indices;          // [outer, inner]
  int64_t outer, count, inner;
  int64_t block;
};

struct ReduceSlots {
  void (*fold)(const ReduceParams&);
  void (*pick)(const PickParams&);
  // grad_input[o, indices[o, i], i] = grad_output[o, i]; elements of item_size bytes.
  void (*scatter)(const void* grad_output, const int64_t* indices, void* grad_input, int64_t outer,
                  int64_t count, int64_t inner, int64_t item_size);
  // grad_input[o, r, i] = grad_output[o, i] times the product over all but r; floating.
  void (*prod_backward)(const float* grad_output, const void* input, void* grad_input,
                        int64_t outer, int64_t count, int64_t inner, DType dtype);
};

namespace ops {

// All results keep the reduced dimensions with size 1. `dims` may be negative; `name` is for
// messages. Floating inputs give float32.
Array sum(const Array& x, const Dims& dims);
Array mean(const Array& x, const Dims& dims);
Array prod(const Array& x, const Dims& dims);
// Largest or smallest elements; throws ValueError where there is none.
Array extreme(const char* name, bool largest, const Array& x, const Dims& dims);
// Variance and mean.
std::pair<Array, Array> var(const char* name, const Array& x, const Dims& dims, double correction);
// p: 1, 2 or infinity.
Array norm(const Array& x, const Dims& dims, double p);
Array any(const Array& x, const Dims& dims);
Array all(const Array& x, const Dims& dims);

// Values (the input's dtype) and indices (int64) of the first extreme element along one dimension;
// pick_flat: in the row-major order of all elements.
std::pair<Array, Array> pick(const char* name, bool largest, const Array& x, int64_t dim);
std::pair<Array, Array> pick_flat(const char* name, bool largest, const Array& x);
// Gradient of pick: grad_output and indices keep the dimension with size 1.
Array pick_backward(const Array& grad_output, const Array& indices, const Dims& shape, int64_t dim);
// grad_output keeps the reduced dimensions with size 1.
Array prod_backward(const Array& grad_output, const Array& x, const Dims& dims);

}  // namespace ops
}  // namespace fastnn
