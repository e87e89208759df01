// Forward pass of stems:
//
//   y[row][col][oc] = sum over kh, j of
//       x[row * stride_h + kh][col * stride_w * C + j] * w[kh][j][oc]    0 <= j < KW * C
//
//   task = some rows of outputs of one image: the input under them, zero padded, float32
//     for each row, MR or 8 of its outputs, and NR output channels: a tile of sums, finished and
//     stored (all channels of these outputs first, where the weight fits L1 beside them)
//
// Kernel rows outside the image are left out. Flops: 2 N OH OW OC KH KW C. What implicit_gemm.h
// does around a product, which finds each output's input and place, takes as long as so few terms.
#pragma once

#include "cpu/conv_stem.h"
#include "cpu/implicit_gemm.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kStemPixels = 512;      // of a task
constexpr int64_t kStemTasks = 64;        // at least, if there are as many rows
constexpr int64_t kNearWeight = 4 << 10;  // values: in L1 beside the pixels
// Outputs of a tile: MR or these, whichever computes fewer beyond a row's end.
constexpr int kFewOutputs = LANES == 16 ? 8 : MR;

// What a tile sums up: `values` values from each of `rows` rows on, `next_row` apart, those of the
// next output `next` further on; w is packed as for product kernels.
struct StemTerms {
  const float* x;
  int64_t rows, next_row, values, next;
  const float* w;
};

// The tile of M outputs by V vectors of columns. Of one vector, two sums for each output, of every
// other term: enough of them that none waits for the one before.
template <int M, int V>
FASTNN_INLINE void stem_sums(const StemTerms& s, vfloat (&sum)[M][V]) {
  constexpr int kNear = 3, kFar = (M + kNear - 1) / kNear;  // few registers reach all outputs
  vfloat acc[M][2] = {};
  const float *row = s.x, *w = s.w;
  for (int64_t r = 0; r < s.rows; ++r, row += s.next_row) {
    const float* x[kFar];
#pragma GCC unroll 16
    for (int i = 0; i < kFar; ++i) x[i] = row + i * kNear * s.next;
    const auto add = [&](int of_one) FASTNN_INLINED {
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const vfloat factor = set1(x[m / kNear][m % kNear * s.next]);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) acc[m][V == 2 ? v : of_one] += factor * load(w + v * LANES);
      }
#pragma GCC unroll 16
      for (int i = 0; i < kFar; ++i) ++x[i];
      w += V * LANES;
    };
    int64_t j = 0;
    for (; j + 2 <= s.values; j += 2) add(0), add(1);
    if (j < s.values) add(0);
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
    if constexpr (V == 2)
      sum[m][0] = acc[m][0], sum[m][1] = acc[m][1];
    else
      sum[m][0] = acc[m][0] + acc[m][1];
}

template <class T>
struct StemOutput {
  const ConvEpilogue& epilogue;
  T* y;
  Route route;
  int64_t OC;
};

// `count` outputs from y[at] on, channels from `channel` on. Moments, if counted, of a task's first
// tile open.
template <int M, int V, class T>
void stem_tile(const StemTerms& terms, const StemOutput<T>& out, int64_t at, int count,
               int64_t channel, TileMoments* moments, bool opens) {
  vfloat sum[M][V];
  stem_sums(terms, sum);
  const int64_t columns = out.OC - channel < V * LANES ? out.OC - channel : V * LANES;
  if (columns == V * LANES && !moments) {
    const Rows<T> rows(out.epilogue, channel, V * LANES, out.y, out.route);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      if (m == count) return;
      if constexpr (V == 2)
        rows.store(sum[m][0], sum[m][1], at + m * out.OC);
      else
        rows.store(sum[m][0], at + m * out.OC);
    }
    return;
  }
  alignas(64) float tile[M * V * LANES];
  int64_t where[M];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    where[m] = at + m * out.OC;
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(tile + (m * V + v) * LANES, sum[m][v]);
  }
  store_tile(tile, V * LANES, count, where, channel, columns, out.epilogue, out.y, out.route);
  if (moments) {
    const float* const bias = out.epilogue.bias;
    count_rows<T>(tile, V, count, bias ? bias + channel : nullptr, opens, *moments);
  }
}

