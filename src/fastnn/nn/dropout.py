"""Dropout layers. In evaluation they pass the input on."""

from __future__ import annotations

import fastnn.functional as F
from fastnn.nn.module import Module
from fastnn.tensor import Tensor


class Dropout(Module):
    """Elements are zero with probability ``p``, else scaled by ``1 / (1 - p)``. Shape: any.

    ``inplace`` is accepted as by activations, and without effect: results are new tensors.
    """

    function = "dropout"

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"{type(self).__name__}: p expects a probability from 0 to 1, got {p}")
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        return getattr(F, self.function)(input, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Dropout2d(Dropout):
    """Whole channels are zero with probability ``p``. Shape: (N, C, H, W)."""

    function = "dropout2d"


class DropPath(Dropout):
    """Whole samples are zero with probability ``p`` (stochastic depth). Shape: (N, ...)."""

    function = "drop_path"

    def __init__(self, p: float = 0.0) -> None:
        super().__init__(p)
