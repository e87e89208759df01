// conv2d forward and gradient with respect to the input in bfloat16, on AMX tiles: packing of the
// weights, then amx/implicit_gemm.h. float32 goes to the AVX-512 kernels. Groups too small for a
// tile are taken together, as many as fill one.
#include "core/allocator.h"
#include "cpu/amx/implicit_gemm.h"
#include "cpu/amx/joined_groups.h"
#include "cpu/conv_phases.h"
#include "cpu/simd/transpose.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

ConvSlots wide;  // the AVX-512 kernels

// Calls tile(first row, rows, first column, columns, to) for every B tile, in parallel; rows and
// columns are those that exist, `to` holds depth / 2 rows of 16 pairs.
template <class Tile>
void each_b_tile(int64_t rows, int64_t columns, const InputTiles& t, bfloat16* packed,
                 const Tile& tile) {
  const Steps steps = steps_of(t);
  const int64_t count = steps.per_tap * t.tap_count, depth = steps.depth;
  parallel_for(ceil_div(columns, kColumns), [&](int64_t block) {
    bfloat16* to = packed + block * kColumns * count * depth;
    const int64_t end = clamp(columns, 0, (block + 1) * kColumns);
    for (int64_t s = 0; s < count; ++s) {
      const StepOf at = step_at(t, steps, s);
      const int64_t row = at.tap * t.k + at.step * depth;
      for (int64_t n = block * kColumns; n < end; n += kTile, to += depth * kTile)
        tile(row, clamp(rows - row, 0, depth), n, clamp(columns - n, 0, kTile), to);
    }
  });
}

// B[row][n] = w[n][row]: 16 columns of pairs are turned at a time.
void pack_weight(const bfloat16* w, int64_t rows, int64_t columns, const InputTiles& t,
                 bfloat16* packed) {
  const int depth = steps_of(t).depth;
  each_b_tile(rows, columns, t, packed,
              [&](int64_t row, int64_t count, int64_t n, int64_t used, bfloat16* to) {
                vuint pairs[16];
                const auto mask = static_cast<__mmask32>((int64_t{1} << count) - 1);
                for (int64_t i = 0; i < kTile; ++i)
                  pairs[i] = i < used ? reinterpret_cast<vuint>(_mm512_maskz_loadu_epi16(
                                            mask, w + (n + i) * rows + row))
                                      : vuint{};
                transpose(pairs);
                for (int j = 0; j < depth / 2; ++j)
                  __builtin_memcpy(to + 2 * kTile * j, &pairs[j], sizeof(vuint));
              });
}

// B[(tap, o)][n] = w[o][tap][n] for the taps of one phase.
void pack_transposed(const bfloat16* w, const ConvParams& p, const Taps& taps, const InputTiles& t,
                     bfloat16* packed) {
  const int64_t ic = p.group_inputs(), oc = p.group_outputs();
  const int depth = steps_of(t).depth;
  each_b_tile(
      taps.count * oc, ic, t, packed,
      [&](int64_t row, int64_t count, int64_t n, int64_t used, bfloat16* to) {
        const auto mask = static_cast<__mmask16>((1 << used) - 1);
        const auto load_row = [&](int64_t i) {
          if (i >= count) return vuint{};
          const int64_t tap = (row + i) / oc, o = (row + i) % oc;
          const bfloat16* from = w + ((o * p.KH + taps.kh[tap]) * p.KW + taps.kw[tap]) * ic;
          return from_halves(reinterpret_cast<vhalf>(_mm256_maskz_loadu_epi16(mask, from + n)));
        };
        for (int j = 0; j < depth / 2; ++j) {
          const vuint pair = load_row(2 * j) | load_row(2 * j + 1) << 16;
          __builtin_memcpy(to + 2 * kTile * j, &pair, sizeof(pair));
        }
      });
}

