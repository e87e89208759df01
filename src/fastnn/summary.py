"""The layer table of a network: shapes, activations, parameters, multiply-adds, memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastnn.autograd import no_grad
from fastnn.creation import zeros
from fastnn.dtypes import float32
from fastnn.nn import Conv2d, ConvTranspose2d, Linear, Module
from fastnn.tensor import Tensor


@dataclass
class Row:
    """One call of one layer.

    Attributes:
        name: dotted name; that of the class if the network is a single layer.
        kind: class.
        shape: of the output, without the batch.
        parameters: learned values in the layer itself; none in a second call.
        macs: multiply-adds for one image; norms, pools and activations count none.
        memory: bytes of the parameters and of the output for one image.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    memory: int

    @property
    def activations(self) -> int:
        """Output values for one image."""
        return math.prod(self.shape)


@dataclass
class Summary:
    """Rows in the order of the calls; ``str()`` is the table.

    Attributes:
        rows: the layers.
        parameters: learned values of the network, each counted once.
    """

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
            f"{'parameters':>14}{'multiply-adds':>17}{'memory, MB':>13}"
        )
        lines = [head, "-" * len(head)]
        for row in self.rows:
            lines.append(
                f"{row.name:<{width}}  {row.kind:<{kinds}}  {row.shape!s:<18}"
                f"{row.activations:>13,}{row.parameters:>14,}{row.macs:>17,}{row.memory / 1e6:>13,.3f}"
            )
        lines.append("-" * len(head))
        lines.append(f"parameters     {self.parameters:>16,}  {_bytes(self.parameters)}")
        lines.append(
            f"activations    {self.activations:>16,}  {_bytes(self.activations)} per image"
        )
        macs = f"{self.macs / 1e9:.3f} G" if self.macs >= 1e8 else f"{self.macs / 1e6:.3f} M"
        lines.append(f"multiply-adds  {self.macs:>16,}  {macs} per image")
        return "\n".join(lines)


def _bytes(count: int) -> str:
    """Memory of so many float32 values, in MB of 10^6 bytes."""
    return f"{count * 4 / 1e6:,.3f} MB as float32"


def _macs(module: Module, input: Any, output: Tensor) -> int:
    """Multiply-adds of a layer: its kernel meets each output pixel, transposed each input pixel."""
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, (Conv2d, Linear)):
        return output.numel() * math.prod(weight.shape[1:])
    if isinstance(module, ConvTranspose2d):
        return input.numel() * math.prod(weight.shape[1:])
    if type(module).__name__ == "PartialConv2d":  # of fastnn.models, not imported for this
        return weight.numel() * output.shape[2] * output.shape[3]
    return 0


def summary(model: Module, input_shape: Sequence[int]) -> Summary:
    """Runs one image of zeros through the network, in evaluation, and notes every layer.

    Args:
        model: the network; left as it was. A submodule counts as a layer if it has no submodules or
            has parameters of its own.
        input_shape: (C, H, W) of the image.

    Returns:
        A :class:`Summary`; print it.
    """
    rows: list[Row] = []
    removers = []
    counted: set[int] = set()

    def note(name: str) -> Any:
        def hook(module: Module, args: Any, output: Any) -> None:
            out = output[0] if isinstance(output, tuple) else output
            own = [p for p in module.parameters(recurse=False) if id(p) not in counted]
            counted.update(id(p) for p in own)
            memory = sum(t.numel() * t.element_size() for t in (*own, out))
            kind, values = type(module).__name__, sum(p.numel() for p in own)
            macs = _macs(module, args[0] if args else None, out)
            rows.append(Row(name or kind, kind, out.shape[1:], values, macs, memory))

        return hook

    modules = list(model.named_modules())
    for name, module in modules:
        if not list(module.children()) or list(module.parameters(recurse=False)):
            removers.append(module.register_forward_hook(note(name)))
    modes = [module.training for _, module in modules]
    # Vectors may be float32 in a bfloat16 network (norms); matrices and kernels are of its dtype.
    dtype = next((p.dtype for p in model.parameters() if p.ndim > 1), float32)
    device = next((p.device for p in model.parameters()), "cpu")
    try:
        with no_grad():
            model.eval()(zeros(1, *input_shape, dtype=dtype, device=device))
    finally:
        for (_, module), mode in zip(modules, modes, strict=True):
            module.training = mode
        for handle in removers:
            handle.remove()
    return Summary(rows, sum(p.numel() for p in model.parameters()))
