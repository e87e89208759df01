// Folds over the middle dimension of [outer, count, inner].
//
//   inner == 1: a row, or a block of it, is contiguous and one team's (device/teams.h).
//   inner  > 1: a thread per column goes down a block of rows; neighbouring threads have
//               neighbouring columns. Few long columns are cut among threads (device/columns.h).
// One read of the input; the floor is the read bandwidth.
#include "cuda/device/columns.h"
#include "cuda/device/teams.h"
#include "ops/slots.h"

namespace fastnn::cuda {
namespace {

// What is folded: map(x, mean) of each element, then combine. A NaN stays.
struct FloatFold {
  Reduction op;
  FASTNN_MEMBER float identity() const {
    switch (op) {
      case Reduction::prod:
        return 1.0f;
      case Reduction::max:
      case Reduction::abs_max:
        return -INFINITY;
      case Reduction::min:
        return INFINITY;
      default:
        return 0.0f;
    }
  }
  FASTNN_MEMBER float map(float x, float mean) const {
    switch (op) {
      case Reduction::abs_sum:
      case Reduction::abs_max:
        return fabsf(x);
      case Reduction::square_sum:
        return x * x;
      case Reduction::deviation:
        return (x - mean) * (x - mean);
      default:
        return x;
    }
  }
  FASTNN_MEMBER float combine(float a, float b) const {
    switch (op) {
      case Reduction::prod:
        return a * b;
      case Reduction::max:
      case Reduction::abs_max:
        return a > b || a != a ? a : b;
      case Reduction::min:
        return a < b || a != a ? a : b;
      default:
        return a + b;
    }
  }
};

// Integers; sums and products wrap around. R is the result's type.
template <class R>
struct IntegerFold {
  Reduction op;
  R lowest, highest;
  FASTNN_MEMBER R identity() const {
    return op == Reduction::sum    ? R{0}
           : op == Reduction::prod ? R{1}
           : op == Reduction::max  ? lowest
                                   : highest;
  }
  FASTNN_MEMBER R map(R x, float) const { return x; }
  FASTNN_MEMBER R combine(R a, R b) const {
    switch (op) {
      case Reduction::sum:
        return static_cast<R>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
      case Reduction::prod:
        return static_cast<R>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
      case Reduction::max:
        return a > b ? a : b;
      default:
        return a < b ? a : b;
    }
  }
};

template <class R, class T>
FASTNN_DEVICE R value_of(T x) {
  if constexpr (std::is_same_v<T, bfloat16>)
    return to_float(x);
  else
    return static_cast<R>(x);
}

template <class R>
FASTNN_DEVICE R divided(R x, float divisor) {
  if constexpr (std::is_same_v<R, float>)
    return divisor == 1.0f ? x : x / divisor;
  else
    return x;
}

template <class T, int N, class R, class Fold, class Team>
__global__ void __launch_bounds__(kThreads) fold_rows_kernel(ReduceParams p, Fold fold) {
  const int64_t blocks = (p.count + p.block - 1) / p.block, rows = p.outer * blocks;
  Team::over_rows(rows, [&](int64_t row, bool there) {
    const int64_t o = row / blocks, begin = row % blocks * p.block,
                  end = begin + p.block < p.count ? begin + p.block : p.count;
    const T* const x = static_cast<const T*>(p.input) + o * p.count;
    const float mean = p.mean ? p.mean[o] : 0.0f;
    R mine = fold.identity();
    for (int64_t i = begin + Team::member() * N; i < end; i += Team::size * N) {
      const Pack<T, N> pack = load_pack<N>(x + i);
      for (const T v : pack.at) mine = fold.combine(mine, fold.map(value_of<R>(v), mean));
    }
    mine = Team::reduce(mine, [&](R a, R b) { return fold.combine(a, b); });
    if (there && Team::member() == 0) static_cast<R*>(p.output)[row] = divided(mine, p.divisor);
  });
}

template <class T, class R, class Fold>
struct FoldColumn {
  ReduceParams p;
  Fold fold;
  __device__ void operator()(int64_t at) const {
    const int64_t blocks = (p.count + p.block - 1) / p.block, j = at % p.inner, row = at / p.inner,
                  o = row / blocks, begin = row % blocks * p.block,
                  end = begin + p.block < p.count ? begin + p.block : p.count;
    const T* const x = static_cast<const T*>(p.input) + o * p.count * p.inner + j;
    const float mean = p.mean ? p.mean[o * p.inner + j] : 0.0f;
    R mine = fold.identity();
    for (int64_t i = begin; i < end; ++i)
      mine = fold.combine(mine, fold.map(value_of<R>(x[i * p.inner]), mean));
    static_cast<R*>(p.output)[at] = divided(mine, p.divisor);
  }
};

template <class T, class R, class Fold>
void fold_with(const ReduceParams& p, const Fold& fold) {
  const int64_t blocks = (p.count + p.block - 1) / p.block;
  if (p.inner != 1) return each(p.outer * blocks * p.inner, FoldColumn<T, R, Fold>{p, fold});
  const auto run = [&](auto pack) {
    with_team(p.outer * blocks, p.count < p.block ? p.count : p.block, [&](auto team, dim3 grid) {
      launch(fold_rows_kernel<T, decltype(pack)::value, R, Fold, decltype(team)>, grid, kThreads, 0,
             p, fold);
    });
  };
  // Packs divide both where they divide their bits together.
  with_pack<T>(p.count | p.block, run, static_cast<const T*>(p.input));
}

// What the columns' parts are combined by: that of op's results.
template <Reduction op>
struct Folded {
  float value = FloatFold{op}.identity();
  FASTNN_MEMBER void add(const Folded& other) { value = FloatFold{op}.combine(value, other.value); }
};
template <Reduction op>
struct FoldedWriter {
  float* out;
  float divisor;
  FASTNN_MEMBER void write(int64_t at, const Folded<op>& state) const {
    out[at] = divided(state.value, divisor);
  }
};
template <class T, int N, Reduction op>
struct FoldColumns {
  using State = Folded<op>;
  const T* x;
  const float* mean;
  int64_t C;
  FloatFold fold;

