#include "ops/pool.h"

#include <algorithm>
#include <vector>

#include "core/error.h"
#include "ops/copy.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "ops/slots.h"

namespace fastnn::ops {
namespace {

// Owns the tables of one dimension.
struct Axis {
  int64_t in = 0, out = 0, dilation = 1, extent = 0;
  std::vector<int64_t> start, taps, first, hits;
  std::vector<float> divisor;

  void push(int64_t from, int64_t count, float divide_by) {
    start.push_back(from);
    taps.push_back(count);
    divisor.push_back(divide_by);
    extent = std::max(extent, count);
    ++out;
  }

  // The windows that each input position is in.
  void invert() {
    first.assign(static_cast<size_t>(in + 1), 0);
    auto each = [&](auto&& visit) {
      for (int64_t o = 0; o < out; ++o)
        for (int64_t t = 0; t < taps[o]; ++t) {
          const int64_t at = start[o] + t * dilation;
          if (at >= 0 && at < in) visit(at, o, t);
        }
    };
    each([&](int64_t at, int64_t, int64_t) { ++first[at + 1]; });
    for (int64_t i = 0; i < in; ++i) first[i + 1] += first[i];
    hits.resize(static_cast<size_t>(2 * first[in]));
    std::vector<int64_t> next(first.begin(), first.end());
    each([&](int64_t at, int64_t o, int64_t t) {
      const int64_t slot = next[at]++;
      hits[2 * slot] = o;
      hits[2 * slot + 1] = t;
    });
  }

  PoolAxis view() const {
    return {in,           out,        dilation, extent, start.data(), taps.data(), divisor.data(),
            first.data(), hits.data()};
  }
};

struct Windows {
  Axis h, w;
  PoolParams params(const Dims& input, DType dtype) const {
    return {input[0], input[1], h.view(), w.view(), h.extent * w.extent > 256, dtype};
  }
  Dims output(const Dims& input) const { return {input[0], input[1], h.out, w.out}; }

