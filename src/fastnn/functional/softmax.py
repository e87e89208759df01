"""Softmax and its logarithm."""

from __future__ import annotations

from typing import Any

import fastnn._core as _core
from fastnn.autograd import record
from fastnn.functional.view import _dim
from fastnn.tensor import Tensor

__all__ = ["log_softmax", "softmax"]


def softmax(input: Tensor, dim: int) -> Tensor:
    """``exp(x) / sum(exp(x))`` along ``dim``, computed from ``x - max(x)``.

    Args:
        input: any shape, float32 or bfloat16.
        dim: the dimension that sums to one; channels and the last one are fastest.

    Raises:
        ValueError: there is no such dimension.
    """
    return _apply("softmax", input, dim, False)


def log_softmax(input: Tensor, dim: int) -> Tensor:
    """``x - log(sum(exp(x)))`` along ``dim``, computed from ``x - max(x)``.

    Args:
        input: any shape, float32 or bfloat16.
        dim: the dimension of the sum.

    Raises:
        ValueError: there is no such dimension.
    """
    return _apply("log_softmax", input, dim, True)


def _apply(name: str, input: Tensor, dim: int, log: bool) -> Tensor:
    at = _dim(name, dim, input.ndim)
    output = _core.softmax(input._array, at, log)
    return record(name, output, (input,), (output, at, log), _softmax_backward)


def _softmax_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return _core.softmax_backward(grad_output, *saved)


TENSOR_METHODS = {"softmax": softmax, "log_softmax": log_softmax}
