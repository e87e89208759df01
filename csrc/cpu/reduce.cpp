// Folds over the middle dimension of [outer, count, inner].
//
//   inner == 1: a row is contiguous; four vector accumulators run along a block of it and are
//               combined lane by lane in a fixed tree.
//               Rows of a few numbers are turned first, LANES of them at a time (few_columns.h).
//   inner  > 1: the lanes of a vector are neighbouring columns; up to four vectors of columns stay
//               in registers down a block of rows. More columns are folded row by row, into sums in
//               L1: strips of wide rows are no stream to the hardware's prefetchers.
// One read of the input; the floor is the read bandwidth. A task is one block of one row, or of one
// tile of columns; tasks are grouped so that a chunk has about kGrain elements.
#include "cpu/few_columns.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

constexpr int64_t kTileColumns = 1024;
constexpr float kInfinity = __builtin_inff();

// What is folded: map(x, mean) of each element, then combine. V is vfloat or float.
struct Add {
  static constexpr float kIdentity = 0.0f;
  template <class V>
  FASTNN_INLINE V map(V x, V) {
    return x;
  }
  template <class V>
  FASTNN_INLINE V combine(V a, V b) {
    return a + b;
  }
};
struct AddMagnitude : Add {
  FASTNN_INLINE vfloat map(vfloat x, vfloat) { return vabs(x); }
};
struct AddSquare : Add {
  FASTNN_INLINE vfloat map(vfloat x, vfloat) { return x * x; }
};
struct AddDeviation : Add {
  FASTNN_INLINE vfloat map(vfloat x, vfloat mean) { return (x - mean) * (x - mean); }
};
struct Multiply : Add {
  static constexpr float kIdentity = 1.0f;
  template <class V>
  FASTNN_INLINE V combine(V a, V b) {
    return a * b;
  }
};
// A NaN on either side stays.
struct Largest : Add {
  static constexpr float kIdentity = -kInfinity;
  template <class V>
  FASTNN_INLINE V combine(V a, V b) {
    return ((a > b) | (a != a)) ? a : b;
  }
};
struct LargestMagnitude : Largest {
  FASTNN_INLINE vfloat map(vfloat x, vfloat) { return vabs(x); }
};
struct Smallest : Add {
  static constexpr float kIdentity = kInfinity;
  template <class V>
  FASTNN_INLINE V combine(V a, V b) {
    return ((a < b) | (a != a)) ? a : b;
  }
};

FASTNN_INLINE vint first_lanes_mask(int n) {
  vint lane;
  for (int l = 0; l < LANES; ++l) lane[l] = l;
  return lane < n;
}

template <class Op, class T>
float fold_row(const T* x, int64_t n, float mean) {
  const vfloat identity = set1(Op::kIdentity), center = set1(mean);
  vfloat acc[4] = {identity, identity, identity, identity};
  int64_t i = 0;
  for (; i + 4 * LANES <= n; i += 4 * LANES)
    for (int k = 0; k < 4; ++k)
      acc[k] = Op::combine(acc[k], Op::map(load(x + i + k * LANES), center));
  for (; i + LANES <= n; i += LANES) acc[0] = Op::combine(acc[0], Op::map(load(x + i), center));
  if (i < n) {
    const int left = static_cast<int>(n - i);
    const vfloat tail = Op::map(load_n(x + i, left), center);
    acc[1] = Op::combine(acc[1], select(first_lanes_mask(left), tail, identity));
  }
  const vfloat all = Op::combine(Op::combine(acc[0], acc[1]), Op::combine(acc[2], acc[3]));
  float lane[LANES];
  store(lane, all);
  for (int step = LANES / 2; step; step /= 2)
    for (int l = 0; l < step; ++l) lane[l] = Op::combine(lane[l], lane[l + step]);
  return lane[0];
}

// V vectors of columns down `rows` rows; the last vector has `n` columns.
template <class Op, int V, class T>
FASTNN_INLINE void fold_columns(const T* x, int64_t rows, int64_t stride, const float* mean, int n,
                                float divisor, float* out) {
  vfloat acc[V], center[V];
  for (int v = 0; v < V; ++v) {
    acc[v] = set1(Op::kIdentity);
    const int lanes = v == V - 1 ? n : LANES;
    center[v] = mean ? load_any(mean + v * LANES, lanes) : vfloat{};
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int v = 0; v < V; ++v) {
      const T* const at = x + r * stride + v * LANES;
      acc[v] = Op::combine(acc[v], Op::map(load_any(at, v == V - 1 ? n : LANES), center[v]));
    }
  for (int v = 0; v < V; ++v) {
    const vfloat total = divisor == 1.0f ? acc[v] : acc[v] / divisor;
    store_any(out + v * LANES, total, v == V - 1 ? n : LANES);
  }
}

