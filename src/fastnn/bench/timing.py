"""Timing of several functions against each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Time:
    """What one function took.

    Attributes:
        median: seconds.
        spread: difference of the quartiles over the median.
        rounds: how often it ran.
    """

    median: float
    spread: float
    rounds: int


def times(functions: Sequence[Callable[[], Any]], seconds: float, least: int = 3) -> list[Time]:
    """Times functions that take turns, so that all see the same machine.

    Args:
        functions: called without arguments.
        seconds: for all rounds together, after one warm-up call of each.
        least: rounds at least, however long they take.
    """
    for function in functions:
        function()
    found: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while len(found[0]) < least or time.perf_counter() < end:
        for function, own in zip(functions, found, strict=True):
            start = time.perf_counter()
            function()
            own.append(time.perf_counter() - start)
    result = []
    for own in found:
        low, middle, high = statistics.quantiles(own, n=4)
        result.append(Time(middle, (high - low) / middle, len(own)))
    return result
