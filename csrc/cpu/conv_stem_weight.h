// Weight gradient of stems:
//
//   sums[kh][j][oc] += x[row + kh][col * stride_w * C + j] * g[pixel][oc]    0 <= j < KW * C
//
//   task = chunk of output rows, with sums of its own
//     for each few rows, whose g stays in L2: the input under them, zero padded; in pairs, the
//     values under two neighbouring outputs, pair by pair (simd/steps.h)
//       for each kh, block of J values j and V vectors of oc: a tile of J x V accumulators over
//       the rows' pixels; V loads of g and J broadcasts for J * V multiply-adds
//       (a small kernel: all kh at once, with one vector)
//
// Chunks are cut by shape and added in order. Flops: those of the forward pass.
#pragma once

#include "core/allocator.h"
#include "cpu/conv_stem.h"
#include "cpu/conv_weight.h"
#include "cpu/simd/steps.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kStemBlock = 11;        // values under a row of taps in one tile, at most
constexpr int64_t kStemValues = 8 << 10;  // of g in L2
constexpr int64_t kStemChunks = 32, kStemSums = 8 << 20;  // of all chunks together
constexpr bool kWide = LANES == 16;                       // 32 registers of them
constexpr int kStemVectors = kWide ? 2 : 1;

// Some output rows, and the padded input under them at some kh and those after it; x_col is the
// distance of what lies under the next output, or pair of outputs. Sums are OC apart, those of the
// next kh `next_sums`.
template <class T>
struct StemRows {
  const Operand<T>* x;
  int64_t next_x, x_row, x_col;
  const T* g;
  int64_t rows, cols, OC, next_sums;
  int64_t ahead;  // to what is read after these rows and brought meanwhile, in values of g
};

// A tile of K rows of J values under the taps, for V vectors of output channels.
template <int K, int J, int V, class T>
void stem_tile(const StemRows<T>& s, int last, float* sums) {
  using P = Operand<T>;
  constexpr int64_t step = kStep<P>;
  vfloat acc[K][J][V] = {};
  const T* g = s.g;
  for (int64_t row = 0; row < s.rows; ++row) {
    const P* x = s.x + row * s.x_row;
    for (int64_t col = 0; col < s.cols; col += step, x += s.x_col) {
      const bool both = col + 1 < s.cols;
      __builtin_prefetch(g + s.ahead, 0, 2);
      __builtin_prefetch(g + (both && step == 2 ? s.OC : (V - 1) * LANES) + s.ahead, 0, 2);
      vfloat grad[V];
      load_columns(g, s.OC, both, last, grad, P{});
      g += both ? step * s.OC : s.OC;
#pragma GCC unroll 5
      for (int k = 0; k < K; ++k)
#pragma GCC unroll 11
        for (int j = 0; j < J; ++j) {
          const vfloat value = set1_step(x + k * s.next_x + j * step);
#pragma GCC unroll 2
          for (int v = 0; v < V; ++v) add_step(acc[k][j][v], value, grad[v], P{});
        }
    }
  }
#pragma GCC unroll 5
  for (int k = 0; k < K; ++k)
#pragma GCC unroll 11
    for (int j = 0; j < J; ++j)
      write_sums<P>(acc[k][j], sums + k * s.next_sums + j * s.OC, last, true);
}

// All output channels: V vectors at a time, then one, then what is left of one.
template <int K, int J, int V, class T>
void stem_tiles(StemRows<T> s, float* sums) {
  int64_t oc = 0;
  const T* const g = s.g;
  for (; oc + V * LANES <= s.OC; oc += V * LANES) {
    s.g = g + oc;
    stem_tile<K, J, V>(s, LANES, sums + oc);
  }
  for (; oc < s.OC; oc += LANES) {
    s.g = g + oc;
    if (oc + LANES <= s.OC)
      stem_tile<K, J, 1>(s, LANES, sums + oc);
    else
      stem_tile<K, J, 1>(s, static_cast<int>(s.OC - oc), sums + oc);
  }
}

// Values under a row of taps: blocks of an odd number, the last with some to spare.
struct StemBlocks {
  int64_t count, size;
  explicit StemBlocks(int64_t values) : count((values + kStemBlock - 1) / kStemBlock) {
    size = ((values + count - 1) / count) | 1;
  }
};

