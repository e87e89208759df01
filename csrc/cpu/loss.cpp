// Losses.
//
// Class losses, per row with logits x, target distribution t (one-hot labels or probabilities,
// smoothed by s: t (1 - s) + s / C) and class weights w:
//   loss = sum_c t_c w_c (log sum exp(x) - x_c),  d loss / d x_k = (sum_c t_c w_c) softmax_k - t_k
//   w_k.
// One pass for the maximum, one for the sum, one for the result, with the row in L1; rows of few
// classes go one per lane (few_columns.h). Floor: one read forward, one read and one write
// backward. Pair losses are elementwise: two reads, one write.
#include "core/allocator.h"
#include "cpu/few_columns.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

bool ignored(const ClassParams& p, int64_t row) {
  return p.labels && p.labels[row] == p.ignore_index;
}

// log sum exp of a row, as its largest score and the logarithm of the sum relative to it: added
// together they would lose the logarithm where the scores share a large offset.
struct LogSumExp {
  float highest, log_sum;
};

template <class T>
LogSumExp log_sum_exp(const T* x, int64_t C) {
  vfloat top = set1(-__builtin_inff()), total{};
  vector_loop(0, C, [&](int64_t c, int n) {
    top = vmax(top, filled(load_any(x + c, n), n, -__builtin_inff()));
  });
  const float highest = max_lane(top);
  if (highest == -__builtin_inff()) return {highest, 0.0f};
  // A NaN that the maximum has passed over comes back with the sum.
  vector_loop(0, C, [&](int64_t c, int n) {
    total += filled(vexp_low(load_any(x + c, n) - highest), n, 0.0f);
  });
  return {highest, vlog(set1(sum(total)))[0]};
}

FASTNN_INLINE vfloat ones_or(const float* p, int64_t i, int n) {
  return p ? load_any(p + i, n) : set1(1.0f);
}

bool one_label(const ClassParams& p) { return p.labels && p.smoothing == 0.0f; }

// Target weight t_c w_c of the label's class less its share of the smoothing, and the share that
// every class has: all there is for labels.
float label_weight(const ClassParams& p, int64_t row) {
  return (p.weight ? p.weight[p.labels[row]] : 1.0f) * (1.0f - p.smoothing);
}
float share(const ClassParams& p) { return p.smoothing / static_cast<float>(p.C); }

FASTNN_INLINE vfloat smoothed(const ClassParams& p, vfloat t) {
  return t * (1.0f - p.smoothing) + share(p);
}

// Target weights of classes c .. c + n - 1.
FASTNN_INLINE vfloat targets(const ClassParams& p, int64_t row, int64_t c, int n) {
  const vfloat t =
      p.labels ? select(lanes() == static_cast<int32_t>(p.labels[row] - c), set1(1.0f), vfloat{})
               : load_any(p.probabilities + row * p.C + c, n);
  return ones_or(p.weight, c, n) * smoothed(p, t);
}

template <class T>
const T* scores(const ClassParams& p, int64_t row) {
  return static_cast<const T*>(p.x) + row * p.C;
}

template <class T>
void loss_of_row(const ClassParams& p, int64_t row, float* loss) {
  const T* x = scores<T>(p, row);
  if (ignored(p, row)) {
    loss[row] = 0;
    return;
  }
  const LogSumExp l = p.log_probabilities ? LogSumExp{0.0f, 0.0f} : log_sum_exp(x, p.C);
  if (one_label(p)) {
    loss[row] = label_weight(p, row) * ((l.highest - to_float(x[p.labels[row]])) + l.log_sum);
    return;
  }
  vfloat total{};
  vector_loop(0, p.C, [&](int64_t c, int n) {
    // A class without weight counts for nothing, though its score be infinite.
    const vfloat t = targets(p, row, c, n), nll = (l.highest - load_any(x + c, n)) + l.log_sum;
    total += filled(select(t != 0.0f, t * nll, vfloat{}), n, 0.0f);
  });
  loss[row] = sum(total);
}

