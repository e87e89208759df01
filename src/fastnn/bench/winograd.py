"""Error of Winograd's algorithm beside that of direct sums, against float64, layer by layer.

``python -m fastnn.bench.winograd`` prints the table of docs/winograd.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

import fastnn
from fastnn.reference.conv import conv2d

#: (channels, height and width, output channels) of the 3x3 layers of ResNet-50 and VGG-16.
LAYERS = (
    (64, 56, 64), (128, 28, 128), (256, 14, 256), (512, 7, 512),
    (64, 224, 64), (64, 112, 128), (128, 112, 128), (128, 56, 256), (256, 56, 256),
    (256, 28, 512), (512, 28, 512), (512, 14, 512),
)  # fmt: skip


@dataclass(frozen=True)
class Error:
    """Errors of one layer, relative to the root-mean-square of its exact output.

    Attributes:
        layer: of :data:`LAYERS`.
        direct, direct_max: root-mean-square and largest error of the direct kernel.
        winograd, winograd_max: the same of Winograd's algorithm.
    """

    layer: tuple[int, int, int]
    direct: float
    direct_max: float
    winograd: float
    winograd_max: float


def winograd_errors(layers: tuple[tuple[int, int, int], ...] = LAYERS) -> Iterator[Error]:
    """Measures layers on one image of normal random values, weights in Kaiming's scale."""
    rng = np.random.default_rng(0)
    for channels, size, outputs in layers:
        x = rng.standard_normal((1, channels, size, size), np.float32)
        w = rng.standard_normal((outputs, channels, 3, 3), np.float32)
        w *= np.float32(np.sqrt(2 / (9 * channels)))
        exact = conv2d(x.astype(np.float64), w.astype(np.float64), padding=1)
        scale = np.sqrt(np.mean(exact**2))
        found = []
        for mode in ("off", "always"):
            with fastnn.backends.cpu.winograd(mode), fastnn.no_grad():
                y = fastnn.nn.functional.conv2d(fastnn.tensor(x), fastnn.tensor(w), padding=1)
            error = np.abs(y.numpy() - exact) / scale
            found += [float(np.sqrt(np.mean(error**2))), float(error.max())]
        yield Error((channels, size, outputs), *found)


def main() -> None:
    """Prints the table."""
    print("| layer | direct rms | direct max | Winograd rms | Winograd max | rms ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for e in winograd_errors():
        channels, size, outputs = e.layer
        print(
            f"| {channels} -> {outputs} @ {size} | {e.direct:.1e} | {e.direct_max:.1e} "
            f"| {e.winograd:.1e} | {e.winograd_max:.1e} | {e.winograd / e.direct:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
