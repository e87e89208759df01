"""Timing of several functions against each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import fastnn

_LONG = 0.1  # seconds: a call that fills the caches by itself


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


def times(
    functions: Sequence[Callable[[], Any]], seconds: float, least: int = 3, device: str = "cpu"
) -> list[Time]:
    """Times functions that take turns, so that all see the same machine.

    On a CPU a turn is one call, after another one that is not timed unless calls are long: the
    function before, and what it left in the caches, must not matter.

    On a GPU a function only queues its work, so each turn is as many calls as take some milliseconds
    together, and ends when the device has done them.

    Args:
        functions: called without arguments.
        seconds: for all rounds together, after one warm-up call of each.
        least: rounds at least, however long they take.
        device: where the functions' work is done.
    """
    calls, warm = [1] * len(functions), [False] * len(functions)
    for i, function in enumerate(functions):
        function()
        if device == "cpu":
            warm[i] = _turn(function, 1, device) < _LONG
        else:
            function()
            calls[i] = max(1, min(100, int(3e-3 / _turn(function, 3, device))))
    found: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while len(found[0]) < least or time.perf_counter() < end:
        for i, function in enumerate(functions):
            if warm[i]:
                function()
            found[i].append(_turn(function, calls[i], device))
    result = []
    for own in found:
        low, middle, high = statistics.quantiles(own, n=4)
        result.append(Time(middle, (high - low) / middle, len(own)))
    return result


def graphed(
    function: Callable[[], Any], device: str, torch: bool = False, most: int = 100
) -> tuple[Callable[[], Any], int]:
    """A function as replays of a CUDA graph, PyTorch's or ours, and how many calls of it, ``most`` at
    most, one replay is.

    An operator may take the device less time than its call takes the host, so that calls one by one
    would time Python. What cannot be recorded, since it waits for the device, stays as it is, one call.
    The function's tensors are to live as long: a graph knows but their addresses.
    """
    function()
    calls = max(1, min(most, int(1e-3 / _turn(function, 3, device))))
    try:
        return (_torch_graph if torch else _graph)(function, calls), calls
    except (RuntimeError, MemoryError):
        return function, 1


def _graph(function: Callable[[], Any], calls: int) -> Callable[[], Any]:
    with fastnn.cuda.graph() as graph:
        for _ in range(calls):
            function()
    return graph.replay


def _torch_graph(function: Callable[[], Any], calls: int) -> Callable[[], Any]:
    import torch

    graph = torch.cuda.CUDAGraph()
    # On the stream that backwards run on: that of their forwards, which is no default one (run.py).
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for _ in range(calls):
            function()
    return graph.replay


def called(function: Callable[[], Any], device: str) -> None:
    """Calls it and waits for its work, whose errors a GPU tells no sooner."""
    _turn(function, 1, device)


def _turn(function: Callable[[], Any], calls: int, device: str) -> float:
    """Seconds per call."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls
    fastnn.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    fastnn.cuda.synchronize(device)
    return (time.perf_counter() - start) / calls
