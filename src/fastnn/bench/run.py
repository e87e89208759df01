"""The suites: operators by their case lines, convolution layers, training steps, inference."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

import fastnn
from fastnn import verify
from fastnn.bench import layers, networks, networks_gpu
from fastnn.bench.draw import Repeated
from fastnn.bench.peaks import Peaks, precision, stored
from fastnn.bench.peers import peers
from fastnn.bench.row import Failure, Row, attempted, measured
from fastnn.reference.case import Op, Problem, build

PEERS = ("torch", "onnxruntime", "openvino")
#: Suites that are not simply the operators of a family of that name.
SUITES = ("conv", "train", "infer")


@dataclass(frozen=True)
class Options:
    """What to measure and how.

    Attributes:
        peers: of :data:`PEERS`, those that are installed are timed.
        dtypes: ``"float32"`` and ``"bfloat16"``.
        batches: batch sizes of the layer table and of inference.
        filter: only rows whose name and case contain this text.
        quick: small sizes and little time: to see that it works.
        compiled: also time PyTorch's compiled networks.
        device: ``"cpu"``, or a CUDA device, where ``"tf32"`` is a dtype too.
        cases: case lines without a dtype that are timed instead of the table's.
    """

    peers: tuple[str, ...] = ("torch",)
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    batches: tuple[int, ...] = (16,)
    filter: str = ""
    quick: bool = False
    compiled: bool = False
    device: str = "cpu"
    cases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = ("float32", "bfloat16") + (() if self.device == "cpu" else ("tf32",))
        for peer in self.peers:
            if peer not in PEERS:
                raise ValueError(f"bench: expected peers among {', '.join(PEERS)}, got {peer!r}")
        for dtype in self.dtypes:
            if dtype not in known:
                raise ValueError(f"bench: expected dtypes {' or '.join(known)}, got {dtype!r}")

    def missing(self) -> list[str]:
        """Peers asked for that are not installed."""
        needs = {"torch": ("torch",), "onnxruntime": ("onnxruntime", "onnx", "torch"),
                 "openvino": ("openvino", "onnx", "torch")}  # fmt: skip
        return [p for p in self.peers if any(find_spec(m) is None for m in needs[p])]

    def installed(self) -> tuple[str, ...]:
        """Peers asked for that are there."""
        return tuple(p for p in self.peers if p not in self.missing())

    def wants(self, name: str, case: str) -> bool:
        """Whether a row passes the filter."""
        return self.filter in f"{name} {case}"


def bench(peaks: Peaks, suites: Sequence[str], options: Options) -> Iterator[Row | Failure]:
    """Measures suites with the current threads and ISA level; rows come as they are measured.

    Raises:
        ValueError: there is no such suite, or cases of anything but one operator.
        RuntimeError: after a failure, this process can use the GPU no more.
    """
    if options.device != "cpu":
        fastnn.cuda.set_device(options.device)  # graphs are recorded on the current one
    with _torch_prepared(options):
        for row in _all(peaks, chosen(suites, options.cases), options):
            yield row
            if isinstance(row, Failure) and options.device != "cpu":
                fastnn.cuda.synchronize(options.device)


@contextmanager
def _torch_prepared(options: Options) -> Iterator[None]:
    """PyTorch treats subnormal numbers as zero meanwhile, as our kernels do; a setting of the
    processor that must not stay on for others. On a GPU its work goes to a stream that can be
    recorded, which the default one cannot."""
    if "torch" not in options.installed():
        yield
        return
    import torch

    torch.set_flush_denormal(True)
    try:
        if options.device == "cpu":
            yield
        else:
            with torch.cuda.stream(torch.cuda.Stream(options.device)):
                yield
    finally:
        torch.set_flush_denormal(False)


def _all(
    peaks: Peaks, suites: list[tuple[str, list[tuple[str, Op]]]], options: Options
) -> Iterator[Row | Failure]:
    for suite, operators in suites:
        if suite == "conv":
            yield from layers.rows(peaks, options)
        elif suite in ("train", "infer"):
            where = networks if options.device == "cpu" else networks_gpu
            yield from getattr(where, suite)(peaks, options)
        for name, op in operators:
            table = tuple(dict.fromkeys(line.rsplit("_", 1)[0] for line in op.bench))
            if options.device != "cpu" and not options.quick:
                table = tuple(map(_larger, table))
            for case in options.cases or table[: 1 if options.quick else None]:
                for dtype in options.dtypes:
                    typed = case + ("_bf16" if dtype == "bfloat16" else "_f32")
                    if options.wants(name, typed):
                        about = (suite, name, typed, "setup", dtype)
                        rows = _case(suite, name, op, typed, dtype, peaks, options)
                        yield from attempted(about, rows)


def _larger(case: str) -> str:
    """A case line with eight times the images: a GPU's L2 is not to hold them."""
    return re.sub(r"^n(\d+)", lambda found: f"n{8 * int(found[1])}", case)


