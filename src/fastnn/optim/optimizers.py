"""The optimizers: options and state; the arithmetic is one fused kernel call per group.

Formulas and references stand with the steps in :mod:`fastnn.functional.optim`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastnn.functional import optim as steps
from fastnn.optim.optimizer import Optimizer, check_range
from fastnn.tensor import Tensor

Group = dict[str, Any]


class SGD(Optimizer):
    """Stochastic gradient descent with momentum; see :func:`fastnn.functional.optim.sgd_step`."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.0,
        dampening: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False,
        maximize: bool = False,
    ) -> None:  # fmt: skip
        check_range("SGD", lr=lr, momentum=momentum, weight_decay=weight_decay)
        if nesterov and (momentum == 0 or dampening != 0):
            raise ValueError("SGD: nesterov expects momentum > 0 and dampening 0")
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "nesterov": nesterov, "maximize": maximize,
        })  # fmt: skip

    def _update(self, group: Group, params: list[Tensor], grads: list[Any], step: int) -> None:
        options = {k: v for k, v in group.items() if k in self.defaults}
        buffers = self._buffers(params, "momentum_buffer") if group["momentum"] else None
        steps.sgd_step(params, grads, buffers, first=step == 1, **options)


class Adam(Optimizer):
    """Adam, with L2 weight decay; see :func:`fastnn.functional.optim.adam_step`."""

    decoupled = False

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.0, amsgrad: bool = False,
        maximize: bool = False,
    ) -> None:  # fmt: skip
        check_range(type(self).__name__, lr=lr, eps=eps, weight_decay=weight_decay)
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"{type(self).__name__}: betas expect values in [0, 1), got {betas}")
        super().__init__(params, {
            "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay,
            "amsgrad": amsgrad, "maximize": maximize,
        })  # fmt: skip

    def _update(self, group: Group, params: list[Tensor], grads: list[Any], step: int) -> None:
        top = self._buffers(params, "max_exp_avg_sq") if group["amsgrad"] else None
        steps.adam_step(
            params, grads, self._buffers(params, "exp_avg"), self._buffers(params, "exp_avg_sq"),
            top, step=step, lr=group["lr"], betas=group["betas"], eps=group["eps"],
            weight_decay=group["weight_decay"], decoupled=self.decoupled,
            maximize=group["maximize"],
        )  # fmt: skip


class AdamW(Adam):
    """Adam with decoupled weight decay; see :func:`fastnn.functional.optim.adam_step`."""

    decoupled = True

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 1e-2, amsgrad: bool = False,
        maximize: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize)


class Adagrad(Optimizer):
    """Adagrad; see :func:`fastnn.functional.optim.adagrad_step`."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-2, lr_decay: float = 0.0,
        weight_decay: float = 0.0, initial_accumulator_value: float = 0.0, eps: float = 1e-10,
        maximize: bool = False,
    ) -> None:  # fmt: skip
        check_range("Adagrad", lr=lr, lr_decay=lr_decay, weight_decay=weight_decay, eps=eps,
                    initial_accumulator_value=initial_accumulator_value)  # fmt: skip
        self.initial = initial_accumulator_value
        super().__init__(params, {
            "lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps,
            "maximize": maximize,
        })  # fmt: skip

    def _update(self, group: Group, params: list[Tensor], grads: list[Any], step: int) -> None:
        options = {k: v for k, v in group.items() if k in self.defaults}
        sums = self._buffers(params, "sum", self.initial)
        steps.adagrad_step(params, grads, sums, step=step, **options)


class RMSprop(Optimizer):
    """RMSprop; see :func:`fastnn.functional.optim.rmsprop_step`."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-2, alpha: float = 0.99, eps: float = 1e-8,
        weight_decay: float = 0.0, momentum: float = 0.0, centered: bool = False,
        maximize: bool = False,
    ) -> None:  # fmt: skip
        check_range("RMSprop", lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay,
                    momentum=momentum)  # fmt: skip
        super().__init__(params, {
            "lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay,
            "momentum": momentum, "centered": centered, "maximize": maximize,
        })  # fmt: skip

    def _update(self, group: Group, params: list[Tensor], grads: list[Any], step: int) -> None:
        options = {k: v for k, v in group.items() if k in self.defaults and k != "centered"}
        means = self._buffers(params, "grad_avg") if group["centered"] else None
        buffers = self._buffers(params, "momentum_buffer") if group["momentum"] else None
        squares = self._buffers(params, "square_avg")
        steps.rmsprop_step(params, grads, squares, means, buffers, **options)


class Adadelta(Optimizer):
    """Adadelta; see :func:`fastnn.functional.optim.adadelta_step`."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1.0, rho: float = 0.9, eps: float = 1e-6,
        weight_decay: float = 0.0, maximize: bool = False,
    ) -> None:  # fmt: skip
        check_range("Adadelta", lr=lr, rho=rho, eps=eps, weight_decay=weight_decay)
        super().__init__(params, {
            "lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay, "maximize": maximize,
        })  # fmt: skip

    def _update(self, group: Group, params: list[Tensor], grads: list[Any], step: int) -> None:
        options = {k: v for k, v in group.items() if k in self.defaults}
        squares, deltas = self._buffers(params, "square_avg"), self._buffers(params, "acc_delta")
        steps.adadelta_step(params, grads, squares, deltas, **options)