  // Whether one window covers the input and nothing else: its average is the mean over all pixels.
  bool covers_input() const {
    const auto covers = [](const Axis& a) {
      return a.out == 1 && a.start[0] == 0 && a.taps[0] == a.in && a.dilation == 1;
    };
    return covers(h) && covers(w) && pixels() == static_cast<float>(h.in * w.in);
  }
  float pixels() const { return h.divisor[0] * w.divisor[0]; }
};

void check_image(const char* op, const Dims& input) {
  check(input.rank() == 4, op, ": input expects shape (N, C, H, W), got ", input);
}

Axis fixed_axis(const char* op, const Dims& input, int dim, int64_t kernel, int64_t stride,
                int64_t padding, int64_t dilation, bool ceil_mode, bool count_include_pad,
                int64_t divisor) {
  Axis a;
  a.in = input[dim];
  a.dilation = dilation;
  const int64_t span = dilation * (kernel - 1) + 1;
  const int64_t room = a.in + 2 * padding - span + (ceil_mode ? stride - 1 : 0);
  check(a.in > 0 && room >= 0, op, ": kernel of ", kernel, " (dilation ", dilation,
        ") is larger than the padded input, shape ", input, ", padding ", padding);
  int64_t out = room / stride + 1;
  // A window that starts in the padding after the image is left out.
  if (ceil_mode && (out - 1) * stride >= a.in + padding) --out;
  for (int64_t o = 0; o < out; ++o) {
    const int64_t from = o * stride - padding;
    const int64_t end = std::min(from + kernel, a.in + padding);
    const int64_t inside = std::min(end, a.in) - std::max<int64_t>(from, 0);
    float divide_by = static_cast<float>(count_include_pad ? end - from : inside);
    if (divisor) divide_by = dim == 2 ? static_cast<float>(divisor) : 1.0f;
    a.push(from, kernel, divide_by);
  }
  a.invert();
  return a;
}

Windows fixed(const char* op, const Dims& input, const Dims& kernel, const Dims& stride,
              const Dims& padding, const Dims& dilation, bool ceil_mode, bool count_include_pad,
              int64_t divisor) {
  check_image(op, input);
  for (int i = 0; i < 2; ++i) {
    check(kernel[i] > 0 && kernel[i] < 1 << 20, op, ": kernel_size expects values > 0, got ",
          kernel);
    check(stride[i] > 0 && stride[i] < int64_t{1} << 31, op, ": stride expects values > 0, got ",
          stride);
    check(dilation[i] > 0 && dilation[i] < int64_t{1} << 31, op,
          ": dilation expects values > 0, got ", dilation);
    check(padding[i] >= 0 && 2 * padding[i] <= dilation[i] * (kernel[i] - 1) + 1, op,
          ": padding expects values from 0 to half the kernel, got ", padding, " for kernel ",
          kernel);
  }
  check(divisor >= 0, op, ": divisor_override expects a value > 0, got ", divisor);
  auto axis = [&](int i) {
    return fixed_axis(op, input, 2 + i, kernel[i], stride[i], padding[i], dilation[i], ceil_mode,
                      count_include_pad, divisor);
  };
  return {axis(0), axis(1)};
}

Windows adaptive(const char* op, const Dims& input, const Dims& output_size) {
  check_image(op, input);
  check(input[2] > 0 && input[3] > 0, op, ": input expects at least one pixel, got shape ", input);
  auto axis = [&](int i) {
    Axis a;
    a.in = input[2 + i];
    const int64_t out = output_size[i];
    check(out > 0 && out < 1 << 20, op, ": output_size expects values > 0, got ", output_size);
    for (int64_t o = 0; o < out; ++o) {
      const int64_t from = o * a.in / out, end = ((o + 1) * a.in + out - 1) / out;
      a.push(from, end - from, static_cast<float>(end - from));
    }
    a.invert();
    return a;
  };
  return {axis(0), axis(1)};
}

void check_gradient(const char* op, const Array& grad_output, const Dims& shape) {
  check(grad_output.shape() == shape, op, ": grad_output expects shape ", shape, ", got ",
        grad_output.shape());
}

std::pair<Array, Array> run_max(const char* op, const Array& input, const Windows& windows) {
  check_floating(op, "input", input);
  check(windows.h.extent * windows.w.extent <= INT32_MAX, op,
        ": windows expect at most 2^31 - 1 pixels, got ", windows.h.extent, " x ",
        windows.w.extent);
  const Array x = canonical(input);
  const Dims shape = windows.output(x.shape());
  const PoolParams p = windows.params(x.shape(), x.dtype());
  Array y = empty(shape, x.dtype());
  Array indices = empty(shape, p.wide ? DType::int32 : DType::uint8);
  if (y.count()) kernels().pool.max(p, x.raw(), y.raw(), indices.raw());
  return {y, indices};
}

Array run_max_backward(const char* op, const Array& grad_output, const Array& indices,
                       const Dims& input_shape, const Windows& windows) {
  check_gradient(op, grad_output, windows.output(input_shape));
  const Array g = canonical(grad_output);
  Array grad_input = empty(input_shape, g.dtype());
  const PoolParams p = windows.params(input_shape, g.dtype());
  if (grad_input.count()) kernels().pool.max_backward(p, g.raw(), indices.raw(), grad_input.raw());
  return grad_input;
}

Array run_flat(const Array& indices, const Dims& input_shape, const Windows& windows) {
  Array flat = empty(indices.shape(), DType::int64);
  if (flat.count())
    kernels().pool.flat_indices(windows.params(input_shape, DType::float32), indices.raw(),
                                flat.data<int64_t>());
  return flat;
}

Array run_average(const char* op, const Array& input, const Windows& windows) {
  check_floating(op, "input", input);
  const Array x = canonical(input);
  // Few threads share one window; a reduction cuts it into parts.
  constexpr int64_t kManyPixels = 256;
  if (x.device() == kCpu && windows.covers_input() && windows.h.in * windows.w.in >= kManyPixels)
    return astype(mean(x, {2, 3}), x.dtype());
  Array y = empty(windows.output(x.shape()), x.dtype());
  if (y.count()) kernels().pool.average(windows.params(x.shape(), x.dtype()), x.raw(), y.raw());
  return y;
}

Array run_average_backward(const char* op, const Array& grad_output, const Dims& input_shape,
                           const Windows& windows) {
  check_gradient(op, grad_output, windows.output(input_shape));
  const Array g = canonical(grad_output);
  if (g.device() == kCpu && windows.covers_input()) {
    const Operand area = Operand::of(static_cast<double>(windows.pixels()));
    return canonical(broadcast_to(arithmetic(op, Arithmetic::div, g, area, {}), input_shape));
  }
  Array grad_input = empty(input_shape, g.dtype());
  if (grad_input.count())
    kernels().pool.average_backward(windows.params(input_shape, g.dtype()), g.raw(),
                                    grad_input.raw());
  return grad_input;
}

}  // namespace

std::pair<Array, Array> max_pool2d(const Array& input, const Dims& kernel, const Dims& stride,
                                   const Dims& padding, const Dims& dilation, bool ceil_mode) {
  const char* op = "max_pool2d";
  return run_max(op, input,
                 fixed(op, input.shape(), kernel, stride, padding, dilation, ceil_mode, true, 0));
}

Array max_pool2d_backward(const Array& grad_output, const Array& indices, const Dims& input_shape,
                          const Dims& kernel, const Dims& stride, const Dims& padding,
                          const Dims& dilation, bool ceil_mode) {
  const char* op = "max_pool2d";
  return run_max_backward(
      op, grad_output, indices, input_shape,
      fixed(op, input_shape, kernel, stride, padding, dilation, ceil_mode, true, 0));
}

Array max_pool2d_flat_indices(const Array& indices, const Dims& input_shape, const Dims& kernel,
                              const Dims& stride, const Dims& padding, const Dims& dilation,
                              bool ceil_mode) {
  return run_flat(
      indices, input_shape,
      fixed("max_pool2d", input_shape, kernel, stride, padding, dilation, ceil_mode, true, 0));
}

Array avg_pool2d(const Array& input, const Dims& kernel, const Dims& stride, const Dims& padding,
                 bool ceil_mode, bool count_include_pad, int64_t divisor) {
  const char* op = "avg_pool2d";
  return run_average(op, input,
                     fixed(op, input.shape(), kernel, stride, padding, {1, 1}, ceil_mode,
                           count_include_pad, divisor));
}

Array avg_pool2d_backward(const Array& grad_output, const Dims& input_shape, const Dims& kernel,
                          const Dims& stride, const Dims& padding, bool ceil_mode,
                          bool count_include_pad, int64_t divisor) {
  const char* op = "avg_pool2d";
  return run_average_backward(op, grad_output, input_shape,
                              fixed(op, input_shape, kernel, stride, padding, {1, 1}, ceil_mode,
                                    count_include_pad, divisor));
}

Array adaptive_avg_pool2d(const Array& input, const Dims& output_size) {
  const char* op = "adaptive_avg_pool2d";
  return run_average(op, input, adaptive(op, input.shape(), output_size));
}

Array adaptive_avg_pool2d_backward(const Array& grad_output, const Dims& input_shape) {
  const char* op = "adaptive_avg_pool2d";
  return run_average_backward(
      op, grad_output, input_shape,
      adaptive(op, input_shape, {grad_output.size(2), grad_output.size(3)}));
}

std::pair<Array, Array> adaptive_max_pool2d(const Array& input, const Dims& output_size) {
  const char* op = "adaptive_max_pool2d";
  return run_max(op, input, adaptive(op, input.shape(), output_size));
}

Array adaptive_max_pool2d_backward(const Array& grad_output, const Array& indices,
                                   const Dims& input_shape) {
  const char* op = "adaptive_max_pool2d";
  return run_max_backward(op, grad_output, indices, input_shape,
                          adaptive(op, input_shape, {indices.size(2), indices.size(3)}));
}

Array adaptive_max_pool2d_flat_indices(const Array& indices, const Dims& input_shape) {
  return run_flat(indices, input_shape,
                  adaptive("adaptive_max_pool2d", input_shape, {indices.size(2), indices.size(3)}));
}

}  // namespace fastnn::ops
