"""The layer table of a network: shapes, activations, parameters, multiply-adds, memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastnn.autograd import no_grad
from fastnn.nn.module import Module
from fastnn.tensor import Tensor, zeros


@dataclass
class Row:
    """One layer.

    Attributes:
        name: dotted name.
        kind: class.
        shape: of the output, without the batch.
        parameters: learned values in the layer itself.
        macs: multiply-adds for one image; norms, pools and activations count none.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int

    @property
    def activations(self) -> int:
        """Output values for one image."""
        return math.prod(self.shape)


@dataclass
class Summary:
    """Rows in the order of the calls; ``str()`` is the table."""

    rows: list[Row]
    parameters: int

    @property
    def activations(self) -> int:
        """Output values of all layers for one image."""
        return sum(row.activations for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        return sum(row.macs for row in self.rows)

    def __str__(self) -> str:
        width = max([len(row.name) for row in self.rows] + [5])
        kinds = max([len(row.kind) for row in self.rows] + [4])
        head = (
            f"{'layer':<{width}}  {'type':<{kinds}}  {'output shape':<18}{'activations':>13}"
            f"{'parameters':>14}{'multiply-adds':>17}"
        )
        lines = [head, "-" * len(head)]
        for row in self.rows:
            lines.append(
                f"{row.name:<{width}}  {row.kind:<{kinds}}  {row.shape!s:<18}"
                f"{row.activations:>13,}{row.parameters:>14,}{row.macs:>17,}"
            )
        lines.append("-" * len(head))
        lines.append(f"parameters     {self.parameters:>16,}  {_bytes(self.parameters)}")
        lines.append(
            f"activations    {self.activations:>16,}  {_bytes(self.activations)} per image"
        )
        lines.append(f"multiply-adds  {self.macs:>16,}  {self.macs / 1e9:.3f} G per image")
        return "\n".join(lines)


def _bytes(count: int) -> str:
    """Memory of so many float32 values, in MB of 10^6 bytes."""
    return f"{count * 4 / 1e6:,.1f} MB in float32"


def _macs(module: Module, output: Tensor) -> int:
    """Multiply-adds of a layer from its weight and output; a convolution's kernel meets each pixel."""
    name = type(module).__name__
    if name == "ConvTranspose2d":
        raise NotImplementedError("summary: multiply-adds of ConvTranspose2d are not counted yet")
    weight: Any = getattr(module, "weight", None)
    if name == "Conv2d":
        return output.numel() * math.prod(weight.shape[1:])
    if name == "Linear":
        return output.numel() * weight.shape[1]
    if name == "PartialConv2d":
        return weight.numel() * output.shape[2] * output.shape[3]
    return 0


def summary(model: Module, input_shape: Sequence[int]) -> Summary:
    """Runs one image of zeros through the network, in evaluation, and notes every layer.

    Args:
        model: the network; left as it was.
        input_shape: (C, H, W) of the image.

    Returns:
        A :class:`Summary`; print it.
    """
    rows: list[Row] = []
    removers = []

    def note(name: str) -> Any:
        def hook(module: Module, args: Any, output: Any) -> None:
            out = output[0] if isinstance(output, tuple) else output
            own = sum(p.numel() for p in module.parameters())
            rows.append(Row(name, type(module).__name__, out.shape[1:], own, _macs(module, out)))

        return hook

    for name, module in model.named_modules():
        if name and not list(module.children()):
            removers.append(module.register_forward_hook(note(name)))
    training = model.training
    try:
        with no_grad():
            model.eval()(zeros(1, *input_shape))
    finally:
        model.train(training)
        for remove in removers:
            remove()
    return Summary(rows, sum(p.numel() for p in model.parameters()))