// w: packed [block of columns][kh][kw][c][block width].
template <class T>
void stem_forward(const ConvParams& p, const T* x, const float* w, const ConvEpilogue& epilogue,
                  T* y, Route route) {
  const int64_t rows = p.N * p.OH, width = stem_width(p), values = p.KW * p.C;
  const int64_t next = p.stride_w * p.C, blocks = block_count(p.OC);
  if (rows * p.OW * p.OC == 0) return;
  // Whole tiles are summed up, whatever of them there is.
  const int64_t panel_row = width + MR * next, pixels = ceil_div(kStemPixels, p.OW);
  const int64_t most = clamp(clamp(rows / kStemTasks, 1, pixels), 1, stem_rows(p, panel_row));
  const int64_t strips = ceil_div(p.OH, most), tasks = p.N * strips;
  const int64_t few = ceil_div(p.OW, kFewOutputs) * kFewOutputs;
  const int outputs = few < ceil_div(p.OW, MR) * MR ? kFewOutputs : MR;
  const bool counted = is_counted(epilogue, p.OC);
  Workspace room(counted ? tasks * blocks * int64_t{sizeof(TileMoments)} : 0);
  auto* const moments = counted ? reinterpret_cast<TileMoments*>(room.floats()) : nullptr;
  const StemOutput<T> out{epilogue, y, route, p.OC};
  parallel_for_dynamic(tasks, [&](int64_t task) {
    const int64_t image = task / strips, strip = task % strips;
    const int64_t begin = p.OH * strip / strips, end = p.OH * (strip + 1) / strips;
    const int64_t height = (end - begin - 1) * p.stride_h + p.KH;
    auto* const panel =
        static_cast<float*>(thread_scratch(height * panel_row * int64_t{sizeof(float)}, 0));
    const int64_t top = begin * p.stride_h - p.pad_top;
    for (int64_t i = 0; i < height; ++i)
      stem_row(p, x + image * p.H * p.W * p.C, top + i, panel_row, panel + i * panel_row);
    const auto tile_at = [&](int64_t row, int64_t col, int64_t block) FASTNN_INLINED {
      const int64_t h = row * p.stride_h - p.pad_top;
      const int64_t first = clamp(-h, 0, p.KH), last = clamp(p.H - h, first, p.KH);
      const int count = static_cast<int>(clamp(p.OW - col, 0, outputs));
      const int vectors = block_vectors(p.OC, block);
      const StemTerms terms{panel + (h - top + first) * panel_row + col * next,
                            last - first,
                            panel_row,
                            values,
                            next,
                            w + block * NR * p.KH * values + first * values * vectors * LANES};
      TileMoments* const of = counted ? moments + task * blocks + block : nullptr;
      if (of) of->count = static_cast<float>((end - begin) * p.OW);
      const auto tile = outputs == MR   ? vectors == NV ? stem_tile<MR, NV, T> : stem_tile<MR, 1, T>
                        : vectors == NV ? stem_tile<kFewOutputs, NV, T>
                                        : stem_tile<kFewOutputs, 1, T>;
      tile(terms, out, ((image * p.OH + row) * p.OW + col) * p.OC, count, block * NR, of,
           row == begin && col == 0);
    };
    const int64_t together = p.KH * values * p.OC <= kNearWeight ? blocks : 1;
    for (int64_t some = 0; some < blocks; some += together)
      for (int64_t row = begin; row < end; ++row)
        for (int64_t col = 0; col < p.OW; col += outputs)
          for (int64_t block = some; block < some + together; ++block) tile_at(row, col, block);
  });
  if (moments) merge_moments(moments, tasks, p.OC, *epilogue.moments);
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