// The tiles for some kernel. Where all its rows fit the registers, g is read once.
template <class T>
struct StemTile {
  int64_t rows;
  void (*run)(StemRows<T>, float*);
  StemTile(int64_t KH, int64_t size) : rows(1) {
    if (KH == 3 && size == 3) {
      rows = KH, run = stem_tiles<3, 3, kStemVectors, T>;
    } else if (kWide && KH == 3 && size == 9) {
      rows = KH, run = stem_tiles<3, 9, 1, T>;
    } else if (kWide && KH == 5 && size == 5) {
      rows = KH, run = stem_tiles<5, 5, 1, T>;
    } else {
      constexpr int V = kStemVectors;
      using Run = void (*)(StemRows<T>, float*);
      constexpr Run kRun[] = {stem_tiles<1, 1, V, T>, stem_tiles<1, 3, V, T>,
                              stem_tiles<1, 5, V, T>, stem_tiles<1, 7, V, T>,
                              stem_tiles<1, 9, V, T>, stem_tiles<1, 11, V, T>};
      run = kRun[size / 2];
    }
  }
};

// Its values under every two outputs, x_col apart, in pairs.
inline void pair_stem_row(const bfloat16* row, int64_t cols, int64_t x_col, int64_t values,
                          bfloat16* to) {
  for (int64_t col = 0; col < cols; col += 2, row += 2 * x_col, to += 2 * values)
    copy_pairs(row, col + 1 < cols ? row + x_col : nullptr, values, to);
}

template <class T>
void stem_backward_weight(const ConvParams& p, const T* x, const T* g, WeightGradient gw) {
  const int64_t values = p.KW * p.C, C = p.C, OC = p.OC;
  const StemBlocks blocks(values);
  const StemTile<T> tile(p.KH, blocks.size);
  const int64_t padded = blocks.count * blocks.size, size = p.KH * padded * OC;
  const int64_t rows = p.N * p.OH, width = stem_width(p), x_col = p.stride_w * C;
  using P = Operand<T>;
  constexpr bool pairs = kStep<P> == 2;
  // Of a row of the panel, and from one output, or pair, to the next.
  const int64_t panel_row = pairs ? ceil_div(p.OW, 2) * 2 * padded : width;
  const int64_t panel_col = pairs ? 2 * padded : x_col;
  int64_t chunks = rows < kStemChunks ? rows : kStemChunks;
  while (chunks > 2 && chunks * size > kStemSums) chunks /= 2;
  const int64_t most = clamp(kStemValues / (p.OW * OC + 1), 1, stem_rows(p, panel_row));
  Workspace partial((chunks * size + 1) * 4);
  parallel_for(chunks, [&](int64_t chunk) {
    float* const sums = partial.floats() + chunk * size;
    __builtin_memset(sums, 0, sizeof(float) * static_cast<size_t>(size));
    const int64_t height = (most - 1) * p.stride_h + p.KH;
    const int64_t panel_size = height * panel_row + padded, plain = pairs ? width + padded : 0;
    auto* const panel =
        static_cast<P*>(thread_scratch((panel_size + plain) * int64_t{sizeof(P)}, 0));
    const int64_t end = rows * (chunk + 1) / chunks;
    for (int64_t row = rows * chunk / chunks, count; row < end; row += count) {
      const int64_t image = row / p.OH, oh = row % p.OH;
      count = end - row < most ? end - row : most;
      if (count > p.OH - oh) count = p.OH - oh;
      for (int64_t i = 0; i < (count - 1) * p.stride_h + p.KH; ++i) {
        const T* const from = x + image * p.H * p.W * C;
        const int64_t h = oh * p.stride_h - p.pad_top + i;
        P* const to = panel + i * panel_row;
        if constexpr (pairs) {
          P* const row_values = panel + panel_size;
          stem_row(p, from, h, width + padded, row_values);
          pair_stem_row(row_values, p.OW, x_col, padded, to);
        } else {
          stem_row(p, from, h, width, to);
        }
      }
      zero_values(panel + ((count - 1) * p.stride_h + p.KH) * panel_row, padded);
      for (int64_t kh = 0; kh < p.KH; kh += tile.rows)
        for (int64_t b = 0; b < blocks.count; ++b)
          tile.run({panel + kh * panel_row + b * blocks.size * kStep<P>, panel_row,
                    p.stride_h * panel_row, panel_col, g + row * p.OW * OC, count, p.OW, OC,
                    padded * OC, count * p.OW * OC},
                   sums + (kh * padded + b * blocks.size) * OC);
    }
  });
  parallel_for(p.KH * values, [&](int64_t t) {
    const int64_t kh = t / values, j = t % values;
    const float* const from = partial.floats() + (kh * padded + j) * OC;
    vector_loop(0, OC, [&](int64_t oc, int n) {
      vfloat total{};
      for (int64_t chunk = 0; chunk < chunks; ++chunk)
        total += load_any(from + chunk * size + oc, n);
      for (int i = 0; i < n; ++i) gw.store(((oc + i) * p.KH + kh) * values + j, total[i]);
    });
  });
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
