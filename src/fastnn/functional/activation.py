"""Activations: y = f(x), elementwise."""

from __future__ import annotations

from typing import Any

from fastnn import _core
from fastnn.autograd import record
from fastnn.tensor import Tensor

__all__ = ["relu"]


def relu(input: Tensor) -> Tensor:
    """Rectified linear unit, ``max(x, 0)``; NaN stays NaN.

    Args:
        input: any shape, float32 or bfloat16.

    Returns:
        A tensor of the same shape and dtype. Its backward needs the output only.

    Raises:
        TypeError: ``input`` is not floating.

    References:
        Nair and Hinton, "Rectified linear units improve restricted Boltzmann machines", 2010.
    """
    output = _core.relu(input._array)
    return record("relu", output, (input,), (output,), _relu_backward)


def _relu_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return _core.relu_backward(grad_output, saved[0])


TENSOR_METHODS = {"relu": relu}
