"""Inception v3 (Szegedy et al., "Rethinking the Inception architecture", 2015), as torchvision has it,
whose weights fit."""

from __future__ import annotations

from typing import Any, NamedTuple

import fastnn
import fastnn.nn.functional as F
from fastnn import nn
from fastnn.models.googlenet import BasicConv2d
from fastnn.nn import init
from fastnn.tensor import Tensor

#: Convolutions of a branch, one after the other: outputs and kernel. Of a kernel (1, 3) and one
#: (3, 1) at its end, both take what is before them.
Branch = tuple[tuple[int, Any], ...]

_TALL, _WIDE = (7, 1), (1, 7)


def _a(pool: int) -> dict[str, Branch]:
    return {
        "branch1x1": ((64, 1),), "branch5x5": ((48, 1), (64, 5)),
        "branch3x3dbl": ((64, 1), (96, 3), (96, 3)), "branch_pool": ((pool, 1),),
    }  # fmt: skip


def _c(narrow: int) -> dict[str, Branch]:
    n = narrow
    return {
        "branch1x1": ((192, 1),), "branch7x7": ((n, 1), (n, _WIDE), (192, _TALL)),
        "branch7x7dbl": ((n, 1), (n, _TALL), (n, _WIDE), (n, _TALL), (192, _WIDE)),
        "branch_pool": ((192, 1),),
    }  # fmt: skip


_B: dict[str, Branch] = {"branch3x3": ((384, 3),), "branch3x3dbl": ((64, 1), (96, 3), (96, 3))}
_D: dict[str, Branch] = {
    "branch3x3": ((192, 1), (320, 3)),
    "branch7x7x3": ((192, 1), (192, _WIDE), (192, _TALL), (192, 3)),
}
_E: dict[str, Branch] = {
    "branch1x1": ((320, 1),), "branch3x3": ((384, 1), (384, (1, 3)), (384, (3, 1))),
    "branch3x3dbl": ((448, 1), (384, 3), (384, (1, 3)), (384, (3, 1))),
    "branch_pool": ((192, 1),),
}  # fmt: skip

#: Modules in order; B and D halve the image, by a stride of 2 at the end of each branch.
MODULES = {
    "Mixed_5b": _a(32), "Mixed_5c": _a(64), "Mixed_5d": _a(64), "Mixed_6a": _B,
    "Mixed_6b": _c(128), "Mixed_6c": _c(160), "Mixed_6d": _c(160), "Mixed_6e": _c(192),
    "Mixed_7a": _D, "Mixed_7b": _E, "Mixed_7c": _E,
}  # fmt: skip


class InceptionOutputs(NamedTuple):
    """What a network with an auxiliary classifier gives in training: two tensors (N, num_classes)."""

    logits: Tensor
    aux_logits: Tensor


def _is_split(branch: Branch) -> bool:
    return len(branch) > 1 and (branch[-2][1], branch[-1][1]) == ((1, 3), (3, 1))


def _names(name: str, branch: Branch) -> list[str]:
    """Of a branch's convolutions: those of a split end count as one place, a and b."""
    if len(branch) == 1:
        return [name]
    places = [str(i + 1) for i in range(len(branch))]
    if _is_split(branch):
        places[-2:] = [places[-2] + "a", places[-2] + "b"]
    return [f"{name}_{place}" for place in places]


class Mixed(nn.Module):
    """Branches side by side, one of which pools.

    Shape: (N, C, H, W) -> (N, ``outputs``, H, W), or without a ``branch_pool`` half of H and W: then
    the pooled input is a branch itself.
    """

    def __init__(self, channels: int, branches: dict[str, Branch]) -> None:
        super().__init__()
        self.branches = branches
        self.names = {name: _names(name, branch) for name, branch in branches.items()}
        self.reduces = "branch_pool" not in branches
        self.outputs = channels if self.reduces else 0
        for name, branch in branches.items():
            before = channels
            for i, (outputs, kernel) in enumerate(branch):
                last = i + 1 == len(branch)
                size = kernel if isinstance(kernel, tuple) else (kernel, kernel)
                halves = self.reduces and last
                conv = BasicConv2d(
                    before, outputs, kernel, 2 if halves else 1,
                    0 if halves else (size[0] // 2, size[1] // 2),
                )  # fmt: skip
                setattr(self, self.names[name][i], conv)
                if not (_is_split(branch) and i + 2 == len(branch)):
                    before = outputs
            self.outputs += branch[-1][0] * (2 if _is_split(branch) else 1)

    def forward(self, input: Tensor) -> Tensor:
        parts = []
        for name, branch in self.branches.items():
            convs = [getattr(self, conv) for conv in self.names[name]]
            out = F.avg_pool2d(input, 3, 1, 1) if name == "branch_pool" else input
            for conv in convs[:-2] if _is_split(branch) else convs:
                out = conv(out)
            parts += [conv(out) for conv in convs[-2:]] if _is_split(branch) else [out]
        if self.reduces:
            parts.append(F.max_pool2d(input, 3, 2))
        return fastnn.cat(parts, 1)


class InceptionAux(nn.Module):
    """A classifier of what is between two modules. Shape: (N, C, 17, 17) -> (N, num_classes)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv0 = BasicConv2d(channels, 128, 1)
        self.conv1 = BasicConv2d(128, 768, 5)
        self.fc = nn.Linear(768, num_classes)

    def forward(self, input: Tensor) -> Tensor:
        out = self.conv1(self.conv0(F.avg_pool2d(input, 5, 3)))
        return self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))


class InceptionV3(nn.Module):
    """Five convolutions, eleven inception modules, global average, one linear layer.

    Shape: (N, in_channels, H, W) -> (N, num_classes), H and W at least 75. With ``aux_logits``,
    in training, an :class:`InceptionOutputs`, and H and W are the paper's 299 or more; torchvision's
    recipe adds the second loss with a weight of 0.4.

    Args:
        num_classes: size of the output.
        in_channels: of the images.
        aux_logits: a classifier more, behind module 6e. False, unlike torchvision's, whose training
            loops have to know of it.
        dropout: before the linear layer.
    """

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, aux_logits: bool = False,
        dropout: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(in_channels, 32, 3, 2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, 3)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, 3, padding=1)
        self.maxpool1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, 1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, 3)
        self.maxpool2 = nn.MaxPool2d(3, 2)
        channels = 192
        for name, branches in MODULES.items():
            if name == "Mixed_7a" and aux_logits:
                self.AuxLogits = InceptionAux(channels, num_classes)
            mixed = Mixed(channels, branches)
            setattr(self, name, mixed)
            channels = mixed.outputs
        self.aux_logits = aux_logits
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        for path, module in self.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                rare = {"AuxLogits.conv1.conv": 0.01, "AuxLogits.fc": 0.001}
                init.trunc_normal_(module.weight, std=rare.get(path, 0.1))

    def forward(self, input: Tensor) -> Tensor | InceptionOutputs:
        out = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(input)))
        out = self.maxpool2(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(self.maxpool1(out))))
        aux = None
        for name in MODULES:
            if name == "Mixed_7a" and self.aux_logits and self.training:
                aux = self.AuxLogits(out)
            out = getattr(self, name)(out)
        logits = self.fc(self.dropout(self.avgpool(out).flatten(1)))
        return logits if aux is None else InceptionOutputs(logits, aux)


def inception_v3(**kwargs: Any) -> InceptionV3:
    """Inception v3: 23,834,568 parameters, with its auxiliary classifier 27,161,264; 5.7 G
    multiply-adds at 299 x 299."""
    return InceptionV3(**kwargs)
