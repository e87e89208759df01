"""ResNet for small images (He et al., "Deep residual learning", 2015, section 4.2).

Depth 6n + 2: three stages of n blocks with 16, 32 and 64 channels. Shortcuts have no parameters: where
a stage begins they take every second pixel and fill the new channels with zeros (option A).
"""

from __future__ import annotations

import fastnn.functional as F
from fastnn import nn
from fastnn.nn import init
from fastnn.tensor import Tensor


class CifarBlock(nn.Module):
    """Two 3x3 convolutions, with or without a shortcut around them."""

    def __init__(self, inplanes: int, planes: int, stride: int, shortcuts: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride, self.shortcuts = stride, shortcuts
        self.new_channels = planes - inplanes

    def shortcut(self, input: Tensor) -> Tensor:
        """Option A: subsampling, and zeros for the channels that are new (half before, half after)."""
        if self.stride == 1 and self.new_channels == 0:
            return input
        half = self.new_channels // 2
        seen = input[:, :, :: self.stride, :: self.stride]
        return F.pad(seen, (0, 0, 0, 0, half, self.new_channels - half))

    def forward(self, input: Tensor) -> Tensor:
        out = self.bn1(self.conv1(input), activation="relu")
        residual = self.shortcut(input) if self.shortcuts else None
        return self.bn2(self.conv2(out), activation="relu", residual=residual)


class CifarResNet(nn.Module):
    """The network of section 4.2.

    Shape: (N, in_channels, H, W) -> (N, num_classes), H and W at least 4.

    Args:
        depth: 6n + 2.
        num_classes: size of the output.
        in_channels: of the images.
        shortcuts: False gives the plain network that the paper compares with.
        width: channels of the first stage.

    Raises:
        ValueError: the depth is not 6n + 2.
    """

    def __init__(
        self, depth: int, num_classes: int = 10, in_channels: int = 3, shortcuts: bool = True,
        width: int = 16,
    ) -> None:  # fmt: skip
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"CifarResNet: depth expects 6n + 2, got {depth}")
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inplanes = width
        for i in range(3):
            planes = width * 2**i
            blocks = []
            for j in range((depth - 2) // 6):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(CifarBlock(inplanes, planes, stride, shortcuts))
                inplanes = planes
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(inplanes, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, input: Tensor) -> Tensor:
        out = self.bn1(self.conv1(input), activation="relu")
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(self.avgpool(out).flatten(1))


def resnet20(**kwargs: object) -> CifarResNet:
    """CIFAR ResNet-20: 269,722 parameters."""
    return CifarResNet(20, **kwargs)  # type: ignore[arg-type]


def resnet32(**kwargs: object) -> CifarResNet:
    """CIFAR ResNet-32: 464,154 parameters."""
    return CifarResNet(32, **kwargs)  # type: ignore[arg-type]


def resnet44(**kwargs: object) -> CifarResNet:
    """CIFAR ResNet-44: 658,586 parameters."""
    return CifarResNet(44, **kwargs)  # type: ignore[arg-type]


def resnet56(**kwargs: object) -> CifarResNet:
    """CIFAR ResNet-56: 853,018 parameters."""
    return CifarResNet(56, **kwargs)  # type: ignore[arg-type]


def resnet110(**kwargs: object) -> CifarResNet:
    """CIFAR ResNet-110: 1,727,962 parameters."""
    return CifarResNet(110, **kwargs)  # type: ignore[arg-type]
