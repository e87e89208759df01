// What happens to the moments of a normalisation between its passes over the pixels, for one
// channel or one group, written once for every device. All of it is O(channels).
#pragma once

#include "core/dtype.h"

namespace fastnn {

// 1 / sqrt(x), in double.
FASTNN_INLINE double inverse_root(double x) { return 1.0 / __builtin_sqrt(x); }

// Batch norm: from moments (training) or running statistics to what channel_apply takes. `mean` is
// an input when training, else an output.
struct BatchFinish {
  bool training;
  double count, factor, eps;
  const float* m2;  // sum of squared deviations; training only
  float* running_mean;
  float* running_var;
  const float* weight;
  const float* bias;
  float* mean;
  float* invstd;
  float* scale;
  float* shift;
};

FASTNN_INLINE void batch_finish(const BatchFinish& p, int64_t c) {
  if (p.training) {
    const double square = p.m2[c];
    p.invstd[c] = static_cast<float>(inverse_root((p.count > 0 ? square / p.count : 0.0) + p.eps));
    if (p.running_mean && p.count > 0) {
      const float m = p.running_mean[c], v = p.running_var[c];
      p.running_mean[c] = static_cast<float>(m + p.factor * (p.mean[c] - m));
      p.running_var[c] = static_cast<float>(v + p.factor * (square / (p.count - 1.0) - v));
    }
  } else {
    p.mean[c] = p.running_mean[c];
    p.invstd[c] = static_cast<float>(inverse_root(p.running_var[c] + p.eps));
  }
  p.scale[c] = p.invstd[c] * (p.weight ? p.weight[c] : 1.0f);
  p.shift[c] = p.bias ? p.bias[c] : 0.0f;
}

// Batch norm's backward, twice: before the sums only `scale` is computed, after them the
// coefficients of channel_grad_apply, and sum_gx becomes the gradient of the weight.
struct BatchGradient {
  bool training;
  float count;
  const float* weight;
  const float* invstd;
  float* scale;
  const float* sum_g;
  float* sum_gx;  // null before the sums
  float* b;
  float* d;
};

FASTNN_INLINE void batch_gradient(const BatchGradient& p, int64_t c) {
  const float inverse = p.invstd[c];
  const float factor = inverse * (p.weight ? p.weight[c] : 1.0f);
  p.scale[c] = factor;
  if (!p.sum_gx) return;
  p.sum_gx[c] *= inverse;
  const bool moves = p.training && p.count > 0;
  p.b[c] = moves ? -factor * inverse * p.sum_gx[c] / p.count : 0.0f;
  p.d[c] = moves ? -factor * p.sum_g[c] / p.count : 0.0f;
}

// Group norm, one group of `width` channels of one image: i in [0, images * groups).
struct GroupFinish {
  int64_t groups, width;
  double pixels, eps;
  const float* weight;  // per channel
  const float* bias;
  float* mean;  // images x channels: each channel's on entry, its group's on return
  const float* m2;
  float* group_mean;  // images x groups
  float* group_invstd;
  float* scale;  // images x channels
  float* shift;
};

// What is applied to channel c of group i, whose mean and 1 / std are known.
FASTNN_INLINE void finish_channel(const GroupFinish& p, int64_t i, int64_t c, double average,
                                  float inverse) {
  const int64_t at = i * p.width + c, channel = i % p.groups * p.width + c;
  p.mean[at] = static_cast<float>(average);
  p.scale[at] = inverse * (p.weight ? p.weight[channel] : 1.0f);
  p.shift[at] = p.bias ? p.bias[channel] : 0.0f;
}

FASTNN_INLINE void group_finish(const GroupFinish& p, int64_t i) {
  const float* const m = p.mean + i * p.width;
  double average = 0, square = 0;
  for (int64_t c = 0; c < p.width; ++c) average += m[c];
  average /= static_cast<double>(p.width);
  for (int64_t c = 0; c < p.width; ++c)
    square += p.m2[i * p.width + c] + p.pixels * (m[c] - average) * (m[c] - average);
  const double variance = square / (p.pixels * static_cast<double>(p.width));
  const float inverse = static_cast<float>(inverse_root(variance + p.eps));
  p.group_mean[i] = static_cast<float>(average);
  p.group_invstd[i] = inverse;
  for (int64_t c = 0; c < p.width; ++c) finish_channel(p, i, c, average, inverse);
}

// Group norm's backward, after the sums over pixels.
struct GroupGradient {
  int64_t images, groups, width;
  double pixels;
  const float* weight;
  const float* invstd;  // images x groups
  const float* sum_g;   // images x channels
  const float* sum_gx;
  float* a;  // images x channels: coefficients of channel_grad_apply
  float* b;
  float* d;
  float* grad_weight;  // per channel
  float* grad_bias;
};

// Coefficients of channel c of group i, from the group's 1 / std and means of g w and of g w xhat.
FASTNN_INLINE void channel_gradient(const GroupGradient& p, int64_t i, int64_t c, double inverse,
                                    double first, double second) {
  const int64_t at = i * p.width + c;
  const double scale = p.weight ? p.weight[i % p.groups * p.width + c] : 1.0;
  p.a[at] = static_cast<float>(scale * inverse);
  p.b[at] = static_cast<float>(-second * inverse * inverse);
  p.d[at] = static_cast<float>(-first * inverse);
}

// Coefficients of group i in [0, images * groups).
FASTNN_INLINE void group_gradient(const GroupGradient& p, int64_t i) {
  const double inverse = p.invstd[i];
  const double count = p.pixels * static_cast<double>(p.width);
  double first = 0, second = 0;
  for (int64_t c = 0; c < p.width; ++c) {
    const double scale = p.weight ? p.weight[i % p.groups * p.width + c] : 1.0;
    first += p.sum_g[i * p.width + c] * scale / count;
    second += p.sum_gx[i * p.width + c] * inverse * scale / count;
  }
  for (int64_t c = 0; c < p.width; ++c) channel_gradient(p, i, c, inverse, first, second);
}

// Gradients of the parameters of one channel: sums over images.
FASTNN_INLINE void group_parameters(const GroupGradient& p, int64_t channel) {
  const int64_t channels = p.groups * p.width;
  float weight = 0, bias = 0;
  for (int64_t n = 0; n < p.images; ++n) {
    const int64_t at = n * channels + channel;
    bias += p.sum_g[at];
    weight += static_cast<float>(static_cast<double>(p.sum_gx[at]) *
                                 p.invstd[n * p.groups + channel / p.width]);
  }
  p.grad_weight[channel] = weight;
  p.grad_bias[channel] = bias;
}

}  // namespace fastnn
