// Losses.
//
// Class losses, per row with logits x, target distribution t (one-hot labels or probabilities,
// smoothed by s: t (1 - s) + s / C) and class weights w:
//   loss = sum_c t_c w_c (log sum exp(x) - x_c),  d loss / d x_k = (sum_c t_c w_c) softmax_k - t_k
//   w_k.
// One pass for the maximum, one for the sum, one for the result, with the row in L1.
// Pair losses are elementwise: two reads, one write.
#include "cpu/simd/math.h"
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

// Target weight of class c: t_c w_c.
struct Target {
  const ClassParams& p;
  int64_t row;

  __attribute__((always_inline)) float operator()(int64_t c) const {
    const float w = p.weight ? p.weight[c] : 1.0f;
    const float t = p.labels ? (p.labels[row] == c ? 1.0f : 0.0f) : p.probabilities[row * p.C + c];
    return w * (t * (1.0f - p.smoothing) + p.smoothing / static_cast<float>(p.C));
  }
};

bool ignored(const ClassParams& p, int64_t row) {
  return p.labels && p.labels[row] == p.ignore_index;
}

// log sum exp of a row, as its largest score and the logarithm of the sum relative to it: added
// together they would lose the logarithm where the scores share a large offset.
struct LogSumExp {
  float highest, log_sum;
};

LogSumExp log_sum_exp(const float* x, int64_t C) {
  vfloat top = set1(-__builtin_inff()), total{};
  vector_loop(0, C, [&](int64_t c, int n) {
    top = vmax(top, filled(load_any(x + c, n), n, -__builtin_inff()));
  });
  const float highest = max_lane(top);
  if (highest == -__builtin_inff()) return {highest, 0.0f};
  // A NaN that the maximum has passed over comes back with the sum.
  vector_loop(0, C, [&](int64_t c, int n) {
    total += filled(vexp(load_any(x + c, n) - highest), n, 0.0f);
  });
  return {highest, vlog(set1(sum(total)))[0]};
}

bool one_label(const ClassParams& p) { return p.labels && p.smoothing == 0.0f; }

void classes(const ClassParams& p, float* loss) {
  parallel_ranges(p.rows, kGrain / (8 * p.C) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* x = p.x + row * p.C;
      if (ignored(p, row)) {
        loss[row] = 0;
        continue;
      }
      const LogSumExp l = p.log_probabilities ? LogSumExp{0.0f, 0.0f} : log_sum_exp(x, p.C);
      if (one_label(p)) {
        const int64_t c = p.labels[row];
        loss[row] = (p.weight ? p.weight[c] : 1.0f) * ((l.highest - x[c]) + l.log_sum);
        continue;
      }
      const Target target{p, row};
      float total = 0;
      for (int64_t c = 0; c < p.C; ++c) {
        const float t = target(c);
        if (t != 0.0f) total += t * ((l.highest - x[c]) + l.log_sum);
      }
      loss[row] = total;
    }
  });
}

void classes_backward(const ClassParams& p, const float* row_scale, float* grad_x) {
  parallel_ranges(p.rows, kGrain / (8 * p.C) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* x = p.x + row * p.C;
      float* g = grad_x + row * p.C;
      if (ignored(p, row)) {
        __builtin_memset(g, 0, sizeof(float) * static_cast<size_t>(p.C));
        continue;
      }
      const Target target{p, row};
      const int64_t label = one_label(p) ? p.labels[row] : -1;
      float all = 0;
      if (label >= 0)
        all = target(label);
      else
        for (int64_t c = 0; c < p.C; ++c) all += target(c);
      const float scale = row_scale[row];
      if (p.log_probabilities) {
        __builtin_memset(g, 0, sizeof(float) * static_cast<size_t>(p.C));
      } else {
        const LogSumExp l = log_sum_exp(x, p.C);
        const float factor = all * scale;
        vector_loop(0, p.C, [&](int64_t c, int n) {
          store_any(g + c, vexp((load_any(x + c, n) - l.highest) - l.log_sum) * factor, n);
        });
      }
      if (label >= 0)
        g[label] -= scale * all;
      else
        for (int64_t c = 0; c < p.C; ++c) g[c] -= scale * target(c);
    }
  });
}

FASTNN_INLINE vfloat ones_or(const float* p, int64_t i, int n) {
  return p ? load_any(p + i, n) : set1(1.0f);
}

void pairs(PairLoss kind, float a, const float* x, const float* t, const float* weight,
           const float* pos_weight, int64_t count, float* loss) {
  parallel_ranges(count, kGrain, [&](int64_t begin, int64_t end) {
    vector_loop(begin, end, [&](int64_t i, int n) {
      const vfloat v = load_any(x + i, n), target = load_any(t + i, n), d = v - target;
      vfloat y;
      switch (kind) {
        case PairLoss::mse:
          y = d * d;
          break;
        case PairLoss::l1:
          y = vabs(d);
          break;
        case PairLoss::smooth_l1:
          y = select(vabs(d) < a, 0.5f * d * d / a, vabs(d) - 0.5f * a);
          break;
        default: {
          // p t softplus(-x) + (1 - t) softplus(x), softplus(x) = log1p(e^-|x|) + max(x, 0)
          const vfloat rest = vlog1p(vexp(-vabs(v)));
          const vfloat hit = ones_or(pos_weight, i, n) * target * (rest + vmax(-v, vfloat{}));
          y = (hit + (1.0f - target) * (rest + vmax(v, vfloat{}))) * ones_or(weight, i, n);
        }
      }
      store_any(loss + i, y, n);
    });
  });
}

void pairs_backward(PairLoss kind, float a, const float* x, const float* t, const float* weight,
                    const float* pos_weight, const float* scale, bool one_scale, int64_t count,
                    float* grad_x) {
  parallel_ranges(count, kGrain, [&](int64_t begin, int64_t end) {
    vector_loop(begin, end, [&](int64_t i, int n) {
      const vfloat v = load_any(x + i, n), target = load_any(t + i, n), d = v - target;
      const vfloat sign = select(d > 0, set1(1.0f), select(d < 0, set1(-1.0f), d));
      vfloat y;
      switch (kind) {
        case PairLoss::mse:
          y = 2.0f * d;
          break;
        case PairLoss::l1:
          y = sign;
          break;
        case PairLoss::smooth_l1:
          y = select(vabs(d) < a, d / a, sign);
          break;
        default: {
          const vfloat hit = ones_or(pos_weight, i, n) * target * vsigmoid(-v);
          y = ((1.0f - target) * vsigmoid(v) - hit) * ones_or(weight, i, n);
        }
      }
      store_any(grad_x + i, y * (one_scale ? set1(scale[0]) : load_any(scale + i, n)), n);
    });
  });
}

}  // namespace

void fill_loss(Slots& slots) { slots.loss = {classes, classes_backward, pairs, pairs_backward}; }

}  // namespace fastnn::cpu::FASTNN_ISA
