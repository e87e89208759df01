#include "core/device.h"

#include <atomic>
#include <cstring>

#include "core/error.h"
#include "ops/slots.h"

namespace fastnn {
namespace {

std::atomic<const DeviceTable*> table{nullptr};
thread_local int current = kCpu;

void make_current(int device) {
  current = device;
  device_table()->select(device);
}

}  // namespace

const DeviceTable* device_table() { return table.load(std::memory_order_acquire); }

void set_device_table(const DeviceTable* given) {
  check(given->slots_size == static_cast<int64_t>(sizeof(Slots)),
        "fastnn._cuda: built from other sources than fastnn._core; install the package again");
  // Every slot has a kernel but Winograd's, those of few rows, of joined ones and of curves, which
  // operators ask for on the CPU only. Slots is function pointers throughout.
  Slots slots = *given->slots;
  slots.conv.winograd_forward = cpu_slots().conv.winograd_forward;
  slots.conv.winograd_backward_data = cpu_slots().conv.winograd_backward_data;
  slots.conv.winograd_backward_weight = cpu_slots().conv.winograd_backward_weight;
  slots.matmul = cpu_slots().matmul;
  slots.copy.join = cpu_slots().copy.join;
  slots.curves = cpu_slots().curves;
  void* words[sizeof(Slots) / sizeof(void*)];
  std::memcpy(words, &slots, sizeof(slots));
  for (size_t i = 0; i < sizeof(Slots) / sizeof(void*); ++i)
    check(words[i] != nullptr, "fastnn._cuda: slot ", i, " of the kernel table is empty");
  table.store(given, std::memory_order_release);
}

std::string device_name(int device) { return device == kCpu ? "cpu" : text("cuda:", device); }

int current_device() { return current; }

void check_device() {
  if (current != kCpu) check_devices();
}

void check_devices() {
  bool out_of_memory = false;
  const char* message = device_table()->error(&out_of_memory);
  if (!message) return;
  if (out_of_memory) throw MemoryError(message);
  throw RuntimeError(message);
}

const Slots& kernels() { return current == kCpu ? cpu_slots() : *device_table()->slots; }

DeviceScope::DeviceScope(int device) : before_(current) {
  if (device != current) make_current(device);
}

DeviceScope::~DeviceScope() {
  if (before_ != current) make_current(before_);
}

}  // namespace fastnn
