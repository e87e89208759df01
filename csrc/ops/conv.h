// 2-D convolution: parameters, kernel slots, operators.
//
// Layouts inside kernels: activations NHWC, weights [OC][KH][KW][IC / groups].
#pragma once

#include "core/array.h"
#include "ops/activation.h"

namespace fastnn {

struct ConvParams {
  int64_t N, C, H, W;  // input
  int64_t OC, OH, OW;  // output
  int64_t KH, KW;      // kernel
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_left;  // the other two sides follow from the output size
  int64_t dilation_h, dilation_w;
  int64_t groups;
  DType dtype;           // of activations and weights; accumulation is float32
  DType grad_dtype;      // of the gradient of the weight: `dtype`, or float32
  KeptWorkspaces* kept;  // where the packed weight may be kept; null if it is not to be

  int64_t group_inputs() const { return C / groups; }
  int64_t group_outputs() const { return OC / groups; }
  bool is_depthwise() const { return groups == C && groups == OC; }
};

// Tiles of `side` points along an axis of `size`. A convolution of dilation d is, along an axis, d
// convolutions of every d-th point each, the first size % d of which have a point more; so the
// points of a tile are d apart.
struct TileAxis {
  int64_t size, step, side;
  int64_t of_longer, of_others, longer;  // tiles of one, and of all that have a point more

  TileAxis(int64_t points, int64_t dilation, int64_t of_tile)
      : size(points),
        step(dilation),
        side(of_tile),
        of_longer((size / step + side) / side),
        of_others((size / step + side - 1) / side),
        longer(size % step * of_longer) {}
  int64_t count() const { return longer + (step - size % step) * of_others; }
  // The first point of tile i.
  int64_t start(int64_t i) const {
    const bool is_longer = i < longer;
    const int64_t of_one = is_longer ? of_longer : of_others, at = is_longer ? i : i - longer;
    return (is_longer ? 0 : size % step) + at / of_one + at % of_one * side * step;
  }
  // How many points a tile from `first` on has on the axis.
  int64_t points(int64_t first) const {
    const int64_t left = (size - first + step - 1) / step;
    return left < side ? left : side;
  }
};

// The moments of a convolution's output as stored, for the batch norm after it. A kernel that can
// compute them while it stores fills them and says so.
struct ConvMoments {
  float* mean;  // OC
  float* m2;    // OC: sums of squared deviations
  bool filled;
};

// What happens to the sum before it is stored: y = relu(sum + bias + residual), parts optional.
struct ConvEpilogue {
  const float* bias = nullptr;     // OC
  const void* residual = nullptr;  // like the output
  FusedRelu relu = {};
  ConvMoments* moments = nullptr;  // of forward alone
};

struct ConvSlots {
  void (*forward)(const ConvParams&, const void* input, const void* weight, const ConvEpilogue&,
                  void* output);
  void (*backward_data)(const ConvParams&, const void* grad_output, const void* weight,
                        const ConvEpilogue&, void* grad_input);
  void (*backward_weight)(const ConvParams&, const void* input, const void* grad_output,
                          void* grad_weight);
  // 3x3, stride 1, any dilation, one group; outputs are computed in tiles of tile x tile, 4 or 2.
  void (*winograd_forward)(const ConvParams&, int tile, const void* input, const void* weight,
                           const ConvEpilogue&, void* output);
  void (*winograd_backward_data)(const ConvParams&, int tile, const void* grad_output,
                                 const void* weight, const ConvEpilogue&, void* grad_input);
  void (*winograd_backward_weight)(const ConvParams&, const void* input, const void* grad_output,
                                   void* grad_weight);
  void (*depthwise_forward)(const ConvParams&, const void* input, const void* weight,
                            const ConvEpilogue&, void* output);
  void (*depthwise_backward_data)(const ConvParams&, const void* grad_output, const void* weight,
                                  const ConvEpilogue&, void* grad_input);
  void (*depthwise_backward_weight)(const ConvParams&, const void* input, const void* grad_output,
                                    void* grad_weight);
  // sum over pixels: `pixels` rows of `channels` -> float32.
  void (*bias_gradient)(const void* grad_output, int64_t pixels, int64_t channels, DType,
                        float* grad_bias);
};

namespace ops {

// When 3x3 convolutions use Winograd's algorithm: "auto" where it is expected to be faster, "off",
// or "always" from 16 channels on. FASTNN_WINOGRAD sets the first value.
void set_winograd(const std::string& mode);
std::string winograd();

// y = activation(conv(x, w) + bias + residual). `padding` is (left, right, top, bottom);
// activation is "", "relu" or "relu6". `keep_packed` keeps what kernels make of the weight with it;
// `want_moments` keeps the output's moments with it, where a kernel has them for nothing
// (kMomentsKey in norm.h).
Array conv2d(const Array& input, const Array& weight, const Array* bias, const Dims& stride,
             const Dims& padding, const Dims& dilation, int64_t groups,
             const std::string& activation, const Array* residual, bool keep_packed = false,
             bool want_moments = false);
// The shape of its result; throws what conv2d would of these arguments.
Dims conv2d_shape(const Array& input, const Array& weight, const Array* bias, const Dims& stride,
                  const Dims& padding, const Dims& dilation, int64_t groups);
// Plus `so_far`, of the input's shape, if given.
Array conv2d_backward_input(const Array& grad_output, const Array& weight, const Dims& input_shape,
                            const Dims& stride, const Dims& padding, const Dims& dilation,
                            int64_t groups, const Array* so_far = nullptr);
// In `dtype`: the input's, or float32.
Array conv2d_backward_weight(const Array& grad_output, const Array& input, const Dims& weight_shape,
                             const Dims& stride, const Dims& padding, const Dims& dilation,
                             int64_t groups, DType dtype);
// `grad`; throws unless the gradient of a weight can be stored in it.
DType checked_grad_dtype(const char* op, DType operands, DType grad);
// Sum over all dimensions but the second, in the dtype of the parameter.
Array conv2d_backward_bias(const Array& grad_output, DType dtype);

// The gradient of conv2d with respect to its input, as an operator; weight is (C, OC/groups, KH,
// KW).
Array conv_transpose2d(const Array& input, const Array& weight, const Array* bias,
                       const Dims& stride, const Dims& padding, const Dims& output_padding,
                       int64_t groups, const Dims& dilation);

}  // namespace ops
}  // namespace fastnn
