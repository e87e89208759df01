// Normalisations. Batch, instance and group norm share four kernels over S segments of P pixels of
// C channels (batch norm: one segment of N * H * W pixels; the others: N segments of H * W), and
// differ only in how the S x C moments are combined. Layer norm works on rows.
#pragma once

#include "core/array.h"
#include "ops/activation.h"
#include "ops/rules/norm.h"

namespace fastnn {

struct NormShape {
  int64_t S, P, C;  // segments, pixels of each, channels
  DType dtype;
};

// Where a fused ReLU let its input pass, by y itself, or by what it was computed from, which the
// backward reads anyway: (x - mean) * scale + bias, S x C each. Neither: no activation. Another one
// wants its input.
struct NormMask {
  const void* y = nullptr;
  const float* scale = nullptr;
  const float* bias = nullptr;
  FusedActivation activation = {};
};

// Where the moments of an array's C channels are kept with it: C means, then C sums of squared
// deviations (KeptWorkspaces).
constexpr uint64_t kMomentsKey = 0x6d6f6d656e7473;

struct NormSlots {
  // Per segment and channel: mean, and sum of squared deviations from it.
  void (*channel_moments)(const NormShape&, const void* x, float* mean, float* m2);
  // y = activation((x - mean) * scale + bias + residual); mean, scale, bias are S x C.
  void (*channel_apply)(const NormShape&, const void* x, const float* mean, const float* scale,
                        const float* bias, const void* residual, const FusedActivation&, void* y);
  // sum of g and of g * (x - mean), with g before the activation.
  void (*channel_grad_sums)(const NormShape&, const void* g, const void* x, const NormMask&,
                            const float* mean, float* sum_g, float* sum_gx);
  // grad_x = g * a + (x - mean) * b + d, and grad_residual = g if wanted.
  void (*channel_grad_apply)(const NormShape&, const void* g, const void* x, const NormMask&,
                             const float* mean, const float* a, const float* b, const float* d,
                             void* grad_x, void* grad_residual);
  // Between these passes: ops/rules/norm.h, for every channel, or group of an image.
  void (*finish_batch)(const BatchFinish&, int64_t channels);
  void (*batch_gradients)(const BatchGradient&, int64_t channels);
  void (*finish_groups)(const GroupFinish&, int64_t count);
  void (*group_gradients)(const GroupGradient&);
  // Rows of D: y = (x - mean) * invstd * weight + bias; weight and bias optional.
  void (*layer)(const void* x, int64_t rows, int64_t D, DType, float eps, const float* weight,
                const float* bias, float* mean, float* invstd, void* y);
  // grad_weight and grad_bias may be null.
  void (*layer_backward)(const void* g, const void* x, int64_t rows, int64_t D, DType,
                         const float* weight, const float* mean, const float* invstd, void* grad_x,
                         float* grad_weight, float* grad_bias);
  // y = x * (k + alpha / size * sum of x^2 over `size` channels around)^-beta.
  void (*local_response)(const void* x, int64_t pixels, int64_t C, DType, int64_t size, float alpha,
                         float beta, float k, void* y);
  void (*local_response_backward)(const void* g, const void* x, int64_t pixels, int64_t C, DType,
                                  int64_t size, float alpha, float beta, float k, void* grad_x);
};

// What applies curves (FusedCurve) within other kernels. On CPUs alone: null elsewhere.
struct CurveSlots {
  FusedCurve::Call apply, slope;
  // channel_grad_sums of a curve; g before it is kept, for channel_grad_apply without a mask.
  void (*channel_grad_sums)(const NormShape&, const void* g, const void* x, const NormMask&,
                            const float* mean, float* sum_g, float* sum_gx, void* before);
};

namespace ops {

// Result of a normalisation that has a backward: y, and what it needs (float32).
struct Normed {
  Array y, mean, invstd;
};
struct NormGrads {
  Array input, weight, bias, residual;  // undefined where not asked for
};

// What a batch norm does to each channel: (x - mean) * scale + shift. The backward needs invstd.
struct BatchStatistics {
  Array mean, invstd, scale, shift;  // (C,), float32
};

// input (N, C) or (N, C, H, W). With `training` the batch's moments are used and, where running_*
// are given, mixed into them: running += factor * (new - running), variance unbiased.
BatchStatistics batch_norm_statistics(const Array& input, const Array* running_mean,
                                      const Array* running_var, const Array* weight,
                                      const Array* bias, bool training, double factor, double eps);
// activation((x - mean) * scale + shift + residual), as fused_activation() takes it.
Array batch_norm_apply(const Array& input, const BatchStatistics& statistics,
                       const std::string& activation, const Array* residual);
// Both at once.
Normed batch_norm(const Array& input, const Array* running_mean, const Array* running_var,
                  const Array* weight, const Array* bias, bool training, double factor, double eps,
                  const std::string& activation, const Array* residual);
// `activation` was fused; `output` is then needed if a residual was added before it, which only a
// ReLU may follow.
NormGrads batch_norm_backward(const Array& grad_output, const Array& input,
                              const std::string& activation, const Array* output,
                              const Array* weight, const Array* bias, const Array& mean,
                              const Array& invstd, bool training, bool want_residual);

// input (N, C, H, W); mean and invstd are (N, groups).
Normed group_norm(const Array& input, int64_t groups, const Array* weight, const Array* bias,
                  double eps);
NormGrads group_norm_backward(const Array& grad_output, const Array& input, int64_t groups,
                              const Array* weight, const Array& mean, const Array& invstd);

// Over the last `dims` dimensions.
Normed layer_norm(const Array& input, int64_t dims, const Array* weight, const Array* bias,
                  double eps);
NormGrads layer_norm_backward(const Array& grad_output, const Array& input, int64_t dims,
                              const Array* weight, const Array& mean, const Array& invstd);

Array local_response_norm(const Array& input, int64_t size, double alpha, double beta, double k);
Array local_response_norm_backward(const Array& grad_output, const Array& input, int64_t size,
                                   double alpha, double beta, double k);

}  // namespace ops
}  // namespace fastnn
