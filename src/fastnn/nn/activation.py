"""Activation layers: each calls the function of the same name in ``fastnn.nn.functional``.

``inplace`` is accepted where PyTorch has it, and without effect: results are new tensors, and the input
stays as it is.
"""

from __future__ import annotations

from typing import Any

import fastnn.functional as F
from fastnn.creation import full
from fastnn.nn.module import Module, Parameter
from fastnn.tensor import Tensor

IN_PLACE: dict[str, Any] = {"inplace": False}


class _Activation(Module):
    """A function with fixed settings. Subclasses name it and list the settings and defaults."""

    function: str = ""
    settings: dict[str, Any] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        name, names = type(self).__name__, list(self.settings)
        if len(args) > len(names) or any(k not in names or k in names[: len(args)] for k in kwargs):
            given = [*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())]
            expected = f"settings {', '.join(names)}" if names else "no settings"
            raise TypeError(f"{name}: expected {expected}; got {', '.join(given)}")
        chosen = {**self.settings, **dict(zip(names, args, strict=False)), **kwargs}
        for key, value in chosen.items():
            setattr(self, key, value)

    def forward(self, input: Tensor) -> Tensor:
        return getattr(F, self.function)(input, **self._chosen())

    def _chosen(self) -> dict[str, Any]:
        # With defaults: a pickle may be older than a setting.
        return {key: getattr(self, key, default) for key, default in self.settings.items()}

    def extra_repr(self) -> str:
        shown = {k: v for k, v in self._chosen().items() if k != "inplace" or v}  # as PyTorch
        return ", ".join(f"{key}={value}" for key, value in shown.items())


class ReLU(_Activation):
    """``max(x, 0)``. Shape: any."""

    function, settings = "relu", IN_PLACE


class ReLU6(_Activation):
    """``min(max(x, 0), 6)``. Shape: any."""

    function, settings = "relu6", IN_PLACE


class LeakyReLU(_Activation):
    """``x`` or ``negative_slope * x``. Shape: any."""

    function, settings = "leaky_relu", {"negative_slope": 0.01, **IN_PLACE}


class ELU(_Activation):
    """``x`` or ``alpha * (exp(x) - 1)``. Shape: any."""

    function, settings = "elu", {"alpha": 1.0, **IN_PLACE}


class SELU(_Activation):
    """Self-normalising ELU. Shape: any."""

    function, settings = "selu", IN_PLACE


class GELU(_Activation):
    """``x * P(N(0, 1) <= x)``; ``approximate`` is "none" or "tanh". Shape: any."""

    function, settings = "gelu", {"approximate": "none"}


class SiLU(_Activation):
    """``x * sigmoid(x)``. Shape: any."""

    function, settings = "silu", IN_PLACE


class Sigmoid(_Activation):
    """``1 / (1 + exp(-x))``. Shape: any."""

    function = "sigmoid"


class Tanh(_Activation):
    """Hyperbolic tangent. Shape: any."""

    function = "tanh"


class Softplus(_Activation):
    """``log(1 + exp(beta x)) / beta``. Shape: any."""

    function, settings = "softplus", {"beta": 1.0, "threshold": 20.0}


class Hardtanh(_Activation):
    """``min(max(x, min_val), max_val)``. Shape: any."""

    function, settings = "hardtanh", {"min_val": -1.0, "max_val": 1.0, **IN_PLACE}


class Hardsigmoid(_Activation):
    """``clamp(x + 3, 0, 6) / 6``. Shape: any."""

    function, settings = "hardsigmoid", IN_PLACE


class Hardswish(_Activation):
    """``x * clamp(x + 3, 0, 6) / 6``. Shape: any."""

    function, settings = "hardswish", IN_PLACE


class Maxout(_Activation):
    """Largest of ``pool_size`` neighbouring channels. Shape: (N, C, ...) -> (N, C / pool_size, ...)."""

    function, settings = "maxout", {"pool_size": 2}


class Softmax(_Activation):
    """``exp(x) / sum(exp(x))`` along ``dim``. Shape: any."""

    function, settings = "softmax", {"dim": -1}


class LogSoftmax(_Activation):
    """``log(softmax(x))`` along ``dim``. Shape: any."""

    function, settings = "log_softmax", {"dim": -1}


class PReLU(Module):
    """``x`` or ``weight * x`` with learned slopes. Shape: (N, C, ...).

    Args:
        num_parameters: 1, or C for a slope per channel.
        init: initial slope.
    """

    def __init__(self, num_parameters: int = 1, init: float = 0.25) -> None:
        super().__init__()
        self.num_parameters = num_parameters
        self.weight = Parameter(full(num_parameters, init))

    def forward(self, input: Tensor) -> Tensor:
        return F.prelu(input, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"
