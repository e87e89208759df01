"""MobileNetV2 (Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", 2018)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastnn import nn
from fastnn.nn import init
from fastnn.tensor import Tensor

#: Expansion, channels, blocks, stride of the first (table 2 of the paper).
STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip


def round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of ``divisor``, at least one, that is not below nine tenths."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def conv_norm(
    channels: int, outputs: int, kernel: int, stride: int, groups: int, activation: nn.Module
) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    return nn.Sequential(
        nn.Conv2d(channels, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        activation,
    )


def expanded(
    channels: int, expansion: int, kernel: int, stride: int, activation: Callable[[], nn.Module]
) -> list[nn.Module]:
    """1x1 to ``expansion`` times the channels, unless that is one, and a square of each."""
    wide = channels * expansion
    widened = [conv_norm(channels, wide, 1, 1, 1, activation())] if expansion != 1 else []
    return [*widened, conv_norm(wide, wide, kernel, stride, wide, activation())]


class InvertedResidual(nn.Module):
    """1x1 to ``expansion`` times the channels, 3x3 of each, 1x1 back; the input is added where it
    fits. Shape: (N, channels, H, W) -> (N, outputs, H / stride, W / stride)."""

    def __init__(self, channels: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *expanded(channels, expansion, 3, stride, nn.ReLU6),
            nn.Conv2d(channels * expansion, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.adds_input = stride == 1 and channels == outputs

    def forward(self, input: Tensor) -> Tensor:
        out = self.conv(input)
        return input + out if self.adds_input else out


class MobileNetV2(nn.Module):
    """A convolution, seventeen inverted residuals, a convolution, global average, a linear layer.

    Shape: (N, in_channels, H, W) -> (N, num_classes).

    Args:
        num_classes: size of the output.
        in_channels: of the images.
        width: factor of all channels, which are rounded to multiples of 8.
        dropout: before the linear layer.
    """

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0,
        dropout: float = 0.2,
    ) -> None:  # fmt: skip
        super().__init__()
        channels, last = round_channels(32 * width), round_channels(1280 * max(1.0, width))
        blocks: list[nn.Module] = [conv_norm(in_channels, channels, 3, 2, 1, nn.ReLU6())]
        for expansion, planes, count, stride in STAGES:
            outputs = round_channels(planes * width)
            for i in range(count):
                step = 1 if i else stride
                blocks.append(InvertedResidual(channels, outputs, step, expansion))
                channels = outputs
        blocks.append(conv_norm(channels, last, 1, 1, 1, nn.ReLU6()))
        self.features = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                init.normal_(module.weight, 0, 0.01)
                init.zeros_(module.bias)

    def forward(self, input: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(input)).flatten(1))


def mobilenet_v2(**kwargs: Any) -> MobileNetV2:
    """MobileNetV2: 3,504,872 parameters, 0.3 G multiply-adds at 224 x 224."""
    return MobileNetV2(**kwargs)
