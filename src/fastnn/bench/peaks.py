"""What this machine can do at most, measured with the threads that the kernels use."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

import fastnn
from fastnn import _core
from fastnn.bench.timing import times


@dataclass(frozen=True)
class Peaks:
    """Highest measured rates.

    Attributes:
        float32, tf32, bfloat16: arithmetic, in 10^9 operations per second (a multiply-add is two);
            tf32 on a GPU only.
        copy_gbs: reading plus writing of memory far larger than the caches, in 10^9 bytes per
            second.
    """

    float32: float
    bfloat16: float
    copy_gbs: float
    tf32: float = 0.0

    def bound(self, flops: float, moved: float, dtype: str) -> float:
        """The roofline: least seconds for an amount of arithmetic and of bytes."""
        return max(flops / getattr(self, dtype), moved / self.copy_gbs) / 1e9


def measure_peaks(seconds: float = 1.0, device: str = "cpu") -> Peaks:
    """Measures the peaks of the processor or a GPU, each for a time.

    Arithmetic: the best run of multiply-adds on registers alone, at the instruction set level in
    use; on a GPU, of the product of two square matrices, ours and PyTorch's, a rate that a program
    reached. Memory: the best run of copies of 128 MB, by our threads and by NumPy.
    """
    if device != "cpu":
        return _measure_gpu(seconds, device)
    count, rounds = 2**25, 20_000
    source, target = fastnn.ones(count), fastnn.zeros(count)
    arrays = np.asarray(source), np.asarray(target)

    def rate(is_bfloat16: bool) -> float:
        work = _core.multiply_adds(is_bfloat16, rounds) / 1e9
        return work / _best([lambda: _core.multiply_adds(is_bfloat16, rounds)], seconds)

    copy = _best([lambda: target.copy_(source), lambda: np.copyto(arrays[1], arrays[0])], seconds)
    return Peaks(rate(False), rate(True), 2 * 4 * count / copy / 1e9)


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


def _measure_gpu(seconds: float, device: str) -> Peaks:
    """The same on a GPU: products, and copies of 1 GB, of ours, and of PyTorch's where it is
    installed."""
    small = device_is_small(device)
    n, count = (128, 2**12) if small else (8192, 2**28)
    x = fastnn.randn(n, n, device=device)
    half = x.bfloat16()
    source, target = fastnn.ones(count, device=device), fastnn.zeros(count, device=device)
    products: dict[str, list[Callable[[], Any]]] = {
        "float32": [lambda: fastnn.matmul(x, x)],
        "tf32": [lambda: fastnn.matmul(x, x)],
        "bfloat16": [lambda: fastnn.matmul(half, half)],
    }
    copies: list[Callable[[], Any]] = [lambda: target.copy_(source)]
    if find_spec("torch") is not None and not small:
        import torch

        a = torch.randn(n, n, device=device)
        b = a.bfloat16()
        for name in ("float32", "tf32"):
            products[name].append(lambda: torch.matmul(a, a))
        products["bfloat16"].append(lambda: torch.matmul(b, b))
        from_, to = torch.ones(count, device=device), torch.empty(count, device=device)
        copies.append(lambda: to.copy_(from_))
    rates = {}
    for name, functions in products.items():
        with precision(name, device):
            best = min(t.median for t in times(functions, seconds, device=device))
        rates[name] = 2 * n**3 / 1e9 / best
    copy = min(t.median for t in times(copies, seconds, device=device))
    return Peaks(rates["float32"], rates["bfloat16"], 2 * 4 * count / copy / 1e9, rates["tf32"])


def device_is_small(device: str) -> bool:
    """Whether this is the emulated GPU, which takes a moment for what a GPU does in no time."""
    return fastnn.device.cuda_is_emulated() and device != "cpu"


@contextmanager
def precision(dtype: str, device: str) -> Iterator[None]:
    """Lets float32 products be rounded to TF32, ours and PyTorch's, where ``dtype`` is ``tf32``."""
    if device == "cpu":
        yield
        return
    allowed = dtype == "tf32"
    if "torch" in sys.modules:
        import torch

        with warnings.catch_warnings():  # that there is a newer way, since PyTorch 2.9
            warnings.simplefilter("ignore")
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
        torch.backends.cudnn.benchmark = True
    with fastnn.backends.cuda.tf32(allowed):
        yield


def stored(dtype: str) -> str:
    """The dtype of tensors: that of TF32 products is float32."""
    return "float32" if dtype == "tf32" else dtype
