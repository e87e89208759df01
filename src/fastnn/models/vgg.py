"""VGG (Simonyan and Zisserman, "Very deep convolutional networks", 2014)."""

from __future__ import annotations

from fastnn import nn
from fastnn.nn import init
from fastnn.tensor import Tensor

#: Output channels of the convolutions; "M" is a 2x2 max pool.
LAYERS: dict[str, tuple[int | str, ...]] = {
    "vgg11": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg13": (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg16": (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512,
              "M"),
    "vgg19": (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512,
              512, 512, 512, "M"),
}  # fmt: skip


class VGG(nn.Module):
    """3x3 convolutions, 2x2 max pools, three fully connected layers.

    Shape: (N, in_channels, H, W) -> (N, num_classes), H and W at least 32.

    Args:
        layers: a row of :data:`LAYERS`.
        batch_norm: normalise after every convolution.
        num_classes: size of the output.
        in_channels: of the images.
        dropout: in the classifier.
        pool: height and width that the classifier sees; 1 suits images of 32 x 32.
        hidden: size of the two hidden layers of the classifier.
    """

    def __init__(
        self, layers: tuple[int | str, ...], batch_norm: bool = False, num_classes: int = 1000,
        in_channels: int = 3, dropout: float = 0.5, pool: int = 7, hidden: int = 4096,
    ) -> None:  # fmt: skip
        super().__init__()
        parts: list[nn.Module] = []
        channels = in_channels
        for size in layers:
            if isinstance(size, str):
                parts.append(nn.MaxPool2d(2))
                continue
            parts.append(nn.Conv2d(channels, size, 3, padding=1))
            if batch_norm:
                parts.append(nn.BatchNorm2d(size))
            parts.append(nn.ReLU())
            channels = size
        self.features = nn.Sequential(*parts)
        self.avgpool = nn.AdaptiveAvgPool2d(pool)
        self.classifier = nn.Sequential(
            nn.Linear(512 * pool * pool, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )  # fmt: skip
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                if hidden == 4096:
                    init.normal_(module.weight, 0, 0.01)  # torchvision's choice, for this size
                else:
                    init.kaiming_normal_(module.weight, nonlinearity="relu")
                init.zeros_(module.bias)

    def forward(self, input: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(input)).flatten(1))


def vgg11(**kwargs: object) -> VGG:
    """VGG-11: 132,863,336 parameters, 7.6 G multiply-adds at 224 x 224."""
    return VGG(LAYERS["vgg11"], **kwargs)  # type: ignore[arg-type]


def vgg11_bn(**kwargs: object) -> VGG:
    """VGG-11 with batch norm: 132,868,840 parameters."""
    return VGG(LAYERS["vgg11"], True, **kwargs)  # type: ignore[arg-type]


def vgg13(**kwargs: object) -> VGG:
    """VGG-13: 133,047,848 parameters, 11.3 G multiply-adds at 224 x 224."""
    return VGG(LAYERS["vgg13"], **kwargs)  # type: ignore[arg-type]


def vgg13_bn(**kwargs: object) -> VGG:
    """VGG-13 with batch norm: 133,053,736 parameters."""
    return VGG(LAYERS["vgg13"], True, **kwargs)  # type: ignore[arg-type]


def vgg16(**kwargs: object) -> VGG:
    """VGG-16: 138,357,544 parameters, 15.5 G multiply-adds at 224 x 224."""
    return VGG(LAYERS["vgg16"], **kwargs)  # type: ignore[arg-type]


def vgg16_bn(**kwargs: object) -> VGG:
    """VGG-16 with batch norm: 138,365,992 parameters."""
    return VGG(LAYERS["vgg16"], True, **kwargs)  # type: ignore[arg-type]


def vgg19(**kwargs: object) -> VGG:
    """VGG-19: 143,667,240 parameters, 19.6 G multiply-adds at 224 x 224."""
    return VGG(LAYERS["vgg19"], **kwargs)  # type: ignore[arg-type]


def vgg19_bn(**kwargs: object) -> VGG:
    """VGG-19 with batch norm: 143,678,248 parameters."""
    return VGG(LAYERS["vgg19"], True, **kwargs)  # type: ignore[arg-type]
