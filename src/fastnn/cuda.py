"""CUDA devices: what there is, streams, events, memory, graphs. Names and meanings are PyTorch's.

Work is queued on the current stream of the current device and runs while Python goes on;
:func:`synchronize`, ``item()``, ``cpu()`` and printing wait for it. An index that a kernel finds out
of range (a label, a position) is reported at the next of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fastnn._core as _core
from fastnn import autograd
from fastnn import device as _device
from fastnn.device import cuda_module, gpu_index_of
from fastnn.graph_arguments import (
    check_argument,
    check_on_gpu,
    copied,
    matched,
    renew,
    tensors_of,
    with_tensors,
)
from fastnn.graph_steps import (
    Gradient,
    buffers_of,
    drawn_apart,
    memory_of,
    taken_back_on_failure,
    without_tape,
)
from fastnn.tensor import Tensor, settle


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
    """Index of the device that ``"cuda"`` means in this thread."""
    return _device.current()


def set_device(device: int | str) -> None:
    """Makes a device this thread's current one: that ``"cuda"`` means, and other libraries go by."""
    index = gpu_index_of(device)
    cuda_module().set_device(index)
    _device.set_current(index)


def get_device_name(device: int | str | None = None) -> str:
    """What the driver calls the device."""
    return cuda_module().device_properties(gpu_index_of(device))["name"]


def get_device_capability(device: int | str | None = None) -> tuple[int, int]:
    """Compute capability, (9, 0) for Hopper."""
    return cuda_module().device_properties(gpu_index_of(device))["capability"]


def synchronize(device: int | str | None = None) -> None:
    """Waits for all work on a device.

    Raises:
        RuntimeError: some of it failed.
    """
    module = cuda_module()
    settle()
    module.synchronize(gpu_index_of(device))
    module.check()


def memory_stats(device: int | str | None = None) -> dict[str, int]:
    """Bytes ``allocated`` to tensors and graphs, their peak (``peak_allocated``), ``cached`` for later
    ones, ``free`` and ``total``."""
    return cuda_module().memory_stats(gpu_index_of(device))


def reset_peak_memory_stats(device: int | str | None = None) -> None:
    """Starts the peak anew from what is allocated now."""
    cuda_module().reset_peak_memory_stats(gpu_index_of(device))


def empty_cache(device: int | str | None = None) -> None:
    """Returns memory that no tensor uses to the driver."""
    module = cuda_module()
    module.empty_cache(gpu_index_of(device))
    module.check()