  struct Column : OneOperand<T, N> {
    static constexpr int kAhead = 8;
    FloatFold fold;
    float mean[N] = {};
    State state[N];
    FASTNN_MEMBER Column(const FoldColumns& body, int64_t segment, int64_t c)
        : OneOperand<T, N>{body.x}, fold(body.fold) {
      if (body.mean) load_terms(body.mean + segment * body.C + c, mean);
    }
    FASTNN_MEMBER void use(int64_t, const Pack<T, N>& from) {
      float v[N];
      to_floats(from, v);
      for (int n = 0; n < N; ++n) state[n].add({fold.map(v[n], mean[n])});
    }
  };
};
template <class T, Reduction op>
void fold_columns(const ReduceParams& p) {
  const T* const x = static_cast<const T*>(p.input);
  with_pack<T>(
      p.inner,
      [&](auto pack) {
        constexpr int N = decltype(pack)::value;
        reduce_columns<N>(FoldColumns<T, N, op>{x, p.mean, p.inner, {p.op}},
                          FoldedWriter<op>{static_cast<float*>(p.output), p.divisor}, p.outer,
                          p.count, p.inner);
      },
      x, p.mean);
}
template <class T>
void fold_floats(const ReduceParams& p) {
  if (p.block < p.count || !shares_columns(p.outer, p.count, p.inner))
    return fold_with<T, float>(p, FloatFold{p.op});
  switch (p.op) {
    case Reduction::prod:
      return fold_columns<T, Reduction::prod>(p);
    case Reduction::max:
    case Reduction::abs_max:
      return fold_columns<T, Reduction::max>(p);
    case Reduction::min:
      return fold_columns<T, Reduction::min>(p);
    default:
      return fold_columns<T, Reduction::sum>(p);
  }
}

template <class T>
void fold_integers(const ReduceParams& p, T lowest, T highest) {
  if (p.op == Reduction::max || p.op == Reduction::min)
    fold_with<T, T>(p, IntegerFold<T>{p.op, lowest, highest});
  else
    fold_with<T, int64_t>(p, IntegerFold<int64_t>{p.op, 0, 0});
}

void fold(const ReduceParams& p) {
  switch (p.dtype) {
    case DType::float32:
      return fold_floats<float>(p);
    case DType::bfloat16:
      return fold_floats<bfloat16>(p);
    case DType::int64:
      return fold_integers<int64_t>(p, INT64_MIN, INT64_MAX);
    case DType::int32:
      return fold_integers<int32_t>(p, INT32_MIN, INT32_MAX);
    default:
      return fold_integers<uint8_t>(p, 0, 255);
  }
}

// An element and where it is; the extreme of two is the first one where they are equal, and a NaN
// before all others.
template <class V>
struct Candidate {
  V value;
  int64_t at;  // -1: none
};
template <class V>
FASTNN_DEVICE Candidate<V> better(const Candidate<V>& a, const Candidate<V>& b, bool largest) {
  if (a.at < 0 || b.at < 0) return a.at < 0 ? b : a;
  const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
  const bool equal = a_nan || b_nan ? a_nan && b_nan : a.value == b.value;
  if (equal) return a.at < b.at ? a : b;
  const bool wins = a_nan || (!b_nan && (largest ? a.value > b.value : a.value < b.value));
  return wins ? a : b;
}

template <class T>
using ValueOf = std::conditional_t<std::is_same_v<T, bfloat16>, float, T>;

template <class T, class Team>
__global__ void __launch_bounds__(kThreads) pick_rows_kernel(PickParams p) {
  using V = ValueOf<T>;
  const int64_t blocks = (p.count + p.block - 1) / p.block, rows = p.outer * blocks;
  Team::over_rows(rows, [&](int64_t row, bool there) {
    const int64_t o = row / blocks, begin = row % blocks * p.block,
                  end = begin + p.block < p.count ? begin + p.block : p.count;
    const T* const x = static_cast<const T*>(p.input) + o * p.count;
    Candidate<V> best{V{}, -1};
    for (int64_t i = begin + Team::member(); i < end; i += Team::size)
      best = better(best, Candidate<V>{value_of<V>(x[i]), i}, p.largest);
    // The two halves of a candidate travel one after the other.
    for (int bits = Team::kOfWarp / 2; bits; bits >>= 1) {
      const Candidate<V> other{static_cast<V>(__shfl_xor_sync(0xffffffffu, best.value, bits)),
                               __shfl_xor_sync(0xffffffffu, best.at, bits)};
      best = better(best, other, p.largest);
    }
    if constexpr (Team::size > 32) {
      using Values = V[Team::size / 32];
      using Places = int64_t[Team::size / 32];
      FASTNN_SHARED(Values, values);
      FASTNN_SHARED(Places, places);
      __syncthreads();
      if (threadIdx.x % 32 == 0) {
        values[threadIdx.x / 32] = best.value;
        places[threadIdx.x / 32] = best.at;
      }
      __syncthreads();
      best = {values[0], places[0]};
      for (int w = 1; w < Team::size / 32; ++w)
        best = better(best, Candidate<V>{values[w], places[w]}, p.largest);
    }
    if (there && Team::member() == 0) {
      static_cast<T*>(p.values)[row] = x[best.at];
      p.indices[row] = p.positions ? p.positions[o * p.count + best.at] : best.at;
    }
  });
}

template <class T>
struct PickColumn {
  PickParams p;
  __device__ void operator()(int64_t at) const {
    using V = ValueOf<T>;
    const auto [outer, inner] = divide(at, p.inner);
    const T* const x = static_cast<const T*>(p.input) + outer * p.count * p.inner + inner;
    Candidate<V> best{V{}, -1};
    for (int64_t i = 0; i < p.count; ++i)
      best = better(best, Candidate<V>{value_of<V>(x[i * p.inner]), i}, p.largest);
    static_cast<T*>(p.values)[at] = x[best.at * p.inner];
    p.indices[at] = best.at;
  }
};

template <bool kLargest>
struct Best {
  Candidate<float> held{0, -1};
  FASTNN_MEMBER void add(const Best& other) { held = better(held, other.held, kLargest); }
};
template <class T, bool kLargest>
struct BestWriter {
  T* values;
  int64_t* indices;
  FASTNN_MEMBER void write(int64_t at, const Best<kLargest>& best) const {
    from_float(values[at], best.held.value);
    indices[at] = best.held.at;
  }
};
template <class T, int N, bool kLargest>
struct PickColumns {
  using State = Best<kLargest>;
  const T* x;
  int64_t count;

