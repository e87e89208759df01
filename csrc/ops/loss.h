// Losses. All compute in float32; every element or row gives one value, reduced in a fixed order.
#pragma once

#include "core/array.h"

namespace fastnn {

enum class PairLoss : int { mse, l1, smooth_l1, bce };

// Rows of C class scores. Exactly one of `labels` and `probabilities` is set.
struct ClassParams {
  const void* x;
  DType dtype;
  int64_t rows, C;
  const int64_t* labels;
  const float* probabilities;
  const float* weight;  // C, or null
  int64_t ignore_index;
  float smoothing;
  bool log_probabilities;  // x holds log probabilities (nll_loss): no softmax
};

// Losses of each pair of an input and a target, both of one floating dtype.
struct PairParams {
  PairLoss kind;
  float a;  // smooth_l1's beta
  const void* x;
  const void* t;
  DType dtype;
  const float* weight;  // of bce, like x; or null
  const float* pos_weight;
  int64_t count;
};

struct LossSlots {
  // Loss of each row.
  void (*classes)(const ClassParams&, float* loss);
  // grad_x = scale[row] * d loss / d x, with scale[0] for all where `one_scale`; of x's dtype.
  void (*classes_backward)(const ClassParams&, const float* scale, bool one_scale, void* grad_x);
  // total[0] = sum of the labels' weights: what a mean over rows divides by.
  void (*label_weight)(const ClassParams&, float* total);
  // total[0] = sum of x / divisor, accumulated in double or as exactly.
  void (*total)(const float* x, int64_t count, double divisor, float* total);
  void (*pairs)(const PairParams&, float* loss);
  // As total() of what pairs() gives, in one pass.
  void (*pairs_total)(const PairParams&, double divisor, float* total);
  // grad_x = scale[i] * d loss / d x, with scale[0] for all where `one_scale`.
  void (*pairs_backward)(const PairParams&, const float* scale, bool one_scale, void* grad_x);
};

namespace ops {

// input (N, C) or (N, C, H, W). target: int64 or int32 labels (N,) or (N, H, W), or probabilities
// of the input's shape. reduction is "mean", "sum" or "none". ValueError for a label outside [0, C)
// that is not ignore_index, naming its position. With `log_probabilities` this is nll_loss.
Array cross_entropy(const Array& input, const Array& target, const Array* weight,
                    int64_t ignore_index, const std::string& reduction, double smoothing,
                    bool log_probabilities);
Array cross_entropy_backward(const Array& grad_output, const Array& input, const Array& target,
                             const Array* weight, int64_t ignore_index,
                             const std::string& reduction, double smoothing,
                             bool log_probabilities);

// kind: "mse_loss", "l1_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits".
Array pair_loss(const std::string& kind, const Array& input, const Array& target, double a,
                const Array* weight, const Array* pos_weight, const std::string& reduction);
Array pair_loss_backward(const std::string& kind, const Array& grad_output, const Array& input,
                         const Array& target, double a, const Array* weight,
                         const Array* pos_weight, const std::string& reduction);

}  // namespace ops
}  // namespace fastnn