// The same of up to kTileColumns columns, row by row, in the order of memory.
template <class Op, class T>
void fold_rows(const T* x, int64_t rows, int64_t stride, const float* mean, int64_t columns,
               float divisor, float* out) {
  alignas(64) float sums[kTileColumns];
  vector_loop(0, columns, [&](int64_t j, int) { store(sums + j, set1(Op::kIdentity)); });
  for (int64_t r = 0; r < rows; ++r, x += stride)
    vector_loop(0, columns, [&](int64_t j, int n) FASTNN_INLINED {
      const vfloat center = mean ? load_any(mean + j, n) : vfloat{};
      store(sums + j, Op::combine(load(sums + j), Op::map(load_any(x + j, n), center)));
    });
  vector_loop(0, columns,
              [&](int64_t j, int n) { store_any(out + j, load(sums + j) / divisor, n); });
}

// body(outer index, block, first row, rows, first column, columns) for every task.
template <class Body>
void for_tasks(const ReduceParams& p, const Body& body) {
  const int64_t blocks = (p.count + p.block - 1) / p.block;
  const int64_t tiles = (p.inner + kTileColumns - 1) / kTileColumns;
  const int64_t tile = p.inner < kTileColumns ? p.inner : kTileColumns;
  const int64_t task_size = tile * (p.count < p.block ? p.count : p.block);
  const int64_t grain = task_size >= kGrain ? 1 : kGrain / task_size;
  parallel_ranges(p.outer * blocks * tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t column = task % tiles * kTileColumns, row = task / tiles;
      const int64_t o = row / blocks, block = row % blocks, first = block * p.block;
      const int64_t rows = p.count - first < p.block ? p.count - first : p.block;
      const int64_t columns = p.inner - column < tile ? p.inner - column : tile;
      body(o, o * blocks + block, first, rows, column, columns);
    }
  });
}

template <class Op, class T>
void fold_floats(const ReduceParams& p) {
  const T* const input = static_cast<const T*>(p.input);
  float* const output = static_cast<float*>(p.output);
  if (p.inner == 1 && p.count <= kFewColumns && p.count <= p.block) {
    const auto few_rows = [&](int64_t r) {
      Block x;
      load_block(input + r * p.count, p.count, x);
      const vfloat center = p.mean ? load(p.mean + r) : vfloat{};
      vfloat total = set1(Op::kIdentity);
      for (int64_t c = 0; c < p.count; ++c) total = Op::combine(total, Op::map(x[c], center));
      store(output + r, total / p.divisor);
    };
    return each_row(p.outer, p.count, few_rows, [&](int64_t r) {
      output[r] = fold_row<Op>(input + r * p.count, p.count, p.mean ? p.mean[r] : 0.0f) / p.divisor;
    });
  }
  for_tasks(p, [&](int64_t o, int64_t slot, int64_t first, int64_t rows, int64_t column,
                   int64_t columns) {
    const T* const x = input + (o * p.count + first) * p.inner + column;
    const float* const mean = p.mean ? p.mean + o * p.inner + column : nullptr;
    float* const out = output + slot * p.inner + column;
    if (p.inner == 1) {
      *out = fold_row<Op>(x, rows, mean ? *mean : 0.0f) / p.divisor;
      return;
    }
    if (columns > 4 * LANES) return fold_rows<Op>(x, rows, p.inner, mean, columns, p.divisor, out);
    if (columns == 4 * LANES)
      return fold_columns<Op, 4>(x, rows, p.inner, mean, LANES, p.divisor, out);
    for (int64_t j = 0; j < columns; j += LANES) {
      const int n = columns - j < LANES ? static_cast<int>(columns - j) : LANES;
      fold_columns<Op, 1>(x + j, rows, p.inner, mean ? mean + j : mean, n, p.divisor, out + j);
    }
  });
}

// Integers: f(accumulator, element), starting from `identity`. Sums wrap around.
template <class T, class R, class F>
void fold_integers(const ReduceParams& p, R identity, const F& f) {
  const T* const input = static_cast<const T*>(p.input);
  R* const output = static_cast<R*>(p.output);
  for_tasks(p, [&](int64_t o, int64_t slot, int64_t first, int64_t rows, int64_t column,
                   int64_t columns) {
    const T* const x = input + (o * p.count + first) * p.inner + column;
    R* const out = output + slot * p.inner + column;
    if (p.inner == 1) {
      R total = identity;
      for (int64_t r = 0; r < rows; ++r) total = f(total, x[r]);
      *out = total;
      return;
    }
    for (int64_t j = 0; j < columns; ++j) out[j] = identity;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < columns; ++j) out[j] = f(out[j], x[r * p.inner + j]);
  });
}