void forward(const ConvParams& p, const void* x, const void* w, const ConvEpilogue& epilogue,
             void* y) {
  if (p.dtype != DType::bfloat16 || p.C * p.OC == 0) return wide.forward(p, x, w, epilogue, y);
  if (p.N * p.OH * p.OW == 0) return;
  if (const int64_t together = groups_together(p); together > 1) {
    const JoinedGroups joined(p, together);
    joined.spread(static_cast<const bfloat16*>(w));
    return forward(joined.p, x, joined.weight(), epilogue, y);
  }
  // An odd number of channels, three of an image, becomes even: then the taps of a row fall into
  // even steps and need not be gathered pixel by pixel.
  const int64_t taps = p.KH * p.KW, real = p.group_inputs(), missing = p.KW > 1 ? real % 2 : 0;
  const int64_t ic = real + missing, oc = p.group_outputs(), rows = taps * ic;
  int64_t dh[kMaxTaps], dw[kMaxTaps];
  for (int64_t t = 0; t < p.KH * p.KW; ++t) {
    dh[t] = t / p.KW * p.dilation_h - p.pad_top;
    dw[t] = t % p.KW * p.dilation_w - p.pad_left;
  }
  const Route route = conv_route(p, oc, y);
  const InputGrid in{x,  p.N,  p.H,    p.W,        p.C,        0,
                     ic, p.OH, p.OW,   p.stride_h, p.stride_w, static_cast<int>(taps),
                     dh, dw,   missing};
  TapGrid grid{in, nullptr, oc, y, p.OH, p.OW, p.OC, 0, 0, 1, 0, 1, epilogue, route, p.groups, 0};
  const InputTiles plan = plan_tiles(grid);
  const int64_t size = packed_bytes(padded_to_steps(rows), oc) / 4;
  KeptWorkspace packed(p.kept, hash(1, oc, rows, plan.tap_count, plan.k, plan.width),
                       p.groups * size * 4);
  const auto* from = static_cast<const bfloat16*>(w);
  Workspace even(missing && !packed.filled() ? p.OC * rows * 2 : 0);
  if (missing && !packed.filled()) {
    auto* const to = reinterpret_cast<bfloat16*>(even.floats());
    for (int64_t i = 0; i < p.OC * taps; ++i) {
      copy_values(to + i * ic, from + i * real, real);
      to[i * ic + real] = bfloat16{};
    }
    from = to;
  }
  if (!packed.filled())
    each_group(p, [&](int64_t group) {
      pack_weight(from + group * oc * rows, rows, oc, plan,
                  reinterpret_cast<bfloat16*>(packed.floats() + group * size));
    });
  grid.b = packed.floats();
  grid.b_bytes = size * 4;
  run_tiles(grid, plan);
}

void backward_data(const ConvParams& p, const void* g, const void* w, const ConvEpilogue& epilogue,
                   void* grad_input) {
  if (p.dtype != DType::bfloat16 || p.C * p.OC == 0)
    return wide.backward_data(p, g, w, epilogue, grad_input);
  if (p.N * p.H * p.W == 0) return;
  if (const int64_t together = groups_together(p); together > 1) {
    const JoinedGroups joined(p, together);
    joined.spread(static_cast<const bfloat16*>(w));
    return backward_data(joined.p, g, joined.weight(), epilogue, grad_input);
  }
  const int64_t ic = p.group_inputs(), oc = p.group_outputs(), taps_oc = p.KH * p.KW * oc;
  const int64_t size = packed_bytes(padded_to_steps(taps_oc) + 64, ic) / 4;
  Workspace packed(p.groups * size * 4);
  each_phase(p, static_cast<const bfloat16*>(g), epilogue, static_cast<bfloat16*>(grad_input),
             [&](const Taps& taps, TapGrid& grid) {
               const InputTiles t = plan_tiles(grid);
               each_group(p, [&](int64_t group) {
                 pack_transposed(static_cast<const bfloat16*>(w) + group * taps_oc * ic, p, taps, t,
                                 reinterpret_cast<bfloat16*>(packed.floats() + group * size));
               });
               grid.b = packed.floats();
               grid.b_bytes = size * 4;
               run_tiles(grid, t);
             });
}

}  // namespace

void fill_conv(Slots& slots) {
  wide = slots.conv;
  slots.conv.forward = forward;
  slots.conv.backward_data = backward_data;
}

}  // namespace fastnn::cpu::FASTNN_ISA
