"""Activations: y = f(x), elementwise, and maxout over groups of channels.

``inplace`` is accepted where PyTorch has it, and without effect: results are new tensors, and the input
stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import fastnn._core as _core
from fastnn.autograd import record
from fastnn.functional.deferred import Deferred
from fastnn.functional.view import squeeze, unsqueeze
from fastnn.tensor import Tensor

__all__ = [
    "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "maxout", "prelu", "relu",
    "relu6", "selu", "sigmoid", "silu", "softplus", "tanh",
]  # fmt: skip

# Klambauer et al. 2017: the fixed point that keeps mean 0 and variance 1.
SELU_ALPHA = 1.6732632423543772
SELU_SCALE = 1.0507009873554805


def relu(input: Tensor, inplace: bool = False) -> Tensor:
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
    if isinstance(input, Deferred) and (joined := input.activated("relu", relu)) is not None:
        return joined
    output = _core.relu(input._array)
    return record("relu", output, (input,), (output,), _relu_backward)


def _relu_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return _core.relu_backward(grad_output, saved[0])


def relu_backward(name: str, grad_output: Any, output: Any) -> Any:
    """The gradient through ``"relu"`` or ``"relu6"``, by its output: arrays."""
    if name == "relu":
        return _core.relu_backward(grad_output, output)
    return _core.activation_backward("hardtanh", grad_output, output, 0.0, 6.0)


def _apply(name: str, input: Tensor, a: float = 0.0, b: float = 0.0, kind: str = "") -> Tensor:
    kind = kind or name
    if kind in CURVES and isinstance(input, Deferred):
        joined = input.activated(kind, CURVES[kind])
        if joined is not None:
            return joined
    output = _core.activation(kind, input._array, a, b, name)
    return record(name, output, (input,), (kind, input._array, a, b), _activation_backward)


def _activation_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    kind, x, a, b = saved
    return _core.activation_backward(kind, grad_output, x, a, b)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """``min(max(x, 0), 6)``; NaN stays NaN. Any shape, float32 or bfloat16.

    References:
        Howard et al., "MobileNets", 2017; Sandler et al., "MobileNetV2", 2018.
    """
    if isinstance(input, Deferred) and (joined := input.activated("relu6", relu6)) is not None:
        return joined
    return _apply("relu6", input, 0.0, 6.0, "hardtanh")


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """``x`` where positive, else ``negative_slope * x``. Any shape, float32 or bfloat16.

    References:
        Maas, Hannun, Ng, "Rectifier nonlinearities improve neural network acoustic models", 2013.
    """
    return _apply("leaky_relu", input, negative_slope)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """``x`` where positive, else ``alpha * (exp(x) - 1)``. Any shape, float32 or bfloat16.

    References:
        Clevert, Unterthiner, Hochreiter, "Fast and accurate deep network learning by ELUs", 2015.
    """
    return _apply("elu", input, alpha, 1.0)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """``1.0507 * elu(x, 1.6733)``: keeps mean 0 and variance 1. Any shape, float32 or bfloat16.

    References:
        Klambauer et al., "Self-normalizing neural networks", 2017.
    """
    return _apply("selu", input, SELU_ALPHA, SELU_SCALE, "elu")


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """``x * P(N(0, 1) <= x)``, by the error function or, with ``"tanh"``, its approximation.

    Args:
        input: any shape, float32 or bfloat16.
        approximate: ``"none"`` or ``"tanh"``.

    Raises:
        ValueError: another ``approximate``.

    References:
        Hendrycks and Gimpel, "Gaussian error linear units", 2016.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate expects 'none' or 'tanh', got {approximate!r}")
    return _apply("gelu", input, kind="gelu" if approximate == "none" else "gelu_tanh")


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """``x * sigmoid(x)``, also called swish. Any shape, float32 or bfloat16.

    References:
        Ramachandran, Zoph, Le, "Searching for activation functions", 2017.
    """
    return _apply("silu", input)


def sigmoid(input: Tensor) -> Tensor:
    """``1 / (1 + exp(-x))``. Any shape, float32 or bfloat16."""
    return _apply("sigmoid", input)


def tanh(input: Tensor) -> Tensor:
    """Hyperbolic tangent. Any shape, float32 or bfloat16."""
    return _apply("tanh", input)


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """``log(1 + exp(beta * x)) / beta``, and ``x`` itself where ``beta * x > threshold``.

    Args:
        input: any shape, float32 or bfloat16.
        beta: sharpness, not zero.
        threshold: where the function is taken as linear.

    Raises:
        ValueError: ``beta`` is zero.
    """
    if beta == 0:
        raise ValueError("softplus: beta expects a value other than 0, got 0")
    return _apply("softplus", input, beta, threshold)


def hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor:
    """``min(max(x, min_val), max_val)``; NaN stays NaN. Any shape, float32 or bfloat16.

    The gradient is zero at and beyond the limits.

    Raises:
        ValueError: ``max_val`` is not above ``min_val``.
    """
    if not min_val < max_val:
        raise ValueError(f"hardtanh: max_val expects a value above {min_val}, got {max_val}")
    return _apply("hardtanh", input, min_val, max_val)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """``clamp(x + 3, 0, 6) / 6``. Any shape, float32 or bfloat16.

    References:
        Howard et al., "Searching for MobileNetV3", 2019.
    """
    return _apply("hardsigmoid", input)


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """``x * clamp(x + 3, 0, 6) / 6``. Any shape, float32 or bfloat16.

    References:
        Howard et al., "Searching for MobileNetV3", 2019.
    """
    return _apply("hardswish", input)


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """``x`` where positive, else ``weight * x`` with a learned slope per channel.

    Args:
        input: (N, C), (N, C, L) or (N, C, H, W), float32 or bfloat16.
        weight: (C,), or (1,) for one slope.

    Raises:
        ValueError: ``weight`` has neither 1 nor C values.

    References:
        He et al., "Delving deep into rectifiers", 2015.
    """
    if input.ndim == 3:
        return squeeze(prelu(unsqueeze(input, 2), weight), 2)
    output = _core.prelu(input._array, weight._array)
    return record("prelu", output, (input, weight), (input._array, weight._array), _prelu_backward)


def _prelu_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return _core.prelu_backward(grad_output, *saved)


def maxout(input: Tensor, pool_size: int) -> Tensor:
    """Largest of each ``pool_size`` neighbouring channels.

    Args:
        input: (N, C) or (N, C, H, W), float32 or bfloat16.
        pool_size: a divisor of C.

    Returns:
        (N, C / pool_size, ...). The gradient goes to the first of the largest values.

    Raises:
        ValueError: C is not divisible by ``pool_size``.

    References:
        Goodfellow et al., "Maxout networks", 2013.
    """
    output = _core.maxout(input._array, pool_size)
    return record("maxout", output, (input,), (input._array, pool_size), _maxout_backward)


def _maxout_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return _core.maxout_backward(grad_output, *saved)


#: What batch norms apply in their own pass beside ``"relu"`` and ``"relu6"``. Their
#: gradients are functions of the input, not of the output.
CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_tanh": partial(gelu, approximate="tanh"),
    "hardsigmoid": hardsigmoid,
    "hardswish": hardswish,
    "sigmoid": sigmoid,
    "silu": silu,
    "tanh": tanh,
}

TENSOR_METHODS = {"relu": relu, "sigmoid": sigmoid, "tanh": tanh}
