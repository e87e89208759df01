// Copies between layouts and dtypes: what contiguous(), to() and every canonicalisation run.
#pragma once

#include "core/array.h"

namespace fastnn {

// A copy of elements between two strided arrays of one shape, dimensions already sorted and merged
// so that dst's strides fall from first to last.
struct CopyParams {
  const void* src;
  void* dst;
  DType src_dtype;
  DType dst_dtype;
  int rank;
  int64_t shape[kMaxRank];
  int64_t src_strides[kMaxRank];
  int64_t dst_strides[kMaxRank];
};

// Of each of `rows` rows, `bytes` bytes of a source, put down `place` bytes after the row's begin.
struct RowPart {
  const char* src;
  int64_t src_step;  // bytes from one row to the next
  int64_t place, bytes;
};

struct CopySlots {
  // Rows made of parts, `dst_step` bytes apart. On the CPU only.
  void (*join)(const RowPart* parts, int64_t count, int64_t rows, char* dst, int64_t dst_step);
  void (*strided)(const CopyParams&);
  void (*add_into)(float* dst, const float* src, int64_t count);  // dst += src
  void (*add_into_bf16)(bfloat16* dst, const bfloat16* src, int64_t count);
  // `count` items of item_size bytes, the lowest of `bits`.
  void (*fill)(void* dst, int64_t count, int64_t item_size, uint64_t bits);
};

namespace ops {

// dst[...] = src[...] with conversion; shapes must be equal. Float to integer truncates; anything
// to bool is `!= 0`.
void copy_into(const Array& dst, const Array& src);

// Arrays one after the other along a dimension; of one dtype, and of equal shapes but for it.
Array cat(const std::vector<Array>& parts, int64_t dim);

// x itself where it is already so, else a copy.
Array canonical(const Array& x);
Array row_major(const Array& x);
Array astype(const Array& x, DType dtype);

// x in bfloat16, as autocast takes weights. On a CPU the copy of a float32 array is kept with it,
// in x's memory order, until x changes; an optimizer's step renews it where it was used.
Array lowered(const Array& x);
constexpr uint64_t kLoweredKey = 2;
// A block for such a copy, with which more may be kept in turn.
std::shared_ptr<KeptBlock> lowered_block(int64_t bytes);

// A fresh canonical copy.
Array clone(const Array& x);
// Whether writing `out` may change what is still to be read from x: they share memory, and their
// elements do not lie in the same places.
bool overlaps(const Array& out, const Array& x);

Array full(const Dims& shape, double value, DType dtype);
Array full_whole(const Dims& shape, int64_t value, DType dtype);  // of an integer dtype

// x on another device, in the same memory order. `later`: copies between pinned memory and a device
// are not waited for.
Array to_device(const Array& x, int device, bool later = false);
// x in pinned memory of the CPU.
Array pinned(const Array& x);

// x += y for arrays of equal shape and floating dtype; x must be canonical. Sums gradients.
void accumulate(const Array& x, const Array& y);

// TypeError unless x is float32 or bfloat16: "<op>: <argument> expects ...".
void check_floating(const char* op, const char* argument, const Array& x);

}  // namespace ops
}  // namespace fastnn
