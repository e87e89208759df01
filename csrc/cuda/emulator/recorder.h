// Between the emulator's two halves: launches are run, or recorded where their stream is captured.
#pragma once

#include <functional>

#include "cuda/emulator/runtime.h"

namespace fastnn::cuda::emulator {

// Does it now, or at every launch of the graph that the stream is captured into. The stream has to
// be the current device's.
void enqueue(cudaStream_t stream, std::function<void()> work);

// Whether the emulated device's code is sm_90a's.
bool is_sm_90a();

// Bytes of shared memory that a block may have.
size_t shared_limit();

// Makes cudaGetLastError fail with this message.
void report(const char* message);

}  // namespace fastnn::cuda::emulator
