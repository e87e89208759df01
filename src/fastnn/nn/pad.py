"""Borders around images."""

from __future__ import annotations

from collections.abc import Sequence

import fastnn.nn.functional as F
from fastnn.functional.conv import _sides
from fastnn.nn.module import Module
from fastnn.tensor import Tensor


class _Pad2d(Module):
    """A border of ``padding`` pixels, :func:`fastnn.nn.functional.pad`.

    Shape: (N, C, H, W) -> (N, C, H + top + bottom, W + left + right).

    Args:
        padding: an int or (left, right, top, bottom).
    """

    mode: str

    def __init__(self, padding: int | Sequence[int]) -> None:
        super().__init__()
        self.padding = _sides(type(self).__name__, padding, (1, 1), (1, 1), (1, 1))

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, self.mode)

    def extra_repr(self) -> str:
        return str(self.padding)


class ReflectionPad2d(_Pad2d):
    """A border that mirrors the image, without its edge: at most as wide as the image less one.

    Shape and ``padding``: an int or (left, right, top, bottom), as :class:`ZeroPad2d`'s.
    """

    mode = "reflect"


class ReplicationPad2d(_Pad2d):
    """A border that repeats the image's edge. Shape and ``padding`` as :class:`ZeroPad2d`'s."""

    mode = "replicate"


class CircularPad2d(_Pad2d):
    """A border of what lies at the image's other end, at most as wide as the image. Shape and
    ``padding`` as :class:`ZeroPad2d`'s."""

    mode = "circular"


class ConstantPad2d(_Pad2d):
    """A border of ``value``. Shape and ``padding`` as :class:`ZeroPad2d`'s."""

    def __init__(self, padding: int | Sequence[int], value: float) -> None:
        super().__init__(padding)
        self.value = value

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, value=self.value)

    def extra_repr(self) -> str:
        return f"{self.padding}, value={self.value}"


class ZeroPad2d(ConstantPad2d):
    """A border of zeros; negative widths cut.

    Shape: (N, C, H, W) -> (N, C, H + top + bottom, W + left + right).

    Args:
        padding: an int or (left, right, top, bottom).
    """

    def __init__(self, padding: int | Sequence[int]) -> None:
        super().__init__(padding, 0.0)

    def extra_repr(self) -> str:
        return str(self.padding)
