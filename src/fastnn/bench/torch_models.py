"""The networks of the training and inference suites in PyTorch, written compactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class _Block(nn.Module):
    """A residual block: 3x3, 3x3, or with ``bottleneck`` 1x1, 3x3, 1x1."""

    def __init__(self, inplanes: int, planes: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = planes * (4 if bottleneck else 1)
        shapes = [(1, 1), (3, stride), (1, 1)] if bottleneck else [(3, stride), (3, 1)]
        widths = [inplanes, planes, planes, out] if bottleneck else [inplanes, planes, out]
        self.convs = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], k, s, k // 2, bias=False)
            for i, (k, s) in enumerate(shapes)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.shortcut: Any = None
        if stride != 1 or inplanes != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inplanes, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Any) -> Any:
        out = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            out = norm(conv(out))
            if i + 1 < len(self.convs):
                out = F.relu(out, inplace=True)
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu(out, inplace=True)


def resnet(layers: tuple[int, ...], bottleneck: bool) -> nn.Module:
    """ResNet for 224 x 224 images."""
    parts: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    inplanes = 64
    for i, count in enumerate(layers):
        for j in range(count):
            parts.append(_Block(inplanes, 64 * 2**i, 2 if i and not j else 1, bottleneck))
            inplanes = 64 * 2**i * (4 if bottleneck else 1)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inplanes, 1000)]
    return nn.Sequential(*parts, *head)


class _Pad(nn.Module):
    """The parameter-free shortcut of CIFAR's ResNets: every second pixel, zeros for new channels."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Any) -> Any:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.extra))


def cifar_resnet20(width: int) -> nn.Module:
    """ResNet-20 for 32 x 32 images with ``width`` channels in its first stage."""
    parts: list[nn.Module] = [
        nn.Conv2d(3, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
    inplanes = width
    for i in range(3):
        for j in range(3):
            planes, stride = width * 2**i, 2 if i and not j else 1
            block = _Block(inplanes, planes, stride, False)
            if block.shortcut is not None:
                block.shortcut = _Pad(planes - inplanes)
            parts.append(block)
            inplanes = planes
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inplanes, 10))


def vgg16() -> nn.Module:
    """VGG-16 without batch norm."""
    parts: list[nn.Module] = []
    inplanes = 3
    for planes, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            parts += [nn.Conv2d(inplanes, planes, 3, 1, 1), nn.ReLU(inplace=True)]
            inplanes = planes
        parts.append(nn.MaxPool2d(2))
    sizes = (512 * 49, 4096, 4096)
    parts.append(nn.Flatten())
    for i in range(2):
        parts += [nn.Linear(sizes[i], 4096), nn.ReLU(inplace=True), nn.Dropout()]
    return nn.Sequential(*parts, nn.Linear(4096, 1000))


def lenet5() -> nn.Module:
    """LeNet-5 for color images, with ReLU and max pooling."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(inplace=True), nn.Linear(120, 84), nn.ReLU(inplace=True),
        nn.Linear(84, 10),
    )  # fmt: skip


def make(name: str) -> nn.Module:
    """A network of the suites by name, with fixed weights."""
    torch.manual_seed(0)
    return {
        "resnet50": lambda: resnet((3, 4, 6, 3), True),
        "resnet18": lambda: resnet((2, 2, 2, 2), False),
        "vgg16": vgg16,
        "lenet5_modern": lenet5,
        "cifar_resnet20": lambda: cifar_resnet20(16),
        "cifar_resnet20_w64": lambda: cifar_resnet20(64),
    }[name]()
