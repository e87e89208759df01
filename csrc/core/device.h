// Devices: the CPU, and what a second extension module (fastnn._cuda) brings.
//
// That module hands over one DeviceTable of plain function pointers, so no C++ symbol crosses from
// one module to the other. Every operator runs within an OpScope, which takes the device from the
// operator's arguments; empty(), kernels() and the like then mean that device.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

namespace fastnn {

struct Slots;

constexpr int kCpu = -1;  // CUDA devices are 0, 1, ...

// Functions return false, or null, where they failed; error() then says why.
struct DeviceTable {
  int64_t slots_size;  // sizeof(Slots) as that module knows it
  const Slots* slots;
  // Memory of a device, ordered on its current stream.
  void* (*allocate)(int device, int64_t bytes);
  void (*deallocate)(int device, void* block, int64_t bytes);
  // dst and src are kCpu or a device. Copies from and to ordinary memory are done when it returns,
  // unless `later`.
  bool (*copy)(void* dst, int dst_device, const void* src, int src_device, int64_t bytes,
               bool later);
  // For the calling thread's next kernels. kCpu: there are none for now, and the driver's current
  // device, which other libraries go by, is what it was before.
  void (*select)(int device);
  void (*wait)(int device);  // for all work on the device, other libraries' too
  // The next user of memory of the device follows what others have queued on the default stream.
  void (*used)(int device, const void* block);
  // Ordinary memory that a device copies from and to without staging. Null where that failed.
  void* (*pin)(int64_t bytes);
  void (*unpin)(void* block);
  // The graph that the calling thread is recording, or null.
  const void* (*recording)();
  // The first failure since the last call, or null; out_of_memory says of what kind it was.
  const char* (*error)(bool* out_of_memory);
  // That graph keeps the owner of a block that its work uses, for as long as it can be replayed,
  // and raises its version with each replay where its work writes there.
  void (*keep)(const void* block, std::shared_ptr<void> owner, std::atomic<int64_t>* version);
};

// Null until the module is loaded.
const DeviceTable* device_table();
// Throws ValueError for a table of another build.
void set_device_table(const DeviceTable* table);

// "cpu", "cuda:0"
std::string device_name(int device);

// Where the calling thread's arrays are made and its kernels run.
int current_device();

// Throws what the device has to report, if anything: MemoryError or RuntimeError.
void check_device();
// The same where none is current.
void check_devices();

// Kernels of the current device.
const Slots& kernels();

// Makes `device` current for as long as it lives.
class DeviceScope {
 public:
  explicit DeviceScope(int device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int before_;
};

}  // namespace fastnn
