// conv2d forward and gradient with respect to the input in bfloat16, on AMX tiles: packing of the
// weights, then amx/implicit_gemm.h. float32 goes to the AVX-512 kernels. Groups too small for a
// tile are taken together, as many as fill one.
#include "core/allocator.h"
#include "cpu/amx/implicit_gemm.h"
#include "cpu/conv_phases.h"
#include "cpu/even_channels.h"
#include "cpu/joined_groups.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

ConvSlots wide;  // the AVX-512 kernels

constexpr int64_t kPackedBlocks = 4;  // of columns, packed side by side: whole pieces of rows
constexpr int64_t kPackedSteps = 32;  // of one task
constexpr int64_t kPackedAhead = 4;   // steps, whose weights are fetched

// Calls pack(first block, last block, first step, last step) for all of B, in parallel.
template <class Pack>
void each_piece(int64_t columns, int64_t steps, const Pack& pack) {
  const int64_t blocks = ceil_div(columns, kColumns), pieces = ceil_div(steps, kPackedSteps);
  parallel_for(ceil_div(blocks, kPackedBlocks) * pieces, [&](int64_t task) {
    const int64_t block = task / pieces * kPackedBlocks, step = task % pieces * kPackedSteps;
    pack(block, clamp(blocks, 0, block + kPackedBlocks), step,
         clamp(steps, 0, step + kPackedSteps));
  });
}

// B[row][n] = w[n][row]: 16 columns of pairs are turned at a time.
void pack_weight(const bfloat16* w, int64_t rows, int64_t columns, const InputTiles& t,
                 bfloat16* packed) {
  const Steps steps = steps_of(t);
  const int64_t count = steps.per_tap * t.tap_count;
  const int depth = steps.depth;
  const auto row_of = [&](int64_t step) {
    const StepOf at = step_at(t, steps, step);
    return at.tap * t.k + at.step * depth;
  };
  each_piece(columns, count, [&](int64_t block, int64_t last_block, int64_t first, int64_t last) {
    for (; block < last_block; ++block) {
      const int64_t n0 = block * kColumns, end = clamp(columns, 0, n0 + kColumns);
      const int64_t halves = ceil_div(end - n0, kTile);
      bfloat16* to = packed + (block * kColumns * count + first * halves * kTile) * depth;
      for (int64_t s = first; s < last; ++s) {
        const int64_t row = row_of(s), ahead = row_of(s + kPackedAhead) - row;
        const auto mask = static_cast<__mmask32>((int64_t{1} << clamp(rows - row, 0, depth)) - 1);
        for (int64_t n = n0; n < end; n += kTile, to += depth * kTile)
          turn_rows(w + n * rows + row, rows, end - n, mask, depth, ahead, to);
      }
    }
  });
}

// B[(tap, o)][n] = w[o][tap][n] for the taps of one phase: two rows of w become a row of pairs.
void pack_transposed(const bfloat16* w, const ConvParams& p, const Taps& taps, const InputTiles& t,
                     bfloat16* packed) {
  const int64_t ic = p.group_inputs(), oc = p.group_outputs(), rows = taps.count * oc;
  const Steps steps = steps_of(t);
  const int64_t count = steps.per_tap * t.tap_count, depth = steps.depth;
  // Where the rows of a step lie; of those that do not exist, nowhere.
  const auto place = [&](int64_t step, const bfloat16** from) {
    const StepOf at = step_at(t, steps, step);
    const int64_t row = at.tap * t.k + at.step * depth;
    int64_t tap = row / oc, o = row % oc;
    for (int64_t i = 0; i < depth; ++i) {
      from[i] =
          row + i < rows ? w + ((o * p.KH + taps.kh[tap]) * p.KW + taps.kw[tap]) * ic : nullptr;
      if (++o == oc) o = 0, ++tap;
    }
  };
  each_piece(ic, count, [&](int64_t block, int64_t last_block, int64_t first, int64_t last) {
    const bfloat16 *here[32], *next[32];
    place(first, next);
    for (int64_t s = first; s < last; ++s) {
      for (int64_t i = 0; i < depth; ++i) here[i] = next[i];
      if (s + 1 < last) place(s + 1, next);
      for (int64_t i = 0; i < depth; i += 2)
        for (int64_t b = block; b < last_block; ++b) {
          const int64_t n = b * kColumns, used = clamp(ic - n, 0, kColumns);
          const auto mask = static_cast<__mmask32>((int64_t{1} << used) - 1);
          const int64_t halves = ceil_div(used, kTile);
          bfloat16* const to = packed + (n * count + s * halves * kTile) * depth + i * kTile;
          const auto load_row = [&](int64_t r) {
            _mm_prefetch(next[r] + n, _MM_HINT_T0);
            return here[r] ? _mm512_maskz_loadu_epi16(mask, here[r] + n) : _mm512_setzero_si512();
          };
          store_pairs(load_row(i), load_row(i + 1), to, halves == 2 ? to + depth * kTile : nullptr);
        }
    }
  });
}

void forward(const ConvParams& p, const void* x, const void* w, const ConvEpilogue& epilogue,
             void* y) {
  if (p.dtype != DType::bfloat16 || p.C * p.OC == 0) return wide.forward(p, x, w, epilogue, y);
  if (p.N * p.OH * p.OW == 0) return;
  if (const int64_t together = groups_together(p, 2 * kTile, 4 * kTile); together > 1) {
    const JoinedGroups joined(p, together, p.dtype);
    joined.spread(w);
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
  const Route route = product_route(static_cast<const bfloat16*>(y), oc);
  const InputGrid in{x,  p.N,  p.H,    p.W,        p.C,        0,
                     ic, p.OH, p.OW,   p.stride_h, p.stride_w, static_cast<int>(taps),
                     dh, dw,   missing};
  TapGrid grid{in, nullptr, oc, y, p.OH, p.OW, p.OC, 0, 0, 1, 0, 1, epilogue, route, p.groups, 0};
  const InputTiles plan = plan_tiles(grid);
  const int64_t size = packed_bytes(padded_to_steps(rows), oc) / 4;
  KeptWorkspace packed(p.kept, hash(1, oc, rows, plan.tap_count, plan.k, plan.width),
                       p.groups * size * 4);
  if (!packed.filled()) {
    const EvenWeights even(static_cast<const bfloat16*>(w), p.OC * taps, real, !missing);
    each_group(p, [&](int64_t group) {
      pack_weight(even.at() + group * oc * rows, rows, oc, plan,
                  reinterpret_cast<bfloat16*>(packed.floats() + group * size));
    });
  }
  grid.b = packed.floats();
  grid.b_bytes = size * 4;
  run_tiles(grid, plan);
}

void backward_data(const ConvParams& p, const void* g, const void* w, const ConvEpilogue& epilogue,
                   void* grad_input) {
  if (p.dtype != DType::bfloat16 || p.C * p.OC == 0)
    return wide.backward_data(p, g, w, epilogue, grad_input);
  if (p.N * p.H * p.W == 0) return;
  if (const int64_t together = groups_together(p, 2 * kTile, 4 * kTile); together > 1) {
    const JoinedGroups joined(p, together, p.dtype);
    joined.spread(w);
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
