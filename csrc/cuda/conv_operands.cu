#include "cuda/conv_operands.h"

#include "cuda/device/transpose.h"

namespace fastnn::cuda {
namespace {

template <class T>
struct Pad {
  const T* from;
  T* to;
  int64_t channels, padded;
  __device__ void operator()(int64_t i) const {
    const auto [pixel, c] = divide(i, padded);
    to[i] = c < channels ? from[pixel * channels + c] : T{};
  }
};

// to[group][column][tap][channel] = from[group][channel][chosen tap][column], channels padded: for
// every group and tap the transpose of a matrix.
template <class T>
__global__ void __launch_bounds__(kThreads)
    turn_kernel(const T* from, T* to, const int64_t* chosen, int64_t taps, int64_t all_taps,
                int64_t channels, int64_t padded, int64_t columns) {
  const int64_t across = (padded + kTurnedTile - 1) / kTurnedTile,
                down = (columns + kTurnedTile - 1) / kTurnedTile;
  const int64_t matrix = blockIdx.x / across / down, tap = matrix % taps, group = matrix / taps;
  const int64_t channel0 = blockIdx.x % across * kTurnedTile,
                column0 = blockIdx.x / across % down * kTurnedTile;
  const int64_t source = chosen ? chosen[tap] : tap;
  turn_tile<T>(
      [&](int j, int lane) {
        const int64_t channel = channel0 + j, column = column0 + lane;
        return channel < channels && column < columns
                   ? from[((group * channels + channel) * all_taps + source) * columns + column]
                   : T{};
      },
      [&](int j, int lane, T value) {
        const int64_t channel = channel0 + lane, column = column0 + j;
        if (channel < padded && column < columns)
          to[((group * columns + column) * taps + tap) * padded + channel] = value;
      });
}

template <class T>
struct AddParts {
  const float* parts;
  T* out;
  int64_t count, splits;
  __device__ void operator()(int64_t i) const {
    float sum = 0;
    for (int64_t s = 0; s < splits; ++s) sum += parts[s * count + i];
    from_float(out[i], sum);
  }
};

}  // namespace

bool sizes_fit(const ConvParams& p) {
  constexpr int64_t kMost = 1 << 29;
  for (int64_t size :
       {p.H, p.W, p.pad_top, p.pad_left, (p.OH - 1) * p.stride_h, (p.OW - 1) * p.stride_w,
        (p.KH - 1) * p.dilation_h, (p.KW - 1) * p.dilation_w})
    if (size > kMost) {
      note_text("conv2d: on a GPU, sizes, padding and windows of images are limited to 2^29, got " +
                std::to_string(size));
      return false;
    }
  return true;
}

PaddedPixels::PaddedPixels(const void* x, int64_t pixels, int64_t groups, int64_t channels,
                           DType dtype)
    : data_(x),
      vector_(16 / item_size(dtype)),
      vectors_(vectors_of(channels, dtype)),
      memory_(channels % vector_ || !aligned(static_cast<const char*>(x))
                  ? pixels * groups * vectors_ * 16
                  : 0) {
  if (!memory_.as<char>()) return;
  const int64_t padded = vectors_ * vector_, count = pixels * groups * padded;
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    each(count, Pad<T>{static_cast<const T*>(x), memory_.as<T>(), channels, padded});
  });
}

PackedWeight::PackedWeight(const void* weight, const ConvParams& p, bool turned,
                           const int64_t* chosen, int64_t taps)
    : data_(weight),
      memory_(turned || p.group_inputs() % (16 / item_size(p.dtype)) ||
                      !aligned(static_cast<const char*>(weight))
                  ? p.groups * (turned ? p.group_inputs() : p.group_outputs()) * taps * 16 *
                        vectors_of(turned ? p.group_outputs() : p.group_inputs(), p.dtype)
                  : 0) {
  if (!memory_.as<char>()) return;
  const int64_t inputs = p.group_inputs(), outputs = p.group_outputs();
  const int64_t channels = turned ? outputs : inputs, columns = turned ? inputs : outputs;
  const int64_t padded = vectors_of(channels, p.dtype) * 16 / item_size(p.dtype);
  const int64_t tiles = p.groups * taps * ((padded + kTurnedTile - 1) / kTurnedTile) *
                        ((columns + kTurnedTile - 1) / kTurnedTile);
  with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    const T* const from = static_cast<const T*>(weight);
    T* const to = memory_.as<T>();
    if (turned)
      launch(turn_kernel<T>, dim3(static_cast<unsigned>(tiles)), kThreads, 0, from, to, chosen,
             taps, p.KH * p.KW, channels, padded, columns);
    else
      each(p.groups * columns * taps * padded, Pad<T>{from, to, channels, padded});
  });
}

void add_parts(const float* parts, int64_t splits, int64_t count, DType dtype, void* out) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    each(count, AddParts<T>{parts, static_cast<T*>(out), count, splits});
  });
}

}  // namespace fastnn::cuda
