"""Convolution layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import fastnn.functional as F
from fastnn.creation import empty
from fastnn.functional.conv import _pair, _sides
from fastnn.nn import init
from fastnn.nn.module import Module, Parameter
from fastnn.tensor import Tensor

Size = int | Sequence[int]


class _Conv(Module):
    """What both convolutions share: the settings, and PyTorch's initial values."""

    stride: Any
    bias: Any  # Parameter or None

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size, groups: int, bias: bool,
        weight_shape: tuple[int, int],
    ) -> None:  # fmt: skip
        super().__init__()
        name = type(self).__name__
        for what, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels <= 0 or groups <= 0 or channels % groups:
                raise ValueError(
                    f"{name}: {what} expects a multiple of groups={groups}, got {channels}"
                )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = _pair(name, "kernel_size", kernel_size)
        self.weight = Parameter(empty(*weight_shape, *self.kernel_size))
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.bias = None
        if bias:
            bound = 1 / math.sqrt(init._fans(self.weight)[0])
            self.bias = Parameter(empty(out_channels))
            init._uniform(self.bias, bound)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        text += f", stride={self.stride}"
        for name, default in (
            ("padding", 0), ("dilation", 1), ("groups", 1), ("padding_mode", "zeros"),
        ):  # fmt: skip
            if getattr(self, name, default) != default:
                text += f", {name}={getattr(self, name)}"
        return text + ("" if self.bias is not None else ", bias=False")


class Conv2d(_Conv):
    """2-D convolution, :func:`fastnn.nn.functional.conv2d`.

    Shape: (N, in_channels, H, W) -> (N, out_channels, OH, OW).

    Args:
        in_channels, out_channels: multiples of ``groups``.
        kernel_size, stride, dilation: an int or (h, w).
        padding: an int, (h, w), (left, right, top, bottom), ``"same"`` or ``"valid"``.
        groups: number of independent convolutions the channels are cut into.
        bias: whether to add a learned bias.
        padding_mode: what pads: ``"zeros"``; ``"reflect"``, ``"replicate"`` or ``"circular"``, in a pass
            of its own (:func:`fastnn.nn.functional.pad`).

    Example:
        >>> import fastnn
        >>> fastnn.nn.Conv2d(3, 8, 3, padding=1)(fastnn.zeros(2, 3, 5, 5)).shape
        (2, 8, 5, 5)
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1,
        padding: Size | str = 0, dilation: Size = 1, groups: int = 1, bias: bool = True,
        padding_mode: str = "zeros",
    ) -> None:  # fmt: skip
        shape = (out_channels, in_channels // max(groups, 1))
        super().__init__(in_channels, out_channels, kernel_size, groups, bias, shape)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        modes = ("zeros", "reflect", "replicate", "circular")
        if padding_mode not in modes:
            raise ValueError(
                f"Conv2d: padding_mode expects one of {', '.join(modes)}, got {padding_mode!r}"
            )
        self.padding_mode = padding_mode

    def forward(
        self, input: Tensor, activation: str | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """The fused forms of the functional are reached by ``activation`` and ``residual``."""
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            stride = _pair("Conv2d", "stride", self.stride)
            dilation = _pair("Conv2d", "dilation", self.dilation)
            sides = _sides("Conv2d", padding, stride, dilation, self.kernel_size)
            input, padding = F.pad(input, sides, self.padding_mode), 0
        return F.conv2d(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups,
            activation=activation, residual=residual,
        )  # fmt: skip


class ConvTranspose2d(_Conv):
    """Transposed 2-D convolution, :func:`fastnn.nn.functional.conv_transpose2d`.

    Shape: (N, in_channels, H, W) -> (N, out_channels, OH, OW).

    Args:
        in_channels, out_channels: multiples of ``groups``.
        kernel_size, stride, padding, output_padding, dilation: an int or (h, w).
        groups: number of independent convolutions the channels are cut into.
        bias: whether to add a learned bias.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1,
        padding: Size = 0, output_padding: Size = 0, groups: int = 1, bias: bool = True,
        dilation: Size = 1,
    ) -> None:  # fmt: skip
        shape = (in_channels, out_channels // max(groups, 1))
        super().__init__(in_channels, out_channels, kernel_size, groups, bias, shape)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.output_padding = output_padding

    def forward(self, input: Tensor) -> Tensor:
        return F.conv_transpose2d(
            input, self.weight, self.bias, self.stride, self.padding, self.output_padding,
            self.groups, self.dilation,
        )  # fmt: skip
