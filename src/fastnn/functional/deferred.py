"""Results that wait for what comes next: those of convolutions and batch norms.

A convolution computes its output when that is first used; a batch norm its moments at once, and its
output likewise. If a ReLU, or an addition and then a ReLU, is the first to use it, all is one pass
over memory, in whatever way the network is written, with gradients and without:

    out = F.relu(conv(x))                       # one pass
    out = F.relu(bn(conv(x)))                   # two: the batch norm needs all of its input's moments
    out = bn(conv(x)); out += x; out = relu(out)  # two

So it is with SiLU, GELU and the like (``activation.CURVES``) after a batch norm on a CPU.

Nobody can tell but by the time (and, of a sum, or of a SiLU and the like in bfloat16, by one rounding
less). Whoever reads the values of a
waiting tensor has them computed, and so has whoever is about to change one of its operands in place,
or drops it unused (whoever times a call alone times its work). Whoever asks for its place on the tape,
a hook, a gradient with respect to it, or another operator, finds it there: what was joined before is
taken apart again, with the values from before any change in place. Threads may share a waiting tensor:
its values are computed once.

On a GPU a result is computed where it was made, whoever asks for it: on that stream, and in the
recording of a graph only if it was made in it.
"""

from __future__ import annotations

import os
import sys
from _thread import RLock  # threading's is a function that calls this one
from collections.abc import Callable
from typing import Any, Protocol

from fastnn.autograd import enable_grad, is_grad_enabled, is_recorded, is_waiting_enabled
from fastnn.device import cuda_module, name_of
from fastnn.dtypes import as_dtype
from fastnn.tensor import Tensor, waiting

Inputs = tuple[Tensor | None, ...]


def array_of(tensor: Tensor | None) -> Any:
    """The array of an optional tensor."""
    return None if tensor is None else tensor._array


def may_wait(operands: tuple[Any, ...]) -> bool:
    """Whether nobody can change the operands without our notice."""
    return is_waiting_enabled() and not any(a is not None and a.exposed for a in operands)


class Operator(Protocol):
    """One call of an operator that adds a residual and applies an activation in its own pass.

    Attributes:
        name: its public name, for error messages.
        operands: the arrays that its output is computed from.
    """

    name: str
    operands: tuple[Any, ...]

    def takes(self, activation: str, inputs: Inputs, recorded: bool) -> bool:
        """Whether the activation may be part of the pass over ``inputs``."""
        ...

    def compute(self, activation: str, residual: Any) -> Any:
        """The output: an array."""
        ...

    def record(self, y: Any, inputs: Inputs, activation: str) -> Tensor:
        """Wraps the output of ``inputs``: input, weight, bias, residual."""
        ...


