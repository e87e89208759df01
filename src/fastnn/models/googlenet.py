"""GoogLeNet (Szegedy et al., "Going deeper with convolutions", 2014), with batch norms.

As torchvision has it, whose weights fit: the third branch's kernel is 3x3 where the paper says 5x5.
"""

from __future__ import annotations

from typing import NamedTuple

import fastnn
import fastnn.nn.functional as F
from fastnn import nn
from fastnn.nn import init
from fastnn.tensor import Tensor

#: Channels of the branches: 1x1; 1x1 and 3x3; 1x1 and 3x3; 1x1 behind the pool.
INCEPTION = {
    "3a": (64, (96, 128), (16, 32), 32), "3b": (128, (128, 192), (32, 96), 64),
    "4a": (192, (96, 208), (16, 48), 64), "4b": (160, (112, 224), (24, 64), 64),
    "4c": (128, (128, 256), (24, 64), 64), "4d": (112, (144, 288), (32, 64), 64),
    "4e": (256, (160, 320), (32, 128), 128), "5a": (256, (160, 320), (32, 128), 128),
    "5b": (384, (192, 384), (48, 128), 128),
}  # fmt: skip


#: Max pools before modules, and their kernels.
POOLS = {"4a": ("maxpool3", 3), "5a": ("maxpool4", 2)}


class GoogLeNetOutputs(NamedTuple):
    """What a network with auxiliary classifiers gives in training: three tensors (N, num_classes)."""

    logits: Tensor
    aux_logits2: Tensor
    aux_logits1: Tensor


class BasicConv2d(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self, channels: int, outputs: int, kernel_size: int | tuple[int, int], stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(channels, outputs, kernel_size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, input: Tensor) -> Tensor:
        return self.bn(self.conv(input), activation="relu")


class Inception(nn.Module):
    """Four branches side by side. Shape: (N, C, H, W) -> (N, sum of their outputs, H, W)."""

    def __init__(
        self, channels: int, one: int, three: tuple[int, int], five: tuple[int, int], pool: int
    ) -> None:
        super().__init__()
        self.branch1 = BasicConv2d(channels, one, 1)
        self.branch2 = nn.Sequential(
            BasicConv2d(channels, three[0], 1), BasicConv2d(*three, 3, padding=1)
        )
        self.branch3 = nn.Sequential(
            BasicConv2d(channels, five[0], 1), BasicConv2d(*five, 3, padding=1)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, 1, 1, ceil_mode=True), BasicConv2d(channels, pool, 1)
        )

    def forward(self, input: Tensor) -> Tensor:
        return fastnn.cat([branch(input) for branch in self.children()], 1)


class InceptionAux(nn.Module):
    """A classifier of what is between two modules. Shape: (N, C, H, W) -> (N, num_classes)."""

    def __init__(self, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv = BasicConv2d(channels, 128, 1)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.fc2 = nn.Linear(1024, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input: Tensor) -> Tensor:
        out = self.conv(F.adaptive_avg_pool2d(input, 4)).flatten(1)
        return self.fc2(self.dropout(F.relu(self.fc1(out))))


class GoogLeNet(nn.Module):
    """Three convolutions, nine inception modules, global average, one linear layer.

    Shape: (N, in_channels, H, W) -> (N, num_classes), H and W at least 15. With ``aux_logits``, in
    training, a :class:`GoogLeNetOutputs`; the paper adds the two losses with a weight of 0.3.

    Args:
        num_classes: size of the output.
        in_channels: of the images.
        aux_logits: two more classifiers, behind modules 4a and 4d. False, unlike torchvision's, whose
            training loops have to know of them.
        dropout: before the linear layer.
        dropout_aux: in the auxiliary classifiers.
    """

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, aux_logits: bool = False,
        dropout: float = 0.2, dropout_aux: float = 0.7,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1 = BasicConv2d(in_channels, 64, 7, 2, 3)
        self.maxpool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = BasicConv2d(64, 64, 1)
        self.conv3 = BasicConv2d(64, 192, 3, padding=1)
        self.maxpool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        channels = 192
        for name, sizes in INCEPTION.items():
            if name in POOLS:
                before, kernel = POOLS[name]
                setattr(self, before, nn.MaxPool2d(kernel, 2, ceil_mode=True))
            one, three, five, pool = sizes
            setattr(self, f"inception{name}", Inception(channels, one, three, five, pool))
            channels = one + three[1] + five[1] + pool
        self.aux_logits = aux_logits
        if aux_logits:
            self.aux1 = InceptionAux(512, num_classes, dropout_aux)
            self.aux2 = InceptionAux(528, num_classes, dropout_aux)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                init.trunc_normal_(module.weight, std=0.01)

    def forward(self, input: Tensor) -> Tensor | GoogLeNetOutputs:
        out = self.maxpool1(self.conv1(input))
        out = self.maxpool2(self.conv3(self.conv2(out)))
        aux = []
        for name in INCEPTION:
            if name in POOLS:
                out = getattr(self, POOLS[name][0])(out)
            out = getattr(self, f"inception{name}")(out)
            if self.aux_logits and self.training and name in ("4a", "4d"):
                aux.append((self.aux1 if name == "4a" else self.aux2)(out))
        logits = self.fc(self.dropout(self.avgpool(out).flatten(1)))
        return GoogLeNetOutputs(logits, aux[1], aux[0]) if aux else logits


def googlenet(**kwargs: object) -> GoogLeNet:
    """GoogLeNet: 6,624,904 parameters, 1.5 G multiply-adds at 224 x 224."""
    return GoogLeNet(**kwargs)  # type: ignore[arg-type]
