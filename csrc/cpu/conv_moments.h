// Moments of a convolution's output, counted while its tiles are in registers or L1, for the batch
// norm that comes next: it saves that one a pass over memory.
#pragma once

#include "cpu/matmul.h"
#include "cpu/moments.h"
#include "ops/conv.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// Of one block of columns over `count` outputs of a task: sums of the distance to the first value,
// which nothing cancels in, and of its square.
struct alignas(64) TileMoments {
  float first[NR], sum[NR], square[NR], count;
};

// Values of one vector of columns are added one by one.
struct CountedVector {
  vfloat first, sum, square;

  // Goes on from what there is, or opens with a value.
  FASTNN_INLINED inline CountedVector(const TileMoments& of, int64_t v)
      : first(load(of.first + v)), sum(load(of.sum + v)), square(load(of.square + v)) {}
  FASTNN_INLINED explicit inline CountedVector(vfloat value) : first(value), sum{}, square{} {}
  FASTNN_INLINED inline void add(vfloat value) {
    const vfloat away = value - first;
    sum += away;
    square += away * away;
  }
  FASTNN_INLINED inline void keep(TileMoments& in, int64_t v) const {
    store(in.first + v, first);
    store(in.sum + v, sum);
    store(in.square + v, square);
  }
};

// A value as T holds it.
template <class T>
FASTNN_INLINE vfloat as_stored(vfloat v) {
  if constexpr (sizeof(T) == sizeof(float))
    return v;
  else
    return widen(narrow(v));
}

// Adds m rows of finished sums without a residual, `vectors` vectors each, as they are stored.
template <class T>
FASTNN_INLINE void count_rows(const float* sums, int vectors, int m, const float* bias, bool opens,
                              TileMoments& to) {
  for (int v = 0; v < vectors; ++v) {
    const vfloat shift = bias ? load(bias + v * LANES) : vfloat{};
    const auto row = [&](int r) FASTNN_INLINED {
      return as_stored<T>(load(sums + (r * vectors + v) * LANES) + shift);
    };
    CountedVector counted = opens ? CountedVector(row(0)) : CountedVector(to, v * LANES);
    for (int r = 0; r < m; ++r) counted.add(row(r));
    counted.keep(to, v * LANES);
  }
}

// parts: [task][block of columns], added in order.
inline void merge_moments(const TileMoments* parts, int64_t tasks, int64_t columns,
                          ConvMoments& out) {
  const int64_t blocks = block_count(columns);
  parallel_for(blocks, [&](int64_t block) {
    for (int64_t v = 0; v < block_vectors(columns, block) * LANES; v += LANES) {
      Moments all;
      for (int64_t i = 0; i < tasks; ++i) {
        const TileMoments& part = parts[i * blocks + block];
        const vfloat sum = load(part.sum + v), away = sum / part.count;
        all.add(part.count, load(part.first + v) + away,
                vmax(vfloat{}, load(part.square + v) - sum * away));
      }
      store(out.mean + block * NR + v, all.mean);
      store(out.m2 + block * NR + v, all.m2);
    }
  });
  out.filled = true;
}

}  // namespace
}  // namespace fastnn::cpu::FASTNN_ISA