// The target of class c of a block of rows, but for the part of labels, times the class's weight.
FASTNN_INLINE vfloat target(const ClassParams& p, const Block& probabilities, int64_t c) {
  const vfloat t = smoothed(p, p.labels ? vfloat{} : probabilities[c]);
  return p.weight ? t * p.weight[c] : t;
}

template <class T>
void loss_of_block(const ClassParams& p, int64_t row, float* loss) {
  Block x, exponentials;
  load_block(scores<T>(p, row), p.C, x);
  const RowExponents e = exponents(x, p.C, exponentials);
  const vfloat log_sum = select(e.highest == -__builtin_inff(), vfloat{}, vlog(e.sum));
  vfloat total{};
  if (!one_label(p)) {
    Block probabilities;
    if (!p.labels) load_block(p.probabilities + row * p.C, p.C, probabilities);
    for (int64_t c = 0; c < p.C; ++c) {
      const vfloat t = target(p, probabilities, c), nll = (e.highest - x[c]) + log_sum;
      total += select(t != 0.0f, t * nll, vfloat{});
    }
  }
  store(loss + row, total);
  if (!p.labels) return;
  float highest[LANES], logs[LANES];
  store(highest, e.highest);
  store(logs, log_sum);
  for (int64_t r = 0; r < LANES; ++r)
    if (ignored(p, row + r)) {
      loss[row + r] = 0;
    } else {
      // One label's score counts whatever its weight, as in loss_of_row and in PyTorch.
      const float t = label_weight(p, row + r);
      if (t != 0.0f || one_label(p))
        loss[row + r] += t * ((highest[r] - x.values[p.labels[row + r] * LANES + r]) + logs[r]);
    }
}

template <class T>
void classes_typed(const ClassParams& p, float* loss) {
  const auto one = [&](int64_t row) { loss_of_row<T>(p, row, loss); };
  if (p.log_probabilities)
    parallel_ranges(p.rows, kGrain / 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) one(row);
    });
  else
    each_row(p.rows, p.C, [&](int64_t row) { loss_of_block<T>(p, row, loss); }, one);
}

// Sum of the target weights of a row: what its softmax is multiplied with.
float total_weight(const ClassParams& p, int64_t row) {
  if (one_label(p)) return label_weight(p, row);
  vfloat all{};
  vector_loop(0, p.C, [&](int64_t c, int n) { all += filled(targets(p, row, c, n), n, 0.0f); });
  return sum(all);
}

template <class T>
void gradient_of_row(const ClassParams& p, int64_t row, float scale, T* g) {
  const T* x = scores<T>(p, row);
  if (ignored(p, row) || p.log_probabilities)
    __builtin_memset(g, 0, sizeof(T) * static_cast<size_t>(p.C));
  if (ignored(p, row)) return;
  const bool label = one_label(p);
  float of_label = 0;
  if (!p.log_probabilities) {
    const LogSumExp l = log_sum_exp(x, p.C);
    const float factor = total_weight(p, row) * scale;
    const auto softmax = [&](vfloat v) { return vexp_low((v - l.highest) - l.log_sum) * factor; };
    vector_loop(0, p.C, [&](int64_t c, int n) {
      vfloat v = softmax(load_any(x + c, n));
      if (!label) v -= scale * targets(p, row, c, n);
      store_any(g + c, v, n);
    });
    if (label) of_label = softmax(set1(to_float(x[p.labels[row]])))[0];
  }
  if (label) from_float(g[p.labels[row]], of_label - scale * label_weight(p, row));
}

