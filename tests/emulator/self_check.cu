// What a device's self-check found: "tensor cores 1" or 0, and the instructions that are wrong.
#include <cstdio>

#include "cuda/runtime.h"

using namespace fastnn::cuda;

int main() {
  select(0);
  bool out_of_memory = false;
  if (const char* message = take_error(&out_of_memory)) {
    std::printf("%s\n", message);
    return 1;
  }
  std::printf("tensor cores %d %s\n", tensor_cores(), wrong_primitives().c_str());
  return 0;
}
