"""Names of devices, and loading the CUDA module when one is first asked for.

A device is ``"cpu"`` or ``"cuda:0"``; ``"cuda"`` is the current CUDA device. Inside the core it is an
index, -1 for the CPU. The kernels' module is ``fastnn._cuda``; where ``FASTNN_CUDA_EMULATE=1`` is set,
``fastnn._cuda_emulated``: the same sources run on the host, slowly, for tests.
"""

from __future__ import annotations

import os
import threading
import warnings
from typing import Any

import fastnn._core as _core

CPU = -1
_module: Any = None
_asked: set[int] = set()  # GPUs that have been prepared


class _Current(threading.local):
    index = 0


_current = _Current()


def cuda_module() -> Any:
    """The loaded CUDA module.

    Raises:
        RuntimeError: there is none in this build, or this machine has no GPU or driver.
    """
    global _module
    if _module is None:
        _module = _load()
    return _module


def _load() -> Any:
    from importlib import import_module

    emulate = os.environ.get("FASTNN_CUDA_EMULATE", "") not in ("", "0")
    name = "fastnn._cuda_emulated" if emulate else "fastnn._cuda"
    try:
        module = import_module(name)
    except ImportError as error:
        why = "built without FASTNN_CUDA_EMULATE=ON" if emulate else _core.cuda_status
        if not isinstance(error, ModuleNotFoundError):
            why = str(error)
        raise RuntimeError(f"device 'cuda' is not available: {why}") from error
    try:
        count = module.device_count()
    except RuntimeError as error:  # in the driver's words
        raise RuntimeError(
            f"device 'cuda' is not available: no NVIDIA GPU with a driver for it was found ({error})"
        ) from None
    if count == 0:
        raise RuntimeError("device 'cuda' is not available: the driver knows of no NVIDIA GPU")
    _core.set_device_table(module.table)
    return module


def cuda_is_emulated() -> bool:
    """Whether ``"cuda"`` is not available, or the emulated one."""
    try:
        return cuda_module().emulated
    except RuntimeError:
        return True


def current() -> int:
    """Index of this thread's current CUDA device: what ``"cuda"`` means."""
    return _current.index


def set_current(index: int) -> None:
    """Makes another CUDA device the one that ``"cuda"`` means in this thread."""
    _current.index = index


def index_of(device: Any) -> int:
    """The index of a device by its name, -1 for the CPU, or, as in PyTorch, a CUDA device's index; a
    CUDA device's module is loaded. An object whose text is a name will do, such as a ``torch.device``.

    Raises:
        RuntimeError: it is a CUDA device and there is none, or not that many.
        ValueError: there is no such kind of device.
    """
    if device is None:
        return CPU
    device = f"cuda:{device}" if isinstance(device, int) else str(device)
    if device in ("cpu", "cpu:0"):
        return CPU
    kind, _, number = device.partition(":")
    if kind != "cuda" or (number and not (number.isascii() and number.isdigit())):
        raise ValueError(f"device: expected 'cpu' or 'cuda', got {device!r}")
    count = cuda_module().device_count()
    index = int(number) if number else _current.index
    if index >= count:
        raise RuntimeError(f"device {device!r} is not available: this machine has {count} GPUs")
    if index not in _asked:
        _ask(index)
    return index


def gpu_index_of(device: Any) -> int:
    """The same of a GPU, the current one if left out.

    Raises:
        ValueError: it is none.
    """
    index = index_of("cuda" if device is None else device)
    if index == CPU:
        raise ValueError(f"device: expected 'cuda', 'cuda:0' or an index, got {device!r}")
    return index


def check_stream(owner: str, handle: Any, names: tuple[int, ...] = (1, 2)) -> None:
    """Refuses what can be no ``cudaStream_t``: 1 and 2 name the driver's default streams (``names``, those
    that are taken), and all others are addresses.

    Raises:
        TypeError: not an int.
        ValueError: no such number.
    """
    if not isinstance(handle, int) or isinstance(handle, bool):
        raise TypeError(f"{owner} expects an int, got {handle!r}")
    if handle not in names and not (handle % 8 == 0 and 4096 <= handle < 2**64):
        known = ", ".join(map(str, names))
        raise ValueError(f"{owner} expects {known} or the address of a cudaStream_t, got {handle}")


def check_not_recording(owner: str) -> None:
    """Refuses to exchange memory with another library while this thread records a graph.

    Raises:
        RuntimeError: it does, and neither side's stream can wait for the other's.
    """
    if cuda_module().recording():
        raise RuntimeError(
            f"{owner}: a graph is being recorded, which no other stream can wait for, nor be waited "
            "for; exchange memory before or after"
        )


def _ask(index: int) -> None:
    """Prepares a GPU, and warns, once, where its tensor cores failed their self-check."""
    wrong = cuda_module().wrong_primitives(index)
    _asked.add(index)
    if wrong:
        warnings.warn(
            f"cuda:{index}: the tensor cores' instructions do not do what is expected of them "
            f"({wrong}): products of bfloat16 and TF32 run without them, slowly. Please report this, "
            "with what `fastnn info` prints.",
            RuntimeWarning,
            stacklevel=3,
        )


def name_of(index: int) -> str:
    """``"cpu"`` or ``"cuda:<index>"``."""
    return "cpu" if index < 0 else f"cuda:{index}"