class Event:
    """A point in a stream's work, of the device of the stream that it is first recorded on.

    Args:
        enable_timing: whether :meth:`elapsed_time` will be asked for.
    """

    def __init__(self, enable_timing: bool = False) -> None:
        self._module = cuda_module()
        self._timing = enable_timing
        self.device: int | None = None  # until it is recorded
        self.cuda_event = 0

    def record(self, stream: Stream | None = None) -> None:
        """Marks this point of the stream (the current one)."""
        stream = stream or current_stream()
        settle()
        if not self.cuda_event:
            self.device = stream.device
            self.cuda_event = self._module.new_event(stream.device, self._timing)
        self._module.record_event(stream.device, self.cuda_event, stream.cuda_stream)

    def synchronize(self) -> None:
        """Waits until the work before the event is done; at once if it was never recorded."""
        if self.cuda_event:
            self._module.synchronize_event(self.device, self.cuda_event)
        self._module.check()

    def query(self) -> bool:
        """Whether the work before the event is done; yes if it was never recorded."""
        return not self.cuda_event or self._module.query_event(self.device, self.cuda_event)

    def wait(self, stream: Stream | None = None) -> None:
        """Later work on the stream (the current one) waits for the event, if that was recorded."""
        (stream or current_stream()).wait_event(self)

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from this event to ``end``; both are to have timing and be recorded."""
        if not (self.cuda_event and end.cuda_event):
            raise RuntimeError("elapsed_time: both events have to be recorded first")
        if not (self._timing and end._timing):
            raise RuntimeError("elapsed_time: both events have to be made with enable_timing=True")
        self.synchronize()  # it may be another stream's
        end.synchronize()
        return self._module.elapsed(self.cuda_event, end.cuda_event)

    def __reduce__(self) -> Any:
        raise TypeError("Event: cannot be copied or pickled, for it is one of the driver's")

    def __del__(self) -> None:
        if getattr(self, "cuda_event", 0):
            self._module.destroy_event(self.cuda_event)


class Stream:
    """A queue of work of its own.

    Tensors belong to the stream that they were made on: work on another stream has to wait for it
    (:meth:`wait_stream`). Their memory is used again after what is queued there, and on the stream that
    is current where they are let go of: no other stream may be using it then. A device has 32 streams
    besides its first one; more are these again, in turn.

    Args:
        device: the device; the current one if left out.
        handle: a ``cudaStream_t`` of another library to use, 0 for the default stream. It has to live
            as long as the tensors that are made on it, and the graphs that are replayed on it.

    Raises:
        ValueError: not a GPU, or a number that can be no stream's, or that of each thread's own (2).
        TypeError: a handle that is no int.
    """

    def __init__(self, device: int | str | None = None, handle: int | None = None) -> None:
        self.device = gpu_index_of(device)
        # The default stream's handle as a number of its own, for 0 is none: cudaStreamLegacy.
        handle = 1 if handle == 0 else handle
        if handle == 2 and type(handle) is int:
            raise ValueError(
                "Stream: handle 2, cudaStreamPerThread, is another stream in every thread, and memory is "
                "let go in the order of one: give a stream's address, or leave the handle out"
            )
        if handle is not None:
            _device.check_stream("Stream: handle", handle, names=(0, 1))
        # They are never destroyed: freed memory may still be queued on them.
        self.cuda_stream = cuda_module().new_stream(self.device) if handle is None else handle

    def synchronize(self) -> None:
        """Waits for the stream's work."""
        settle()
        cuda_module().synchronize_stream(self.device, self.cuda_stream)
        cuda_module().check()

    def query(self) -> bool:
        """Whether the stream's work is done."""
        settle()
        return cuda_module().query_stream(self.device, self.cuda_stream)

    def record_event(self, event: Event | None = None) -> Event:
        """Marks this point of the stream by an event, a new one if left out."""
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Later work here waits for ``event``, if that was recorded."""
        if event.cuda_event:
            cuda_module().wait_event(self.device, self.cuda_stream, event.cuda_event)

    def wait_stream(self, other: Stream) -> None:
        """Later work here waits for what ``other`` has queued by now."""
        settle()
        module = cuda_module()
        module.follow(other.device, self.cuda_stream, other.cuda_stream, self.device)

    def __eq__(self, other: object) -> bool:
        """Whether both are the same queue."""
        return isinstance(other, Stream) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[int, int]:
        return self.device, self.cuda_stream


def current_stream(device: int | str | None = None) -> Stream:
    """The stream that this thread's work goes to."""
    index = gpu_index_of(device)
    return Stream(index, cuda_module().current_stream(index))


@contextmanager
def stream(stream: Stream | None) -> Iterator[None]:
    """Queues the work of a block on another stream, whose device is the current one meanwhile; on the
    same as before with None.

    Raises:
        RuntimeError: this thread is recording a graph, of which that work would be no part.
    """
    if stream is None:
        yield
        return
    module, device = cuda_module(), stream.device
    before, ours, drivers = current_stream(device), current_device(), module.current_device()
    settle()  # what was made on a stream is queued there by the time that it is left
    module.set_stream(device, stream.cuda_stream)
    try:
        if device != ours:
            set_device(device)
        yield
    finally:
        try:
            settle()
        finally:
            module.set_stream(device, before.cuda_stream)
            if device != ours:
                _device.set_current(ours)
                module.leave_device(drivers)


class graph:
    """Work recorded once and replayed as a whole, without Python and launch costs.

    ``with fastnn.cuda.graph() as g: y = f(x)`` records; every ``g.replay()`` then computes ``y``
    anew from what ``x`` holds, whose memory stays with the graph. What a replay writes has then been
    changed in place: a gradient that needs what was there before is an error. Run ``f`` once before:
    what it loads cannot be recorded. Operators inside must not wait for the device (``item()``, ``cpu()``),
    and all work on the current one (:func:`set_device`): work on another is an error.
    Optimizer steps and dropout inside repeat themselves; :class:`graphed` renews their settings and
    masks.
    """

    def __init__(self) -> None:
        self._module = cuda_module()
        self._graph = 0

    def __enter__(self) -> graph:
        settle()  # what is computed while recording has no values before the first replay
        self.reset()
        self._module.begin_capture(gpu_index_of(None))
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                settle()
                self._graph = self._module.end_capture()
        finally:
            self._module.abandon_capture()  # if it has not ended

    def replay(self) -> None:
        """Queues the recorded work on the current stream.

        Raises:
            RuntimeError: nothing was recorded, or this thread is recording a graph.
        """
        self._replay(0, 0)

    def _replay(self, seed: int, offset: int) -> None:
        """With masks of a state of the generator that is so far from what it was recorded at."""
        if not self._graph:
            raise RuntimeError("replay: nothing was recorded")
        settle()  # before the memory that it changes
        self._module.replay(self._graph, seed, offset)

    def reset(self) -> None:
        """Lets go of the recorded work, and of its memory that no tensor uses."""
        graph, self._graph = self._graph, 0
        if graph:
            self._module.destroy_graph(graph)

    def __reduce__(self) -> Any:
        raise TypeError("graph: cannot be copied or pickled; record another")

    def __del__(self) -> None:
        if hasattr(self, "_graph"):
            self.reset()


