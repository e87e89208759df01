"""Initial values, drawn from fastnn's generator: ``manual_seed`` makes them reproducible.

Fans of a weight (out, in, *kernel): ``fan_in = in * taps`` and ``fan_out = out * taps``.
"""

from __future__ import annotations

import math

import numpy as np

from fastnn.autograd import no_grad
from fastnn.random import normal_ as _normal
from fastnn.random import randn
from fastnn.random import uniform_ as _draw_uniform
from fastnn.tensor import Tensor, from_numpy

__all__ = [
    "calculate_gain", "constant_", "kaiming_normal_", "kaiming_uniform_", "normal_", "ones_",
    "orthogonal_", "trunc_normal_", "uniform_", "xavier_normal_", "xavier_uniform_", "zeros_",
]  # fmt: skip


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """Factor that keeps the variance through a nonlinearity.

    Raises:
        ValueError: the nonlinearity is unknown.
    """
    if nonlinearity in ("linear", "conv2d", "conv_transpose2d", "sigmoid"):
        return 1.0
    if nonlinearity == "tanh":
        return 5.0 / 3.0
    if nonlinearity == "relu":
        return math.sqrt(2.0)
    if nonlinearity == "leaky_relu":
        return math.sqrt(2.0 / (1 + (0.01 if param is None else param) ** 2))
    if nonlinearity == "selu":
        return 0.75
    raise ValueError(
        "calculate_gain: expected linear, conv2d, sigmoid, tanh, relu, leaky_relu or selu, "
        f"got {nonlinearity!r}"
    )


def _fans(tensor: Tensor) -> tuple[int, int]:
    if tensor.ndim < 2:
        raise ValueError(f"init: expected at least 2 dimensions, got shape {tensor.shape}")
    taps = math.prod(tensor.shape[2:])
    return tensor.shape[1] * taps, tensor.shape[0] * taps


@no_grad()
def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Normal values, in place."""
    return _normal(tensor, mean, std)


@no_grad()
def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Uniform values in [a, b), in place."""
    return _draw_uniform(tensor, a, b)


def _uniform(tensor: Tensor, bound: float) -> Tensor:
    return uniform_(tensor, -bound, bound)


@no_grad()
def constant_(tensor: Tensor, value: float) -> Tensor:
    """One value everywhere, in place."""
    return tensor.fill_(value)


def zeros_(tensor: Tensor) -> Tensor:
    """Zeros, in place."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Ones, in place."""
    return constant_(tensor, 1.0)


@no_grad()
def trunc_normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0
) -> Tensor:
    """Normal values redrawn until they lie in [a, b], in place.

    Raises:
        ValueError: fewer than about one draw in a thousand would lie in [a, b].
    """
    low, high = ((x - mean) / (std * math.sqrt(2.0)) if std > 0 else math.inf for x in (a, b))
    if not 0.5 * (math.erf(high) - math.erf(low)) > 1e-3:
        raise ValueError(
            f"trunc_normal_: [a, b] expects a likely range of N({mean}, {std}^2), got [{a}, {b}]"
        )
    values = randn(*tensor.shape).numpy() * std + mean
    while (outside := (values < a) | (values > b)).any():
        values[outside] = randn(int(outside.sum())).numpy() * std + mean
    return tensor.copy_(from_numpy(values))


def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Uniform with variance ``gain^2 * 2 / (fan_in + fan_out)`` (Glorot and Bengio, 2010)."""
    return _uniform(tensor, gain * math.sqrt(6.0 / sum(_fans(tensor))))


def xavier_normal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Normal with variance ``gain^2 * 2 / (fan_in + fan_out)`` (Glorot and Bengio, 2010)."""
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / sum(_fans(tensor))))


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"init: mode expects 'fan_in' or 'fan_out', got {mode!r}")
    fan = _fans(tensor)[0 if mode == "fan_in" else 1]
    return calculate_gain(nonlinearity, a) / math.sqrt(max(fan, 1))


def kaiming_uniform_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """Uniform with variance ``gain^2 / fan`` (He et al., 2015)."""
    return _uniform(tensor, math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity))


def kaiming_normal_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """Normal with variance ``gain^2 / fan`` (He et al., 2015)."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity))


@no_grad()
def orthogonal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """A (semi-)orthogonal matrix of shape (out, rest), in place (Saxe et al., 2013)."""
    _fans(tensor)
    rows, columns = tensor.shape[0], math.prod(tensor.shape[1:])
    draw = randn(max(rows, columns), min(rows, columns)).numpy().astype(np.float64)
    q, r = np.linalg.qr(draw)
    q = q * np.sign(np.diag(r))  # makes the distribution uniform
    matrix = (q if rows >= columns else q.T) * gain
    return tensor.copy_(from_numpy(matrix.reshape(tensor.shape).astype(np.float32)))
