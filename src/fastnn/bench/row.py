"""Rows of the benchmark tables and their text form."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastnn.bench.peaks import Peaks
from fastnn.bench.timing import called, graphed, times

_CALLS = "calls of "  # in Row.extra: whose
#: Suite, name, case, part and dtype.
About = tuple[str, str, str, str, str]
#: What one row fails with and the next need not; PyTorch's errors on a GPU are among them.
FAILURES = (RuntimeError, MemoryError)


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        suite, name, case: what was measured; ``case`` names sizes.
        part: the pass: forward, backward, backward-data, backward-weight, step, or latency.
        dtype: float32 or bfloat16.
        seconds, spread: median, and difference of the quartiles over it.
        flops, moved: arithmetic, and the bytes that have to move at least: every input read once,
            every result written once.
        share: the roofline's time over ours: 1 is what the measured peaks allow; data that fit a
            cache may exceed it.
        peers: median seconds of each peer in its configurations, measured in turns with ours.
        extra: other facts: images per second; errors, where the algorithm has a choice; by whom
            (``calls of NAME``, 1.0 each) a GPU's operator could not be recorded as a graph, so that
            its calls were timed, one by one; ``difference``, the largest of ours from a peer's
            result, as a share of what is allowed.
        peer_spreads: of each peer's times, as ``spread``.
    """

    suite: str
    name: str
    case: str
    part: str
    dtype: str
    seconds: float
    spread: float
    flops: float
    moved: float
    share: float
    peers: dict[str, float] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)
    peer_spreads: dict[str, float] = field(default_factory=dict)

    @property
    def best_peer(self) -> str | None:
        """The fastest peer's name."""
        return min(self.peers, key=lambda name: self.peers[name], default=None)

    @property
    def ratio(self) -> float | None:
        """The fastest peer's time over ours: above 1 we are faster."""
        best = self.best_peer
        return None if best is None else self.peers[best] / self.seconds

    @property
    def rate(self) -> tuple[float, str]:
        """Arithmetic per second for products, else bytes per second."""
        if self.flops:
            return self.flops / self.seconds / 1e9, "GFLOP/s"
        return self.moved / self.seconds / 1e9, "GB/s"


@dataclass(frozen=True)
class Failure:
    """What could not be measured, or computes something else than a peer.

    Attributes:
        suite, name, case, part, dtype: as of a row; ``part`` is ``"setup"`` where no pass had begun.
        error: why.
    """

    suite: str
    name: str
    case: str
    part: str
    dtype: str
    error: str


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def left_out(name: str, error: Exception) -> None:
    """Says why a peer is not timed."""
    print(f"{name} is left out: {_said(error)}", file=sys.stderr)


def attempted(about: About, rows: Iterator[Row | Failure]) -> Iterator[Row | Failure]:
    """The rows of a case; where they end in an error, a failure that says so."""
    try:
        yield from rows
    except FAILURES as error:
        yield Failure(*about, _said(error))


def measured(
    about: About, ours: Callable[[], Any],
    theirs: Mapping[str, Callable[[], Any]], peaks: Peaks, seconds: float, *,
    flops: float = 0, moved: float = 0, images: int = 0, device: str = "cpu",
) -> Row | Failure:  # fmt: skip
    """Times ours and the peers in turns; ``about`` is suite, name, case, part and dtype.

    Operators on a GPU are timed as replays of graphs, whole networks (``images``) as they are called.
    A peer that fails is left out, which is said.
    """
    runs: dict[str, tuple[Callable[[], Any], int]] = {}
    extra: dict[str, float] = {}
    try:
        for name, function in {"fastnn": ours, **theirs}.items():
            try:
                if device == "cpu" or images:
                    called(function, device)
                    runs[name] = function, 1
                else:
                    runs[name] = graphed(function, device, torch=function is not ours)
                    if runs[name][0] is function:
                        extra[f"{_CALLS}{name}"] = 1.0
            except FAILURES as error:
                if function is ours:
                    raise
                left_out(f"{name} ({' '.join(about[1:])})", error)
        found = times([function for function, _ in runs.values()], seconds, device=device)
    except FAILURES as error:
        return Failure(*about, _said(error))
    taken = {
        name: t.median / calls for (name, (_, calls)), t in zip(runs.items(), found, strict=True)
    }
    mine = taken.pop("fastnn")
    if images:
        extra["images per second"] = images / mine
    share = peaks.bound(flops, moved, about[4]) / mine
    spreads = {name: t.spread for name, t in zip(taken, found[1:], strict=True)}
    return Row(*about, mine, found[0].spread, flops, moved, share, taken, extra, spreads)


def header() -> str:
    """The line over the table."""
    return (
        f"{'operator':<18} {'case':<42} {'pass':<15} {'type':<5} {'time':>11} {'±':>4} "
        f"{'rate':>15} {'roofline':>8} {'best peer':>30} {'ratio':>6}"
    )


def format_row(row: Row | Failure) -> str:
    """A line of the table."""
    kind = {"float32": "f32", "bfloat16": "bf16", "tf32": "tf32"}[row.dtype]
    if isinstance(row, Failure):
        return f"{row.name:<18} {row.case:<42} {row.part:<15} {kind:<5} FAILED: {row.error}"
    rate, unit = row.rate
    if "images per second" in row.extra:
        rate, unit = row.extra["images per second"], "img/s"
    errors = "".join(f"  {k} {v:.1e}" for k, v in row.extra.items() if k.endswith("error"))
    calls = "".join(f"  {k}, not a graph" for k in row.extra if k.startswith(_CALLS))
    best, ratio = row.best_peer, row.ratio
    peer = "-" if best is None else f"{best} {row.peers[best] * 1e3:.3f} ms"
    times_faster = "-" if ratio is None else f"{ratio:.2f}"
    return (
        f"{row.name:<18} {row.case:<42} {row.part:<15} {kind:<5} {row.seconds * 1e3:>8.3f} ms "
        f"{row.spread:>4.0%} {rate:>7.1f} {unit:<7} {row.share:>8.1%} {peer:>30} {times_faster:>6}"
        f"{errors}{calls}"
    )


def summaries(rows: Iterable[Row]) -> list[str]:
    """Per suite, pass and dtype: the geometric mean of the ratios, and the rows below 1."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        if row.ratio is not None:
            groups.setdefault((row.suite, row.part, row.dtype), []).append(row.ratio)
    return [
        f"{suite} {part} {dtype}: best peer's time over ours, geometric mean "
        f"{statistics.geometric_mean(ratios):.2f} over {len(ratios)} rows, "
        f"{sum(r < 1 for r in ratios)} below 1, lowest {min(ratios):.2f}"
        for (suite, part, dtype), ratios in groups.items()
    ]
