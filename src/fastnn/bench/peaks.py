"""What this machine can do at most, measured with the threads that the kernels use."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastnn


@dataclass(frozen=True)
class Peaks:
    """Highest measured rates.

    Attributes
    ----------
    gflops : float
        float32 arithmetic, in 10^9 operations per second (a multiply-add is two).
    copy_gbs : float
        Reading plus writing of memory far larger than the caches, in 10^9 bytes per second.
    """

    gflops: float
    copy_gbs: float


def measure_peaks(seconds: float = 1.0) -> Peaks:
    """Measures both peaks.

    Arithmetic: the better of our product of two 1536 x 1536 matrices and NumPy's BLAS, best run; it
    is a rate that a program reached, a little below what the multipliers could do. Memory: the best
    run of copies of 128 MB, by our threads and by NumPy.

    Parameters
    ----------
    seconds : float
        Time for each peak.
    """
    n, count = 1536, 2**25
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, n), dtype=np.float32)
    a, product = fastnn.from_numpy(x), np.empty_like(x)
    source = fastnn.ones(count)
    target = fastnn.zeros(count)
    arrays = np.asarray(source), np.asarray(target)
    flops = _best([lambda: fastnn.matmul(a, a), lambda: np.matmul(x, x, out=product)], seconds)
    copy = _best([lambda: target.copy_(source), lambda: np.copyto(arrays[1], arrays[0])], seconds)
    return Peaks(2 * n**3 / flops / 1e9, 2 * 4 * count / copy / 1e9)


def _best(functions: list[Callable[[], Any]], seconds: float) -> float:
    """Shortest time of any of the functions."""
    found: list[float] = []
    for function in functions:
        function()
        end = time.perf_counter() + seconds / len(functions)
        while not found or time.perf_counter() < end:
            start = time.perf_counter()
            function()
            found.append(time.perf_counter() - start)
    return min(found)
