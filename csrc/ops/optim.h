// Optimizer steps over all parameters at once, and gradient clipping.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/array.h"
#include "ops/rules/optim.h"

namespace fastnn {

enum class Optimizer : int { sgd, adam, adagrad, rmsprop, adadelta };

// One parameter; `state` holds up to three buffers, float32, in the order of the rules.
struct OptimTensor {
  void* param;
  const void* grad;
  float* state[3];
  int64_t count;
  DType dtype;              // of param and grad
  bfloat16* low = nullptr;  // if not null: the new parameter in bfloat16 (on a CPU alone)
};

struct OptimSlots {
  void (*step)(Optimizer, const OptimStep&, const OptimTensor* tensors, int64_t tensor_count);
  // norm[0] = Euclidean norm of all gradients together, their squares added in double; scales them
  // by max_norm / (norm + 1e-6) where that is below 1.
  void (*clip_norm)(const OptimTensor* tensors, int64_t tensor_count, float max_norm, float* norm);
  void (*clamp)(const OptimTensor* tensors, int64_t tensor_count, float limit);
};

namespace ops {

// kind: "sgd", "adam", "adagrad", "rmsprop", "adadelta". states[i] lists buffer i of each
// parameter, or is empty. `numbers` and `flags` set the fields of OptimStep by name.
void optimizer_step(const std::string& kind, const std::vector<Array>& params,
                    const std::vector<Array>& grads, const std::vector<std::vector<Array>>& states,
                    const std::map<std::string, double>& numbers,
                    const std::map<std::string, bool>& flags);

// Euclidean norm of all gradients together, a float32 scalar; scales them in place if it exceeds
// max_norm.
Array clip_grad_norm(const std::vector<Array>& grads, double max_norm);
void clip_grad_value(const std::vector<Array>& grads, double clip_value);

}  // namespace ops
}  // namespace fastnn
