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

    Attributes:
        float32, bfloat16: arithmetic, in 10^9 operations per second (a multiply-add is two).
        copy_gbs: reading plus writing of memory far larger than the caches, in 10^9 bytes per
            second.
    """

    float32: float
    bfloat16: float
    copy_gbs: float

    def bound(self, flops: float, moved: float, dtype: str) -> float:
        """The roofline: least seconds for an amount of arithmetic and of bytes."""
        return max(flops / getattr(self, dtype), moved / self.copy_gbs) / 1e9


def measure_peaks(seconds: float = 1.0) -> Peaks:
    """Measures the peaks, each for a time.

    Arithmetic: the best run of the product of two square matrices, ours and (float32) that of
    NumPy's BLAS; a rate that a program reached, a little below what the multipliers could do.
    Memory: the best run of copies of 128 MB, by our threads and by NumPy.
    """
    n, count = 1536, 2**25
    x = np.random.default_rng(0).standard_normal((n, n), dtype=np.float32)
    a, product = fastnn.from_numpy(x), np.empty_like(x)
    half = fastnn.tensor(x, dtype="bfloat16")
    source, target = fastnn.ones(count), fastnn.zeros(count)
    arrays = np.asarray(source), np.asarray(target)
    flops = _best([lambda: fastnn.matmul(a, a), lambda: np.matmul(x, x, out=product)], seconds)
    flops16 = _best([lambda: fastnn.matmul(half, half)], seconds)
    copy = _best([lambda: target.copy_(source), lambda: np.copyto(arrays[1], arrays[0])], seconds)
    work = 2 * n**3 / 1e9
    return Peaks(work / flops, work / flops16, 2 * 4 * count / copy / 1e9)


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