def chosen(
    suites: Sequence[str], cases: Sequence[str] = ()
) -> list[tuple[str, list[tuple[str, Op]]]]:
    """Suites with their operators; ``all`` or nothing gives every suite.

    Raises:
        ValueError: there is no such suite or operator, or cases of anything but one operator.
    """
    families = verify.families()
    every = {**families, "train": {}, "infer": {}}
    known = {name: (family, op) for family, ops in families.items() for name, op in ops.items()}
    if cases and (len(suites) != 1 or suites[0] not in known or suites[0] in every):
        raise ValueError(
            "bench: --case expects one operator that it is a case of, such as conv2d, got "
            f"{' '.join(suites) or 'none'}"
        )
    found: list[tuple[str, list[tuple[str, Op]]]] = []
    wanted = list(every) if not suites or "all" in suites else suites
    for name in wanted:
        if name in every:
            skipped = ("conv2d",) if name == "conv" else ()  # the layer table has it
            found.append((name, [(n, op) for n, op in every[name].items() if n not in skipped]))
        elif name in known:
            found.append((f"{known[name][0]}.{name}", [(name, known[name][1])]))
        else:
            raise ValueError(
                f"bench: expected a suite among {', '.join(sorted(every))}, all, or an operator, "
                f"got {name!r}"
            )
    return found


def _case(
    suite: str, name: str, op: Op, line: str, dtype: str, peaks: Peaks, options: Options
) -> Iterator[Row | Failure]:
    seconds = 0.02 if options.quick else 0.5 if options.device == "cpu" else 0.1
    problem = build(op, line, Repeated)
    if dtype == "tf32" and not problem.flops:
        return  # products only
    kind, device = stored(dtype), options.device
    inputs = {
        key: _tensor(value, key, problem, kind, device) for key, value in problem.inputs.items()
    }
    with_torch = "torch" in options.installed()
    theirs = peers(name, problem, inputs, device) if with_torch else {}
    call = verify.call_of(name, op)

    def forward() -> Any:
        with fastnn.no_grad():
            return call(**inputs, **problem.kwargs)

    outputs = verify.as_tuple(call(**inputs, **problem.kwargs))
    updated = [inputs[key] for key in problem.mutates]
    read, written = _bytes(list(inputs.values())), _bytes([*outputs, *updated])
    with precision(dtype, device):
        row = measured(
            (suite, name, line, "forward", dtype), forward,
            {label: passes[0] for label, passes in theirs.items()}, peaks, seconds,
            flops=problem.flops, moved=read + written, device=device,
        )  # fmt: skip
    yield row
    out = next((o for o in outputs if isinstance(o, fastnn.Tensor) and o.requires_grad), None)
    if out is None:
        return
    leaves = [t for t in _flat(list(inputs.values())) if t.requires_grad]
    gradient = fastnn.ones_like(out)

    def backward() -> Any:
        return fastnn.grad(out, leaves, gradient, retain_graph=True)

    # The gradients of input and weight cost a forward each.
    factor = 2 if len([t for t in leaves if t.ndim > 1]) > 1 else 1
    backwards: dict[str, Callable[[], Any]] = {
        label: passes[1] for label, passes in theirs.items() if passes[1] is not None
    }
    with precision(dtype, device):
        row = measured(
            (suite, name, line, "backward", dtype), backward, backwards, peaks, seconds,
            flops=factor * problem.flops, moved=read + _bytes([out]) + _bytes(leaves),
            device=device,
        )  # fmt: skip
    yield row


def _tensor(value: Any, name: str, problem: Problem, dtype: str, device: str) -> Any:
    if isinstance(value, list):
        return [_tensor(v, name, problem, dtype, device) for v in value]
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind != "f":
        return fastnn.tensor(value, device=device)
    kept = "float32" if name in problem.float32_inputs else dtype
    wants = problem.differentiable and name not in problem.mutates + problem.constants
    values = value.astype(np.float32)
    return fastnn.tensor(values, dtype=kept, requires_grad=wants, device=device)


def _flat(values: Sequence[Any]) -> list[fastnn.Tensor]:
    found: list[fastnn.Tensor] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            found += _flat(value)
        elif isinstance(value, fastnn.Tensor):
            found.append(value)
    return found


def _bytes(values: Sequence[Any]) -> int:
    return sum(math.prod(t.shape) * t.dtype.itemsize for t in _flat(values))
