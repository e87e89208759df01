// Gradient of the convolution's weight: for every tap, outputs x inputs = grad_output^T x input
// over all pixels, and the gradient of the bias.
//
// Rows are output channels, columns (tap, input channel), terms pixels. Both operands lie with
// their channels running on, so stages are turned (device/tile.h). There are few outputs and many
// terms: the pixels are split among blocks until the device is full, each split's sums are written
// in float32, and a second kernel adds them in order: no atomics, the same bits every time. The
// sums of a single split are the gradient. Cost: outputs x inputs x taps x pixels multiply-adds;
// the input is read once per tap and 64 or 128 output channels, from L2 after the first.
#include <vector>

#include "cuda/conv_operands.h"
#include "cuda/device/columns.h"
#include "cuda/device/tile.h"
#include "cuda/weight_gradient.h"
#include "cuda/wgmma_weight.h"

namespace fastnn::cuda {
namespace {

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 512 / Tile::kThreads)
    weight_kernel(WeightGradient p) {
  using T = typename Tile::T;
  using A = Stage<Tile, Tile::kRows, true>;
  using B = Stage<Tile, Tile::kColumns, true>;
  static_assert(Tile::kRows == Tile::kColumns, "both operands are fetched alike");
  constexpr int kVectors = Tile::kRows / Tile::kVector;  // of one pixel of a stage
  constexpr int kPixelStep = Tile::kThreads / kVectors, kMine = Tile::kDepth / kPixelStep;
  T* const memory = reinterpret_cast<T*>(dynamic_shared());
  const int64_t columns = int64_t{p.tap_count} * p.input_vectors * Tile::kVector;
  const int64_t column_tiles = (columns + Tile::kColumns - 1) / Tile::kColumns;
  const int64_t row0 = blockIdx.x / column_tiles * Tile::kRows,
                column0 = blockIdx.x % column_tiles * Tile::kColumns;
  const int group = static_cast<int>(blockIdx.z);
  const int64_t begin = blockIdx.y * p.split,
                end = begin + p.split < p.pixels ? begin + p.split : p.pixels;
  const int vector = static_cast<int>(threadIdx.x) % kVectors,
            first = static_cast<int>(threadIdx.x) / kVectors;

  // This thread's vector of channels stays the same throughout.
  const int64_t grad_vector = row0 / Tile::kVector + vector,
                column_vector = column0 / Tile::kVector + vector;
  const bool row_there = grad_vector < p.grad_vectors;
  const int64_t tap = column_vector / p.input_vectors;
  const bool column_there = tap < p.tap_count;
  const Tap offset = column_there ? p.taps[tap] : Tap{0, 0};
  const T* const grad =
      static_cast<const T*>(p.grad) +
      (int64_t{group} * p.grad_vectors + (row_there ? grad_vector : 0)) * Tile::kVector;
  const T* const input =
      static_cast<const T*>(p.input) +
      (int64_t{group} * p.input_vectors + column_vector % p.input_vectors) * Tile::kVector;

  // The pixels of the next step that it fetches: image, and place of the output in it.
  int64_t image[kMine];
  int down[kMine], across[kMine];
#pragma unroll
  for (int n = 0; n < kMine; ++n) {
    const int64_t pixel = begin + first + n * kPixelStep, row = pixel / p.across;
    image[n] = row / p.down;
    down[n] = static_cast<int>(row - image[n] * p.down);
    across[n] = static_cast<int>(pixel - row * p.across);
  }
  const auto load = [&](int64_t step, int stage) {
    const A a{memory + stage * (A::kElements + B::kElements)};
    const B b{a.data + A::kElements};
#pragma unroll
    for (int n = 0; n < kMine; ++n) {
      const int k = first + n * kPixelStep;
      const int64_t pixel = begin + step * Tile::kDepth + k;
      const bool there = pixel < end;
      copy_async(a.at(vector * Tile::kVector, k),
                 row_there && there ? grad + pixel * p.grad_stride : grad, row_there && there);
      const int h = down[n] * p.step_down + offset.down,
                w = across[n] * p.step_across + offset.across;
      const bool inside = there && column_there && h >= 0 && h < p.height && w >= 0 && w < p.width;
      copy_async(
          b.at(vector * Tile::kVector, k),
          inside ? input + ((image[n] * p.height + h) * p.width + w) * p.input_stride : input,
          inside);
      for (across[n] += Tile::kDepth; across[n] >= p.across; across[n] -= p.across)
        if (++down[n] == p.down) down[n] = 0, ++image[n];
    }
  };
  typename Tile::Sums sums = {};
  pipeline<Tile>((end - begin + Tile::kDepth - 1) / Tile::kDepth, load, [&](int stage) {
    const A a{memory + stage * (A::kElements + B::kElements)};
    multiply<Tile>(a, B{a.data + A::kElements}, sums);
  });

  const typename Tile::Place at;
  const int64_t out = blockIdx.y * p.count() + group * p.outputs * p.tap_count * p.inputs;
  const int64_t padded = int64_t{p.input_vectors} * Tile::kVector;  // channels of a tap
#pragma unroll
  for (int j = 0; j < Tile::kPiecesAcross; ++j) {
    const int64_t column = column0 + at.column + 8 * j + 2 * at.t;
    const int64_t its_tap = column / padded, channel = column - its_tap * padded;
    if (its_tap >= p.tap_count) continue;
#pragma unroll
    for (int i = 0; i < 2 * Tile::kPiecesDown; ++i) {
      const int64_t row = row0 + at.row + 8 * i + at.g;
      if (row >= p.outputs) continue;
      const int64_t to = out + (row * p.tap_count + its_tap) * p.inputs + channel;
      for (int n = 0; n < 2; ++n)
        if (channel + n < p.inputs) p.store(to + n, sums[i / 2][j][i % 2 * 2 + n]);
    }
  }
}

// Shared memory of a block.
template <class Tile>
constexpr size_t weight_memory() {
  return Tile::kStages * 2 * Stage<Tile, Tile::kRows, true>::kElements * sizeof(typename Tile::T);
}

template <class Tile>
void run(WeightGradient p, DType grad_dtype, void* grad_weight) {
  const int64_t columns = int64_t{p.tap_count} * p.input_vectors * Tile::kVector;
  const int64_t tiles = (p.outputs + Tile::kRows - 1) / Tile::kRows *
                        ((columns + Tile::kColumns - 1) / Tile::kColumns);
  // Enough blocks for two rounds of two on every multiprocessor.
  const int64_t each = tiles * p.groups;
  const int64_t splits = set_splits(p, (4 * multiprocessors() + each - 1) / each, Tile::kDepth);
  const SplitSums sums(p, splits, grad_dtype, grad_weight);
  launch(weight_kernel<Tile>,
         dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(splits),
              static_cast<unsigned>(p.groups)),
         Tile::kThreads, weight_memory<Tile>(), p);
  sums.add();
}

