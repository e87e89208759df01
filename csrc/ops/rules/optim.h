// One step of each optimizer for one element, written once: V is a float or a vector of floats, and
// `root(v)` its square root. Formulas and defaults are PyTorch's.
#pragma once

#include "core/dtype.h"

namespace fastnn {

struct OptimStep {
  float lr, weight_decay;
  float a, b, eps;                 // per optimizer, see the rules
  float rest_a, rest_b;            // 1 - a and 1 - b, subtracted in double
  float correction1, correction2;  // Adam: 1 - beta^step
  bool nesterov, first, amsgrad, centered, decoupled, maximize, has_momentum;
  float dampening, momentum;
};

// Sutskever et al., "On the importance of initialization and momentum", 2013.
// m: momentum buffer.
template <class V>
FASTNN_INLINE void sgd_rule(const OptimStep& s, V& p, V g, V& m) {
  if (s.has_momentum) {
    m = s.first ? g : m * s.momentum + g * (1.0f - s.dampening);
    g = s.nesterov ? g + m * s.momentum : m;
  }
  p = p - g * s.lr;
}

// Kingma and Ba, "Adam", 2014; Loshchilov and Hutter, "Decoupled weight decay", 2017; Reddi, Kale,
// Kumar, "On the convergence of Adam and beyond", 2018. a, b: betas; m, v: moments; top: largest v.
template <class V, class Root, class Max>
FASTNN_INLINE void adam_rule(const OptimStep& s, V& p, V g, V& m, V& v, V& top, const Root& root,
                             const Max& larger) {
  m = m + (g - m) * s.rest_a;
  v = v * s.b + g * g * s.rest_b;
  V used = v;
  if (s.amsgrad) used = top = larger(top, v);
  p = p - m * (s.lr / s.correction1) / (root(used) / root(V{} + s.correction2) + s.eps);
}

// Duchi, Hazan, Singer, "Adaptive subgradient methods", 2011. v: sum of squares; lr is decayed
// already.
template <class V, class Root>
FASTNN_INLINE void adagrad_rule(const OptimStep& s, V& p, V g, V& v, const Root& root) {
  v = v + g * g;
  p = p - g * s.lr / (root(v) + s.eps);
}

// Tieleman and Hinton, lecture 6.5, 2012. a: alpha; v: mean square; mean: mean; m: momentum buffer.
template <class V, class Root, class Max>
FASTNN_INLINE void rmsprop_rule(const OptimStep& s, V& p, V g, V& v, V& mean, V& m,
                                const Root& root, const Max& larger) {
  v = v * s.a + g * g * s.rest_a;
  V spread = v;
  if (s.centered) {
    mean = mean + (g - mean) * s.rest_a;
    spread = larger(v - mean * mean, V{});  // rounding may fall below zero
  }
  V change = g / (root(spread) + s.eps);
  if (s.has_momentum) change = m = m * s.momentum + change;
  p = p - change * s.lr;
}

// Zeiler, "Adadelta", 2012. a: rho; v: mean square gradient; d: mean square change.
template <class V, class Root>
FASTNN_INLINE void adadelta_rule(const OptimStep& s, V& p, V g, V& v, V& d, const Root& root) {
  v = v * s.a + g * g * s.rest_a;
  const V change = root(d + s.eps) / root(v + s.eps) * g;
  d = d * s.a + change * change * s.rest_a;
  p = p - change * s.lr;
}

}  // namespace fastnn
