"""LeNet-5 (LeCun et al., "Gradient-based learning applied to document recognition", 1998)."""

from __future__ import annotations

import math

import numpy as np

import fastnn.functional as F
from fastnn import nn
from fastnn.creation import empty, ones, zeros
from fastnn.nn import init
from fastnn.tensor import Tensor, from_numpy

#: Table I of the paper: which of S2's six maps each of C3's sixteen maps sees.
C3_TABLE = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5),
)  # fmt: skip


def squash(x: Tensor) -> Tensor:
    """The paper's activation, ``1.7159 tanh(2 x / 3)``: 1 at 1 and -1 at -1."""
    return F.tanh(x * (2.0 / 3.0)) * 1.7159


class Subsample(nn.Module):
    """Mean of 2x2 windows times a learned coefficient plus a learned bias, per channel.

    Shape: (N, C, H, W) -> (N, C, H / 2, W / 2).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(ones(channels, 1, 1))
        self.bias = nn.Parameter(zeros(channels, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(input, 2) * self.coefficient + self.bias


class PartialConv2d(nn.Module):
    """A 5x5 convolution whose output maps see only the input maps of a table.

    The weight holds the 60 kernels there are; the zero kernels between the other maps are filled in
    for each call.

    Shape: (N, 6, H, W) -> (N, 16, H - 4, W - 4).
    """

    def __init__(self, table: tuple[tuple[int, ...], ...], in_channels: int, kernel: int) -> None:
        super().__init__()
        count = sum(len(row) for row in table)
        self.shape = (len(table), in_channels, kernel, kernel)
        self.weight = nn.Parameter(empty(count, kernel * kernel))
        self.bias = nn.Parameter(zeros(len(table)))
        init._uniform(self.weight, 1 / math.sqrt(count / len(table) * kernel * kernel))
        # Position of each (output, input) pair's kernel; pairs without one point at a row of zeros.
        index = np.full((len(table), in_channels), count, np.int64)
        kernels = iter(range(count))
        for output, row in enumerate(table):
            for source in row:
                index[output, source] = next(kernels)
        self.register_buffer("index", from_numpy(index.reshape(-1)), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        dense = F.pad(self.weight, (0, 0, 0, 1))[self.index]
        return F.conv2d(input, dense.reshape(*self.shape), self.bias)


class LeNet5(nn.Module):
    """LeNet-5 with trainable subsampling and the partial connections of Table I: 60,850 parameters.

    The output layer is linear instead of the paper's radial basis functions, to go with cross entropy.

    Shape: (N, in_channels, 32, 32) -> (N, num_classes).

    Args:
        num_classes: size of the output.
        in_channels: of the images.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(in_channels, 6, 5)
        self.s2 = Subsample(6)
        self.c3 = PartialConv2d(C3_TABLE, 6, 5)
        self.s4 = Subsample(16)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.output = nn.Linear(84, num_classes)

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim != 4 or input.shape[2:] != (32, 32):
            raise ValueError(
                f"LeNet5: input expects shape (N, {self.c1.in_channels}, 32, 32), got {input.shape}"
            )
        out = squash(self.s2(squash(self.c1(input))))
        out = squash(self.s4(squash(self.c3(out))))
        out = squash(self.c5(out)).flatten(1)
        return self.output(squash(self.f6(out)))


def lenet5(**kwargs: int) -> LeNet5:
    """LeNet-5: 60,850 parameters."""
    return LeNet5(**kwargs)


class ModernLeNet5(nn.Module):
    """LeNet-5 as it is built today: dense convolutions, ReLU, max pooling; 61,706 parameters.

    Shape: (N, in_channels, 32, 32) -> (N, num_classes).

    Args:
        num_classes: size of the output.
        in_channels: of the images.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(),
            nn.Linear(84, num_classes),
        )  # fmt: skip
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                init.kaiming_normal_(module.weight, nonlinearity="relu")
                init.zeros_(module.bias)

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim != 4 or input.shape[2:] != (32, 32):
            channels = self.get_parameter("features.0.weight").shape[1]
            raise ValueError(
                f"ModernLeNet5: input expects shape (N, {channels}, 32, 32), got {input.shape}"
            )
        return self.classifier(self.features(input).flatten(1))


def lenet5_modern(**kwargs: int) -> ModernLeNet5:
    """LeNet-5 with ReLU and max pooling: 61,706 parameters."""
    return ModernLeNet5(**kwargs)