template <class T, Math math>
void run_sized(const WeightGradient& p, DType grad_dtype, void* grad_weight) {
  using Large = Tile<T, math, 128, 128, 64, 32>;
  if (p.outputs > 64 && int64_t{p.tap_count} * p.inputs > 64 && has_shared(weight_memory<Large>()))
    run<Large>(p, grad_dtype, grad_weight);
  else
    run<Tile<T, math, 64, 64, 32, 32>>(p, grad_dtype, grad_weight);
}

// The pixels as one row, where each output is of the input's pixel of the same number: rows of a
// linear layer are images of one pixel, of which a thread would step over one by one.
void join_rows(WeightGradient& g, const ConvParams& p) {
  const bool alike = p.KH == 1 && p.KW == 1 && p.stride_h == 1 && p.stride_w == 1 &&
                     p.pad_top == 0 && p.pad_left == 0 && p.OH == p.H && p.OW == p.W;
  if (!alike || g.pixels == 0 || g.pixels >= int64_t{1} << 30) return;
  g.down = g.height = 1;
  g.across = g.width = static_cast<int>(g.pixels);
}

void backward_weight(const ConvParams& p, const void* input, const void* grad_output,
                     void* grad_weight) {
  if (p.C == 0 || p.OC == 0 || !sizes_fit(p)) return;
  const PaddedPixels x(input, p.N * p.H * p.W, p.groups, p.group_inputs(), p.dtype);
  const PaddedPixels dy(grad_output, p.N * p.OH * p.OW, p.groups, p.group_outputs(), p.dtype);
  std::vector<Tap> taps;
  for (int64_t kh = 0; kh < p.KH; ++kh)
    for (int64_t kw = 0; kw < p.KW; ++kw)
      taps.push_back({static_cast<int>(kh * p.dilation_h - p.pad_top),
                      static_cast<int>(kw * p.dilation_w - p.pad_left)});
  WeightGradient g{};
  g.grad = dy.data(), g.input = x.data();
  g.grad_stride = dy.stride(p.groups), g.input_stride = x.stride(p.groups);
  g.grad_vectors = static_cast<int>(dy.vectors()), g.input_vectors = static_cast<int>(x.vectors());
  g.height = static_cast<int>(p.H), g.width = static_cast<int>(p.W);
  g.taps = constant_table(taps.data(), static_cast<int64_t>(taps.size()));
  g.tap_count = static_cast<int>(taps.size());
  g.pixels = p.N * p.OH * p.OW;
  g.down = static_cast<int>(p.OH), g.across = static_cast<int>(p.OW);
  g.step_down = static_cast<int>(p.stride_h), g.step_across = static_cast<int>(p.stride_w);
  join_rows(g, p);
  g.outputs = p.group_outputs(), g.inputs = p.group_inputs();
  g.groups = static_cast<int>(p.groups);
  if (p.dtype == DType::bfloat16 && try_wgmma_weight(g, taps.data(), p.grad_dtype, grad_weight))
    return;
  const bool tensor = tensor_cores();
  if (p.dtype == DType::bfloat16)
    tensor ? run_sized<bfloat16, Math::tensor>(g, p.grad_dtype, grad_weight)
           : run_sized<bfloat16, Math::exact>(g, p.grad_dtype, grad_weight);
  else
    tensor&& allow_tf32() ? run_sized<float, Math::tensor>(g, p.grad_dtype, grad_weight)
                          : run_sized<float, Math::exact>(g, p.grad_dtype, grad_weight);
}

template <class T, int N>
struct ChannelSums {
  using State = OneSum;
  const T* x;

  struct Column : OneOperand<T, N> {
    static constexpr int kAhead = 8;
    OneSum state[N];
    FASTNN_MEMBER Column(const ChannelSums& body, int64_t, int64_t) : OneOperand<T, N>{body.x} {}
    FASTNN_MEMBER void use(int64_t, const Pack<T, N>& from) {
      float v[N];
      to_floats(from, v);
      for (int n = 0; n < N; ++n) state[n].sum += v[n];
    }
  };
};

void bias_gradient(const void* grad_output, int64_t pixels, int64_t channels, DType dtype,
                   float* grad_bias) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const T* const g = static_cast<const T*>(grad_output);
    with_pack<T>(
        channels,
        [&](auto pack) {
          constexpr int N = decltype(pack)::value;
          reduce_columns<N>(ChannelSums<T, N>{g}, OneSumWriter{grad_bias}, 1, pixels, channels);
        },
        g);
  });
}

}  // namespace

void fill_conv_backward_weight(Slots& slots) {
  slots.conv.backward_weight = backward_weight;
  slots.conv.bias_gradient = bias_gradient;
}

}  // namespace fastnn::cuda
