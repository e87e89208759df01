#include "ops/conv.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>

#include "core/error.h"
#include "core/isa.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/slots.h"

namespace fastnn::ops {
namespace {

constexpr const char* kWinogradModes[] = {"auto", "off", "always"};
enum { kAuto, kOff, kAlways };

// Sums over fewer channels have a bound that its transforms may exceed; they gain no time.
constexpr int64_t kWinogradChannels = 16;

int winograd_mode_of(const char* asked_by, const std::string& name) {
  for (int i = 0; i < 3; ++i)
    if (name == kWinogradModes[i]) return i;
  throw ValueError(text(asked_by, ": expected 'auto', 'off' or 'always', got '", name, "'"));
}

std::atomic<int>& winograd_mode() {
  static std::atomic<int> mode{[] {
    const char* name = std::getenv("FASTNN_WINOGRAD");
    return name ? winograd_mode_of("FASTNN_WINOGRAD", name) : kAuto;
  }()};
  return mode;
}

// Whether Winograd's algorithm may compute a convolution and its gradients.
bool winograd_applies(const ConvParams& p) {
  return winograd_mode().load(std::memory_order_relaxed) != kOff && current_device() == kCpu &&
         p.KH == 3 && p.KW == 3 && p.stride_h == 1 && p.stride_w == 1 && p.groups == 1 &&
         p.pad_top <= 2 * p.dilation_h && p.pad_left <= 2 * p.dilation_w &&
         p.C >= kWinogradChannels && p.OC >= kWinogradChannels;
}

// What Winograd's algorithm takes beside its multiply-adds, in flops: per byte that is transformed,
// read again, and brought from memory meanwhile; per byte of the sums of a weight's gradient; and,
// as factors, of transforming the weights, and of the gradient's multiply-adds for its transforms.
// Measured with float32 on Sapphire Rapids and with bfloat16 on Zen 5 (with tiles, bfloat16 gains
// nothing by the algorithm); both on Zen 4 for cores that do half as much while a byte comes.
struct WinogradCost {
  double transformed, again, far, sums, weights, transforms;
};
const WinogradCost& winograd_cost(const ConvParams& p) {
  static constexpr WinogradCost kFloat{14, 14, 11, 14, 1, 1.1}, kBfloat{8, 0.5, 20, 8, 4, 1.2};
  static constexpr WinogradCost kHalfFloat{7, 7, 5.5, 7, 0.75, 1.1};
  static constexpr WinogradCost kHalfBfloat{5.6, 0.35, 14, 4.5, 1.5, 1.2};
  const bool half = multiply_adds_per_cycle() < 32;
  if (p.dtype == DType::float32) return half ? kHalfFloat : kFloat;
  return half ? kHalfBfloat : kBfloat;
}

// What a multiply-add of the direct kernels costs, of one of Winograd's, which are in float32.
double direct_cost(const ConvParams& p) {
  return p.dtype == DType::float32 ? 1 : 1 / bfloat16_rate();
}

// Products of three taps along an axis that the direct kernels compute for `points` results. Where
// taps are far from each other, they leave out those with zeros of the padding.
double direct_products(int64_t points, int64_t in, int64_t out, int64_t pad, int64_t dilation) {
  if (dilation == 1) return static_cast<double>(3 * points);
  int64_t products = 0;
  for (int64_t shift = -pad; shift <= 2 * dilation - pad; shift += dilation)
    products += std::max<int64_t>(0, std::min(out, in - shift) - std::max<int64_t>(0, -shift));
  return static_cast<double>(products);
}

// Tiles of size x size of N maps of rows x cols.
int64_t winograd_tiles(const ConvParams& p, int64_t rows, int64_t cols, int64_t size) {
  return p.N * TileAxis{rows, p.dilation_h, size}.count() *
         TileAxis{cols, p.dilation_w, size}.count();
}

// Whether it computes the gradient with respect to the weight: its multiply-adds and transforms,
// and the 36 sums per weight written and read twice, in up to eight parts where channels are few,
// against the direct ones.
bool winograd_for_weight(const ConvParams& p) {
  if (!winograd_applies(p) || p.N == 0) return false;
  if (winograd_mode().load(std::memory_order_relaxed) == kAlways) return true;
  const int64_t tiles = winograd_tiles(p, p.OH, p.OW, 4);
  const int64_t blocks = (p.C + 63) / 64 * ((p.OC + 63) / 64);
  const auto parts =
      static_cast<double>(std::clamp<int64_t>(tiles / 32, 1, std::max<int64_t>(8 / blocks, 1)));
  const WinogradCost& of = winograd_cost(p);
  return of.transforms * 2 * 36 * static_cast<double>(tiles) + of.sums * 36 * 4 * 4 * parts <
         direct_cost(p) * 2 * 9 * static_cast<double>(p.N * p.OH * p.OW);
}

// The tile size of Winograd's algorithm for a convolution from K channels to `columns` channels of
// N images of rows x cols outputs; 0 for the direct kernel. The cost of a variant, in what a core
// computes in its time: its multiply-adds, or its transformed weights, which are prefetched
// meanwhile, if those take longer; the other bytes that it moves beyond the core's own cache; and
// weights that have to be transformed first, against packing them for the direct kernel (measured:
// a constant for reading them, a share for each number written, and twice that where they leave the
// caches before they are used).
int winograd_tile(const ConvParams& p, int64_t rows, int64_t cols, int64_t K, int64_t columns) {
  if (!winograd_applies(p)) return 0;
  const int mode = winograd_mode().load(std::memory_order_relaxed);
  const WinogradCost& of = winograd_cost(p);
  constexpr double kL2Floats = 256 << 10;
  const double pair = static_cast<double>(K) * static_cast<double>(columns);
  const double products = static_cast<double>(p.N) *
                          direct_products(rows, p.H, p.OH, p.pad_top, p.dilation_h) *
                          direct_products(cols, p.W, p.OW, p.pad_left, p.dilation_w);
  // The direct kernel takes longer for a multiply-add of few columns.
  double best = direct_cost(p) * (columns > 16 ? 1 : 1.25) * 2 * products * pair;
  int tile = 0;
  for (int size : {4, 2}) {
    const double points = (size + 2) * (size + 2);
    const auto tiles = static_cast<double>(winograd_tiles(p, rows, cols, size));
    const double per_task = std::max(64.0, kL2Floats / (points * static_cast<double>(K)));
    const double tasks = std::ceil(tiles / per_task);
    const double u = points * pair, v = points * tiles * static_cast<double>(K);
    // U is read by every task; V once per group of columns, from L2 if it fits; transforms read
    // each input (size + 2)^2 / size^2 times, at about a byte per flop.
    const double groups = v / tasks > kL2Floats ? static_cast<double>(columns) / 64 : 0;
    const double bytes = 4 * (v + points * tiles * static_cast<double>(columns));
    const double weights =
        p.kept ? 0 : of.weights * pair * (420 + 22 * points) * (4 * u < 16e6 ? 1 : 2);
    const double cost = std::max(1.15 * 2 * points * tiles * pair, of.far * 4 * u * tasks) +
                        of.transformed * bytes + of.again * 4 * v * groups + weights;
    if (cost < best || (mode == kAlways && tile == 0)) best = cost, tile = size;
  }
  return tile;
}

constexpr int64_t kMaxKernel = 1024;  // taps; bounds the kernels' tables

void check_settings(const char* op, const Dims& stride, const Dims& padding, const Dims& dilation,
                    int64_t groups) {
  check(stride.rank() == 2 && stride[0] > 0 && stride[1] > 0, op,
        ": stride expects two integers > 0, got ", stride);
  check(dilation.rank() == 2 && dilation[0] > 0 && dilation[1] > 0, op,
        ": dilation expects two integers > 0, got ", dilation);
  check(padding.rank() == 4, op, ": padding expects (left, right, top, bottom), got ", padding);
  for (int64_t side : padding)
    check(side >= 0, op,
          ": padding expects integers >= 0, got (left, right, top, bottom) = ", padding);
  check(groups > 0, op, ": groups expects an integer > 0, got ", groups);
  for (const Dims* dims : {&stride, &padding, &dilation})
    for (int64_t value : *dims)
      check(value < (int64_t{1} << 31), op, ": expected settings below 2^31, got ", value);
}

int64_t output_size(int64_t in, int64_t before, int64_t after, int64_t kernel, int64_t dilation,
                    int64_t stride) {
  const int64_t room = in + before + after - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

// Checks shapes and settles every size but the dtype.
ConvParams settle(const char* op, const Dims& input, const Dims& weight, const Dims& stride,
                  const Dims& padding, const Dims& dilation, int64_t groups) {
  check(input.rank() == 4, op, ": input expects 4 dimensions (N, C, H, W), got shape ", input);
  check(weight.rank() == 4, op,
        ": weight expects 4 dimensions (out_channels, in_channels / groups, kh, kw), got shape ",
        weight);
  check_settings(op, stride, padding, dilation, groups);
  check(weight[2] > 0 && weight[3] > 0 && weight[2] * weight[3] <= kMaxKernel, op,
        ": weight expects a kernel of 1 to ", kMaxKernel, " taps, got shape ", weight);
  check(weight[0] > 0 && weight[1] > 0, op, ": weight expects channels, in and out, got shape ",
        weight);
  check(input[1] == weight[1] * groups, op, ": weight expects ", weight[1] * groups,
        " input channels (groups=", groups, "), got input with ", input[1], " channels, shape ",
        input);
  check(weight[0] % groups == 0, op, ": weight expects out_channels divisible by ",
        "groups=", groups, ", got weight of shape ", weight);
  ConvParams p{};
  p.N = input[0], p.C = input[1], p.H = input[2], p.W = input[3];
  p.OC = weight[0], p.KH = weight[2], p.KW = weight[3];
  p.stride_h = stride[0], p.stride_w = stride[1];
  p.pad_left = padding[0], p.pad_top = padding[2];
  p.dilation_h = dilation[0], p.dilation_w = dilation[1];
  p.groups = groups;
  p.OH = output_size(p.H, padding[2], padding[3], p.KH, p.dilation_h, p.stride_h);
  p.OW = output_size(p.W, padding[0], padding[1], p.KW, p.dilation_w, p.stride_w);
  check(p.OH > 0 && p.OW > 0, op, ": kernel (", p.KH, ", ", p.KW, ") with dilation ", dilation,
        " is larger than the padded input, shape ", input,
        ", padding (left, right, top, bottom) = ", padding);
  return p;
}

// Where one window covers the input and nothing else, every tap is a channel more of one pixel. The
// memory of all operands is the same, but no tap falls beside the input in its gradient. Returns
// whether it is so: gradients are products of matrices then, for a few rows of which matmul has
// kernels.
bool join_taps(ConvParams& p) {
  const int64_t taps = p.KH * p.KW;
  if (p.N == 0 || p.groups != 1 || p.OH != 1 || p.OW != 1 || p.pad_top != 0 || p.pad_left != 0 ||
      p.KH != p.H || p.KW != p.W || p.dilation_h != 1 || p.dilation_w != 1)
    return false;
  p.C *= taps;
  p.H = p.W = p.KH = p.KW = p.stride_h = p.stride_w = 1;
  return true;
}
Array matrix(const Array& x) {
  const int64_t columns = x.count() / x.size(0);
  return x.view(x.offset(), {x.size(0), columns}, {columns, 1});
}
Array shaped(const Array& x, const Dims& shape) {
  return x.view(x.offset(), shape, canonical_strides(shape));
}

void check_bias(const char* op, const Array* bias, int64_t channels) {
  if (!bias) return;
  check_floating(op, "bias", *bias);
  check(bias->rank() == 1 && bias->size(0) == channels, op, ": bias expects shape (", channels,
        ",), got ", bias->shape());
}
Array float_bias(const char* op, const Array* bias, int64_t channels) {
  check_bias(op, bias, channels);
  if (!bias) return {};
  return canonical(astype(*bias, DType::float32));
}

void check_same_dtype(const char* op, const Array& input, const Array& weight) {
  check_floating(op, "input", input);
  check_floating(op, "weight", weight);
  check<TypeError>(input.dtype() == weight.dtype(), op, ": weight expects the input's dtype ",
                   name_of(input.dtype()), ", got ", name_of(weight.dtype()));
}

}  // namespace

void set_winograd(const std::string& mode) {
  winograd_mode().store(winograd_mode_of("set_winograd", mode));
}
std::string winograd() { return kWinogradModes[winograd_mode().load()]; }

Dims conv2d_shape(const Array& input, const Array& weight, const Array* bias, const Dims& stride,
                  const Dims& padding, const Dims& dilation, int64_t groups) {
  check_same_dtype("conv2d", input, weight);
  const ConvParams p =
      settle("conv2d", input.shape(), weight.shape(), stride, padding, dilation, groups);
  check_bias("conv2d", bias, p.OC);
  return {p.N, p.OC, p.OH, p.OW};
}

Array conv2d(const Array& input, const Array& weight, const Array* bias, const Dims& stride,
             const Dims& padding, const Dims& dilation, int64_t groups,
             const std::string& activation, const Array* residual, bool keep_packed,
             bool want_moments) {
  check_same_dtype("conv2d", input, weight);
  ConvParams p = settle("conv2d", input.shape(), weight.shape(), stride, padding, dilation, groups);
  p.dtype = input.dtype();
  const FusedRelu relu = fused_relu("conv2d", activation);
  const Array b = float_bias("conv2d", bias, p.OC);
  Array r;
  if (residual) {
    const Dims shape{p.N, p.OC, p.OH, p.OW};
    check(residual->shape() == shape, "conv2d: residual expects the output's shape ", shape,
          ", got ", residual->shape());
    check_floating("conv2d", "residual", *residual);
    r = canonical(astype(*residual, p.dtype));
  }
  join_taps(p);
  const Array x = canonical(input), w = canonical(weight);
  p.kept = keep_packed ? kept_with(w) : nullptr;
  Array y = empty({p.N, p.OC, p.OH, p.OW}, p.dtype);
  ConvEpilogue epilogue{bias ? b.data<float>() : nullptr, residual ? r.raw() : nullptr, relu};
  std::shared_ptr<KeptBlock> block;
  ConvMoments moments{};
  if (want_moments) {
    block = std::make_shared<KeptBlock>(2 * p.OC * int64_t{sizeof(float)}, y.device());
    moments.mean = static_cast<float*>(block->data);
    moments.m2 = moments.mean + p.OC;
    epilogue.moments = &moments;
  }
  const ConvSlots& slots = kernels().conv;
  if (const int tile = winograd_tile(p, p.OH, p.OW, p.C, p.OC))
    slots.winograd_forward(p, tile, x.raw(), w.raw(), epilogue, y.raw());
  else
    (p.is_depthwise() ? slots.depthwise_forward : slots.forward)(p, x.raw(), w.raw(), epilogue,
                                                                 y.raw());
  if (moments.filled) kept_with(y)->keep(kMomentsKey, block);
  return y;
}

DType checked_grad_dtype(const char* op, DType operands, DType grad) {
  check<TypeError>(grad == operands || grad == DType::float32, op,
                   ": the gradient of the weight expects dtype ", name_of(operands),
                   " or float32, got ", name_of(grad));
  return grad;
}

static void check_gradient(const ConvParams& p, const Array& grad_output) {
  const Dims shape{p.N, p.OC, p.OH, p.OW};
  check(grad_output.shape() == shape, "conv2d: grad_output expects shape ", shape, ", got ",
        grad_output.shape());
}

Array conv2d_backward_input(const Array& grad_output, const Array& weight, const Dims& input_shape,
                            const Dims& stride, const Dims& padding, const Dims& dilation,
                            int64_t groups, const Array* so_far) {
  ConvParams p = settle("conv2d", input_shape, weight.shape(), stride, padding, dilation, groups);
  p.dtype = weight.dtype();
  check_gradient(p, grad_output);
  const Array g = canonical(astype(grad_output, p.dtype)), w = canonical(weight);
  Array total;
  if (so_far) {
    check(so_far->shape() == input_shape, "conv2d: so_far expects shape ", input_shape, ", got ",
          so_far->shape());
    total = canonical(astype(*so_far, p.dtype));
  }
  if (join_taps(p) && !so_far) return shaped(matmul(matrix(g), matrix(w)), input_shape);
  Array grad_input = empty(input_shape, p.dtype);
  const ConvEpilogue epilogue{nullptr, so_far ? total.raw() : nullptr};
  const ConvSlots& slots = kernels().conv;
  if (const int tile = winograd_tile(p, p.H, p.W, p.OC, p.C))
    slots.winograd_backward_data(p, tile, g.raw(), w.raw(), epilogue, grad_input.raw());
  else
    (p.is_depthwise() ? slots.depthwise_backward_data : slots.backward_data)(
        p, g.raw(), w.raw(), epilogue, grad_input.raw());
  return grad_input;
}

Array conv2d_backward_weight(const Array& grad_output, const Array& input, const Dims& weight_shape,
                             const Dims& stride, const Dims& padding, const Dims& dilation,
                             int64_t groups, DType dtype) {
  ConvParams p = settle("conv2d", input.shape(), weight_shape, stride, padding, dilation, groups);
  p.dtype = input.dtype();
  p.grad_dtype = checked_grad_dtype("conv2d", p.dtype, dtype);
  check_gradient(p, grad_output);
  const Array g = canonical(astype(grad_output, p.dtype)), x = canonical(input);
  if (join_taps(p))
    return shaped(linear_backward_weight(matrix(g), matrix(x), dtype), weight_shape);
  Array grad_weight = empty(weight_shape, dtype);
  const ConvSlots& slots = kernels().conv;
  (p.is_depthwise()         ? slots.depthwise_backward_weight
   : winograd_for_weight(p) ? slots.winograd_backward_weight
                            : slots.backward_weight)(p, x.raw(), g.raw(), grad_weight.raw());
  return grad_weight;
}

Array conv2d_backward_bias(const Array& grad_output, DType dtype) {
  check(grad_output.rank() == 4 || grad_output.rank() == 2,
        "conv2d_backward_bias: expected rank 2 or 4, got shape ", grad_output.shape());
  const Array g = canonical(grad_output);
  const int64_t channels = g.size(1);
  Array grad_bias = empty({channels}, DType::float32);
  kernels().conv.bias_gradient(g.raw(), channels ? g.count() / channels : 0, channels, g.dtype(),
                               grad_bias.data<float>());
  return astype(grad_bias, dtype);
}

Array conv_transpose2d(const Array& input, const Array& weight, const Array* bias,
                       const Dims& stride, const Dims& padding, const Dims& output_padding,
                       int64_t groups, const Dims& dilation) {
  const char* op = "conv_transpose2d";
  check_same_dtype(op, input, weight);
  check(input.rank() == 4, op, ": input expects 4 dimensions (N, C, H, W), got shape ",
        input.shape());
  check(weight.rank() == 4, op,
        ": weight expects 4 dimensions (in_channels, out_channels / groups, kh, kw), got shape ",
        weight.shape());
  check_settings(op, stride, padding, dilation, groups);
  check(input.size(1) == weight.size(0) && input.size(1) % groups == 0, op, ": weight expects ",
        weight.size(0), " input channels divisible by groups=", groups, ", got input with ",
        input.size(1), " channels, shape ", input.shape());
  check(output_padding.rank() == 2, op, ": output_padding expects two integers, got ",
        output_padding);
  Dims out{input.size(0), weight.size(1) * groups, 0, 0};
  for (int i = 0; i < 2; ++i) {
    const int64_t extra = output_padding[i];
    check(extra >= 0 && extra < stride[i], op,
          ": output_padding expects values from 0 to below stride ", stride, ", got ",
          output_padding);
    // padding is (left, right, top, bottom); dimension i = 0 is H.
    const int64_t pads = padding[2 - 2 * i] + padding[3 - 2 * i];
    out[2 + i] = (input.size(2 + i) - 1) * stride[i] - pads +
                 dilation[i] * (weight.size(2 + i) - 1) + extra + 1;
    check(input.size(2 + i) > 0 && out[2 + i] > 0, op, ": the output would be empty for input ",
          input.shape(), " and padding (left, right, top, bottom) = ", padding);
  }
  // Seen as the gradient of a convolution from `out` to the input: the side after the image absorbs
  // output_padding, so that the sizes agree.
  Dims sides = padding;
  for (int i = 0; i < 2; ++i) {
    const int64_t needed = (input.size(2 + i) - 1) * stride[i] +
                           dilation[i] * (weight.size(2 + i) - 1) + 1 - out[2 + i] -
                           padding[2 - 2 * i];
    sides[3 - 2 * i] = needed > 0 ? needed : 0;
  }
  ConvParams p = settle(op, out, weight.shape(), stride, sides, dilation, groups);
  p.OH = input.size(2), p.OW = input.size(3);
  p.dtype = input.dtype();
  Array b = float_bias(op, bias, out[1]);
  join_taps(p);
  if (bias) b = canonical(broadcast_to(b, {p.C / out[1], out[1]}));
  const Array x = canonical(input), w = canonical(weight);
  Array y = empty(out, p.dtype);
  const ConvEpilogue epilogue{bias ? b.data<float>() : nullptr};
  const ConvSlots& slots = kernels().conv;
  (p.is_depthwise() ? slots.depthwise_backward_data : slots.backward_data)(p, x.raw(), w.raw(),
                                                                           epilogue, y.raw());
  return y;
}

}  // namespace fastnn::ops