class Deferred(Tensor):
    """The output of an operator, perhaps with a residual, until it is used.

    Its slots ``_array`` and, if it is recorded, ``_node`` are empty; Python then asks
    :meth:`__getattr__`, which fills them. All other tensors pay nothing for this.

    Args:
        operator: the call.
        inputs: input, weight, bias and residual: tensors.
        shape: of the output; dtype and device are the first operand's.
    """

    __slots__ = (
        "_inputs", "_joined", "_lock", "_open", "_operator", "_place", "_recorded", "_shape",
        "_sources", "_version",
    )  # fmt: skip

    def __init__(self, operator: Operator, inputs: Inputs, shape: tuple[int, ...]) -> None:
        self._index, self._hooks, self._grad = 0, None, None
        self._operator, self._inputs, self._shape = operator, inputs, shape
        self._requires_grad = is_recorded(inputs)
        if self._requires_grad:
            self._recorded = operator.record(None, inputs, "")._node
        else:
            self._recorded = self._node = None
        # Held here: the node may be freed, or become another, before the values are asked for.
        arrays = [a for a in (*operator.operands, array_of(inputs[3])) if a is not None]
        self._sources = [(a, a.version) for a in arrays]
        self._joined: list[tuple[Any, Callable[[Tensor], Tensor]]] = []
        self._place = self._here()
        # Held while operands are read: another thread may have the values computed, to change these;
        # so may a finalizer that runs in this one.
        self._lock = RLock()
        self._version: int | None = None  # of the array, once its values are computed
        self._open = True
        waiting[id(self)] = self

    def __getattr__(self, name: str) -> Any:
        if name == "_array":
            with self._lock:
                self._open = False
                if self._version is None:
                    array = self._computed("")
                    self._array, self._version = array, array.version
            waiting.pop(id(self), None)
            return self._array
        if name == "_node":
            self._open = False
            with enable_grad():
                for joined, plain in self._joined:
                    is_sum = isinstance(joined, Deferred)
                    # A sum's own followers come to it before it comes here.
                    node = joined._node if is_sum else joined
                    if node.saved is not None:
                        node.become(plain(self._stand_in(is_sum))._node)
            self._node = self._recorded
            return self._node
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _stand_in(self, any_values: bool) -> Tensor:
        """A tensor in this one's place on the tape, with its first values unless any will do."""
        array = self._array
        if not any_values and array.version != self._version:  # changed in place since
            array = self._computed("")
        out = Tensor._wrap(array)
        out._node, out._requires_grad = self._recorded, True
        return out

    def _intact(self) -> bool:
        return all(array.version == version for array, version in self._sources)

    def _computed(self, activation: str) -> Any:
        if not self._intact():
            raise RuntimeError(
                f"{self._operator.name}: an operand of its result of shape {self.shape} was changed "
                "in place before that was used; change a .clone() of it instead"
            )
        if self._is_here():
            return self._operator.compute(activation, array_of(self._inputs[3]))
        if self._place.recorded:
            raise RuntimeError(
                f"{self._operator.name}: its result of shape {self.shape} belongs to the recording "
                "of a graph that failed, or that is another thread's, and has no values here"
            )
        module, device = cuda_module(), self._like.device
        before = module.move_to(device, self._place)
        try:
            return self._operator.compute(activation, array_of(self._inputs[3]))
        finally:
            module.move_to(device, before)

    def _here(self) -> Any:
        """Where this thread's work on the GPU goes: a stream, perhaps of a recording."""
        device = self._operator.operands[0].device
        return cuda_module().here(device) if device >= 0 else None

    def _is_here(self) -> bool:
        return self._place is None or self._place == self._here()

    def reads(self, array: Any) -> bool:
        """Whether the values are computed from this array's memory."""
        return any(source.shares_storage(array) for source, _ in self._sources)

    def settle(self) -> None:
        """Computes the values, if they can still be known; else using them is an error.

        What is recorded reads its operands when it is replayed, and is nobody else's to compute.
        """
        if self._intact() and (self._is_here() or not self._place.recorded):
            self._array  # noqa: B018 (reading it computes it)

    def __del__(self) -> None:
        if getattr(self, "_open", False) and not self._joined and not sys.is_finalizing():
            self.settle()

    def _can_join(self) -> bool:
        if self._recorded is None:  # and what it joins would not be either
            joins = self._open and not (self._requires_grad or is_recorded(self._inputs))
        else:
            joins = self._open and is_grad_enabled() and self._recorded.changed() is None
        return joins and self._is_here()

    def _can_add(self, other: Any) -> bool:
        return (
            isinstance(other, Tensor)
            and other is not self
            and self._inputs[3] is None
            and (other.shape, other.dtype, other.device) == (self.shape, self.dtype, self.device)
            and self._can_join()
            and not other._array.exposed
        )

    def activated(self, name: str, plain: Callable[[Tensor], Tensor]) -> Tensor | None:
        """The activation of this tensor in one pass, or None if it is in use already.

        Args:
            name: ``"relu"``, ``"relu6"`` or one of ``CURVES``.
            plain: the function of that name.
        """
        recorded = self._recorded is not None
        with self._lock:
            if not self._can_join() or not self._operator.takes(name, self._inputs, recorded):
                return None
            values = self._computed(name)
        out = self._operator.record(values, self._inputs, name)
        self._joined.append((out._node, plain))
        return out

    def plus(self, other: Any, add: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
        """The sum with another activation, which waits in turn; None if they do not fit."""
        if not self._can_add(other):
            return None
        out = Deferred(self._operator, (*self._inputs[:3], other), self._shape)
        self._joined.append((out, lambda this: add(this, other)))
        return out

    def take(self, other: Any, alpha: Any) -> bool:
        """``self += alpha * other`` without gradients, if that can be left to this tensor's pass."""
        if self._recorded is not None or alpha != 1 or not self._can_add(other):
            return False
        with self._lock:
            if self._open:  # still: another thread may have had the values computed
                self._inputs = (*self._inputs[:3], other)
                self._sources.append((other._array, other._array.version))
            return self._open

    def __reduce__(self) -> Any:
        """As a plain tensor: a copy waits for nothing."""
        rebuilt, (_, *values) = super().__reduce__()
        return rebuilt, (Tensor, *values)

    # What does not depend on the values.

    is_leaf = property(lambda self: self._recorded is None)  # type: ignore[assignment]

    @property
    def _like(self) -> Any:
        return self._operator.operands[0]

    shape = property(lambda self: self._shape)  # type: ignore[assignment]
    ndim = property(lambda self: len(self._shape))  # type: ignore[assignment]
    dtype = property(lambda self: as_dtype(self._like.dtype))  # type: ignore[assignment]
    device = property(lambda self: name_of(self._like.device))  # type: ignore[assignment]
    is_cuda = property(lambda self: self._like.device >= 0)  # type: ignore[assignment]


def _free_locks() -> None:
    """In a child process the threads that hold them are not there."""
    for reference in waiting.valuerefs():
        if (tensor := reference()) is not None:
            tensor._lock = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_locks)
