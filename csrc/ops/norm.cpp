#include "ops/norm.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "ops/slots.h"

namespace fastnn::ops {
namespace {

Array floats(const char* op, const char* argument, const Array* x, int64_t count) {
  if (!x) return {};
  check_floating(op, argument, *x);
  check(x->count() == count, op, ": ", argument, " expects ", count, " values, got shape ",
        x->shape());
  return row_major(astype(*x, DType::float32));
}

float* pointer(const Array& x) { return x.defined() ? x.data<float>() : nullptr; }

NormShape pixels_of(const Array& x, bool per_image) {
  const int64_t images = x.size(0), C = x.size(1);
  const int64_t area = x.rank() == 4 ? x.size(2) * x.size(3) : 1;
  return per_image ? NormShape{images, area, C, x.dtype()}
                   : NormShape{1, images * area, C, x.dtype()};
}

Array zeros(int64_t count) { return full({count}, 0, DType::float32); }
// What a pass over so many pixels writes.
Array from_pixels(int64_t count, int64_t pixels) { return pixels ? empty({count}) : zeros(count); }

// Moments that the convolution before kept with its output: C means, then C sums of squares.
bool kept_moments(const Array& x, int64_t C, float* moments) {
  KeptWorkspaces* const kept = kept_with(x);
  const std::shared_ptr<KeptBlock> block = kept ? kept->find(kMomentsKey) : nullptr;
  if (!block || block->bytes != 2 * C * int64_t{sizeof(float)}) return false;
  const auto* const from = static_cast<const float*>(block->data);
  if (x.device() != kCpu)
    return device_table()->copy(moments, x.device(), from, x.device(), block->bytes, true);
  std::copy_n(from, 2 * C, moments);
  return true;
}

FusedActivation checked_epilogue(const Array& input, const std::string& activation,
                                 const Array* residual) {
  const FusedActivation fused = fused_activation("batch_norm", activation);
  if (residual)
    check(residual->shape() == input.shape(), "batch_norm: residual expects the input's shape ",
          input.shape(), ", got ", residual->shape());
  return fused;
}

}  // namespace

BatchStatistics batch_norm_statistics(const Array& input, const Array* running_mean,
                                      const Array* running_var, const Array* weight,
                                      const Array* bias, bool training, double factor, double eps) {
  const char* op = "batch_norm";
  check_floating(op, "input", input);
  check(input.rank() == 2 || input.rank() == 4, op,
        ": input expects shape (N, C) or (N, C, H, W), got ", input.shape());
  check(eps >= 0, op, ": eps expects a value >= 0, got ", eps);
  const NormShape s = pixels_of(input, false);
  check(training || (running_mean && running_var), op,
        ": running_mean and running_var are needed when training=False");
  check((running_mean == nullptr) == (running_var == nullptr), op,
        ": expected both running_mean and running_var, or neither");
  // PyTorch's rule, too: a single value per channel has no variance to learn from.
  check(!training || s.P != 1, op, ": expected more than 1 value per channel when training, got ",
        "input of shape ", input.shape());
  for (const Array* running : {running_mean, running_var})
    check<TypeError>(!running || running->dtype() == DType::float32, op,
                     ": running statistics expect dtype float32");
  const Array w = floats(op, "weight", weight, s.C), b = floats(op, "bias", bias, s.C);
  const Array old_mean = floats(op, "running_mean", running_mean, s.C);
  const Array old_var = floats(op, "running_var", running_var, s.C);
  for (const Array* running : {&old_mean, &old_var})
    check(!training || !running->defined() || running->storage()->writable, op,
          ": running statistics are read-only");

  const Array x = canonical(input);
  const Array moments = training ? from_pixels(2 * s.C, s.P) : empty({s.C});
  BatchStatistics out{moments.view(0, {s.C}, {1}), empty({s.C}), empty({s.C}), empty({s.C})};
  float* const mean = pointer(moments);
  const NormSlots& slots = kernels().norm;
  if (training && x.count() && !kept_moments(x, s.C, mean))
    slots.channel_moments(s, x.raw(), mean, mean + s.C);
  slots.finish_batch({training, static_cast<double>(s.P), factor, eps, mean + s.C,
                      pointer(old_mean), pointer(old_var), pointer(w), pointer(b), mean,
                      out.invstd.data<float>(), pointer(out.scale), pointer(out.shift)},
                     s.C);
  if (training && running_mean && s.P) {
    // A strided running_mean was copied; ours to write back either way.
    if (old_mean.storage() != running_mean->storage()) copy_into(*running_mean, old_mean);
    if (old_var.storage() != running_var->storage()) copy_into(*running_var, old_var);
    ++running_mean->storage()->version;
    ++running_var->storage()->version;
  }
  return out;
}

Array batch_norm_apply(const Array& input, const BatchStatistics& statistics,
                       const std::string& activation, const Array* residual) {
  const FusedActivation fused = checked_epilogue(input, activation, residual);
  Array r;
  if (residual) r = canonical(astype(*residual, input.dtype()));
  const Array x = canonical(input);
  Array y = empty(x.shape(), x.dtype());
  if (x.count())
    kernels().norm.channel_apply(pixels_of(x, false), x.raw(), pointer(statistics.mean),
                                 pointer(statistics.scale), pointer(statistics.shift),
                                 residual ? r.raw() : nullptr, fused, y.raw());
  return y;
}

Normed batch_norm(const Array& input, const Array* running_mean, const Array* running_var,
                  const Array* weight, const Array* bias, bool training, double factor, double eps,
                  const std::string& activation, const Array* residual) {
  checked_epilogue(input, activation, residual);  // before running statistics change
  const Array x = canonical(input);
  const BatchStatistics s =
      batch_norm_statistics(x, running_mean, running_var, weight, bias, training, factor, eps);
  return {batch_norm_apply(x, s, activation, residual), s.mean, s.invstd};
}

NormGrads batch_norm_backward(const Array& grad_output, const Array& input,
                              const std::string& activation, const Array* output,
                              const Array* weight, const Array* bias, const Array& mean,
                              const Array& invstd, bool training, bool want_residual) {
  const NormShape s = pixels_of(input, false);
  const FusedActivation fused = fused_activation("batch_norm", activation);
  check(!(fused.curve && output), "batch_norm: '", activation, "' of a sum has no backward");
  check(grad_output.shape() == input.shape(), "batch_norm: grad_output expects shape ",
        input.shape(), ", got ", grad_output.shape());
  const Array g = canonical(astype(grad_output, input.dtype())), x = canonical(input);
  const Array y = output ? canonical(*output) : Array();
  const Array w = floats("batch_norm", "weight", weight, s.C);
  const Array shift = floats("batch_norm", "bias", bias, s.C);
  const NormSlots& slots = kernels().norm;
  Array scale = empty({s.C}), b = empty({s.C}), d = empty({s.C}), no_bias;
  BatchGradient step{training,       static_cast<float>(s.P),
                     pointer(w),     pointer(invstd),
                     pointer(scale), nullptr,
                     nullptr,        nullptr,
                     nullptr};
  if (fused && !output) {
    slots.batch_gradients(step, s.C);
    if (!bias) no_bias = zeros(s.C);
  }
  NormMask mask;
  mask.activation = fused;
  if (output)
    mask.y = y.raw();
  else if (fused)
    mask.scale = pointer(scale), mask.bias = bias ? pointer(shift) : pointer(no_bias);
  NormGrads out{empty(x.shape(), x.dtype()), from_pixels(s.C, s.P), from_pixels(s.C, s.P), {}};
  if (want_residual) out.residual = empty(x.shape(), x.dtype());
  float* sum_g = out.bias.data<float>();
  float* sum_gx = out.weight.data<float>();
  const void* from = g.raw();
  if (fused.curve && x.count()) {
    kernels().curves.channel_grad_sums(s, g.raw(), x.raw(), mask, pointer(mean), sum_g, sum_gx,
                                       out.input.raw());
    from = out.input.raw();
    mask = {};
  } else if (x.count()) {
    slots.channel_grad_sums(s, g.raw(), x.raw(), mask, pointer(mean), sum_g, sum_gx);
  }
  step.sum_g = sum_g, step.sum_gx = sum_gx;
  step.b = pointer(b), step.d = pointer(d);
  slots.batch_gradients(step, s.C);
  if (x.count())
    slots.channel_grad_apply(s, from, x.raw(), mask, pointer(mean), pointer(scale), pointer(b),
                             pointer(d), out.input.raw(),
                             want_residual ? out.residual.raw() : nullptr);
  return out;
}

Normed group_norm(const Array& input, int64_t groups, const Array* weight, const Array* bias,
                  double eps) {
  const char* op = "group_norm";
  check_floating(op, "input", input);
  check(input.rank() == 2 || input.rank() == 4, op,
        ": input expects shape (N, C) or (N, C, H, W), got ", input.shape());
  const NormShape s = pixels_of(input, true);
  check(groups > 0 && s.C % groups == 0, op, ": num_groups expects a divisor of ", s.C,
        " channels, got ", groups);
  check(eps >= 0, op, ": eps expects a value >= 0, got ", eps);
  const Array w = floats(op, "weight", weight, s.C), b = floats(op, "bias", bias, s.C);
  const Array x = canonical(input);
  Normed out{empty(x.shape(), x.dtype()), empty({s.S, groups}), empty({s.S, groups})};
  if (x.count() == 0) return out;
  const int64_t SC = s.S * s.C;
  Array mean = empty({SC}), m2 = empty({SC}), scale = empty({SC}), shift = empty({SC});
  kernels().norm.channel_moments(s, x.raw(), pointer(mean), pointer(m2));
  kernels().norm.finish_groups(
      {groups, s.C / groups, static_cast<double>(s.P), eps, pointer(w), pointer(b), pointer(mean),
       pointer(m2), pointer(out.mean), pointer(out.invstd), pointer(scale), pointer(shift)},
      s.S * groups);
  kernels().norm.channel_apply(s, x.raw(), pointer(mean), pointer(scale), pointer(shift), nullptr,
                               {}, out.y.raw());
  return out;
}

NormGrads group_norm_backward(const Array& grad_output, const Array& input, int64_t groups,
                              const Array* weight, const Array& mean, const Array& invstd) {
  const NormShape s = pixels_of(input, true);
  check(grad_output.shape() == input.shape(), "group_norm: grad_output expects shape ",
        input.shape(), ", got ", grad_output.shape());
  const Array g = canonical(astype(grad_output, input.dtype())), x = canonical(input);
  const Array w = floats("group_norm", "weight", weight, s.C);
  const int64_t pixels = s.S * s.P;
  NormGrads out{
      empty(x.shape(), x.dtype()), from_pixels(s.C, pixels), from_pixels(s.C, pixels), {}};
  if (x.count() == 0) return out;
  const int64_t SC = s.S * s.C, width = s.C / groups;
  // Each channel's mean is its group's.
  Array m = empty({s.S, groups, width});
  copy_into(m, mean.view(mean.offset(), m.shape(), {groups, 1, 0}));
  Array a = empty({SC}), b = empty({SC}), d = empty({SC});
  Array sum_g = empty({SC}), sum_gx = empty({SC});
  kernels().norm.channel_grad_sums(s, g.raw(), x.raw(), {}, pointer(m), pointer(sum_g),
                                   pointer(sum_gx));
  kernels().norm.group_gradients({s.S, groups, width, static_cast<double>(s.P), pointer(w),
                                  pointer(invstd), pointer(sum_g), pointer(sum_gx), pointer(a),
                                  pointer(b), pointer(d), pointer(out.weight), pointer(out.bias)});
  kernels().norm.channel_grad_apply(s, g.raw(), x.raw(), {}, pointer(m), pointer(a), pointer(b),
                                    pointer(d), out.input.raw(), nullptr);
  return out;
}

Normed layer_norm(const Array& input, int64_t dims, const Array* weight, const Array* bias,
                  double eps) {
  const char* op = "layer_norm";
  check_floating(op, "input", input);
  check(eps >= 0, op, ": eps expects a value >= 0, got ", eps);
  const Array x = row_major(input);
  int64_t D = 1;
  for (int64_t i = x.rank() - dims; i < x.rank(); ++i) D *= x.size(static_cast<int>(i));
  const Array w = floats(op, "weight", weight, D), b = floats(op, "bias", bias, D);
  const int64_t rows = D ? x.count() / D : 0;
  Normed out{empty_strided(x.shape(), x.strides(), x.dtype()), empty({rows}), empty({rows})};
  if (x.count())
    kernels().norm.layer(x.raw(), rows, D, x.dtype(), static_cast<float>(eps), pointer(w),
                         pointer(b), out.mean.data<float>(), out.invstd.data<float>(), out.y.raw());
  return out;
}

NormGrads layer_norm_backward(const Array& grad_output, const Array& input, int64_t dims,
                              const Array* weight, const Array& mean, const Array& invstd) {
  check(grad_output.shape() == input.shape(), "layer_norm: grad_output expects shape ",
        input.shape(), ", got ", grad_output.shape());
  const Array g = row_major(astype(grad_output, input.dtype())), x = row_major(input);
  Dims shape;
  for (int64_t i = x.rank() - dims; i < x.rank(); ++i) shape.push_back(x.size(static_cast<int>(i)));
  const int64_t D = element_count(shape);
  const Array w = floats("layer_norm", "weight", weight, D);
  const Dims order = row_major_strides(shape);
  NormGrads out{empty_strided(x.shape(), x.strides(), x.dtype()),
                empty_strided(shape, order, DType::float32),
                empty_strided(shape, order, DType::float32),
                {}};
  if (x.count() == 0) {
    out.weight = full(shape, 0, DType::float32);
    out.bias = full(shape, 0, DType::float32);
    return out;
  }
  kernels().norm.layer_backward(g.raw(), x.raw(), x.count() / D, D, x.dtype(), pointer(w),
                                pointer(mean), pointer(invstd), out.input.raw(),
                                out.weight.data<float>(), out.bias.data<float>());
  return out;
}

Array local_response_norm(const Array& input, int64_t size, double alpha, double beta, double k) {
  const char* op = "local_response_norm";
  check_floating(op, "input", input);
  check(input.rank() == 4, op, ": input expects shape (N, C, H, W), got ", input.shape());
  check(size > 0 && size <= 1 << 20, op, ": size expects an integer > 0, got ", size);
  const Array x = canonical(input);
  Array y = empty(x.shape(), x.dtype());
  if (x.count())
    kernels().norm.local_response(x.raw(), x.count() / x.size(1), x.size(1), x.dtype(), size,
                                  static_cast<float>(alpha), static_cast<float>(beta),
                                  static_cast<float>(k), y.raw());
  return y;
}

Array local_response_norm_backward(const Array& grad_output, const Array& input, int64_t size,
                                   double alpha, double beta, double k) {
  check(grad_output.shape() == input.shape(), "local_response_norm: grad_output expects shape ",
        input.shape(), ", got ", grad_output.shape());
  const Array g = canonical(astype(grad_output, input.dtype())), x = canonical(input);
  Array grad_input = empty(x.shape(), x.dtype());
  if (x.count())
    kernels().norm.local_response_backward(g.raw(), x.raw(), x.count() / x.size(1), x.size(1),
                                           x.dtype(), size, static_cast<float>(alpha),
                                           static_cast<float>(beta), static_cast<float>(k),
                                           grad_input.raw());
  return grad_input;
}

}  // namespace fastnn::ops
