// Convolution forward and the gradient of its input, both by the gathered product of gather_gemm.h.
//
// Forward: a tap's source pixel is the output's times the stride plus the tap's offset. Gradient of
// the input: an input pixel's sum has the taps for which (pixel + padding - tap) is a multiple of
// the stride; pixels are taken in stride_h x stride_w phases with the same taps each, and within a
// phase it is a convolution of stride 1 again; one launch has all phases. A 1x1 convolution of
// stride 2 thus computes one phase and fills the others.
#include <algorithm>
#include <vector>

#include "cuda/conv_operands.h"
#include "cuda/gather_gemm.h"
#include "cuda/wgmma_gemm.h"

namespace fastnn::cuda {
namespace {

// The product's phases and, one phase's after the other, their taps, on the host.
struct Phases {
  std::vector<GatherPhase> phases;
  std::vector<Tap> taps;
};

void gather_phases(const Gather& p, int64_t phases, int64_t most_taps, DType dtype,
                   ConvMoments* moments) {
  const bool tensor = tensor_cores();
  const auto run = dtype == DType::bfloat16 ? tensor ? gather_sized<bfloat16, Math::tensor>
                                                     : gather_sized<bfloat16, Math::exact>
                   : tensor && allow_tf32() ? gather_sized<float, Math::tensor>
                                            : gather_sized<float, Math::exact>;
  run(p, phases, most_taps, moments);
}

// `moments`, of a single phase, may be null.
void gather(Gather p, const Phases& all, DType dtype, ConvMoments* moments = nullptr) {
  if (p.images == 0 || p.columns == 0) return;
  const auto count = static_cast<int64_t>(all.taps.size());
  p.taps = count ? constant_table(all.taps.data(), count) : nullptr;
  p.all_taps = static_cast<int>(count);
  const bool empty = p.vectors == 0;  // a product over nothing
  if (empty) p.vectors = 1;
  p.pairs = p.columns % 2 == 0 && aligned(static_cast<const char*>(p.output),
                                          static_cast<const char*>(p.residual), p.bias);
  std::vector<GatherPhase> rest;
  for (GatherPhase phase : all.phases) {
    if (empty) phase.tap_count = 0;
    p.phase = phase;
    if (p.rows() == 0 ||
        (dtype == DType::bfloat16 ? try_wgmma<bfloat16>(p, all.taps.data(), moments)
                                  : allow_tf32() && try_wgmma<float>(p, all.taps.data(), moments)))
      continue;
    rest.push_back(phase);
  }
  if (rest.empty()) return;
  const auto fewer_rows = [](const GatherPhase& a, const GatherPhase& b) {
    return a.down * a.across < b.down * b.across;
  };
  const auto fewer_taps = [](const GatherPhase& a, const GatherPhase& b) {
    return a.tap_count < b.tap_count;
  };
  p.phase = *std::max_element(rest.begin(), rest.end(), fewer_rows);
  const int64_t most_taps = std::max_element(rest.begin(), rest.end(), fewer_taps)->tap_count;
  if (p.groups > 1) moments = nullptr;
  constexpr size_t kMostPhases = 32768;  // of a grid
  for (size_t first = 0; first < rest.size(); first += kMostPhases) {
    const auto phases = static_cast<int64_t>(std::min(kMostPhases, rest.size() - first));
    p.phases = constant_table(rest.data() + first, phases);
    gather_phases(p, phases, most_taps, dtype, moments);
  }
}

void forward(const ConvParams& p, const void* input, const void* weight, const ConvEpilogue& e,
             void* output) {
  if (!sizes_fit(p)) return;
  const PaddedPixels x(input, p.N * p.H * p.W, p.groups, p.group_inputs(), p.dtype);
  const PackedWeight w(weight, p, false, nullptr, p.KH * p.KW);
  Phases all;
  for (int64_t kh = 0; kh < p.KH; ++kh)
    for (int64_t kw = 0; kw < p.KW; ++kw)
      all.taps.push_back({static_cast<int>(kh * p.dilation_h - p.pad_top),
                          static_cast<int>(kw * p.dilation_w - p.pad_left)});
  all.phases = {{p.OH, p.OW, 0, 0, 0, static_cast<int>(all.taps.size())}};
  Gather g{};
  g.source = x.data();
  g.height = static_cast<int>(p.H), g.width = static_cast<int>(p.W);
  g.stride = x.stride(p.groups);
  g.vectors = static_cast<int>(x.vectors());
  g.images = p.N;
  g.step_down = static_cast<int>(p.stride_h), g.step_across = static_cast<int>(p.stride_w);
  g.weight = w.data();
  g.columns = p.group_outputs();
  g.output = output;
  g.out_height = p.OH, g.out_width = p.OW, g.out_down = 1, g.out_across = 1;
  g.bias = e.bias, g.residual = e.residual, g.relu = e.relu;
  g.groups = static_cast<int>(p.groups);
  gather(g, all, p.dtype, e.moments);
}

// The taps that reach input positions first, first + stride, ... of one dimension, and the offset
// of each one's source from the position's number.
struct Phase {
  std::vector<int64_t> taps;
  std::vector<int> offsets;
  Phase(int64_t first, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
    for (int64_t k = 0; k < kernel; ++k) {
      const int64_t from = first + pad - k * dilation;
      if (from % stride) continue;
      taps.push_back(k);
      offsets.push_back(static_cast<int>(from / stride));
    }
  }
};

void backward_data(const ConvParams& p, const void* grad_output, const void* weight,
                   const ConvEpilogue& e, void* grad_input) {
  if (!sizes_fit(p)) return;
  const PaddedPixels dy(grad_output, p.N * p.OH * p.OW, p.groups, p.group_outputs(), p.dtype);
  Gather g{};
  g.source = dy.data();
  g.height = static_cast<int>(p.OH), g.width = static_cast<int>(p.OW);
  g.stride = dy.stride(p.groups);
  g.vectors = static_cast<int>(dy.vectors());
  g.images = p.N;
  g.step_down = 1, g.step_across = 1;
  g.columns = p.group_inputs();
  g.output = grad_input;
  g.out_height = p.H, g.out_width = p.W, g.out_down = p.stride_h, g.out_across = p.stride_w;
  g.bias = e.bias, g.residual = e.residual, g.relu = e.relu;
  g.groups = static_cast<int>(p.groups);
  Phases all;
  std::vector<int64_t> chosen;  // the weight's tap of each of all.taps
  for (int64_t i = 0; i < p.stride_h && i < p.H; ++i) {
    const Phase down(i, p.KH, p.stride_h, p.pad_top, p.dilation_h);
    for (int64_t j = 0; j < p.stride_w && j < p.W; ++j) {
      const Phase across(j, p.KW, p.stride_w, p.pad_left, p.dilation_w);
      all.phases.push_back({(p.H - i + p.stride_h - 1) / p.stride_h,
                            (p.W - j + p.stride_w - 1) / p.stride_w, i, j,
                            static_cast<int>(all.taps.size()),
                            static_cast<int>(down.taps.size() * across.taps.size())});
      for (size_t a = 0; a < down.taps.size(); ++a)
        for (size_t b = 0; b < across.taps.size(); ++b) {
          all.taps.push_back({down.offsets[a], across.offsets[b]});
          chosen.push_back(down.taps[a] * p.KW + across.taps[b]);
        }
    }
  }
  const auto count = static_cast<int64_t>(chosen.size());
  const PackedWeight w(weight, p, true, count ? constant_table(chosen.data(), count) : nullptr,
                       count);
  g.weight = w.data();
  gather(g, all, p.dtype);
}

}  // namespace

void fill_conv_forward(Slots& slots) {
  slots.conv.forward = forward;
  slots.conv.backward_data = backward_data;
}

}  // namespace fastnn::cuda