template <class T>
void floating(const ReduceParams& p) {
  switch (p.op) {
    case Reduction::sum:
      return fold_floats<Add, T>(p);
    case Reduction::prod:
      return fold_floats<Multiply, T>(p);
    case Reduction::max:
      return fold_floats<Largest, T>(p);
    case Reduction::min:
      return fold_floats<Smallest, T>(p);
    case Reduction::abs_sum:
      return fold_floats<AddMagnitude, T>(p);
    case Reduction::square_sum:
      return fold_floats<AddSquare, T>(p);
    case Reduction::abs_max:
      return fold_floats<LargestMagnitude, T>(p);
    case Reduction::deviation:
      return fold_floats<AddDeviation, T>(p);
  }
}

template <class T>
void integer(const ReduceParams& p, T lowest, T highest) {
  typedef uint64_t U;  // unsigned: overflow wraps instead of being undefined
  switch (p.op) {
    case Reduction::sum:
      return fold_integers<T, int64_t>(
          p, 0, [](int64_t a, T x) { return static_cast<int64_t>(U(a) + U(int64_t{x})); });
    case Reduction::prod:
      return fold_integers<T, int64_t>(
          p, 1, [](int64_t a, T x) { return static_cast<int64_t>(U(a) * U(int64_t{x})); });
    case Reduction::max:
      return fold_integers<T, T>(p, lowest, [](T a, T x) { return a > x ? a : x; });
    default:  // min
      return fold_integers<T, T>(p, highest, [](T a, T x) { return a < x ? a : x; });
  }
}

void fold(const ReduceParams& p) {
  switch (p.dtype) {
    case DType::float32:
      return floating<float>(p);
    case DType::bfloat16:
      return floating<bfloat16>(p);
    case DType::int64:
      return integer<int64_t>(p, INT64_MIN, INT64_MAX);
    case DType::int32:
      return integer<int32_t>(p, INT32_MIN, INT32_MAX);
    default:
      return integer<uint8_t>(p, 0, 255);
  }
}

FASTNN_INLINE bool better(float x, float best, bool largest) {
  if (best != best) return false;  // the first NaN wins
  return x != x || (largest ? x > best : x < best);
}
template <class T>
FASTNN_INLINE bool better(T x, T best, bool largest) {
  return largest ? x > best : x < best;
}
template <class T>
FASTNN_INLINE T value(T x) {
  return x;
}
FASTNN_INLINE float value(bfloat16 x) { return to_float(x); }

// Position of the extreme of a contiguous row of at most 2^30 elements: its value by vectors, then
// the lowest index of an equal element (of a NaN if there is one), without branches.
template <class Op, class T>
int64_t first_extreme(const T* x, int64_t n) {
  const float best = fold_row<Op>(x, n, 0.0f);
  const vfloat wanted = set1(best);
  const bool nan = best != best;
  const vint none = vint{} + INT32_MAX;
  vint lane, lowest = none;
  for (int l = 0; l < LANES; ++l) lane[l] = l;
  vector_loop(0, n, [&](int64_t i, int lanes) __attribute__((always_inline)) {
    const vfloat v = load_any(x + i, lanes);
    const vint equal = (nan ? v != v : v == wanted) & (lane < lanes);
    const vint at = equal ? lane + static_cast<int32_t>(i) : none;
    lowest = at < lowest ? at : lowest;
  });
  int32_t first = INT32_MAX;
  for (int l = 0; l < LANES; ++l) first = lowest[l] < first ? lowest[l] : first;
  return first;
}
FASTNN_INLINE int64_t pick_row(const float* x, int64_t n, bool largest) {
  return largest ? first_extreme<Largest>(x, n) : first_extreme<Smallest>(x, n);
}
FASTNN_INLINE int64_t pick_row(const bfloat16* x, int64_t n, bool largest) {
  return largest ? first_extreme<Largest>(x, n) : first_extreme<Smallest>(x, n);
}
template <class T>
FASTNN_INLINE int64_t pick_row(const T* x, int64_t n, bool largest) {
  int64_t at = 0;
  for (int64_t i = 1; i < n; ++i)
    if (better(x[i], x[at], largest)) at = i;
  return at;
}

// The extremes of the rows of a block, LANES rows of C numbers: where they are in each.
FASTNN_INLINE vint pick_rows(const Block& x, int64_t C, bool largest) {
  vfloat best = x[0];
  vint at{};
  for (int64_t c = 1; c < C; ++c) {
    const vint wins = (best == best) & ((x[c] != x[c]) | (largest ? x[c] > best : x[c] < best));
    best = wins ? x[c] : best;
    at = wins ? vint{} + static_cast<int32_t>(c) : at;
  }
  return at;
}

