#include "ops/interpolate.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/error.h"
#include "ops/slots.h"

namespace fastnn::ops {
namespace {

struct Axis {
  int64_t in, out;
  std::vector<int64_t> low, high, first, outputs;
  std::vector<float> share, weights;

  ResampleAxis view() const {
    return {in,           out,          low.data(),     high.data(),
            share.data(), first.data(), outputs.data(), weights.data()};
  }
};

// Position of output o on the input axis (pixel centres at integers), before clamping.
double source(int64_t o, int64_t in, int64_t out, bool nearest, bool align_corners, double scale) {
  if (nearest)
    // From sizes this is exact integer arithmetic: o * in / out in floating point may fall short.
    return scale > 0 ? std::floor(static_cast<double>(o) * scale)
                     : static_cast<double>(o * in / out);
  if (align_corners)
    return out > 1
               ? static_cast<double>(o) * static_cast<double>(in - 1) / static_cast<double>(out - 1)
               : 0.0;
  const double step = scale > 0 ? scale : static_cast<double>(in) / static_cast<double>(out);
  return std::max(0.0, (static_cast<double>(o) + 0.5) * step - 0.5);
}

Axis axis(int64_t in, int64_t out, bool nearest, bool align_corners, double scale) {
  Axis a{in, out, {}, {}, {}, {}, {}, {}};
  for (int64_t o = 0; o < out; ++o) {
    const double at = source(o, in, out, nearest, align_corners, scale);
    const int64_t low = std::min(static_cast<int64_t>(at), in - 1);
    a.low.push_back(low);
    a.high.push_back(nearest ? low : std::min(low + 1, in - 1));
    a.share.push_back(nearest ? 0.0f : static_cast<float>(std::min(at - low, 1.0)));
  }
  std::vector<std::vector<std::pair<int64_t, float>>> users(static_cast<size_t>(in));
  for (int64_t o = 0; o < out; ++o) {
    const auto i = static_cast<size_t>(o);
    users[static_cast<size_t>(a.low[i])].push_back({o, 1.0f - a.share[i]});
    if (a.share[i] != 0.0f) users[static_cast<size_t>(a.high[i])].push_back({o, a.share[i]});
  }
  a.first.push_back(0);
  for (const auto& list : users) {
    for (const auto& [o, weight] : list) {
      a.outputs.push_back(o);
      a.weights.push_back(weight);
    }
    a.first.push_back(static_cast<int64_t>(a.outputs.size()));
  }
  return a;
}

struct Resample {
  Axis h, w;
  ResampleParams params;
};

void settle(Resample& r, const Dims& input, const Dims& size, const std::string& mode,
            bool align_corners, double scale_h, double scale_w, DType dtype) {
  const char* op = "interpolate";
  check(input.rank() == 4, op, ": input expects shape (N, C, H, W), got ", input);
  check(mode == "nearest" || mode == "bilinear", op,
        ": mode expects 'nearest' or 'bilinear', got '", mode, "'");
  check(mode == "bilinear" || !align_corners, op,
        ": align_corners can be set only with mode='bilinear'");
  check<MemoryError>(size[0] < 1 << 24 && size[1] < 1 << 24, op,
                     ": size expects two integers below 2^24, got ", size);
  check(size.rank() == 2 && size[0] > 0 && size[1] > 0, op, ": size expects two integers > 0, got ",
        size);
  check(input[2] > 0 && input[3] > 0, op, ": input expects at least one pixel, got shape ", input);
  const bool nearest = mode == "nearest";
  r.h = axis(input[2], size[0], nearest, align_corners, scale_h);
  r.w = axis(input[3], size[1], nearest, align_corners, scale_w);
  r.params = {input[0], input[1], r.h.view(), r.w.view(), nearest, dtype};
}

}  // namespace

Array interpolate(const Array& input, const Dims& size, const std::string& mode, bool align_corners,
                  double scale_h, double scale_w) {
  check_floating("interpolate", "input", input);
  Resample r;
  settle(r, input.shape(), size, mode, align_corners, scale_h, scale_w, input.dtype());
  const Array x = canonical(input);
  Array y = empty({x.size(0), x.size(1), size[0], size[1]}, x.dtype());
  if (y.count()) kernels().interpolate.forward(r.params, x.raw(), y.raw());
  return y;
}

Array interpolate_backward(const Array& grad_output, const Dims& input_shape,
                           const std::string& mode, bool align_corners, double scale_h,
                           double scale_w) {
  Resample r;
  const Dims size{grad_output.size(2), grad_output.size(3)};
  settle(r, input_shape, size, mode, align_corners, scale_h, scale_w, grad_output.dtype());
  const Array g = canonical(grad_output);
  Array grad_input = empty(input_shape, g.dtype());
  if (grad_input.count()) kernels().interpolate.backward(r.params, g.raw(), grad_input.raw());
  return grad_input;
}

}  // namespace fastnn::ops
