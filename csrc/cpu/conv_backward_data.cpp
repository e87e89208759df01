// conv2d gradient with respect to the input; also conv_transpose2d's forward.
//
// One convolution of stride 1 per phase of the stride (conv_phases.h), over weights packed
// transposed on every call. Flops: those of the forward pass.
#include "core/allocator.h"
#include "cpu/conv_grouped.h"
#include "cpu/conv_phases.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// packed[block][tap][oc][width] = w[oc][kh][kw][ic] for the taps of one phase of one group.
template <class T>
void pack_transposed(const T* w, const ConvParams& p, const Taps& taps, float* packed) {
  const int64_t ic = p.group_inputs(), oc = p.group_outputs();
  parallel_for(block_count(ic), [&](int64_t block) {
    const int width = block_vectors(ic, block) * LANES;
    const int64_t left = ic - block * NR;
    float* to = packed + block * NR * oc * taps.count;
    for (int t = 0; t < taps.count; ++t)
      for (int64_t o = 0; o < oc; ++o, to += width) {
        const T* from = w + ((o * p.KH + taps.kh[t]) * p.KW + taps.kw[t]) * ic + block * NR;
        for (int64_t n = 0; n < width; ++n) to[n] = n < left ? to_float(from[n]) : 0.0f;
      }
  });
}

template <class T>
void backward_data_typed(const ConvParams& p, const T* g, const T* w, const ConvEpilogue& epilogue,
                         T* grad_input) {
  const int64_t ic = p.group_inputs(), oc = p.group_outputs();
  const int64_t size = packed_columns(ic) * oc * p.KH * p.KW;
  Workspace packed(p.groups * size * 4);
  each_phase(p, g, epilogue, grad_input, [&](const Taps& taps, TapGrid& grid) {
    grid.b = packed.floats();
    grid.b_bytes = size * 4;
    each_group(p, [&](int64_t group) {
      pack_transposed(w + group * oc * p.KH * p.KW * ic, p, taps, packed.floats() + group * size);
      run_grid<T>(grid.of_group(group));
    });
  });
}

void backward_data(const ConvParams& p, const void* g, const void* w, const ConvEpilogue& epilogue,
                   void* grad_input) {
  if (is_grouped(p)) return grouped_backward_data(p, g, w, epilogue, grad_input);
  if (p.dtype == DType::float32)
    backward_data_typed(p, static_cast<const float*>(g), static_cast<const float*>(w), epilogue,
                        static_cast<float*>(grad_input));
  else
    backward_data_typed(p, static_cast<const bfloat16*>(g), static_cast<const bfloat16*>(w),
                        epilogue, static_cast<bfloat16*>(grad_input));
}

}  // namespace

void fill_conv_backward_data(Slots& slots) { slots.conv.backward_data = backward_data; }

}  // namespace fastnn::cpu::FASTNN_ISA
