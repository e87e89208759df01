"""The arguments of graphed functions (:class:`fastnn.cuda.graphed`): tensors, also in lists, tuples and
dicts."""

from __future__ import annotations

import copy
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from fastnn import autograd
from fastnn.nn.module import Module
from fastnn.optim.optimizer import Optimizer
from fastnn.tensor import Tensor


def _items(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """The keys and values of a dict, the positions and values of a list or tuple, else None."""
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, (list, tuple)) else None


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What is in lists, tuples and dicts, by name."""
    items = _items(value)
    if items is None:
        yield name, value
    for key, part in items or ():
        yield from _parts(f"{name}[{key!r}]", part)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in lists, tuples and dicts."""
    return (part for _, part in _parts("", value) if isinstance(part, Tensor))


def check_on_gpu(name: str, value: Any) -> None:
    """Refuses, with ValueError, tensors and arrays on the CPU."""
    for where, part in _parts(name, value):
        if (isinstance(part, Tensor) and not part.is_cuda) or isinstance(part, np.ndarray):
            raise ValueError(
                f"graphed: {where} expects tensors on the GPU, got {type(part).__name__} of shape "
                f"{tuple(part.shape)} on the CPU, which replays neither read nor write; move it with "
                ".to('cuda')"
            )


# What has no tensors of a call's own.
_HOLD_NONE = (FunctionType, ModuleType, type, str, bytes, int, float, type(None))


def is_iterator(value: Any) -> bool:
    return isinstance(value, Iterator) and not isinstance(value, io.IOBase)


def _hides_tensors(value: Any) -> bool:
    """Whether an object has tensors, or what may give some, where they are not looked for; those of
    modules and optimizers stay."""
    seen, waiting = {id(value)}, [value]
    while waiting:
        one = waiting.pop()
        if one is not value and isinstance(one, Tensor):
            return True
        if isinstance(one, (Tensor, Module, Optimizer, *_HOLD_NONE)):
            continue
        if hasattr(one, "__dlpack__") or (one is value and is_iterator(one)):
            return True
        held = list(getattr(one, "__dict__", {}).values())
        for kind in type(one).__mro__:
            names = kind.__dict__.get("__slots__", ())
            held += [getattr(one, n, None) for n in ([names] if isinstance(names, str) else names)]
        if isinstance(one, (set, frozenset, deque)):
            held += one
        parts = [part for some in held for _, part in _parts("", some)]
        waiting += [part for part in parts if id(part) not in seen]
        seen.update(map(id, parts))
    return False


def check_argument(name: str, value: Any) -> None:
    """Refuses, with ValueError, what is on the CPU, would be given a gradient, or would not be renewed."""
    check_on_gpu(name, value)
    for where, part in _parts(name, value):
        if _hides_tensors(part):
            raise ValueError(
                f"graphed: {where} expects tensors, also in lists, tuples and dicts, got "
                f"{type(part).__name__}{' that may give' if is_iterator(part) else ' with'} tensors, "
                "which replays would not see change; pass them by themselves, or let the function use "
                "what stays the same"
            )
        if autograd.is_grad_enabled() and isinstance(part, Tensor) and part.requires_grad:
            raise ValueError(
                f"graphed: {where} requires a gradient, and a graph, which works on a copy, would "
                "give it none; pass .detach() of it, or let the function use the tensor itself"
            )


def copied(tensor: Tensor) -> Tensor:
    """In memory of the graph's own."""
    return tensor.detach().clone()


def of_kind(value: Any, parts: list[Any]) -> Any:
    """Parts in a list or tuple, also a named one, of the class of ``value``."""
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def with_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same lists, tuples and dicts with what the function gives for each tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        same = copy.copy(value)
        same.update((key, with_tensors(part, function)) for key, part in value.items())
        return same
    if isinstance(value, (list, tuple)):
        parts = [with_tensors(part, function) for part in value]
        return of_kind(value, parts)
    return value


def matched(name: str, kept: Any, value: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The tensors of the first call's argument, each with that of this call; the rest is to be equal."""
    if isinstance(kept, Tensor) and isinstance(value, Tensor):
        if value.shape != kept.shape or value.dtype is not kept.dtype:
            raise ValueError(
                f"graphed: {name} expects shape {kept.shape} and dtype {kept.dtype} as before, got "
                f"{value.shape} and {value.dtype}"
            )
        yield kept, value
        return
    known, given = _items(kept), _items(value)
    if known is not None and given is not None:
        parts, others = list(known), list(given)
        keys, order = ([key for key, _ in some] for some in (parts, others))
        if isinstance(kept, dict) and keys != order and set(keys) == set(order):
            raise ValueError(f"graphed: {name} expects its keys in the order {keys}, got {order}")
        if type(kept) is type(value) and keys == order:
            for (key, part), (_, other) in zip(parts, others, strict=True):
                yield from matched(f"{name}[{key!r}]", part, other)
            return
    elif kept is value or (type(kept) is type(value) and kept == value):
        return
    elif isinstance(kept, float) and isinstance(value, float) and kept != kept and value != value:
        return  # NaN
    raise ValueError(f"graphed: {name} expects {kept!r} as before, got {value!r}")


def renew(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copies values to where the first call's are: those that lie where others come, being results of
    the call before, by way of a copy."""
    apart = [
        value.clone()
        if any(
            other is not kept and other._array.shares_storage(value._array) for other, _ in pairs
        )
        else value
        for kept, value in pairs
    ]
    for (kept, _), value in zip(pairs, apart, strict=True):
        kept.copy_(value)
