"""ResNet for ImageNet (He et al., "Deep residual learning", 2015), with the stride in the 3x3.

ResNeXt (Xie et al., "Aggregated residual transformations", 2016) makes the 3x3 one of groups, wide
ResNets (Zagoruyko and Komodakis, 2016) make it wider. Blocks use the fused forms: batch norm,
residual and ReLU are one pass over memory.
"""

from __future__ import annotations

from fastnn import nn
from fastnn.nn import init
from fastnn.tensor import Tensor


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut. Shape: (N, C, H, W) -> (N, planes, H', W')."""

    expansion = 1

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None,
        groups: int = 1, base_width: int = 64,
    ) -> None:  # fmt: skip
        if (groups, base_width) != (1, 64):
            raise ValueError(
                "BasicBlock: groups and width_per_group expect 1 and 64, "
                f"got {groups} and {base_width}; Bottleneck takes others"
            )
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, input: Tensor) -> Tensor:
        shortcut = input if self.downsample is None else self.downsample(input)
        out = self.bn1(self.conv1(input), activation="relu")
        return self.bn2(self.conv2(out), activation="relu", residual=shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 around a shortcut. Shape: (N, C, H, W) -> (N, 4 planes, H', W')."""

    expansion = 4

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None,
        groups: int = 1, base_width: int = 64,
    ) -> None:  # fmt: skip
        super().__init__()
        width = planes * base_width // 64 * groups
        self.conv1 = nn.Conv2d(inplanes, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.downsample = downsample

    def forward(self, input: Tensor) -> Tensor:
        shortcut = input if self.downsample is None else self.downsample(input)
        out = self.bn1(self.conv1(input), activation="relu")
        out = self.bn2(self.conv2(out), activation="relu")
        return self.bn3(self.conv3(out), activation="relu", residual=shortcut)


class ResNet(nn.Module):
    """A 7x7 stem, four stages of blocks, global average, one linear layer.

    Shape: (N, in_channels, H, W) -> (N, num_classes).

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        layers: blocks in each stage.
        num_classes: size of the output.
        in_channels: of the images.
        zero_init_residual: start every block as the identity (Goyal et al., 2017).
        groups: of the 3x3 convolutions of a :class:`Bottleneck`.
        width_per_group: channels of a group in the first stage.

    Raises:
        ValueError: groups, or another width, of :class:`BasicBlock`.
    """

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], layers: tuple[int, int, int, int],
        num_classes: int = 1000, in_channels: int = 3, zero_init_residual: bool = False,
        groups: int = 1, width_per_group: int = 64,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inplanes = 64
        for i, count in enumerate(layers):
            planes, stride = 64 * 2**i, 1 if i == 0 else 2
            blocks: list[nn.Module] = []
            for j in range(count):
                step, out = (stride if j == 0 else 1), planes * block.expansion
                downsample = None
                if step != 1 or inplanes != out:
                    downsample = nn.Sequential(
                        nn.Conv2d(inplanes, out, 1, step, bias=False), nn.BatchNorm2d(out)
                    )
                blocks.append(block(inplanes, planes, step, downsample, groups, width_per_group))
                inplanes = out
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inplanes, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, BasicBlock):
                init.zeros_(module.bn2.weight)
            elif zero_init_residual and isinstance(module, Bottleneck):
                init.zeros_(module.bn3.weight)

    def forward(self, input: Tensor) -> Tensor:
        out = self.maxpool(self.bn1(self.conv1(input), activation="relu"))
        for i in range(1, 5):
            out = getattr(self, f"layer{i}")(out)
        return self.fc(self.avgpool(out).flatten(1))


def resnet18(**kwargs: object) -> ResNet:
    """ResNet-18: 11,689,512 parameters, 1.8 G multiply-adds at 224 x 224."""
    return ResNet(BasicBlock, (2, 2, 2, 2), **kwargs)  # type: ignore[arg-type]


def resnet34(**kwargs: object) -> ResNet:
    """ResNet-34: 21,797,672 parameters, 3.7 G multiply-adds at 224 x 224."""
    return ResNet(BasicBlock, (3, 4, 6, 3), **kwargs)  # type: ignore[arg-type]


def resnet50(**kwargs: object) -> ResNet:
    """ResNet-50: 25,557,032 parameters, 4.1 G multiply-adds at 224 x 224."""
    return ResNet(Bottleneck, (3, 4, 6, 3), **kwargs)  # type: ignore[arg-type]


def resnet101(**kwargs: object) -> ResNet:
    """ResNet-101: 44,549,160 parameters, 7.8 G multiply-adds at 224 x 224."""
    return ResNet(Bottleneck, (3, 4, 23, 3), **kwargs)  # type: ignore[arg-type]


def resnet152(**kwargs: object) -> ResNet:
    """ResNet-152: 60,192,808 parameters, 11.5 G multiply-adds at 224 x 224."""
    return ResNet(Bottleneck, (3, 8, 36, 3), **kwargs)  # type: ignore[arg-type]


def resnext50_32x4d(**kwargs: object) -> ResNet:
    """ResNeXt-50 of 32 groups: 25,028,904 parameters, 4.2 G multiply-adds at 224 x 224."""
    return ResNet(Bottleneck, (3, 4, 6, 3), groups=32, width_per_group=4, **kwargs)  # type: ignore[arg-type]


def resnext101_32x8d(**kwargs: object) -> ResNet:
    """ResNeXt-101 of 32 groups: 88,791,336 parameters, 16.4 G multiply-adds at 224 x 224."""
    return ResNet(Bottleneck, (3, 4, 23, 3), groups=32, width_per_group=8, **kwargs)  # type: ignore[arg-type]


def wide_resnet50_2(**kwargs: object) -> ResNet:
    """ResNet-50, twice as wide within: 68,883,240 parameters, 11.4 G multiply-adds at 224 x 224."""
    return ResNet(Bottleneck, (3, 4, 6, 3), width_per_group=128, **kwargs)  # type: ignore[arg-type]


def wide_resnet101_2(**kwargs: object) -> ResNet:
    """ResNet-101, twice as wide within: 126,886,696 parameters, 22.8 G multiply-adds at 224 x 224."""
    return ResNet(Bottleneck, (3, 4, 23, 3), width_per_group=128, **kwargs)  # type: ignore[arg-type]
