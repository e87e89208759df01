"""Losses. All compute in float32, whatever the dtype of the scores."""

from __future__ import annotations

from typing import Any

import fastnn._core as _core
from fastnn.autograd import is_grad_enabled, record
from fastnn.functional.view import expand, reshape, unsqueeze
from fastnn.tensor import Tensor

__all__ = [
    "binary_cross_entropy_with_logits", "cross_entropy", "l1_loss", "mse_loss", "nll_loss",
    "smooth_l1_loss",
]  # fmt: skip


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy of class scores, ``-sum_c w_c t_c log softmax(x)_c`` per row.

    Args:
        input: scores (N, C), (N, C, L) or (N, C, H, W), float32 or bfloat16.
        target: labels 0 .. C-1, int64 or int32, of the input's shape without C; or probabilities of
            the input's shape.
        weight: (C,) weights of the classes, or None.
        ignore_index: rows with this label count for nothing.
        reduction: ``"mean"`` (over the labels' weights; over rows for probabilities), ``"sum"`` or
            ``"none"``.
        label_smoothing: share s of the target spread evenly: ``t (1 - s) + s / C``.

    Returns:
        A float32 scalar, or one value per row.

    Raises:
        ValueError: a label is out of range (says which and where), or shapes do not fit.
        TypeError: labels are not integers.

    Notes:
        Deterministic: rows are summed in a fixed order in double.
    """
    return _classes(
        "cross_entropy", input, target, weight, ignore_index, reduction, label_smoothing, False
    )


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Negative log likelihood, ``-w_y x_y`` per row, of log probabilities.

    Args:
        input: log probabilities (N, C), (N, C, L) or (N, C, H, W), float32 or bfloat16.
        target: labels 0 .. C-1, int64 or int32, of the input's shape without C.
        weight: (C,) weights of the classes, or None.
        ignore_index: rows with this label count for nothing.
        reduction: ``"mean"`` (over the labels' weights), ``"sum"`` or ``"none"``.

    Raises:
        ValueError: a label is out of range (says which and where), or shapes do not fit.
        TypeError: labels are not integers.
    """
    return _classes("nll_loss", input, target, weight, ignore_index, reduction, 0.0, True)


def _classes(
    name: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    smoothing: float,
    logs: bool,
) -> Tensor:
    if input.ndim == 3:
        result = _classes(
            name, unsqueeze(input, 2), unsqueeze(target, 2 if target.ndim == 3 else 1), weight,
            ignore_index, reduction, smoothing, logs,
        )  # fmt: skip
        return reshape(result, input.shape[0], input.shape[2]) if result.ndim else result
    for argument, value in (("target", target), ("weight", weight)):
        if value is not None and value.requires_grad and is_grad_enabled():
            raise NotImplementedError(f"{name}: no gradient with respect to {argument}; detach it")
    weights = None if weight is None else weight._array
    saved = (input._array, target._array, weights, ignore_index, reduction, smoothing, logs)
    output = _core.cross_entropy(*saved)
    return record(name, output, (input,), saved, _classes_backward)


def _classes_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return _core.cross_entropy_backward(grad_output, *saved)


def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Squared error ``(x - t)^2``. Equal shapes; float32 result.

    Raises:
        ValueError: the shapes differ, or ``reduction`` is unknown.
    """
    return _pairs("mse_loss", input, target, 0.0, None, None, reduction)


def l1_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Absolute error ``|x - t|``. Equal shapes; float32 result.

    Raises:
        ValueError: the shapes differ, or ``reduction`` is unknown.
    """
    return _pairs("l1_loss", input, target, 0.0, None, None, reduction)


def smooth_l1_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """``d^2 / (2 beta)`` where ``|d| < beta``, else ``|d| - beta / 2``, with ``d = x - t``.

    Raises:
        ValueError: the shapes differ, ``beta`` is negative, or ``reduction`` is unknown.

    References:
        Girshick, "Fast R-CNN", 2015.
    """
    return _pairs("smooth_l1_loss", input, target, beta, None, None, reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """``-w (p t log sigmoid(x) + (1 - t) log(1 - sigmoid(x)))``, without overflow.

    Args:
        input: logits of any shape, float32 or bfloat16.
        target: probabilities of the input's shape, floating.
        weight: broadcasts to the input's shape, or None.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        pos_weight: p, broadcasts to the input's shape, or None.

    Raises:
        ValueError: shapes do not fit, or ``reduction`` is unknown.
    """
    return _pairs(
        "binary_cross_entropy_with_logits", input, target, 0.0, weight, pos_weight, reduction
    )


def _pairs(
    name: str,
    input: Tensor,
    target: Tensor,
    a: float,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
) -> Tensor:
    weights = [
        None if w is None else expand(w.detach(), *input.shape)._array for w in (weight, pos_weight)
    ]
    output = _core.pair_loss(name, input._array, target._array, a, *weights, reduction)
    saved = (name, input._array, target._array, a, *weights, reduction)
    return record(name, output, (input, target), saved, _pairs_backward)


def _pairs_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    name, x, target, a, weight, pos_weight, reduction = saved
    settings = (a, weight, pos_weight, reduction)
    grads: list[Any] = [None, None]
    if needs[0]:
        grads[0] = _core.pair_loss_backward(name, grad_output, x, target, *settings)
    if needs[1]:
        if name == "binary_cross_entropy_with_logits":
            raise NotImplementedError(f"{name}: no gradient with respect to target; detach it")
        # The other losses are symmetric in their two operands.
        grads[1] = _core.pair_loss_backward(name, grad_output, target, x, *settings)
    return tuple(grads)


TENSOR_METHODS: dict[str, Any] = {}
