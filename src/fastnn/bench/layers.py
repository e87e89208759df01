"""The layer table: every distinct convolution of common networks, each pass timed by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

import fastnn
import fastnn._core as _core
from fastnn.bench.draw import Repeated
from fastnn.bench.peaks import Peaks, precision, stored
from fastnn.bench.row import FAILURES, Failure, Row, attempted, left_out, measured
from fastnn.bench.winograd import winograd_errors
from fastnn.reference.case import bound

if TYPE_CHECKING:
    from fastnn.bench.run import Options


@dataclass(frozen=True)
class Layer:
    """A square convolution: channels, input size, output channels, kernel, stride, groups."""

    channels: int
    size: int
    outputs: int
    kernel: int
    stride: int = 1
    groups: int = 1

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def fits_winograd(self) -> bool:
        """Whether Winograd's algorithm may compute it."""
        small = min(self.channels, self.outputs) < 16
        return (self.kernel, self.stride, self.groups) == (3, 1, 1) and not small

    def case(self, batch: int) -> str:
        """The case line without its dtype."""
        groups = f"g{self.groups}" if self.groups > 1 else ""
        return (
            f"n{batch}c{self.channels}h{self.size}w{self.size}_oc{self.outputs}"
            f"_k{self.kernel}s{self.stride}p{self.padding}{groups}_nobias"
        )


def _table(text: str) -> tuple[Layer, ...]:
    return tuple(Layer(*map(int, row.split())) for row in text.strip().splitlines())


#: Input channels, size, output channels, kernel, stride, groups.
LAYERS = {
    "resnet50": _table("""
        3 224 64 7 2
        64 56 64 1
        64 56 64 3
        64 56 256 1
        256 56 64 1
        256 56 128 1
        128 56 128 3 2
        256 56 512 1 2
        128 28 512 1
        512 28 128 1
        128 28 128 3
        512 28 256 1
        256 28 256 3 2
        512 28 1024 1 2
        256 14 1024 1
        1024 14 256 1
        256 14 256 3
        1024 14 512 1
        512 14 512 3 2
        1024 14 2048 1 2
        512 7 2048 1
        2048 7 512 1
        512 7 512 3"""),
    "vgg16": _table("""
        3 224 64 3
        64 224 64 3
        64 112 128 3
        128 112 128 3
        128 56 256 3
        256 56 256 3
        256 28 512 3
        512 28 512 3
        512 14 512 3"""),
    "mobilenet": _table("""
        32 112 32 3 1 32
        96 112 96 3 2 96
        144 56 144 3 1 144
        144 56 144 3 2 144
        192 28 192 3 1 192
        384 14 384 3 1 384
        576 14 576 3 2 576
        960 7 960 3 1 960"""),
    "resnext50": _table("""
        128 56 128 3 1 32
        256 56 256 3 2 32
        256 28 256 3 1 32
        512 14 512 3 1 32
        1024 7 1024 3 1 32"""),
    "cifar_resnet20": _table("""
        3 32 16 3
        16 32 16 3
        16 32 32 3 2
        32 16 32 3
        32 16 64 3 2
        64 8 64 3
        64 32 64 3
        128 16 128 3
        256 8 256 3"""),
    "few_channels": _table("""
        1 32 6 5
        6 16 16 5
        64 56 3 3
        64 112 1 5"""),
}
PASSES = ("forward", "backward-data", "backward-weight")


def rows(peaks: Peaks, options: Options) -> Iterator[Row | Failure]:
    """Rows of the table for the options' batch sizes and dtypes; CIFAR's batches are eight times
    as large."""
    seconds = 0.02 if options.quick else 0.3
    if options.device != "cpu":
        seconds /= 3  # a GPU gives many more rounds in that time
    for network, layers in LAYERS.items():
        for layer in layers[: 1 if options.quick else None]:
            for base in options.batches[: 1 if options.quick else None]:
                batch = 1 if options.quick else base * (8 if network.startswith("cifar") else 1)
                for dtype in options.dtypes:
                    case = f"{layer.case(batch)}_{'bf16' if dtype == 'bfloat16' else 'f32'}"
                    if options.wants(f"conv2d {network}", case):
                        yield from attempted(
                            ("conv", "conv2d", case, "setup", dtype),
                            _layer(layer, batch, case, dtype, peaks, seconds, options),
                        )