template <class T>
void gradient_of_block(const ClassParams& p, int64_t row, const float* scales, T* g) {
  Block x, y, probabilities;
  load_block(scores<T>(p, row), p.C, x);
  const RowExponents e = exponents(x, p.C, y);
  vfloat all{};
  vint kept{};
  if (p.labels) {
    for (int r = 0; r < LANES; ++r)
      if (!ignored(p, row + r)) kept[r] = -1, all[r] = label_weight(p, row + r);
  } else {
    load_block(p.probabilities + row * p.C, p.C, probabilities);
    kept = ~kept;
  }
  const vfloat scale = load(scales), of_labels = all * scale;
  if (!one_label(p))
    for (int64_t c = 0; c < p.C; ++c) all += target(p, probabilities, c);
  const vfloat factor = all * scale / e.sum;
  for (int64_t c = 0; c < p.C; ++c) {
    vfloat v = y[c] * factor;
    if (!one_label(p)) v -= scale * target(p, probabilities, c);
    y.set(c, select(kept, v, vfloat{}));
  }
  if (p.labels)
    for (int r = 0; r < LANES; ++r)
      if (kept[r]) y.values[p.labels[row + r] * LANES + r] -= of_labels[r];
  store_block(y, p.C, g);
}

template <class T>
void classes_backward_typed(const ClassParams& p, const float* scale, bool one_scale, T* grad_x) {
  const auto one = [&](int64_t row) {
    gradient_of_row(p, row, scale[one_scale ? 0 : row], grad_x + row * p.C);
  };
  if (p.log_probabilities)
    parallel_ranges(p.rows, kGrain / (4 * p.C) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) one(row);
    });
  else
    each_row(
        p.rows, p.C,
        [&](int64_t row) {
          float scales[LANES];
          for (int64_t r = 0; r < LANES; ++r) scales[r] = scale[one_scale ? 0 : row + r];
          gradient_of_block(p, row, scales, grad_x + row * p.C);
        },
        one);
}

void classes(const ClassParams& p, float* loss) {
  p.dtype == DType::float32 ? classes_typed<float>(p, loss) : classes_typed<bfloat16>(p, loss);
}
void classes_backward(const ClassParams& p, const float* scale, bool one_scale, void* grad_x) {
  if (p.dtype == DType::float32)
    classes_backward_typed(p, scale, one_scale, static_cast<float*>(grad_x));
  else
    classes_backward_typed(p, scale, one_scale, static_cast<bfloat16*>(grad_x));
}

// One chunk at a time, then over the chunks, in double.
template <class Term>
void sum_to(int64_t count, double divisor, float* out, const Term& term, int64_t chunk = 1 << 16) {
  const int64_t chunks = (count + chunk - 1) / chunk;
  Workspace memory((chunks + 1) * 8);
  auto* parts = reinterpret_cast<double*>(memory.floats());
  parallel_ranges(count, chunk, [&](int64_t begin, int64_t end) {
    double sum = 0;
    for (int64_t i = begin; i < end; ++i) sum += term(i);
    parts[begin / chunk] = sum;
  });
  double sum = 0;
  for (int64_t i = 0; i < chunks; ++i) sum += parts[i];
  out[0] = static_cast<float>(sum / divisor);
}

void total(const float* x, int64_t count, double divisor, float* out) {
  sum_to(count, divisor, out, [&](int64_t i) { return static_cast<double>(x[i]); });
}

void sum_label_weights(const ClassParams& p, float* out) {
  sum_to(p.rows, 1.0, out, [&](int64_t i) {
    return ignored(p, i) ? 0.0 : p.weight ? static_cast<double>(p.weight[p.labels[i]]) : 1.0;
  });
}

// The loss of elements i .. i + n - 1.
template <class T>
FASTNN_INLINE vfloat pair_losses(const PairParams& p, const T* x, const T* t, int64_t i, int n) {
  const vfloat v = load_any(x + i, n), target = load_any(t + i, n), d = v - target;
  switch (p.kind) {
    case PairLoss::mse:
      return d * d;
    case PairLoss::l1:
      return vabs(d);
    case PairLoss::smooth_l1:
      return select(vabs(d) < p.a, 0.5f * d * d / p.a, vabs(d) - 0.5f * p.a);
    default: {
      // p t softplus(-x) + (1 - t) softplus(x), softplus(x) = log1p(e^-|x|) + max(x, 0)
      const vfloat rest = vlog1p(vexp_low(-vabs(v)));
      const vfloat hit = ones_or(p.pos_weight, i, n) * target * (rest + vmax(-v, vfloat{}));
      return (hit + (1.0f - target) * (rest + vmax(v, vfloat{}))) * ones_or(p.weight, i, n);
    }
  }
}

