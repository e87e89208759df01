"""DenseNet (Huang et al., "Densely connected convolutional networks", 2016).

A layer's input is all that the layers of its block before it made, joined along the channels.
"""

from __future__ import annotations

import fastnn
import fastnn.nn.functional as F
from fastnn import nn
from fastnn.nn import init
from fastnn.tensor import Tensor


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1, norm, ReLU, 3x3. Shape: (N, C, H, W) -> (N, growth_rate, H, W)."""

    def __init__(self, channels: int, growth_rate: int, bn_size: int, drop_rate: float) -> None:
        super().__init__()
        width = bn_size * growth_rate
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, growth_rate, 3, padding=1, bias=False)
        self.drop_rate = drop_rate

    def forward(self, input: Tensor) -> Tensor:
        out = self.conv1(self.norm1(input, activation="relu"))
        out = self.conv2(self.norm2(out, activation="relu"))
        return F.dropout(out, self.drop_rate, self.training) if self.drop_rate else out


class DenseBlock(nn.Module):
    """Layers that each add channels. Shape: (N, C, H, W) -> (N, C + count growth_rate, H, W)."""

    def __init__(
        self, count: int, channels: int, growth_rate: int, bn_size: int, drop_rate: float
    ) -> None:
        super().__init__()
        for i in range(count):
            layer = DenseLayer(channels + i * growth_rate, growth_rate, bn_size, drop_rate)
            setattr(self, f"denselayer{i + 1}", layer)

    def forward(self, input: Tensor) -> Tensor:
        for layer in self.children():
            input = fastnn.cat([input, layer(input)], 1)
        return input


class Transition(nn.Module):
    """Norm, ReLU, 1x1, 2x2 average. Shape: (N, C, H, W) -> (N, outputs, H // 2, W // 2)."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, outputs, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, input: Tensor) -> Tensor:
        return self.pool(self.conv(self.norm(input, activation="relu")))


class DenseNet(nn.Module):
    """A 7x7 stem, four dense blocks with halving transitions between them, one linear layer.

    Shape: (N, in_channels, H, W) -> (N, num_classes), H and W at least 32.

    Args:
        growth_rate: channels that a layer adds.
        block_config: layers in each block.
        num_init_features: channels of the stem.
        bn_size: channels of a layer's 1x1, in growth rates.
        drop_rate: dropout of what a layer adds.
        num_classes: size of the output.
        in_channels: of the images.
    """

    def __init__(
        self, growth_rate: int = 32, block_config: tuple[int, ...] = (6, 12, 24, 16),
        num_init_features: int = 64, bn_size: int = 4, drop_rate: float = 0.0,
        num_classes: int = 1000, in_channels: int = 3,
    ) -> None:  # fmt: skip
        super().__init__()
        channels = num_init_features
        parts: dict[str, nn.Module] = {
            "conv0": nn.Conv2d(in_channels, channels, 7, 2, 3, bias=False),
            "norm0": nn.BatchNorm2d(channels),
            "relu0": nn.ReLU(),
            "pool0": nn.MaxPool2d(3, 2, 1),
        }
        for i, count in enumerate(block_config, 1):
            parts[f"denseblock{i}"] = DenseBlock(count, channels, growth_rate, bn_size, drop_rate)
            channels += count * growth_rate
            if i < len(block_config):
                parts[f"transition{i}"] = Transition(channels, channels // 2)
                channels //= 2
        parts["norm5"] = nn.BatchNorm2d(channels)
        parts["relu5"] = nn.ReLU()
        self.features = nn.Sequential(parts)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init.kaiming_normal_(module.weight, nonlinearity="relu")
        init.zeros_(self.classifier.bias)

    def forward(self, input: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(input)).flatten(1))


def densenet121(**kwargs: object) -> DenseNet:
    """DenseNet-121: 7,978,856 parameters, 2.8 G multiply-adds at 224 x 224."""
    return DenseNet(32, (6, 12, 24, 16), 64, **kwargs)  # type: ignore[arg-type]


def densenet161(**kwargs: object) -> DenseNet:
    """DenseNet-161: 28,681,000 parameters, 7.7 G multiply-adds at 224 x 224."""
    return DenseNet(48, (6, 12, 36, 24), 96, **kwargs)  # type: ignore[arg-type]


def densenet169(**kwargs: object) -> DenseNet:
    """DenseNet-169: 14,149,480 parameters, 3.4 G multiply-adds at 224 x 224."""
    return DenseNet(32, (6, 12, 32, 32), 64, **kwargs)  # type: ignore[arg-type]


def densenet201(**kwargs: object) -> DenseNet:
    """DenseNet-201: 20,013,928 parameters, 4.3 G multiply-adds at 224 x 224."""
    return DenseNet(32, (6, 12, 48, 32), 64, **kwargs)  # type: ignore[arg-type]
