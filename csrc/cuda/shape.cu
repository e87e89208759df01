// Rows gathered by index, and the sum of gradients back into them, one thread per column in the
// order of the indices: the same bits every time, without atomics. Indices are checked by a kernel
// that leaves what it finds in the device's fault (runtime.h) for the host to see later; those that
// are out of range, labels (loss.cu) and positions, are not followed meanwhile.
#include "cuda/device/device.h"
#include "ops/slots.h"

namespace fastnn::cuda {
namespace {

__device__ bool in_range(int64_t position, int64_t rows) {
  return static_cast<uint64_t>(position) < static_cast<uint64_t>(rows);
}

// `units` pieces of size U per row.
template <class U>
struct Take {
  const U* x;
  const int64_t* positions;
  U* out;
  int64_t rows, units;
  __device__ void operator()(int64_t i) const {
    const auto [row, unit] = divide(i, units);
    const int64_t from = positions[row];
    out[i] = in_range(from, rows) ? x[from * units + unit] : U{};
  }
};

template <class U>
void take_units(const void* x, int64_t rows, const int64_t* positions, int64_t count, int64_t bytes,
                void* out) {
  const int64_t units = bytes / static_cast<int64_t>(sizeof(U));
  each(count * units,
       Take<U>{static_cast<const U*>(x), positions, static_cast<U*>(out), rows, units});
}

void take(const void* x, int64_t rows, const int64_t* positions, int64_t count, int64_t bytes,
          void* out) {
  const uintptr_t all = reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(out) |
                        static_cast<uintptr_t>(bytes);
  if (all % 16 == 0) return take_units<uint4>(x, rows, positions, count, bytes, out);
  if (all % 4 == 0) return take_units<uint32_t>(x, rows, positions, count, bytes, out);
  if (all % 2 == 0) return take_units<uint16_t>(x, rows, positions, count, bytes, out);
  take_units<uint8_t>(x, rows, positions, count, bytes, out);
}

template <class T>
struct TakeBackward {
  const T* g;
  const int64_t* positions;
  float* grad_x;
  int64_t count, rows, width;
  __device__ void operator()(int64_t c) const {
    for (int64_t i = 0; i < count; ++i)
      if (in_range(positions[i], rows))
        grad_x[positions[i] * width + c] += to_float(g[i * width + c]);
  }
};

void take_backward(const void* g, DType dtype, const int64_t* positions, int64_t count,
                   int64_t rows, int64_t width, float* grad_x) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    each(width, TakeBackward<T>{static_cast<const T*>(g), positions, grad_x, count, rows, width});
  });
}

struct FindOutside {
  const int64_t* index;
  int64_t limit, ignored;
  int what;
  Fault* fault;
  __device__ void operator()(int64_t i) const {
    const int64_t at = index[i];
    if ((at >= 0 && at < limit) || at == ignored) return;
    if (atomicCAS(&fault->found, 0, Fault::kBegun) != 0) return;
    fault->what = what;
    fault->value = at;
    fault->position = i;
    fault->limit = limit;
    __threadfence_system();
    *const_cast<volatile int*>(&fault->found) = Fault::kWritten;
  }
};

int64_t first_outside(const int64_t* index, int64_t count, int64_t limit, int64_t ignored,
                      const char* what) {
  each(count, FindOutside{index, limit, ignored, fault_name(what), fault()});
  return -1;
}

}  // namespace

void fill_shape(Slots& slots) { slots.shape = {take, take_backward, first_outside}; }

}  // namespace fastnn::cuda