def _layer(
    layer: Layer, batch: int, case: str, dtype: str, peaks: Peaks, seconds: float, options: Options
) -> Iterator[Row | Failure]:
    rng = Repeated()
    x = rng.standard_normal((batch, layer.channels, layer.size, layer.size), np.float32)
    shape = (layer.outputs, layer.channels // layer.groups, layer.kernel, layer.kernel)
    w = rng.standard_normal(shape, np.float32)
    kind, device = stored(dtype), options.device
    ours = [fastnn.tensor(a, dtype=kind, device=device) for a in (x, w)]
    y = _conv2d(ours[0], ours[1], layer)
    g = fastnn.tensor(rng.standard_normal(y.shape, np.float32), dtype=kind, device=device)
    calls = _ours(ours[0], ours[1], g, layer)
    theirs = _torch((*ours, g), layer, case) if "torch" in options.installed() else {}
    flops = 2 * y.numel() * shape[1] * layer.kernel**2
    moved = sum(t.numel() * t.dtype.itemsize for t in (*ours, y))
    terms = (shape[1] * layer.kernel**2, shape[0] // layer.groups * layer.kernel**2,
             y.numel() // layer.outputs)  # fmt: skip
    skip_data = layer.channels == 3  # nobody needs the gradient of an image
    for i, part in enumerate(PASSES):
        if skip_data and part == "backward-data":
            continue
        about = ("conv", "conv2d", case, part, dtype)
        with precision(dtype, device):
            row = measured(
                about, calls[i], {label: passes[i] for label, passes in theirs.items()}, peaks,
                seconds, flops=flops, moved=moved, device=device,
            )  # fmt: skip
            share = 0.0
            if isinstance(row, Row) and row.peers:
                label = next(iter(row.peers))
                expected = theirs[label][i]()
                if i:  # of all three gradients
                    expected = expected[i - 1]
                share = _difference(calls[i](), expected, terms[i], dtype)
                row = replace(row, extra=row.extra | {"difference": share})
        if isinstance(row, Row) and part == "forward" and dtype == "float32" and device == "cpu":
            if layer.fits_winograd:
                errors = _errors(layer.channels, layer.size, layer.outputs)
                row = replace(row, extra=row.extra | errors)
        yield row
        if not share <= 1:
            yield Failure(*about, f"differs from {label} by {share:.3g} times what is allowed")


def _difference(ours: Any, theirs: Any, terms: int, dtype: str) -> float:
    """The largest difference on some pixels as a share of what is allowed.

    The data are standard normal, so results are about ``sqrt(terms)`` large. Twice the bound for each
    side, of at least that size: Winograd's algorithm errs more than a sum (docs/winograd.md), and a peer
    may store parts of its sums. TF32 takes up to 2^-10 of an operand, and six standard deviations of the
    sum of that are allowed to each side. A wrong product or pixel is about ``sqrt(terms)`` off.
    """
    import torch

    tensor = ours if isinstance(ours, fastnn.Tensor) else fastnn.Tensor._wrap(ours)
    got, expected = (_some(t).double().cpu().numpy() for t in (torch.from_dlpack(tensor), theirs))
    size = np.sqrt(terms)
    allowed = 4 * bound(np.maximum(np.abs(expected), size), terms, stored(dtype))
    if dtype == "tf32":
        allowed += 2 * 6 * 2.0**-10 * np.sqrt(2) * size
    worst = np.nan_to_num(np.abs(got - expected) / allowed, nan=np.inf).max()
    return float(min(worst, 1e9))  # JSON has no infinity


def _some(images: Any) -> Any:
    """Two or three each of images, rows and columns; of weights, of filters, and small kernels whole."""
    n, _, h, w = images.shape
    return images[:: max(1, n // 2), :, :: max(1, h // 2), :: max(1, w // 2)]


@cache
def _errors(channels: int, size: int, outputs: int) -> dict[str, float]:
    """Against float64, relative to the root-mean-square of the output."""
    (error,) = winograd_errors(((channels, size, outputs),))
    return {"Winograd rms error": error.winograd, "direct rms error": error.direct}


def _conv2d(x: fastnn.Tensor, w: fastnn.Tensor, layer: Layer) -> fastnn.Tensor:
    return fastnn.nn.functional.conv2d(
        x, w, stride=layer.stride, padding=layer.padding, groups=layer.groups
    )


def _ours(
    x: fastnn.Tensor, w: fastnn.Tensor, g: fastnn.Tensor, layer: Layer
) -> list[Callable[[], Any]]:
    s, p = layer.stride, layer.padding
    rest = ((s, s), (p, p, p, p), (1, 1), layer.groups)
    return [
        lambda: _conv2d(x, w, layer),
        lambda: _core.conv2d_backward_input(g._array, w._array, x.shape, *rest),
        lambda: _core.conv2d_backward_weight(g._array, x._array, w.shape, *rest, w.dtype.name),
    ]


def _torch(
    ours: tuple[fastnn.Tensor, ...], layer: Layer, case: str
) -> dict[str, list[Callable[[], Any]]]:
    """The three passes in PyTorch on copies of input, weight and gradient, in both memory layouts."""
    import torch

    torch.set_num_threads(fastnn.get_num_threads())
    found = {}
    for label, layout in (
        ("torch contiguous", torch.contiguous_format),
        ("torch channels_last", torch.channels_last),
    ):
        try:
            x, w, g = (torch.from_dlpack(t).clone(memory_format=layout) for t in ours)
        except FAILURES as error:
            left_out(f"{label} ({case})", error)
            continue
        found[label] = _torch_passes(torch, x, w, g, layer)
    return found


def _torch_passes(torch: Any, x: Any, w: Any, g: Any, layer: Layer) -> list[Callable[[], Any]]:
    step, pad = [layer.stride] * 2, [layer.padding] * 2

    def forward() -> Any:
        with torch.no_grad():
            return torch.nn.functional.conv2d(
                x, w, stride=layer.stride, padding=layer.padding, groups=layer.groups
            )

    def backward(mask: list[bool]) -> Any:
        return torch.ops.aten.convolution_backward(
            g, x, w, None, step, pad, [1, 1], False, [0, 0], layer.groups, mask
        )

    return [
        forward,
        lambda: backward([True, False, False]),
        lambda: backward([False, True, False]),
    ]