template <class T>
void pairs_typed(const PairParams& p, float* loss) {
  const T* const x = static_cast<const T*>(p.x);
  const T* const t = static_cast<const T*>(p.t);
  parallel_ranges(p.count, kGrain, [&](int64_t begin, int64_t end) {
    vector_loop(begin, end,
                [&](int64_t i, int n) { store_any(loss + i, pair_losses(p, x, t, i, n), n); });
  });
}

template <class T>
void pairs_total_typed(const PairParams& p, double divisor, float* out) {
  // Short runs in float, one sum per lane, joined in double.
  constexpr int64_t kRun = 1024;
  const T* const x = static_cast<const T*>(p.x);
  const T* const t = static_cast<const T*>(p.t);
  sum_to((p.count + kRun - 1) / kRun, divisor, out,
         [&](int64_t run) {
           const int64_t begin = run * kRun, end = begin + kRun < p.count ? begin + kRun : p.count;
           vfloat total{};
           vector_loop(begin, end, [&](int64_t i, int n) {
             total += filled(pair_losses(p, x, t, i, n), n, 0.0f);
           });
           return static_cast<double>(sum(total));
         },
         kGrain / kRun + 1);
}

template <class T>
void pairs_backward_typed(const PairParams& p, const float* scale, bool one_scale, T* grad_x) {
  const T* const x = static_cast<const T*>(p.x);
  const T* const t = static_cast<const T*>(p.t);
  parallel_ranges(p.count, kGrain, [&](int64_t begin, int64_t end) {
    vector_loop(begin, end, [&](int64_t i, int n) {
      const vfloat v = load_any(x + i, n), target = load_any(t + i, n), d = v - target;
      const vfloat sign = select(d > 0, set1(1.0f), select(d < 0, set1(-1.0f), d));
      vfloat y;
      switch (p.kind) {
        case PairLoss::mse:
          y = 2.0f * d;
          break;
        case PairLoss::l1:
          y = sign;
          break;
        case PairLoss::smooth_l1:
          y = select(vabs(d) < p.a, d / p.a, sign);
          break;
        default: {
          const Sigmoid s = vsigmoids(v);
          const vfloat hit = ones_or(p.pos_weight, i, n) * target * s.rest;
          y = ((1.0f - target) * s.value - hit) * ones_or(p.weight, i, n);
        }
      }
      store_any(grad_x + i, y * (one_scale ? set1(scale[0]) : load_any(scale + i, n)), n);
    });
  });
}

void pairs(const PairParams& p, float* loss) {
  p.dtype == DType::float32 ? pairs_typed<float>(p, loss) : pairs_typed<bfloat16>(p, loss);
}
void pairs_total(const PairParams& p, double divisor, float* out) {
  p.dtype == DType::float32 ? pairs_total_typed<float>(p, divisor, out)
                            : pairs_total_typed<bfloat16>(p, divisor, out);
}
void pairs_backward(const PairParams& p, const float* scale, bool one_scale, void* grad_x) {
  if (p.dtype == DType::float32)
    pairs_backward_typed(p, scale, one_scale, static_cast<float*>(grad_x));
  else
    pairs_backward_typed(p, scale, one_scale, static_cast<bfloat16*>(grad_x));
}

}  // namespace

void fill_loss(Slots& slots) {
  slots.loss = {classes, classes_backward, sum_label_weights, total,
                pairs,   pairs_total,      pairs_backward};
}

}  // namespace fastnn::cpu::FASTNN_ISA
