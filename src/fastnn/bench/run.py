"""Rows of the benchmark table: the ``bench`` case lines of every operator family."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastnn
from fastnn import verify
from fastnn.bench.peaks import Peaks
from fastnn.bench.peers import peers
from fastnn.bench.timing import medians
from fastnn.reference.case import Op, Problem, build, parse


@dataclass(frozen=True)
class Row:
    """One pass of one case.

    Attributes
    ----------
    op, case : str
    direction : str
        ``"forward"`` or ``"backward"``.
    seconds : float
        Median.
    rate : float
        In ``unit``.
    unit : str
        ``"GFLOP/s"`` for operators that multiply matrices, else ``"GB/s"`` of the bytes that have
        to move: every input read once, every result written once.
    share : float
        Of the measured peak, 1 is all of it. Data that fit a cache may exceed the memory's.
    torch_seconds : float or None
        PyTorch's median in its better memory layout, measured in turns with ours.
    """

    op: str
    case: str
    direction: str
    seconds: float
    rate: float
    unit: str
    share: float
    torch_seconds: float | None

    @property
    def speedup(self) -> float | None:
        """PyTorch's time over ours."""
        return None if self.torch_seconds is None else self.torch_seconds / self.seconds


def bench(
    peaks: Peaks,
    ops: Sequence[str] = (),
    *,
    quick: bool = False,
    with_torch: bool = True,
) -> Iterator[Row]:
    """Times operators, in float32 or what their case lines say, with the current threads and ISA.

    Parameters
    ----------
    peaks : Peaks
        Of :func:`measure_peaks`.
    ops : sequence of str
        Operators or families; all if empty.
    quick : bool
        One case per operator and little time for each: to see that it works.
    with_torch : bool
        Whether to time PyTorch too, if it is installed.

    Yields
    ------
    Row

    Raises
    ------
    ValueError
        There is no such operator or family.
    """
    seconds = 0.05 if quick else 1.0
    for name, op in chosen(ops):
        for line in op.bench[: 1 if quick else None]:
            yield from _case(name, op, line, peaks, seconds, with_torch)


def chosen(ops: Sequence[str]) -> list[tuple[str, Op]]:
    """Operators by name, given names of operators and families; all of them if none is given.

    Raises
    ------
    ValueError
        There is no such operator or family.
    """
    families = verify.families()
    known = {name: op for family in families.values() for name, op in family.items()}
    found: dict[str, Op] = {}
    for wanted in ops or families:
        if wanted in families:
            found.update(families[wanted])
        if wanted in known:
            found[wanted] = known[wanted]
        elif wanted not in families:
            raise ValueError(
                f"bench: expected an operator or family among {', '.join(sorted(known))}, "
                f"got {wanted!r}"
            )
    return list(found.items())


def _case(
    name: str, op: Op, line: str, peaks: Peaks, seconds: float, with_torch: bool
) -> Iterator[Row]:
    dtype = parse(line)["dtype"]
    problem = build(op, line)
    inputs = {key: _tensor(value, key, problem, dtype) for key, value in problem.inputs.items()}
    theirs = peers(name, problem, dtype, inputs) if with_torch else []
    call = verify.call_of(name, op)

    def forward() -> Any:
        with fastnn.no_grad():
            return call(**inputs, **problem.kwargs)

    outputs = verify.as_tuple(call(**inputs, **problem.kwargs))
    updated = [inputs[key] for key in problem.mutates]
    read, written = _bytes(list(inputs.values())), _bytes([*outputs, *updated])
    moved = read + written
    yield _row(name, line, "forward", forward, [t[0] for t in theirs], problem.flops, moved, peaks,
               seconds)  # fmt: skip
    out = next((o for o in outputs if isinstance(o, fastnn.Tensor) and o.requires_grad), None)
    if out is None:
        return
    leaves = [t for t in _flat(list(inputs.values())) if t.requires_grad]
    gradient = fastnn.ones_like(out)

    def backward() -> Any:
        return fastnn.grad(out, leaves, gradient, retain_graph=True)

    # The gradients of input and weight cost a forward each.
    factor = 2 if len([t for t in leaves if t.ndim > 1]) > 1 else 1
    moved = read + _bytes([out]) + _bytes(leaves)
    yield _row(name, line, "backward", backward, [t[1] for t in theirs if t[1]],
               factor * problem.flops, moved, peaks, seconds)  # fmt: skip


def _row(
    name: str, line: str, direction: str, ours: Callable[[], Any], theirs: list[Any], flops: int,
    moved: int, peaks: Peaks, seconds: float,
) -> Row:  # fmt: skip
    times = medians([ours, *theirs], seconds)
    rate = (flops or moved) / times[0] / 1e9
    peak = peaks.gflops if flops else peaks.copy_gbs
    return Row(name, line, direction, times[0], rate, "GFLOP/s" if flops else "GB/s", rate / peak,
               min(times[1:]) if theirs else None)  # fmt: skip


def _tensor(value: Any, name: str, problem: Problem, dtype: str) -> Any:
    if isinstance(value, list):
        return [_tensor(v, name, problem, dtype) for v in value]
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind != "f":
        return fastnn.tensor(value)
    kept = "float32" if name in problem.float32_inputs else dtype
    wants = problem.differentiable and name not in problem.mutates + problem.constants
    return fastnn.tensor(value.astype(np.float32), dtype=kept, requires_grad=wants)


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


def header() -> str:
    """The line over the table."""
    return (
        f"{'operator':<20} {'case':<44} {'pass':<8} {'time':>10} {'rate':>15} {'of peak':>8} "
        f"{'PyTorch':>10} {'speedup':>8}"
    )


def format_row(row: Row) -> str:
    """A line of the table."""
    theirs = "-" if row.torch_seconds is None else f"{row.torch_seconds * 1e3:.3f} ms"
    speedup = "-" if row.speedup is None else f"{row.speedup:.2f} x"
    return (
        f"{row.op:<20} {row.case:<44} {row.direction:<8} {row.seconds * 1e3:>7.3f} ms "
        f"{row.rate:>7.1f} {row.unit:<7} {row.share:>8.1%} {theirs:>10} {speedup:>8}"
    )
