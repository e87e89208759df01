// Rows gathered by index (a memory copy), and the sum of gradients back into them. The sum runs in
// the order of the indices, so repeated rows give the same bits each time; wide rows are split
// among threads.
#include "cpu/simd/vec.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

void take(const void* x, int64_t, const int64_t* positions, int64_t count, int64_t bytes,
          void* out) {
  const char* from = static_cast<const char*>(x);
  char* to = static_cast<char*>(out);
  parallel_ranges(count, kGrain * 4 / bytes + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      __builtin_memcpy(to + i * bytes, from + positions[i] * bytes, static_cast<size_t>(bytes));
  });
}

template <class T>
void add_rows(const T* g, const int64_t* positions, int64_t count, int64_t width, float* grad_x) {
  parallel_ranges(width, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < count; ++i) {
      float* row = grad_x + positions[i] * width;
      vector_loop(begin, end, [&](int64_t c, int n) {
        store_any(row + c, load_any(row + c, n) + load_any(g + i * width + c, n), n);
      });
    }
  });
}

void take_backward(const void* g, DType dtype, const int64_t* positions, int64_t count, int64_t,
                   int64_t width, float* grad_x) {
  if (dtype == DType::float32)
    add_rows(static_cast<const float*>(g), positions, count, width, grad_x);
  else
    add_rows(static_cast<const bfloat16*>(g), positions, count, width, grad_x);
}

int64_t first_outside(const int64_t* index, int64_t count, int64_t limit, int64_t ignored,
                      const char*) {
  for (int64_t i = 0; i < count; ++i)
    if ((index[i] < 0 || index[i] >= limit) && index[i] != ignored) return i;
  return -1;
}

}  // namespace

void fill_shape(Slots& slots) { slots.shape = {take, take_backward, first_outside}; }

}  // namespace fastnn::cpu::FASTNN_ISA
