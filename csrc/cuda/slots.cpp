// The kernels' table of CUDA devices, and what fastnn._core asks of the runtime. Adding a kernel
// source adds one line to FASTNN_STEMS.
#include "cuda/slots.h"

#include "cuda/capture.h"
#include "cuda/runtime.h"
#include "ops/slots.h"

// One per source in csrc/cuda, each defining fill_<stem>().
#define FASTNN_STEMS(X)   \
  X(activation)           \
  X(conv_backward_weight) \
  X(conv_depthwise)       \
  X(conv_forward)         \
  X(copy)                 \
  X(dropout)              \
  X(elementwise)          \
  X(interpolate)          \
  X(loss)                 \
  X(norm)                 \
  X(norm_finish)          \
  X(norm_layer)           \
  X(optim)                \
  X(pool)                 \
  X(random)               \
  X(reduce)               \
  X(shape)                \
  X(softmax)

namespace fastnn::cuda {

#define FASTNN_DECLARE(stem) void fill_##stem(Slots&);
FASTNN_STEMS(FASTNN_DECLARE)

namespace {

Slots filled() {
  Slots slots{};
#define FASTNN_CALL(stem) fill_##stem(slots);
  FASTNN_STEMS(FASTNN_CALL)
  return slots;
}

}  // namespace

const DeviceTable& table() {
  static const Slots slots = filled();
  static const DeviceTable table{sizeof(Slots),  &slots,     allocate,    deallocate, copy,
                                 select,         wait,       used,        pin,        unpin,
                                 recorded_graph, take_error, keep_storage};
  return table;
}

}  // namespace fastnn::cuda
