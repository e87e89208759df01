"""Linear, and the layers that only pass on or reshape."""

from __future__ import annotations

import math
from typing import Any

import fastnn.functional as F
from fastnn.creation import empty
from fastnn.nn import init
from fastnn.nn.module import Module, Parameter
from fastnn.tensor import Tensor


class Linear(Module):
    """Affine map of the last dimension, ``y = x w^T + b``.

    Shape: (..., in_features) -> (..., out_features).

    Args:
        in_features, out_features: sizes.
        bias: whether to add a learned bias.
    """

    bias: Any  # Parameter or None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        if in_features <= 0 or out_features <= 0:
            raise ValueError(f"Linear: expected sizes > 0, got {in_features} and {out_features}")
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(empty(out_features, in_features))
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.bias = None
        if bias:
            self.bias = Parameter(empty(out_features))
            init._uniform(self.bias, 1 / math.sqrt(in_features))

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class Flatten(Module):
    """Dimensions ``start_dim`` to ``end_dim`` as one. Shape: (N, C, H, W) -> (N, C H W)."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, input: Tensor) -> Tensor:
        return F.flatten(input, self.start_dim, self.end_dim)


class Identity(Module):
    """The input itself; any arguments are ignored."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, input: Any) -> Any:
        return input
