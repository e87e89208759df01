"""Timing of several functions against each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def medians(functions: Sequence[Callable[[], Any]], seconds: float, least: int = 3) -> list[float]:
    """Median seconds of each function; they take turns, so that all see the same machine.

    Parameters
    ----------
    functions : sequence of callable
    seconds : float
        Time for all rounds together, after one warm-up call of each.
    least : int
        Rounds at least, however long they take.

    Returns
    -------
    list of float
    """
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while len(times[0]) < least or time.perf_counter() < end:
        for function, found in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in times]
