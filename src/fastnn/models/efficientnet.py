"""EfficientNet (Tan and Le, "EfficientNet: rethinking model scaling", 2019), B0 to B4."""

from __future__ import annotations

import math
from typing import Any

import fastnn.nn.functional as F
from fastnn import nn
from fastnn.models.mobilenet import conv_norm, expanded, round_channels
from fastnn.nn import init
from fastnn.tensor import Tensor

#: Of B0: expansion, kernel, stride of the first block, channels, blocks (table 1 of the paper).
STAGES = (
    (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4), (6, 3, 1, 320, 1),
)  # fmt: skip
#: Factors of channels and of blocks, dropout.
SIZES = {
    "b0": (1.0, 1.0, 0.2), "b1": (1.0, 1.1, 0.2), "b2": (1.1, 1.2, 0.3), "b3": (1.2, 1.4, 0.3),
    "b4": (1.4, 1.8, 0.4),
}  # fmt: skip


class SqueezeExcitation(nn.Module):
    """Scales each channel of an image by what all channels' averages say. Shape as the input's."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        return input * F.sigmoid(self.fc2(F.silu(self.fc1(self.avgpool(input)))))


class MBConv(nn.Module):
    """1x1 to ``expansion`` times the channels, a square of each, squeeze and excitation, 1x1 back; the
    input is added where it fits, and then what is added to it dropped with probability ``drop``.
    Shape: (N, channels, H, W) -> (N, outputs, H / stride, W / stride)."""

    def __init__(
        self, channels: int, outputs: int, kernel: int, stride: int, expansion: int, drop: float
    ) -> None:
        super().__init__()
        wide = channels * expansion
        self.block = nn.Sequential(
            *expanded(channels, expansion, kernel, stride, nn.SiLU),
            SqueezeExcitation(wide, max(1, channels // 4)),
            nn.Sequential(nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        self.drop = drop
        self.adds_input = stride == 1 and channels == outputs

    def forward(self, input: Tensor) -> Tensor:
        out = self.block(input)
        return F.drop_path(out, self.drop, self.training) + input if self.adds_input else out


class EfficientNet(nn.Module):
    """A convolution, seven stages of MBConv blocks, a convolution, global average, a linear layer.

    Shape: (N, in_channels, H, W) -> (N, num_classes).

    Args:
        size: one of :data:`SIZES`.
        num_classes: size of the output.
        in_channels: of the images.
        drop_path: probability with which the last block is dropped; of those before it less, in
            proportion to their place.
    """

    def __init__(
        self, size: str = "b0", num_classes: int = 1000, in_channels: int = 3,
        drop_path: float = 0.2,
    ) -> None:  # fmt: skip
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"EfficientNet: size expects one of {', '.join(SIZES)}, got {size!r}")
        width, depth, dropout = SIZES[size]
        channels = round_channels(32 * width)
        parts = [conv_norm(in_channels, channels, 3, 2, 1, nn.SiLU())]
        counts = [math.ceil(stage[4] * depth) for stage in STAGES]
        place = 0
        for (expansion, kernel, stride, planes, _), count in zip(STAGES, counts, strict=True):
            outputs, blocks = round_channels(planes * width), []
            for i in range(count):
                drop = drop_path * place / sum(counts)
                step = 1 if i else stride
                blocks.append(MBConv(channels, outputs, kernel, step, expansion, drop))
                channels, place = outputs, place + 1
            parts.append(nn.Sequential(*blocks))
        parts.append(conv_norm(channels, 4 * channels, 1, 1, 1, nn.SiLU()))
        self.features = nn.Sequential(*parts)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(4 * channels, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                limit = module.out_features**-0.5
                init.uniform_(module.weight, -limit, limit)
                init.zeros_(module.bias)

    def forward(self, input: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(input)).flatten(1))


def efficientnet_b0(**kwargs: Any) -> EfficientNet:
    """EfficientNet-B0: 5,288,548 parameters, 0.39 G multiply-adds at 224 x 224."""
    return EfficientNet("b0", **kwargs)


def efficientnet_b1(**kwargs: Any) -> EfficientNet:
    """EfficientNet-B1: 7,794,184 parameters, made for 240 x 240."""
    return EfficientNet("b1", **kwargs)


def efficientnet_b2(**kwargs: Any) -> EfficientNet:
    """EfficientNet-B2: 9,109,994 parameters, made for 260 x 260."""
    return EfficientNet("b2", **kwargs)


def efficientnet_b3(**kwargs: Any) -> EfficientNet:
    """EfficientNet-B3: 12,233,232 parameters, made for 300 x 300."""
    return EfficientNet("b3", **kwargs)


def efficientnet_b4(**kwargs: Any) -> EfficientNet:
    """EfficientNet-B4: 19,341,616 parameters, made for 380 x 380."""
    return EfficientNet("b4", **kwargs)