  struct Column : OneOperand<T, N> {
    static constexpr int kAhead = 4;
    struct Fetched {
      Pack<T, N> x;
      int64_t at;
    };
    int64_t first;  // row of the segment
    State state[N];
    FASTNN_MEMBER Column(const PickColumns& body, int64_t segment, int64_t)
        : OneOperand<T, N>{body.x}, first(segment * body.count) {}
    FASTNN_MEMBER void fetch(int64_t row, int64_t at, Fetched& to) const {
      to = {load_pack<N>(this->x + at), row - first};
    }
    FASTNN_MEMBER void use(int64_t, const Fetched& from) {
      float v[N];
      to_floats(from.x, v);
      for (int n = 0; n < N; ++n) state[n].add({{v[n], from.at}});
    }
  };
};
template <class T, bool kLargest>
void pick_columns(const PickParams& p) {
  const T* const x = static_cast<const T*>(p.input);
  with_pack<T>(
      p.inner,
      [&](auto pack) {
        constexpr int N = decltype(pack)::value;
        reduce_columns<N>(PickColumns<T, N, kLargest>{x, p.count},
                          BestWriter<T, kLargest>{static_cast<T*>(p.values), p.indices}, p.outer,
                          p.count, p.inner);
      },
      x);
}

template <class T>
void pick_typed(const PickParams& p) {
  if constexpr (std::is_same_v<ValueOf<T>, float>)
    if (shares_columns(p.outer, p.count, p.inner))
      return p.largest ? pick_columns<T, true>(p) : pick_columns<T, false>(p);
  if (p.inner != 1) return each(p.outer * p.inner, PickColumn<T>{p});
  const int64_t blocks = (p.count + p.block - 1) / p.block;
  with_team(p.outer * blocks, p.count < p.block ? p.count : p.block, [&](auto team, dim3 grid) {
    launch(pick_rows_kernel<T, decltype(team)>, grid, kThreads, 0, p);
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

template <class T>
struct Scatter {
  const T* g;
  const int64_t* indices;
  T* to;
  int64_t count, inner;
  __device__ void operator()(int64_t at) const {
    const auto [row, column] = divide(at, inner);
    to[(row * count + indices[at]) * inner + column] = g[at];
  }
};

template <class T>
void scatter_typed(const void* g, const int64_t* indices, void* to, int64_t outer, int64_t count,
                   int64_t inner) {
  each(outer * inner,
       Scatter<T>{static_cast<const T*>(g), indices, static_cast<T*>(to), count, inner});
}

void scatter(const void* grad_output, const int64_t* indices, void* grad_input, int64_t outer,
             int64_t count, int64_t inner, int64_t item_size) {
  if (item_size == 4)
    scatter_typed<uint32_t>(grad_output, indices, grad_input, outer, count, inner);
  else
    scatter_typed<uint16_t>(grad_output, indices, grad_input, outer, count, inner);
}

// Columns of the gradient of a product, in pieces: thread at = (row, piece, column) of outer x
// pieces x inner.
template <class T>
struct ProdPieces {
  const T* x;
  float* products;  // of each piece
  int64_t count, inner, pieces, length;

  struct Place {
    int64_t row, piece, column, begin, end;
  };
  FASTNN_MEMBER Place place(int64_t at) const {
    const auto [line, column] = divide(at, inner);
    const auto [row, piece] = divide(line, pieces);
    const int64_t begin = piece * length, end = begin + length < count ? begin + length : count;
    return {row, piece, column, begin, end};
  }
  FASTNN_MEMBER int64_t element(const Place& p, int64_t r) const {
    return (p.row * count + r) * inner + p.column;
  }
  FASTNN_MEMBER float product(const Place& p, int64_t piece) const {
    return products[(p.row * pieces + piece) * inner + p.column];
  }
  // The product of a piece.
  __device__ void operator()(int64_t at) const {
    const Place p = place(at);
    float product = 1.0f;
    for (int64_t r = p.begin; r < p.end; ++r) product *= to_float(x[element(p, r)]);
    products[at] = product;
  }
};

// Products of all before and of all after an element, so that zeros need no division.
template <class T>
struct ProdBackward {
  ProdPieces<T> in;
  const float* g;
  T* grad;
  float* before;  // like x
  __device__ void operator()(int64_t at) const {
    const auto p = in.place(at);
    float product = g[p.row * in.inner + p.column];
    for (int64_t i = 0; i < p.piece; ++i) product *= in.product(p, i);
    for (int64_t r = p.begin; r < p.end; ++r) {
      before[in.element(p, r)] = product;
      product *= to_float(in.x[in.element(p, r)]);
    }
    product = 1.0f;
    for (int64_t i = in.pieces - 1; i > p.piece; --i) product *= in.product(p, i);
    for (int64_t r = p.end - 1; r >= p.begin; --r) {
      from_float(grad[in.element(p, r)], before[in.element(p, r)] * product);
      product *= to_float(in.x[in.element(p, r)]);
    }
  }
};

void prod_backward(const float* g, const void* x, void* grad, int64_t outer, int64_t count,
                   int64_t inner, DType dtype) {
  // As many pieces as fill the device, but no more than a piece has elements: a thread goes over
  // both.
  const int64_t columns = outer * inner, wanted = int64_t{multiprocessors()} * 1024;
  int64_t pieces = 1;
  while (columns * pieces < wanted && 4 * pieces * pieces <= count) pieces *= 2;
  Workspace before(columns * count * 4), products(pieces > 1 ? columns * pieces * 4 : 0);
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const ProdPieces<T> in{static_cast<const T*>(x),     products.as<float>(), count, inner, pieces,
                           (count + pieces - 1) / pieces};
    if (pieces > 1) each(columns * pieces, in);
    each(columns * pieces, ProdBackward<T>{in, g, static_cast<T*>(grad), before.as<float>()});
  });
}

}  // namespace

void fill_reduce(Slots& slots) { slots.reduce = {fold, pick, scatter, prod_backward}; }

}  // namespace fastnn::cuda
