// Between the emulator's parts: launches are queued, or recorded where their stream is captured;
// memory of devices.
#pragma once

#include <functional>

#include "cuda/emulator/runtime.h"

namespace fastnn::cuda::emulator {

// Does it after the stream's other work, when somebody waits for it; or at every launch of the
// graph that the stream is captured into. The stream has to be the current device's.
void enqueue(cudaStream_t stream, std::function<void()> work);

// Whether the emulated device's code is sm_90a's.
bool is_sm_90a();

// Bytes of shared memory that a block may have.
size_t shared_limit();

// Makes cudaGetLastError fail with this message. After a launch failure everything does.
void report(const char* message, cudaError_t error);

// Memory of a device, all NaN; or null. Serial, like launches.
void* make_memory(size_t bytes);
void end_memory(void* block, size_t bytes);
// Such memory can be accessed for as long as it lives.
class Access {
 public:
  Access();
  ~Access();
  Access(const Access&) = delete;
  Access& operator=(const Access&) = delete;
};

}  // namespace fastnn::cuda::emulator