class graphed:
    """A training step (or any function of tensors) as a CUDA graph: ``step = graphed(step)``.

    The first ``warmup`` calls run as they are. The next one is recorded, and that one and all later ones
    are replays. Learning rates and other options of optimizers, their step counts and dropout's masks go
    on as without a graph, also after another seed, for they live in device memory (those of optimizers of
    one's own stay as recorded). The tensors that were given gradients while it was recorded, or lost
    theirs, have the same ones after every call; those of tensors that the function makes into leaves
    itself, also of its arguments, begin anew. Whatever else the function does on the host, such as a
    scheduler's step, a count or a print, happens while it is recorded and not again: do that outside.

    Tensor arguments, also in lists, tuples and dicts, are copied to where the first call's were, so
    all calls need the same shapes; other arguments have to stay the same and hold none. Results are
    overwritten by the next call, which is as if they had been changed in place. A call follows the one
    before, also on another stream. The function must always do the same work, on tensors that are on
    the current GPU (:func:`set_device`) and stay the same ones (``net.to(dtype)`` makes others), and must
    not wait for the device: return the loss, and read it outside.

    Args:
        function: called with the arguments of each call.
        warmup: calls before the recording, at least 1.

    Raises:
        ValueError: an argument's shape or dtype changes, or an argument or result is on the CPU, or an
            argument would be given a gradient, or has tensors in an object of another class.
        RuntimeError: the function waits for the device, or works on another GPU than the current one,
            or changes an argument in place, or a parameter is frozen or autocast on where it was not, or
            an optimizer takes other steps than when it was recorded, or a gradient that the step adds
            to or reads is another one, or a tensor that has one has been moved. Step counts and gradients
            are then as they were before the call.
    """

    def __init__(self, function: Callable[..., Any], warmup: int = 2) -> None:
        if warmup < 1:
            raise ValueError(f"graphed: warmup expects a value >= 1, got {warmup}")
        self._function = function
        self._warmup = warmup
        self._graph: graph | None = None
        self._arguments: tuple[list[Any], dict[str, Any]] | None = None
        self._stream: Stream | None = None  # of the call before
        self._seen = autograd.Watched()  # in the last call that was not a replay
        self._gradients: list[Gradient] = []
        self._memory: list[Any] = []
        self._result: Any = None
        self._recorded_at, self._draws = (0, 0), 0
        self._autocast = False

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self._follow()
        given, keywords = self._placed(list(arguments), named)
        if self._warmup:
            with autograd.watched() as self._seen:
                result = self._call(given, keywords)
            check_on_gpu("the result", result)
            self._arguments = given, keywords
            self._warmup -= 1
            return result
        with taken_back_on_failure(self._seen) as recorded:
            if self._graph is None:
                self._record(given, keywords, recorded)
            else:
                self._rehearse()
            assert self._graph is not None
            (seed, offset), recorded_at = _core.next_random(self._draws), self._recorded_at
            self._graph._replay((seed - recorded_at[0]) % 2**64, (offset - recorded_at[1]) % 2**64)
        for one in self._gradients:
            one.leaf.grad = one.after
        return with_tensors(self._result, lambda t: t)  # its lists and dicts are the caller's

    def _follow(self) -> None:
        """The call before may have been on another stream, and this one writes to its arguments."""
        if cuda_module().recording():
            return
        last = self._stream
        self._stream = now = current_stream(last.device if last else None)
        if last and last.cuda_stream != now.cuda_stream:
            now.wait_stream(last)

    def _placed(self, arguments: list[Any], named: dict[str, Any]) -> Any:
        for i, value in enumerate(arguments):
            check_argument(f"argument {i}", value)
        for name, value in named.items():
            check_argument(f"argument {name!r}", value)
        if self._arguments is None:
            return [with_tensors(given, copied) for given in (arguments, named)]
        known, keywords = self._arguments
        if len(arguments) != len(known):
            raise ValueError(f"graphed: expected {len(known)} arguments, got {len(arguments)}")
        if named.keys() != keywords.keys():
            raise ValueError(
                f"graphed: expected keywords {sorted(keywords)} as before, got {sorted(named)}"
            )
        pairs: list[tuple[Tensor, Tensor]] = []
        for i, value in enumerate(arguments):
            pairs += matched(f"argument {i}", known[i], value)
        for name, value in named.items():
            pairs += matched(f"argument {name!r}", keywords[name], value)
        renew(pairs)
        return self._arguments

    def _call(self, arguments: list[Any], named: dict[str, Any]) -> Any:
        """With tensors of the function's own, which it may make into leaves, over the same memory."""
        own, keywords = (with_tensors(given, Tensor.detach) for given in (arguments, named))
        given = list(tensors_of((arguments, named)))
        versions = [t._array.version for t in given]
        result = self._function(*own, **keywords)
        for t, version in zip(given, versions, strict=True):
            if t._array.version != version:
                raise RuntimeError(
                    f"graphed: the function changes an argument of shape {t.shape} in place, which is "
                    "a copy of the caller's; return the new values, or let the function use the "
                    "tensor itself"
                )
        return result

    def _record(
        self, arguments: list[Any], named: dict[str, Any], came_to: list[autograd.Watched]
    ) -> None:
        recorded = graph()
        known = {id(b) for one, *_ in self._seen.steps for b in buffers_of(one)}
        made_before = self._seen.made
        wanted = {key: leaf.requires_grad for key, (leaf, *_) in self._seen.leaves.items()}
        self._autocast = autograd.is_autocast_enabled()
        with autograd.watched() as seen, recorded, drawn_apart() as states:
            came_to.append(seen)
            self._result = with_tensors(self._call(arguments, named), without_tape)
            check_on_gpu("the result", self._result)
            if any(id(b) not in known for one, *_ in seen.steps for b in buffers_of(one)):
                raise RuntimeError(
                    "graphed: an optimizer made buffers while its step was recorded, which every "
                    "replay would make anew; it has to take such a step in the warm-up before (has "
                    "momentum been switched on, or a parameter been given a gradient for the first "
                    "time?)"
                )
        self._graph, self._seen = recorded, seen
        self._memory = memory_of(seen.steps)
        for key, (leaf, before, anew) in seen.leaves.items():
            anew = anew or (key in seen.made and key not in made_before)
            # What the step sets itself may be anything before it.
            same = wanted.get(key) is leaf.requires_grad
            more = leaf.grad, leaf._array, leaf.requires_grad if same else None
            self._gradients.append(Gradient(leaf, anew, before, *more))
        self._recorded_at, after = states
        self._draws = (after[1] - self._recorded_at[1]) % 2**64

    def _rehearse(self) -> None:
        """What the host does in a step: optimizers count and compute their settings."""
        assert self._graph is not None
        if autograd.is_autocast_enabled() != self._autocast:
            raise RuntimeError(
                f"graphed: expected autocast {'on' if self._autocast else 'off'} as when the step was "
                "recorded, which goes on so"
            )
        for leaf, anew, before, after, array, wanted in self._gradients:
            if wanted is not None and leaf.requires_grad is not wanted:
                raise RuntimeError(
                    f"graphed: a tensor of shape {leaf.shape} expects requires_grad={wanted} as when "
                    "the step was recorded, which goes on so; graph the step anew"
                )
            if leaf._array is not array:
                raise RuntimeError(
                    f"graphed: a tensor of shape {leaf.shape} has other memory than when the step "
                    "was recorded, which goes on with that; graph the step anew after .to()"
                )
            if anew or leaf.grad is before:
                continue
            if before is None or after is before:
                raise RuntimeError(
                    f"graphed: the gradient of a tensor of shape {leaf.shape} has to be "
                    f"{'None' if before is None else 'the same tensor'} before each call, as when the "
                    "step was recorded, which reads it or adds to it; call zero_grad() within the "
                    "step, or before each call"
                    f"{'' if before is None else ' with set_to_none=False'}"
                )
            # The step adds to it, and then drops it: it may be any.
            before.zero_() if leaf.grad is None else before.copy_(leaf.grad)
        module = cuda_module()
        module.begin_rehearsal(self._graph._graph)
        try:
            for one, gradients, _ in self._seen.steps:
                held = [(p, p.grad) for p, _ in gradients]
                for p, gradient in gradients:
                    p.grad = gradient
                one.step()
                for p, gradient in held:
                    p.grad = gradient
        finally:
            same = module.end_rehearsal()
        if not same or memory_of(self._seen.steps) != self._memory:
            raise RuntimeError(
                "graphed: an optimizer takes other steps than when it was recorded; parameters, "
                "their gradients and the optimizer's buffers have to stay the same, or the step has "
                "to be graphed anew"
            )


def time_ms(function: Callable[[], Any]) -> float:
    """Milliseconds that the device takes for what ``function`` queues, by events."""
    start, end = Event(enable_timing=True), Event(enable_timing=True)
    start.record()
    function()
    end.record()
    return start.elapsed_time(end)
