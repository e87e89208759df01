"""Optimizer steps over lists of tensors, in place: one fused pass over all of them.

:mod:`fastnn.optim` keeps the state and calls these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fastnn._core as _core
from fastnn.autograd import no_grad
from fastnn.functional.elementwise import clamp
from fastnn.functional.reduce import norm
from fastnn.functional.shape import stack
from fastnn.tensor import Tensor

__all__ = [
    "adadelta_step", "adagrad_step", "adam_step", "clip_grad_norm", "clip_grad_value",
    "rmsprop_step", "sgd_step",
]  # fmt: skip

Tensors = Sequence[Tensor]


def _step(
    kind: str,
    params: Tensors,
    grads: Tensors,
    states: Sequence[Tensors | None],
    numbers: dict[str, float],
    **flags: bool,
) -> None:
    _core.optimizer_step(
        kind,
        [p._array for p in params],
        [g._array for g in grads],
        [[] if s is None else [t._array for t in s] for s in states],
        numbers,
        flags,
    )


def sgd_step(
    params: Tensors,
    grads: Tensors,
    momentum_buffers: Tensors | None = None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    first: bool = False,
) -> None:
    """Stochastic gradient descent, in place on ``params`` and ``momentum_buffers``.

    ``g += weight_decay * p; m = momentum * m + (1 - dampening) * g; p -= lr * m`` (or
    ``p -= lr * (g + momentum * m)`` with ``nesterov``); on the ``first`` step ``m = g``.

    Raises:
        ValueError: lists or shapes do not match, or a tensor is read-only.

    References:
        Sutskever et al., "On the importance of initialization and momentum", 2013.
    """
    numbers = {
        "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
    }  # fmt: skip
    _step("sgd", params, grads, [momentum_buffers if momentum else None], numbers,
          nesterov=nesterov, maximize=maximize, first=first)  # fmt: skip


def adam_step(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    max_exp_avg_sqs: Tensors | None = None,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
) -> None:
    """Adam or, with ``decoupled`` weight decay, AdamW, in place; AMSGrad where its buffers are given.

    ``m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
    p -= lr / (1 - b1^step) * m / (sqrt(v / (1 - b2^step)) + eps)``

    Raises:
        ValueError: lists or shapes do not match, or a tensor is read-only.

    References:
        Kingma and Ba, 2014; Loshchilov and Hutter, 2017; Reddi, Kale, Kumar, 2018.
    """
    numbers = {
        "lr": lr, "a": betas[0], "b": betas[1], "eps": eps, "weight_decay": weight_decay,
        "correction1": 1 - betas[0] ** step, "correction2": 1 - betas[1] ** step,
    }  # fmt: skip
    _step("adam", params, grads, [exp_avgs, exp_avg_sqs, max_exp_avg_sqs], numbers,
          decoupled=decoupled, maximize=maximize, amsgrad=max_exp_avg_sqs is not None)  # fmt: skip


def adagrad_step(
    params: Tensors,
    grads: Tensors,
    state_sums: Tensors,
    *,
    step: int,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """Adagrad, in place: ``s += g^2; p -= lr / (1 + (step - 1) lr_decay) * g / (sqrt(s) + eps)``.

    Raises:
        ValueError: lists or shapes do not match, or a tensor is read-only.

    References:
        Duchi, Hazan, Singer, "Adaptive subgradient methods", 2011.
    """
    rate = lr / (1 + (step - 1) * lr_decay)
    numbers = {"lr": rate, "eps": eps, "weight_decay": weight_decay}
    _step("adagrad", params, grads, [state_sums], numbers, maximize=maximize)


def rmsprop_step(
    params: Tensors,
    grads: Tensors,
    square_avgs: Tensors,
    grad_avgs: Tensors | None = None,
    momentum_buffers: Tensors | None = None,
    *,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    maximize: bool = False,
) -> None:
    """RMSprop, in place; centered where ``grad_avgs`` are given.

    ``v = alpha v + (1 - alpha) g^2; p -= lr g / (sqrt(v) + eps)``, through a momentum buffer if
    ``momentum`` is not zero.

    Raises:
        ValueError: lists or shapes do not match, or a tensor is read-only.

    References:
        Tieleman and Hinton, "Lecture 6.5", 2012.
    """
    numbers = {
        "lr": lr, "a": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum,
    }  # fmt: skip
    states = [square_avgs, grad_avgs, momentum_buffers if momentum else None]
    _step("rmsprop", params, grads, states, numbers, centered=grad_avgs is not None,
          maximize=maximize)  # fmt: skip


def adadelta_step(
    params: Tensors,
    grads: Tensors,
    square_avgs: Tensors,
    acc_deltas: Tensors,
    *,
    lr: float = 1.0,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """Adadelta, in place: ``v = rho v + (1 - rho) g^2; d = sqrt(u + eps) / sqrt(v + eps) * g;
    u = rho u + (1 - rho) d^2; p -= lr d``.

    Raises:
        ValueError: lists or shapes do not match, or a tensor is read-only.

    References:
        Zeiler, "ADADELTA: an adaptive learning rate method", 2012.
    """
    numbers = {"lr": lr, "a": rho, "eps": eps, "weight_decay": weight_decay}
    _step("adadelta", params, grads, [square_avgs, acc_deltas], numbers, maximize=maximize)


def clip_grad_norm(grads: Tensors, max_norm: float, norm_type: float = 2.0) -> Tensor:
    """Scales gradients in place so that their norm together is at most ``max_norm``.

    Args:
        grads: float32 or bfloat16, of any shapes.
        max_norm: at least 0.
        norm_type: 2 (one pass over all), 1 or infinity.

    Returns:
        The norm before, a float32 scalar. Of the Euclidean one, short runs of squares are summed in
        float32, and the runs in double, in a fixed order: values beyond about 1e19, whose squares
        float32 does not hold, make the norm infinite and the gradients zero.

    Raises:
        ValueError: ``max_norm`` is negative.
        NotImplementedError: another ``norm_type``.

    References:
        Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", 2013.
    """
    if norm_type == 2 or not grads:
        return Tensor._wrap(_core.clip_grad_norm([g._array for g in grads], float(max_norm)))
    if not max_norm >= 0:
        raise ValueError(f"clip_grad_norm_: max_norm expects a value >= 0, got {max_norm}")
    with no_grad():
        total = norm(stack([norm(g.float(), norm_type) for g in grads]), norm_type)
        factor = clamp(float(max_norm) / (total + 1e-6), max=1.0)
        for g in grads:
            _core.mul(g._array, factor._array, out=g._array)
    return total


def clip_grad_value(grads: Tensors, clip_value: float) -> None:
    """Limits every gradient, in place, to ``-clip_value .. clip_value``; NaN stays NaN.

    Raises:
        ValueError: ``clip_value`` is negative.
    """
    _core.clip_grad_value([g._array for g in grads], float(clip_value))


TENSOR_METHODS: dict[str, Any] = {}
