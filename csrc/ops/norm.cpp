#include "ops/norm.h"

#include <cmath>

#include "core/error.h"
#include "ops/slots.h"

namespace fastnn::ops {
namespace {

Array floats(const char* op, const char* argument, const Array* x, int64_t count) {
  if (!x) return {};
  check_floating(op, argument, *x);
  check(x->count() == count, op, ": ", argument, " expects ", count, " values, got shape ",
        x->shape().str());
  return row_major(astype(*x, DType::float32));
}

const float* pointer(const Array& x) { return x.defined() ? x.data<float>() : nullptr; }

NormShape pixels_of(const Array& x, bool per_image) {
  const int64_t images = x.size(0), C = x.size(1);
  const int64_t area = x.rank() == 4 ? x.size(2) * x.size(3) : 1;
  return per_image ? NormShape{images, area, C, x.dtype()}
                   : NormShape{1, images * area, C, x.dtype()};
}

Array constant(int64_t count, float value) { return full({count}, value, DType::float32); }

}  // namespace

Normed batch_norm(const Array& input, const Array* running_mean, const Array* running_var,
                  const Array* weight, const Array* bias, bool training, double factor, double eps,
                  const std::string& activation, const Array* residual) {
  const char* op = "batch_norm";
  check_floating(op, "input", input);
  check(input.rank() == 2 || input.rank() == 4, op,
        ": input expects shape (N, C) or (N, C, H, W), got ", input.shape().str());
  check(activation.empty() || activation == "relu", op,
        ": activation expects None or 'relu', got '", activation, "'");
  check(eps >= 0, op, ": eps expects a value >= 0, got ", eps);
  const NormShape s = pixels_of(input, false);
  check(training || (running_mean && running_var), op,
        ": running_mean and running_var are needed when training=False");
  check((running_mean == nullptr) == (running_var == nullptr), op,
        ": expected both running_mean and running_var, or neither");
  // PyTorch's rule, too: a single value per channel has no variance to learn from.
  check(!training || s.P != 1, op, ": expected more than 1 value per channel when training, got ",
        "input of shape ", input.shape().str());
  for (const Array* running : {running_mean, running_var})
    check<TypeError>(!running || running->dtype() == DType::float32, op,
                     ": running statistics expect dtype float32");
  const Array w = floats(op, "weight", weight, s.C), b = floats(op, "bias", bias, s.C);
  const Array old_mean = floats(op, "running_mean", running_mean, s.C);
  const Array old_var = floats(op, "running_var", running_var, s.C);
  Array r;
  if (residual) {
    check(residual->shape() == input.shape(), op, ": residual expects the input's shape ",
          input.shape().str(), ", got ", residual->shape().str());
    r = canonical(astype(*residual, input.dtype()));
  }
  for (const Array* running : {&old_mean, &old_var})
    check(!training || !running->defined() || running->storage()->writable, op,
          ": running statistics are read-only");

  const Array x = canonical(input);
  Normed out{empty(x.shape(), x.dtype()), constant(s.C, 0), constant(s.C, 0)};
  float* mean = out.mean.data<float>();
  float* invstd = out.invstd.data<float>();
  if (training) {
    Array m2 = constant(s.C, 0);
    if (s.P) cpu_slots().norm.channel_moments(s, x.raw(), mean, m2.data<float>());
    const double count = static_cast<double>(s.P);
    for (int64_t c = 0; c < s.C; ++c) {
      const double square = m2.data<float>()[c];
      invstd[c] = static_cast<float>(1.0 / std::sqrt((s.P ? square / count : 0.0) + eps));
      if (!running_mean || !s.P) continue;
      float& m = old_mean.data<float>()[c];
      float& v = old_var.data<float>()[c];
      m = static_cast<float>(m + factor * (mean[c] - m));
      v = static_cast<float>(v + factor * (square / (count - 1.0) - v));
    }
    if (running_mean && s.P) {
      // A strided running_mean was copied; ours to write back either way.
      if (old_mean.storage() != running_mean->storage()) copy_into(*running_mean, old_mean);
      if (old_var.storage() != running_var->storage()) copy_into(*running_var, old_var);
      ++running_mean->storage()->version;
      ++running_var->storage()->version;
    }
  } else {
    for (int64_t c = 0; c < s.C; ++c) {
      mean[c] = old_mean.data<float>()[c];
      invstd[c] = static_cast<float>(1.0 / std::sqrt(old_var.data<float>()[c] + eps));
    }
  }
  Array scale = constant(s.C, 0), shift = constant(s.C, 0);
  for (int64_t c = 0; c < s.C; ++c) {
    scale.data<float>()[c] = invstd[c] * (weight ? pointer(w)[c] : 1.0f);
    shift.data<float>()[c] = bias ? pointer(b)[c] : 0.0f;
  }
  if (x.count())
    cpu_slots().norm.channel_apply(s, x.raw(), mean, pointer(scale), pointer(shift),
                                   residual ? r.raw() : nullptr, activation == "relu", out.y.raw());
  return out;
}

NormGrads batch_norm_backward(const Array& grad_output, const Array& input, bool relu,
                              const Array* output, const Array* weight, const Array* bias,
                              const Array& mean, const Array& invstd, bool training,
                              bool want_residual) {
  const NormShape s = pixels_of(input, false);
  check(grad_output.shape() == input.shape(), "batch_norm: grad_output expects shape ",
        input.shape().str(), ", got ", grad_output.shape().str());
  const Array g = canonical(astype(grad_output, input.dtype())), x = canonical(input);
  const Array y = output ? canonical(*output) : Array();
  const Array w = floats("batch_norm", "weight", weight, s.C);
  const Array shift = floats("batch_norm", "bias", bias, s.C);
  Array scale = constant(s.C, 0), zeros = constant(s.C, 0);
  for (int64_t c = 0; c < s.C; ++c)
    scale.data<float>()[c] = pointer(invstd)[c] * (weight ? pointer(w)[c] : 1.0f);
  NormMask mask;
  if (output)
    mask.y = y.raw();
  else if (relu)
    mask.scale = pointer(scale), mask.bias = bias ? pointer(shift) : pointer(zeros);
  NormGrads out{empty(x.shape(), x.dtype()), constant(s.C, 0), constant(s.C, 0), {}};
  if (want_residual) out.residual = empty(x.shape(), x.dtype());
  float* sum_g = out.bias.data<float>();
  float* sum_gx = out.weight.data<float>();
  if (s.P)
    cpu_slots().norm.channel_grad_sums(s, g.raw(), x.raw(), mask, pointer(mean), sum_g, sum_gx);
  Array a = constant(s.C, 0), b = constant(s.C, 0), d = constant(s.C, 0);
  for (int64_t c = 0; c < s.C; ++c) {
    const float inverse = pointer(invstd)[c];
    const float factor = pointer(scale)[c];
    sum_gx[c] *= inverse;  // now the gradient of weight: sum of g * xhat
    a.data<float>()[c] = factor;
    if (training && s.P) {
      const float count = static_cast<float>(s.P);
      b.data<float>()[c] = -factor * inverse * sum_gx[c] / count;
      d.data<float>()[c] = -factor * sum_g[c] / count;
    }
  }
  if (x.count())
    cpu_slots().norm.channel_grad_apply(s, g.raw(), x.raw(), mask, pointer(mean), pointer(a),
                                        pointer(b), pointer(d), out.input.raw(),
                                        want_residual ? out.residual.raw() : nullptr);
  return out;
}

Normed group_norm(const Array& input, int64_t groups, const Array* weight, const Array* bias,
                  double eps) {
  const char* op = "group_norm";
  check_floating(op, "input", input);
  check(input.rank() == 2 || input.rank() == 4, op,
        ": input expects shape (N, C) or (N, C, H, W), got ", input.shape().str());
  const NormShape s = pixels_of(input, true);
  check(groups > 0 && s.C % groups == 0, op, ": num_groups expects a divisor of ", s.C,
        " channels, got ", groups);
  check(eps >= 0, op, ": eps expects a value >= 0, got ", eps);
  const Array w = floats(op, "weight", weight, s.C), b = floats(op, "bias", bias, s.C);
  const Array x = canonical(input);
  Normed out{empty(x.shape(), x.dtype()), empty({s.S, groups}), empty({s.S, groups})};
  if (x.count() == 0) return out;
  const int64_t SC = s.S * s.C, width = s.C / groups;
  Array mean = constant(SC, 0), m2 = constant(SC, 0), scale = constant(SC, 0),
        shift = constant(SC, 0);
  cpu_slots().norm.channel_moments(s, x.raw(), mean.data<float>(), m2.data<float>());
  for (int64_t i = 0; i < s.S * groups; ++i) {
    float* const m = mean.data<float>() + i * width;
    const double count = static_cast<double>(s.P);
    double average = 0, square = 0;
    for (int64_t c = 0; c < width; ++c) average += m[c];
    average /= static_cast<double>(width);
    for (int64_t c = 0; c < width; ++c)
      square += m2.data<float>()[i * width + c] + count * (m[c] - average) * (m[c] - average);
    const double variance = square / (count * static_cast<double>(width));
    const float inverse = static_cast<float>(1.0 / std::sqrt(variance + eps));
    out.mean.data<float>()[i] = static_cast<float>(average);
    out.invstd.data<float>()[i] = inverse;
    for (int64_t c = 0; c < width; ++c) {
      const int64_t channel = i % groups * width + c;
      m[c] = static_cast<float>(average);
      scale.data<float>()[i * width + c] = inverse * (weight ? pointer(w)[channel] : 1.0f);
      shift.data<float>()[i * width + c] = bias ? pointer(b)[channel] : 0.0f;
    }
  }
  cpu_slots().norm.channel_apply(s, x.raw(), pointer(mean), pointer(scale), pointer(shift), nullptr,
                                 false, out.y.raw());
  return out;
}

NormGrads group_norm_backward(const Array& grad_output, const Array& input, int64_t groups,
                              const Array* weight, const Array& mean, const Array& invstd) {
  const NormShape s = pixels_of(input, true);
  check(grad_output.shape() == input.shape(), "group_norm: grad_output expects shape ",
        input.shape().str(), ", got ", grad_output.shape().str());
  const Array g = canonical(astype(grad_output, input.dtype())), x = canonical(input);
  const Array w = floats("group_norm", "weight", weight, s.C);
  NormGrads out{empty(x.shape(), x.dtype()), constant(s.C, 0), constant(s.C, 0), {}};
  if (x.count() == 0) return out;
  const int64_t SC = s.S * s.C, width = s.C / groups;
  Array m = constant(SC, 0), a = constant(SC, 0), b = constant(SC, 0), d = constant(SC, 0);
  Array sum_g = constant(SC, 0), sum_gx = constant(SC, 0);
  for (int64_t i = 0; i < SC; ++i) m.data<float>()[i] = pointer(mean)[i / width];
  cpu_slots().norm.channel_grad_sums(s, g.raw(), x.raw(), {}, pointer(m), sum_g.data<float>(),
                                     sum_gx.data<float>());
  for (int64_t i = 0; i < s.S * groups; ++i) {
    const double inverse = pointer(invstd)[i];
    const double count = static_cast<double>(s.P * width);
    double first = 0, second = 0;  // means of g w and of g w xhat over the group
    for (int64_t c = 0; c < width; ++c) {
      const int64_t channel = i % groups * width + c;
      const double scale = weight ? pointer(w)[channel] : 1.0;
      const double here_g = pointer(sum_g)[i * width + c];
      const double here_gx = pointer(sum_gx)[i * width + c] * inverse;
      out.bias.data<float>()[channel] += static_cast<float>(here_g);
      out.weight.data<float>()[channel] += static_cast<float>(here_gx);
      first += here_g * scale / count;
      second += here_gx * scale / count;
    }
    for (int64_t c = 0; c < width; ++c) {
      const double scale = weight ? pointer(w)[i % groups * width + c] : 1.0;
      a.data<float>()[i * width + c] = static_cast<float>(scale * inverse);
      b.data<float>()[i * width + c] = static_cast<float>(-second * inverse * inverse);
      d.data<float>()[i * width + c] = static_cast<float>(-first * inverse);
    }
  }
  cpu_slots().norm.channel_grad_apply(s, g.raw(), x.raw(), {}, pointer(m), pointer(a), pointer(b),
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
    cpu_slots().norm.layer(x.raw(), rows, D, x.dtype(), static_cast<float>(eps), pointer(w),
                           pointer(b), out.mean.data<float>(), out.invstd.data<float>(),
                           out.y.raw());
  return out;
}

NormGrads layer_norm_backward(const Array& grad_output, const Array& input, int64_t dims,
                              const Array* weight, const Array& mean, const Array& invstd) {
  check(grad_output.shape() == input.shape(), "layer_norm: grad_output expects shape ",
        input.shape().str(), ", got ", grad_output.shape().str());
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
  cpu_slots().norm.layer_backward(g.raw(), x.raw(), x.count() / D, D, x.dtype(), pointer(w),
                                  pointer(mean), pointer(invstd), out.input.raw(),
                                  out.weight.data<float>(), out.bias.data<float>());
  return out;
}

Array local_response_norm(const Array& input, int64_t size, double alpha, double beta, double k) {
  const char* op = "local_response_norm";
  check_floating(op, "input", input);
  check(input.rank() == 4, op, ": input expects shape (N, C, H, W), got ", input.shape().str());
  check(size > 0 && size <= 1 << 20, op, ": size expects an integer > 0, got ", size);
  const Array x = canonical(input);
  Array y = empty(x.shape(), x.dtype());
  if (x.count())
    cpu_slots().norm.local_response(x.raw(), x.count() / x.size(1), x.size(1), x.dtype(), size,
                                    static_cast<float>(alpha), static_cast<float>(beta),
                                    static_cast<float>(k), y.raw());
  return y;
}

Array local_response_norm_backward(const Array& grad_output, const Array& input, int64_t size,
                                   double alpha, double beta, double k) {
  check(grad_output.shape() == input.shape(), "local_response_norm: grad_output expects shape ",
        input.shape().str(), ", got ", grad_output.shape().str());
  const Array g = canonical(astype(grad_output, input.dtype())), x = canonical(input);
  Array grad_input = empty(x.shape(), x.dtype());
  if (x.count())
    cpu_slots().norm.local_response_backward(g.raw(), x.raw(), x.count() / x.size(1), x.size(1),
                                             x.dtype(), size, static_cast<float>(alpha),
                                             static_cast<float>(beta), static_cast<float>(k),
                                             grad_input.raw());
  return grad_input;
}

}  // namespace fastnn::ops