template <class T>
void pick_typed(const PickParams& p) {
  const T* const input = static_cast<const T*>(p.input);
  T* const values = static_cast<T*>(p.values);
  if constexpr (kFloating<T>)
    if (p.inner == 1 && p.count <= kFewColumns && p.count <= p.block && !p.positions) {
      const auto put = [&](int64_t r, int64_t at) {
        p.indices[r] = at;
        values[r] = input[r * p.count + at];
      };
      const auto few_rows = [&](int64_t r) {
        Block x;
        load_block(input + r * p.count, p.count, x);
        const vint at = pick_rows(x, p.count, p.largest);
        for (int l = 0; l < LANES; ++l) put(r + l, at[l]);
      };
      return each_row(p.outer, p.count, few_rows, [&](int64_t r) {
        put(r, pick_row(input + r * p.count, p.count, p.largest));
      });
    }
  if (p.inner == 1) {
    const int64_t blocks = (p.count + p.block - 1) / p.block;
    const int64_t length = p.count < p.block ? p.count : p.block;
    const int64_t grain = length >= kGrain ? 1 : kGrain / length;
    return parallel_ranges(p.outer * blocks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t o = task / blocks, first = task % blocks * p.block;
        const int64_t n = p.count - first < p.block ? p.count - first : p.block;
        const T* const x = input + o * p.count + first;
        const int64_t at = pick_row(x, n, p.largest);
        p.indices[task] = p.positions ? p.positions[o * p.count + first + at] : first + at;
        values[task] = x[at];
      }
    });
  }
  // Columns side by side: the running extremes of a tile stay in L1.
  const int64_t tiles = (p.inner + kTileColumns - 1) / kTileColumns;
  parallel_for(p.outer * tiles, [&](int64_t task) {
    const int64_t o = task / tiles, first = task % tiles * kTileColumns;
    const int64_t last = first + kTileColumns < p.inner ? first + kTileColumns : p.inner;
    const T* const x = input + o * p.count * p.inner;
    T* const best = values + o * p.inner;
    int64_t* const at = p.indices + o * p.inner;
    for (int64_t j = first; j < last; ++j) {
      best[j] = x[j];
      at[j] = 0;
    }
    for (int64_t r = 1; r < p.count; ++r)
      for (int64_t j = first; j < last; ++j) {
        const T candidate = x[r * p.inner + j];
        const bool wins = better(value(candidate), value(best[j]), p.largest);
        best[j] = wins ? candidate : best[j];
        at[j] = wins ? r : at[j];
      }
  });
}

void pick(const PickParams& p) {
  switch (p.dtype) {
    case DType::float32:
      return pick_typed<float>(p);
    case DType::bfloat16:
      return pick_typed<bfloat16>(p);
    case DType::int64:
      return pick_typed<int64_t>(p);
    case DType::int32:
      return pick_typed<int32_t>(p);
    default:
      return pick_typed<uint8_t>(p);
  }
}

void scatter(const void* grad_output, const int64_t* indices, void* grad_input, int64_t outer,
             int64_t count, int64_t inner, int64_t item_size) {
  const char* const g = static_cast<const char*>(grad_output);
  char* const to = static_cast<char*>(grad_input);
  parallel_ranges(outer * inner, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      const int64_t position = (at / inner * count + indices[at]) * inner + at % inner;
      __builtin_memcpy(to + position * item_size, g + at * item_size,
                       static_cast<size_t>(item_size));
    }
  });
}

// Products of all before and of all after an element, so that zeros need no division.
template <class T>
void prod_backward_typed(const float* g, const T* x, T* grad, int64_t outer, int64_t count,
                         int64_t inner) {
  const int64_t grain = count >= kGrain ? 1 : kGrain / count;
  parallel_ranges(outer * inner, grain, [&](int64_t begin, int64_t end) {
    float* const before = static_cast<float*>(thread_scratch(count * int64_t{sizeof(float)}));
    for (int64_t at = begin; at < end; ++at) {
      const int64_t base = at / inner * count * inner + at % inner;
      float product = g[at];
      for (int64_t r = 0; r < count; ++r) {
        before[r] = product;
        product *= to_float(x[base + r * inner]);
      }
      product = 1.0f;
      for (int64_t r = count - 1; r >= 0; --r) {
        from_float(grad[base + r * inner], before[r] * product);
        product *= to_float(x[base + r * inner]);
      }
    }
  });
}

void prod_backward(const float* g, const void* x, void* grad, int64_t outer, int64_t count,
                   int64_t inner, DType dtype) {
  if (dtype == DType::float32)
    prod_backward_typed(g, static_cast<const float*>(x), static_cast<float*>(grad), outer, count,
                        inner);
  else
    prod_backward_typed(g, static_cast<const bfloat16*>(x), static_cast<bfloat16*>(grad), outer,
                        count, inner);
}

}  // namespace

void fill_reduce(Slots& slots) {
  slots.reduce.fold = fold;
  slots.reduce.pick = pick;
  slots.reduce.scatter = scatter;
  slots.reduce.prod_backward = prod_backward;
}

}  // namespace fastnn::cpu::FASTNN_ISA
