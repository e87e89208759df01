"""Gradient clipping of parameters."""

from __future__ import annotations

from collections.abc import Iterable

from fastnn.functional.optim import clip_grad_norm, clip_grad_value
from fastnn.tensor import Tensor


def _grads(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    listed = [parameters] if isinstance(parameters, Tensor) else parameters
    return [p.grad for p in listed if p.grad is not None]


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0
) -> Tensor:
    """Scales all gradients so that their norm together is at most ``max_norm``.

    Args:
        parameters: one or several; those without a gradient are passed over.
        max_norm: at least 0.
        norm_type: 2, 1 or infinity.

    Returns:
        The norm before, a float32 scalar.

    Raises:
        ValueError: ``max_norm`` is negative.
        NotImplementedError: another ``norm_type``.
    """
    return clip_grad_norm(_grads(parameters), max_norm, norm_type)


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Limits every gradient to ``-clip_value .. clip_value``.

    Raises:
        ValueError: ``clip_value`` is negative.
    """
    clip_grad_value(_grads(parameters), clip_value)
