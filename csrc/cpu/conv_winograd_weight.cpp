// Gradient of a 3x3 convolution of stride 1 and any dilation with respect to its weight, summed in
// float32, by the transpose of Winograd's F(4x4, 3x3) (winograd.h): what the forward pass
// multiplies point by point is summed point by point,
//   gw = G^T [ sum over tiles of (A g A^T) * (B^T x B) ] G,
// an outer product over tiles for each of 36 points, instead of one over 16 pixels per tile for
// each of 9 taps: a quarter of the multiply-adds.
//
//   task = partial sum x 64 output channels x 64 input channels, its 36 x 64 x 64 sums in L2
//     for each chunk of its tiles:
//       V[point][tile][ic], W[point][tile][oc]
//       for each point, block of kBlock oc, NR channels of ic: outer kernel of matmul.h over the
//       chunk
//   gw = transformed sums, partial sums added in order
//
// A sum runs over a sixteenth of the pixels, which makes up for what the transforms add: the error
// is about that of the direct sum (amplification 1.6, docs/winograd.md).
#include "core/allocator.h"
#include "cpu/conv_input.h"
#include "cpu/conv_weight.h"
#include "cpu/matmul.h"
#include "cpu/winograd.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kSide = 64;   // channels of a task, in and out
constexpr int64_t kChunk = 32;  // tiles
constexpr int64_t kTasks = 8;
constexpr int kPoints = 36;
// Half a vector of output channels: what a tile's accumulators leave registers for.
constexpr int kBlock = LANES == 4 ? 4 : LANES / 2;

// W of one tile: `count` channels of the gradient at output (row, col), zeros outside the map and
// behind the last channel.
template <class T>
void transform_gradient_tile(const ConvParams& p, const T* g, int64_t row, int64_t col,
                             int64_t count, float* w, int64_t plane) {
  const TilePixels<4, T> from(g, p.OH, p.OW, p.OC, row, col, p.dilation_h, p.dilation_w);
  transform_both_ways<6>(from, count, w, plane, true,
                         [](const vfloat* y, vfloat* out)
                             FASTNN_INLINED { transform_gradient(y, out); });
}

struct Range {
  int64_t first, last;
  int64_t size() const { return last - first; }
};

// Sums of one task: [point][oc, padded to whole vectors][ic].
template <class T>
void run_task(const ConvParams& p, const T* x, const T* g, Range tiles, Range ic, Range oc,
              float* sums) {
  const TileAxis rows{p.OH, p.dilation_h, 4}, cols{p.OW, p.dilation_w, 4};
  const int64_t down = rows.count(), across = cols.count();
  const int64_t outputs = ceil_div(oc.size(), LANES) * LANES;
  const int64_t v_plane = padded_plane(kChunk * ic.size() + LANES);
  const int64_t w_plane = padded_plane(kChunk * outputs);
  auto* const v = static_cast<float*>(thread_scratch(kPoints * (v_plane + w_plane) * 4, 0));
  float* const w = v + kPoints * v_plane;
  for (int64_t first = tiles.first; first < tiles.last; first += kChunk) {
    const int64_t count = clamp(tiles.last - first, 0, kChunk);
    for (int64_t t = 0; t < count; ++t) {
      const int64_t tile = first + t, image = tile / (down * across);
      const int64_t row = rows.start(tile / across % down), col = cols.start(tile % across);
      const TilePixels<6, T> from(x + image * p.H * p.W * p.C + ic.first, p.H, p.W, p.C,
                                  row - p.pad_top, col - p.pad_left, p.dilation_h, p.dilation_w);
      transform_tile<4>(from, ic.size(), v + t * ic.size(), v_plane);
      transform_gradient_tile(p, g + image * p.OH * p.OW * p.OC + oc.first, row, col, oc.size(),
                              w + t * outputs, w_plane);
    }
    for (int point = 0; point < kPoints; ++point)
      for (int64_t n = 0; n < ic.size(); n += NR) {
        const int64_t left = ic.size() - n;
        const int vectors = left > LANES ? NV : 1;
        const int last = static_cast<int>(clamp(left - (vectors - 1) * LANES, 1, LANES));
        for (int64_t m = 0; m < outputs; m += kBlock) {
          const OuterStrip<float> strip{v + point * v_plane + n,
                                        0,
                                        0,
                                        ic.size(),
                                        w + point * w_plane + m,
                                        outputs,
                                        0,
                                        1,
                                        1,
                                        count,
                                        Ahead::nothing(v)};
          Kernels<float>::outer[kBlock - 1][vectors - 1](
              strip, sums + (point * outputs + m) * ic.size() + n, ic.size(), last,
              first > tiles.first);
        }
      }
  }
}

template <class T>
void backward_weight_typed(const ConvParams& p, const T* x, const T* g, const WeightGradient& gw) {
  const int64_t tiles =
      p.N * TileAxis{p.OH, p.dilation_h, 4}.count() * TileAxis{p.OW, p.dilation_w, 4}.count();
  const int64_t ic_parts = ceil_div(p.C, kSide), oc_parts = ceil_div(p.OC, kSide);
  const int64_t parts = ic_parts * oc_parts;
  int64_t partials = 1;
  while (partials * 2 * parts <= kTasks && partials * 2 * kChunk <= tiles) partials *= 2;
  const int64_t room = kPoints * kSide * kSide;
  Workspace sums(partials * parts * room * 4);
  const auto range = [](int64_t n, int64_t part, int64_t of) {
    return Range{n * part / of, n * (part + 1) / of};
  };
  parallel_for_dynamic(partials * parts, [&](int64_t task) {
    const int64_t part = task % parts;
    run_task(p, x, g, range(tiles, task / parts, partials), range(p.C, part % ic_parts, ic_parts),
             range(p.OC, part / ic_parts, oc_parts), sums.floats() + task * room);
  });
  parallel_for(parts, [&](int64_t part) {
    const Range ic = range(p.C, part % ic_parts, ic_parts);
    const Range oc = range(p.OC, part / ic_parts, oc_parts);
    const int64_t plane = ceil_div(oc.size(), LANES) * LANES * ic.size();
    for (int64_t o = 0; o < oc.size(); ++o)
      vector_loop(0, ic.size(), [&](int64_t c, int n) {
        vfloat half[3][6], u[6], out[3];
        for (int j = 0; j < 6; ++j) {
          for (int i = 0; i < 6; ++i) {
            const float* from =
                sums.floats() + part * room + (i * 6 + j) * plane + o * ic.size() + c;
            u[i] = load_any(from, n);
            for (int64_t r = 1; r < partials; ++r) u[i] += load_any(from + r * parts * room, n);
          }
          transform_sums(u, out);
          for (int i = 0; i < 3; ++i) half[i][j] = out[i];
        }
        for (int i = 0; i < 3; ++i) {
          transform_sums(half[i], out);
          for (int j = 0; j < 3; ++j)
            gw.store(((oc.first + o) * 9 + i * 3 + j) * p.C + ic.first + c, out[j], n);
        }
      });
  });
}

void backward_weight(const ConvParams& p, const void* x, const void* g, void* grad_weight) {
  const WeightGradient gw(p, grad_weight);
  if (p.dtype == DType::float32)
    backward_weight_typed(p, static_cast<const float*>(x), static_cast<const float*>(g), gw);
  else
    backward_weight_typed(p, static_cast<const bfloat16*>(x), static_cast<const bfloat16*>(g), gw);
}

}  // namespace

void fill_conv_winograd_weight(Slots& slots) {
  slots.conv.winograd_backward_weight = backward_weight;
}

}  // namespace fastnn::cpu::FASTNN_ISA
