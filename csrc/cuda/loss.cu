// Losses. Class losses: a team per row of scores (device/teams.h), with target weights t_c w_c as
// in cpu/loss.cpp; the row comes from cache after its first pass. Pair losses are elementwise, 16
// bytes at a time.
// Means and sums: blocks add in double, one more kernel adds the blocks.
#include "cuda/device/teams.h"
#include "ops/slots.h"

namespace fastnn::cuda {
namespace {

FASTNN_DEVICE bool ignored(const ClassParams& p, int64_t row) {
  return p.labels && p.labels[row] == p.ignore_index;
}
// Whether the row's label is a class; what is not was reported (ops/loss.cpp) and is NaN here.
FASTNN_DEVICE bool outside(const ClassParams& p, int64_t row) {
  return p.labels && (p.labels[row] < 0 || p.labels[row] >= p.C);
}
FASTNN_DEVICE float target(const ClassParams& p, int64_t row, int64_t c) {
  const float w = p.weight ? p.weight[c] : 1.0f;
  const float t = p.labels ? (p.labels[row] == c ? 1.0f : 0.0f) : p.probabilities[row * p.C + c];
  return w * (t * (1.0f - p.smoothing) + p.smoothing / static_cast<float>(p.C));
}
FASTNN_DEVICE bool one_label(const ClassParams& p) { return p.labels && p.smoothing == 0.0f; }

// The largest score of a row and the logarithm of sum exp(x - largest).
struct LogSumExp {
  float highest, log_sum;
};
template <class Team, class T>
FASTNN_DEVICE LogSumExp log_sum_exp(const ClassParams& p, const T* x) {
  if (p.log_probabilities) return {0.0f, 0.0f};
  float top = -INFINITY, total = 0;
  for (int64_t c = Team::member(); c < p.C; c += Team::size) top = fmaxf(top, to_float(x[c]));
  top = Team::largest(top);
  for (int64_t c = Team::member(); c < p.C; c += Team::size)
    total += top == -INFINITY ? 0.0f : expf(to_float(x[c]) - top);
  total = Team::sum(total);
  return {top, top == -INFINITY ? 0.0f : logf(total)};
}

template <class Team, class T>
__global__ void __launch_bounds__(kThreads) classes_kernel(ClassParams p, float* loss) {
  Team::over_rows(p.rows, [&](int64_t row, bool there) {
    const T* const x = static_cast<const T*>(p.x) + row * p.C;
    const LogSumExp l = log_sum_exp<Team>(p, x);
    float sum = 0;
    if (one_label(p)) {
      if (!ignored(p, row) && !outside(p, row)) {
        const int64_t c = p.labels[row];
        sum = (p.weight ? p.weight[c] : 1.0f) * ((l.highest - to_float(x[c])) + l.log_sum);
      }
    } else {
      for (int64_t c = Team::member(); c < p.C; c += Team::size) {
        const float t = target(p, row, c);
        if (t != 0.0f) sum += t * ((l.highest - to_float(x[c])) + l.log_sum);
      }
      sum = Team::sum(sum);
    }
    if (there && Team::member() == 0)
      loss[row] = ignored(p, row) ? 0.0f : outside(p, row) ? NAN : sum;
  });
}

void classes(const ClassParams& p, float* loss) {
  if (p.rows == 0) return;
  with_team(p.rows, p.C, [&](auto team, dim3 grid) {
    with_type(p.dtype, [&](auto type) {
      launch(classes_kernel<decltype(team), decltype(type)>, grid, kThreads, 0, p, loss);
    });
  });
}

template <class Team, class T>
__global__ void __launch_bounds__(kThreads)
    classes_backward_kernel(ClassParams p, const float* scales, bool one_scale, T* grad_x) {
  Team::over_rows(p.rows, [&](int64_t row, bool there) {
    const T* const x = static_cast<const T*>(p.x) + row * p.C;
    const LogSumExp l = log_sum_exp<Team>(p, x);
    const bool bad = !ignored(p, row) && outside(p, row), none = ignored(p, row) || bad;
    const bool label = one_label(p);
    float all = 0;
    if (label) {
      all = none ? 0.0f : target(p, row, p.labels[row]);
    } else {
      for (int64_t c = Team::member(); c < p.C; c += Team::size) all += target(p, row, c);
      all = Team::sum(all);
    }
    if (!there) return;
    const float scale = scales[one_scale ? 0 : row];
    for (int64_t c = Team::member(); c < p.C; c += Team::size) {
      // Zero without a product: the scale may be infinite, as that of a mean over no weight is.
      float y = 0;
      if (!p.log_probabilities) y = expf((to_float(x[c]) - l.highest) - l.log_sum) * (all * scale);
      if (!label || p.labels[row] == c) y -= scale * target(p, row, c);
      from_float(grad_x[row * p.C + c], bad ? NAN : none ? 0.0f : y);
    }
  });
}

void classes_backward(const ClassParams& p, const float* scale, bool one_scale, void* grad_x) {
  if (p.rows == 0) return;
  with_team(p.rows, p.C, [&](auto team, dim3 grid) {
    with_type(p.dtype, [&](auto type) {
      using T = decltype(type);
      launch(classes_backward_kernel<decltype(team), T>, grid, kThreads, 0, p, scale, one_scale,
             static_cast<T*>(grad_x));
    });
  });
}

struct Element {
  const float* x;
  FASTNN_MEMBER double operator()(int64_t i) const { return x[i]; }
};
struct LabelWeight {
  ClassParams p;
  FASTNN_MEMBER double operator()(int64_t i) const {
    if (ignored(p, i)) return 0.0;
    return p.weight && !outside(p, i) ? static_cast<double>(p.weight[p.labels[i]]) : 1.0;
  }
};
struct Part {
  const double* parts;
  FASTNN_MEMBER double operator()(int64_t i) const { return parts[i]; }
};

template <class Term, class R>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(Term term, int64_t count, double divisor, R* out) {
  double sum = 0;
  for (int64_t i = first_thread(); i < count; i += all_threads()) sum += term(i);
  sum = block_sum(sum);
  if (threadIdx.x == 0) out[blockIdx.x] = static_cast<R>(sum / divisor);
}

template <class Term>
void sum_to(const Term& term, int64_t count, double divisor, float* out) {
  const unsigned blocks = blocks_for(count / 8);
  if (blocks == 1)
    return launch(sum_kernel<Term, float>, dim3(1), kThreads, 0, term, count, divisor, out);
  Workspace parts(int64_t{blocks} * 8);
  launch(sum_kernel<Term, double>, dim3(blocks), kThreads, 0, term, count, 1.0, parts.as<double>());
  launch(sum_kernel<Part, float>, dim3(1), kThreads, 0, Part{parts.as<double>()}, int64_t{blocks},
         divisor, out);
}

void label_weight(const ClassParams& p, float* out) { sum_to(LabelWeight{p}, p.rows, 1.0, out); }
void total(const float* x, int64_t count, double divisor, float* out) {
  sum_to(Element{x}, count, divisor, out);
}

// Of an input and its target, by how much a hit and the whole count.
FASTNN_DEVICE float pair_loss(const PairParams& p, float v, float t, float hit, float weight) {
  const float d = v - t;
  switch (p.kind) {
    case PairLoss::mse:
      return d * d;
    case PairLoss::l1:
      return fabsf(d);
    case PairLoss::smooth_l1:
      return fabsf(d) < p.a ? 0.5f * d * d / p.a : fabsf(d) - 0.5f * p.a;
    default: {
      // p t softplus(-x) + (1 - t) softplus(x), softplus(x) = log1p(e^-|x|) + max(x, 0)
      const float rest = log1pf(expf(-fabsf(v)));
      const float y = hit * t * (rest + fmaxf(-v, 0.0f)) + (1.0f - t) * (rest + fmaxf(v, 0.0f));
      return (v != v ? v : y) * weight;
    }
  }
}
FASTNN_DEVICE float pair_slope(const PairParams& p, float v, float t, float hit, float weight) {
  const float d = v - t, sign = d > 0 ? 1.0f : d < 0 ? -1.0f : d;
  switch (p.kind) {
    case PairLoss::mse:
      return 2.0f * d;
    case PairLoss::l1:
      return sign;
    case PairLoss::smooth_l1:
      return fabsf(d) < p.a ? d / p.a : sign;
    default:
      return ((1.0f - t) / (1.0f + expf(-v)) - hit * t / (1.0f + expf(v))) * weight;
  }
}

// y[n] = f(p, input, target, pos_weight, weight) of N pairs from `at` on.
template <class T, int N, class F>
FASTNN_DEVICE void each_pair(const PairParams& p, int64_t at, float (&y)[N], const F& f) {
  float v[N], t[N], hit[N], weight[N];
  load_floats(static_cast<const T*>(p.x) + at, v);
  load_floats(static_cast<const T*>(p.t) + at, t);
  for (int n = 0; n < N; ++n) hit[n] = weight[n] = 1.0f;
  if (p.pos_weight) load_terms(p.pos_weight + at, hit);
  if (p.weight) load_terms(p.weight + at, weight);
  for (int n = 0; n < N; ++n) y[n] = f(p, v[n], t[n], hit[n], weight[n]);
}
struct PairValue {
  FASTNN_MEMBER float operator()(const PairParams& p, float v, float t, float hit, float w) const {
    return pair_loss(p, v, t, hit, w);
  }
};
struct PairSlope {
  FASTNN_MEMBER float operator()(const PairParams& p, float v, float t, float hit, float w) const {
    return pair_slope(p, v, t, hit, w);
  }
};

template <class T, int N>
struct Pairs {
  PairParams p;
  float* loss;
  __device__ void operator()(int64_t i) const {
    take_pack<N>(i, p.count, [&](int64_t at, auto width) {
      float y[decltype(width)::value];
      each_pair<T>(p, at, y, PairValue{});
      store_terms(loss + at, y);
    });
  }
};
template <class T, int N>
struct PairsTerm {  // of sum_to()
  PairParams p;
  FASTNN_MEMBER double operator()(int64_t i) const {
    double sum = 0;
    take_pack<N>(i, p.count, [&](int64_t at, auto width) {
      float y[decltype(width)::value];
      each_pair<T>(p, at, y, PairValue{});
      for (const float one : y) sum += one;
    });
    return sum;
  }
};
template <class T, int N>
struct PairsBackward {
  PairParams p;
  const float* scale;
  bool one_scale;
  T* grad_x;
  __device__ void operator()(int64_t i) const {
    take_pack<N>(i, p.count, [&](int64_t at, auto width) {
      constexpr int kWidth = decltype(width)::value;
      float y[kWidth], by[kWidth];
      each_pair<T>(p, at, y, PairSlope{});
      if (!one_scale) load_terms(scale + at, by);
      for (int n = 0; n < kWidth; ++n) y[n] *= one_scale ? scale[0] : by[n];
      store_floats(grad_x + at, y);
    });
  }
};

// f(T, N, packs) with the pairs that a thread takes at a time.
template <class F, class... P>
void with_pairs(const PairParams& p, const F& f, const P*... pointers) {
  with_type(p.dtype, [&](auto type) {
    using T = decltype(type);
    const auto run = [&](auto pack) {
      constexpr int N = decltype(pack)::value;
      f(type, pack, (p.count + N - 1) / N);
    };
    // The last pack may end early.
    with_pack<T>(0, run, static_cast<const T*>(p.x), static_cast<const T*>(p.t), p.weight,
                 p.pos_weight, pointers...);
  });
}

void pairs(const PairParams& p, float* loss) {
  with_pairs(
      p,
      [&](auto type, auto pack, int64_t packs) {
        each(packs, Pairs<decltype(type), decltype(pack)::value>{p, loss});
      },
      loss);
}
void pairs_total(const PairParams& p, double divisor, float* out) {
  with_pairs(p, [&](auto type, auto pack, int64_t packs) {
    sum_to(PairsTerm<decltype(type), decltype(pack)::value>{p}, packs, divisor, out);
  });
}
void pairs_backward(const PairParams& p, const float* scale, bool one_scale, void* grad_x) {
  with_pairs(
      p,
      [&](auto type, auto pack, int64_t packs) {
        using T = decltype(type);
        each(packs,
             PairsBackward<T, decltype(pack)::value>{p, scale, one_scale, static_cast<T*>(grad_x)});
      },
      one_scale ? nullptr : scale, static_cast<const char*>(grad_x));
}

}  // namespace

void fill_loss(Slots& slots) {
  slots.loss = {classes, classes_backward, label_weight, total, pairs, pairs_total, pairs_backward};
}

}  // namespace fastnn::cuda
