"""CUDA devices: what there is, streams, events, memory, graphs. Names and meanings are PyTorch's.

Work is queued on the current stream of the current device and runs while Python goes on;
:func:`synchronize`, ``item()``, ``cpu()`` and printing wait for it. An index that a kernel finds out
of range (a label, a position) is reported at the next of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastnn import device as _device
from fastnn.device import cuda_module, index_of


def is_available() -> bool:
    """Whether this build has CUDA kernels and this machine a GPU for them."""
    try:
        cuda_module()
    except RuntimeError:
        return False
    return True


def device_count() -> int:
    """Number of CUDA devices; 0 where CUDA is not available."""
    return cuda_module().device_count() if is_available() else 0


def current_device() -> int:
    """Index of the device that ``"cuda"`` means."""
    return _device.current()


def set_device(device: int | str) -> None:
    """Makes a device the one that ``"cuda"`` means."""
    _device.set_current(_index(device))


def get_device_name(device: int | str | None = None) -> str:
    """What the driver calls the device."""
    return cuda_module().device_properties(_index(device))["name"]


def get_device_capability(device: int | str | None = None) -> tuple[int, int]:
    """Compute capability, (9, 0) for Hopper."""
    return cuda_module().device_properties(_index(device))["capability"]


def _index(device: int | str | None) -> int:
    if device is None:
        return index_of("cuda")
    return index_of(f"cuda:{device}" if isinstance(device, int) else device)


def synchronize(device: int | str | None = None) -> None:
    """Waits for all work on a device.

    Raises:
        RuntimeError: some of it failed.
    """
    module = cuda_module()
    module.synchronize(_index(device))
    module.check()


def memory_stats(device: int | str | None = None) -> dict[str, int]:
    """Bytes ``allocated`` to tensors, their peak, ``cached`` for later ones, ``free``, ``total``."""
    return cuda_module().memory_stats(_index(device))


def reset_peak_memory_stats(device: int | str | None = None) -> None:
    """Starts the peak anew from what is allocated now."""
    cuda_module().reset_peak_memory_stats(_index(device))


def empty_cache(device: int | str | None = None) -> None:
    """Returns memory that no tensor uses to the driver."""
    module = cuda_module()
    module.empty_cache(_index(device))
    module.check()


class Event:
    """A point in a stream's work.

    Args:
        enable_timing: whether :meth:`elapsed_time` will be asked for.
    """

    def __init__(self, enable_timing: bool = False) -> None:
        self._module = cuda_module()
        self.cuda_event = self._module.new_event(_index(None), enable_timing)

    def record(self, stream: Stream | None = None) -> None:
        """Marks this point of the stream (the current one)."""
        self._module.record_event(self.cuda_event, (stream or current_stream()).cuda_stream)

    def synchronize(self) -> None:
        """Waits until the work before the event is done."""
        self._module.synchronize_event(self.cuda_event)
        self._module.check()

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from this event to ``end``; both are to have timing."""
        end.synchronize()
        return self._module.elapsed(self.cuda_event, end.cuda_event)

    def __del__(self) -> None:
        if getattr(self, "cuda_event", 0):
            self._module.destroy_event(self.cuda_event)


class Stream:
    """A queue of work of its own.

    Tensors belong to the stream that they were made on: work on another stream has to wait for it
    (:meth:`wait_stream`), and so does the end of their life.

    Args:
        device: the device; the current one if left out.
        handle: a ``cudaStream_t`` of another library to use.
    """

    def __init__(self, device: int | str | None = None, handle: int | None = None) -> None:
        self.device = _index(device)
        # Streams are few and are never destroyed: freed memory may still be queued on them.
        self.cuda_stream = cuda_module().new_stream(self.device) if handle is None else handle

    def synchronize(self) -> None:
        """Waits for the stream's work."""
        cuda_module().synchronize_stream(self.device, self.cuda_stream)
        cuda_module().check()

    def wait_event(self, event: Event) -> None:
        """Later work here waits for ``event``."""
        cuda_module().wait_event(self.cuda_stream, event.cuda_event)

    def wait_stream(self, other: Stream) -> None:
        """Later work here waits for what ``other`` has queued by now."""
        event = Event()
        event.record(other)
        self.wait_event(event)


def current_stream(device: int | str | None = None) -> Stream:
    """The stream that this thread's work goes to."""
    index = _index(device)
    return Stream(index, cuda_module().current_stream(index))


@contextmanager
def stream(stream: Stream) -> Iterator[None]:
    """Queues the work of a block on another stream."""
    before = current_stream(stream.device)
    cuda_module().set_stream(stream.device, stream.cuda_stream)
    try:
        yield
    finally:
        cuda_module().set_stream(stream.device, before.cuda_stream)


class graph:
    """Work recorded once and replayed as a whole, without Python and launch costs.

    ``with fastnn.cuda.graph() as g: y = f(x)`` records; every ``g.replay()`` then computes ``y``
    anew from what ``x`` holds. Operators inside must not wait for the device (``item()``,
    ``cpu()``). Numbers that Python computes are recorded as they are.
    """

    def __init__(self) -> None:
        self._module = cuda_module()
        self._graph = 0

    def __enter__(self) -> graph:
        self._module.begin_capture()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            self._graph = self._module.end_capture()
        except RuntimeError:
            if kind is None:
                raise

    def replay(self) -> None:
        """Queues the recorded work on the current stream."""
        if not self._graph:
            raise RuntimeError("replay: nothing was recorded")
        self._module.launch_graph(self._graph)

    def __del__(self) -> None:
        if getattr(self, "_graph", 0):
            self._module.destroy_graph(self._graph)


def time_ms(function: Callable[[], Any]) -> float:
    """Milliseconds that the device takes for what ``function`` queues, by events."""
    start, end = Event(enable_timing=True), Event(enable_timing=True)
    start.record()
    function()
    end.record()
    return start.elapsed_time(end)
