// Activations: one read and one write per element, so the floor is the streaming copy bandwidth.
#include "cpu/simd/vec.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

template <class T>
void relu_typed(const T* x, T* y, int64_t count) {
  parallel_ranges(count, kGrain, [&](int64_t begin, int64_t end) {
    vector_loop(begin, end, [&](int64_t i, int n) {
      const vfloat v = load_any(x + i, n);
      store_any(y + i, select(v < 0, vfloat{}, v), n);  // a NaN fails the comparison and stays
    });
  });
}

template <class T>
void relu_backward_typed(const T* g, const T* y, T* grad_input, int64_t count) {
  parallel_ranges(count, kGrain, [&](int64_t begin, int64_t end) {
    vector_loop(begin, end, [&](int64_t i, int n) {
      store_any(grad_input + i, select(load_any(y + i, n) <= 0, vfloat{}, load_any(g + i, n)), n);
    });
  });
}

void relu(const void* x, void* y, int64_t count, DType dtype) {
  if (dtype == DType::float32)
    relu_typed(static_cast<const float*>(x), static_cast<float*>(y), count);
  else
    relu_typed(static_cast<const bfloat16*>(x), static_cast<bfloat16*>(y), count);
}

void relu_backward(const void* g, const void* y, void* grad_input, int64_t count, DType dtype) {
  if (dtype == DType::float32)
    relu_backward_typed(static_cast<const float*>(g), static_cast<const float*>(y),
                        static_cast<float*>(grad_input), count);
  else
    relu_backward_typed(static_cast<const bfloat16*>(g), static_cast<const bfloat16*>(y),
                        static_cast<bfloat16*>(grad_input), count);
}

}  // namespace

void fill_activation(Slots& slots) {
  slots.activation.relu = relu;
  slots.activation.relu_backward = relu_backward;
}

}  // namespace fastnn::cpu::FASTNN_ISA
