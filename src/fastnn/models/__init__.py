"""Networks: a class, a table of sizes, and factories named as in torchvision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastnn.models.alexnet import AlexNet, alexnet
from fastnn.models.densenet import DenseNet, densenet121, densenet161, densenet169, densenet201
from fastnn.models.efficientnet import (
    EfficientNet,
    efficientnet_b0,
    efficientnet_b1,
    efficientnet_b2,
    efficientnet_b3,
    efficientnet_b4,
)
from fastnn.models.googlenet import GoogLeNet, googlenet
from fastnn.models.inception import InceptionV3, inception_v3
from fastnn.models.lenet import LeNet5, ModernLeNet5, lenet5, lenet5_modern
from fastnn.models.mobilenet import MobileNetV2, mobilenet_v2
from fastnn.models.resnet import (
    ResNet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnext50_32x4d,
    resnext101_32x8d,
    wide_resnet50_2,
    wide_resnet101_2,
)
from fastnn.models.resnet_cifar import (
    CifarResNet,
    resnet20,
    resnet32,
    resnet44,
    resnet56,
    resnet110,
)
from fastnn.models.vgg import (
    VGG,
    vgg11,
    vgg11_bn,
    vgg13,
    vgg13_bn,
    vgg16,
    vgg16_bn,
    vgg19,
    vgg19_bn,
)
from fastnn.nn.module import Module

_FACTORIES: dict[str, Callable[..., Module]] = {
    factory.__name__: factory
    for factory in (
        alexnet,
        densenet121, densenet161, densenet169, densenet201,
        efficientnet_b0, efficientnet_b1, efficientnet_b2, efficientnet_b3, efficientnet_b4,
        googlenet, inception_v3,
        lenet5, lenet5_modern,
        mobilenet_v2,
        resnet18, resnet34, resnet50, resnet101, resnet152,
        resnext50_32x4d, resnext101_32x8d, wide_resnet50_2, wide_resnet101_2,
        resnet20, resnet32, resnet44, resnet56, resnet110,
        vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn,
    )
}  # fmt: skip


def list_models() -> list[str]:
    """Names that :func:`create_model` knows."""
    return sorted(_FACTORIES)


def create_model(name: str, **kwargs: Any) -> Module:
    """A network by name.

    Args:
        name: one of :func:`list_models`.
        **kwargs: for its factory: ``num_classes``, ``in_channels``, ...

    Raises:
        ValueError: there is no such network.
    """
    if name not in _FACTORIES:
        raise ValueError(f"create_model: expected one of {', '.join(list_models())}, got {name!r}")
    return _FACTORIES[name](**kwargs)
