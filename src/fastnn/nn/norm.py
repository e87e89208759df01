"""Normalisation layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fastnn._core as _core
import fastnn.functional as F
from fastnn.creation import ones, zeros
from fastnn.nn.module import Module, Parameter
from fastnn.tensor import Tensor, tensor


def _counted(batches: Tensor) -> None:
    """Adds one in place; on a GPU without waiting for the value."""
    _core.add(batches._array, 1, 1, batches._array)


class _BatchNorm(Module):
    """What both batch norms share.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: share of the new statistics in the running ones; None averages over all batches.
        affine: whether to learn a weight and a bias.
        track_running_stats: False always uses the batch's statistics.
    """

    ranks: tuple[int, ...] = ()
    float32_state = True
    weight: Any  # Parameter or None
    bias: Any

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1,
        affine: bool = True, track_running_stats: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.weight = Parameter(ones(num_features)) if affine else None
        self.bias = Parameter(zeros(num_features)) if affine else None
        track = track_running_stats
        self.register_buffer("running_mean", zeros(num_features) if track else None)
        self.register_buffer("running_var", ones(num_features) if track else None)
        self.register_buffer("num_batches_tracked", tensor(0) if track else None)

    def forward(
        self, input: Tensor, activation: str | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """``activation(norm(input) + residual)``, in one pass over memory.

        Args:
            input: of the layer's shape.
            activation: None, ``"relu"`` or another that :func:`fastnn.nn.functional.batch_norm` names.
            residual: of the input's shape, added before the activation; or None.
        """
        if input.ndim not in self.ranks:
            raise ValueError(
                f"{type(self).__name__}: input expects {' or '.join(map(str, self.ranks))} "
                f"dimensions, got shape {input.shape}"
            )
        momentum = 0.1 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            _counted(self.num_batches_tracked)
            if self.momentum is None:
                momentum = 1.0 / self.num_batches_tracked.item()
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias,
            self.training or self.running_mean is None, momentum, self.eps,
            activation=activation, residual=residual,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of (N, C) or (N, C, L); see :func:`fastnn.nn.functional.batch_norm`."""

    ranks = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of (N, C, H, W); see :func:`fastnn.nn.functional.batch_norm`."""

    ranks = (4,)


class InstanceNorm2d(Module):
    """Normalisation of each channel of each image, :func:`fastnn.nn.functional.instance_norm`.

    Shape: (N, C, H, W) -> the same.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: share of the new statistics in the running ones.
        affine: whether to learn a weight and a bias.
        track_running_stats: keep running statistics and use them in evaluation.
    """

    float32_state = True

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = False,
        track_running_stats: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = Parameter(ones(num_features)) if affine else None
        self.bias = Parameter(zeros(num_features)) if affine else None
        track = track_running_stats
        self.register_buffer("running_mean", zeros(num_features) if track else None)
        self.register_buffer("running_var", ones(num_features) if track else None)
        self.register_buffer("num_batches_tracked", tensor(0) if track else None)

    def forward(self, input: Tensor) -> Tensor:
        if self.training and self.num_batches_tracked is not None:
            _counted(self.num_batches_tracked)
        return F.instance_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias,
            self.training or self.running_mean is None, self.momentum, self.eps,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, affine={self.weight is not None}"


class GroupNorm(Module):
    """Normalisation over groups of channels, :func:`fastnn.nn.functional.group_norm`.

    Shape: (N, C, ...) -> the same.

    Args:
        num_groups: a divisor of ``num_channels``.
        num_channels: C.
        eps: added to the variance.
        affine: whether to learn a weight and a bias per channel.
    """

    float32_state = True

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True
    ) -> None:
        super().__init__()
        if num_groups <= 0 or num_channels % num_groups:
            raise ValueError(
                f"GroupNorm: num_groups expects a divisor of {num_channels}, got {num_groups}"
            )
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self.weight = Parameter(ones(num_channels)) if affine else None
        self.bias = Parameter(zeros(num_channels)) if affine else None

    def forward(self, input: Tensor) -> Tensor:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}"


class LayerNorm(Module):
    """Normalisation over the last dimensions, :func:`fastnn.nn.functional.layer_norm`.

    Shape: (..., *normalized_shape) -> the same.

    Args:
        normalized_shape: trailing sizes, an int or a sequence.
        eps: added to the variance.
        elementwise_affine: whether to learn a weight and a bias per element.
        bias: False learns the weight only.
    """

    float32_state = True

    def __init__(
        self, normalized_shape: int | Sequence[int], eps: float = 1e-5,
        elementwise_affine: bool = True, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        shape = normalized_shape
        self.normalized_shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.eps = eps
        self.weight = Parameter(ones(self.normalized_shape)) if elementwise_affine else None
        self.bias = Parameter(zeros(self.normalized_shape)) if elementwise_affine and bias else None

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}"


class LocalResponseNorm(Module):
    """Division by neighbouring channels, :func:`fastnn.nn.functional.local_response_norm`.

    Shape: (N, C, H, W) -> the same.

    Args:
        size: channels in the window.
        alpha, beta, k: constants of the formula.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, input: Tensor) -> Tensor:
        return F.local_response_norm(input, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
