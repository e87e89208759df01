"""A network of your own on the digits, with the trainer's checkpoints, metrics and pictures.

    python examples/train_custom.py [epochs]

leaves runs/custom/: model weights, checkpoint, metrics.jsonl, curves.png.
"""

from __future__ import annotations

import sys

import fastnn
from fastnn import nn
from fastnn.data import digits, random_affine
from fastnn.train import TrainConfig, evaluate, fit
from fastnn.viz import curves


class Block(nn.Module):
    """Depthwise 3x3, pointwise 1x1, each normalised, around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: fastnn.Tensor) -> fastnn.Tensor:
        out = nn.functional.silu(self.norm1(self.depthwise(x)))
        return x + self.norm2(self.pointwise(out))


class Net(nn.Module):
    """A stem, four blocks, and a classifier with dropout."""

    def __init__(self, channels: int = 48) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(4)))
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(4 * channels, 10))

    def forward(self, x: fastnn.Tensor) -> fastnn.Tensor:
        return self.head(self.pool(self.blocks(nn.functional.silu(self.stem(x)))))


def main() -> None:
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    fastnn.manual_seed(0)
    train, test = digits()
    model = Net()
    config = TrainConfig("custom", epochs=epochs, batch_size=32, optimizer="adamw", lr=4e-3)
    history = fit(model, train, test, config, "runs/custom", transform=random_affine)
    curves(history, "runs/custom/curves.png")
    loss, accuracy, _ = evaluate(model, test, config)
    print(f"hold-out: loss {loss:.3f}, accuracy {accuracy:.2%}")


if __name__ == "__main__":
    main()
