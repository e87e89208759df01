"""Batch norms on the tape, and outputs of theirs that wait for what comes next.

A recorded batch norm computes its moments at once and its output when that is first used. If a ReLU,
or an addition and then a ReLU, is the first to use it, all is one pass over memory in each direction,
in whatever way the network is written:

    out = F.relu(bn(conv(x)))                   # one pass
    out = bn(conv(x)); out += x; out = relu(out)  # one pass

Nobody can tell but by the time (and, of a sum, by one rounding less). Whoever reads the values of a
waiting tensor has them computed. Whoever asks for its place on the tape, a hook, a gradient with
respect to it, or another operator, finds it there: what was joined before is taken apart again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fastnn._core as _core
from fastnn.autograd import enable_grad, is_grad_enabled, record
from fastnn.tensor import Tensor, waiting


def array_of(tensor: Tensor | None) -> Any:
    """The array of an optional tensor."""
    return None if tensor is None else tensor._array


def like(grad: Any, parameter: Any) -> Any:
    """A gradient in its operand's dtype; itself if it has it, so that nobody else holds it."""
    if parameter is None or grad is None or grad.dtype == parameter.dtype:
        return None if parameter is None else grad
    return _core.astype(grad, parameter.dtype)


def record_batch_norm(
    y: Any, inputs: tuple[Tensor | None, ...], relu: bool, moments: Any, training: bool
) -> Tensor:
    """Wraps the output of a batch norm of ``inputs``: input, weight, bias, residual."""
    x, weight, bias, residual = map(array_of, inputs)
    mask = y if relu and residual is not None else None
    saved = (x, relu, mask, weight, bias, residual, moments.mean, moments.invstd, training)
    return record("batch_norm", y, inputs, saved, _backward)


def _backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    x, relu, y, weight, bias, residual, mean, invstd, training = saved
    masked = relu and needs[3]  # else the residual's gradient is the output's
    grads = _core.batch_norm_backward(
        grad_output, x, relu, y, weight, bias, mean, invstd, training, masked
    )
    return (
        grads.input,
        like(grads.weight, weight),
        like(grads.bias, bias),
        like(grads.residual if masked else grad_output, residual) if needs[3] else None,
    )


class Deferred(Tensor):
    """The output of a recorded batch norm, perhaps with a residual, until it is used.

    Its slots ``_array`` and ``_node`` are empty; Python then asks :meth:`__getattr__`, which fills
    them. All other tensors pay nothing for this.

    Args:
        inputs: input, weight, bias and residual of the norm.
        statistics: what :func:`fastnn._core.batch_norm_statistics` gave.
        training: whether they are the batch's own.
    """

    __slots__ = (
        "_inputs", "_joined", "_open", "_recorded", "_sources", "_statistics", "_training",
    )  # fmt: skip

    def __init__(self, inputs: tuple[Tensor | None, ...], statistics: Any, training: bool) -> None:
        self._index, self._requires_grad, self._hooks, self.grad = 0, True, None, None
        self._inputs, self._statistics, self._training = inputs, statistics, training
        self._recorded = record_batch_norm(None, inputs, False, statistics, training)._node
        # The node may be freed, or become another, before the values are asked for.
        sources = (array_of(inputs[0]), array_of(inputs[3]))
        self._sources = [(a, None if a is None else a.version) for a in sources]
        self._joined: list[tuple[Any, Callable[[Tensor], Tensor]]] = []
        self._open = True
        waiting[id(self)] = self

    def __getattr__(self, name: str) -> Any:
        if name == "_array":
            self._open = False
            self._array = self._computed("")
            waiting.pop(id(self), None)
            return self._array
        if name == "_node":
            self._open = False
            self._node = self._recorded
            with enable_grad():
                for joined, plain in self._joined:
                    # A sum's own followers come to it before it comes here.
                    node = joined._node if isinstance(joined, Deferred) else joined
                    if node.saved is not None:
                        node.become(plain(self)._node)
            return self._node
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _intact(self) -> bool:
        return all(array is None or array.version == version for array, version in self._sources)

    def _computed(self, activation: str) -> Any:
        if not self._intact():
            raise RuntimeError(
                f"batch_norm: its input of shape {self.shape} was changed in place before its "
                "result was used; change a .clone() of it instead"
            )
        (x, _), (residual, _) = self._sources
        return _core.batch_norm_apply(x, self._statistics, activation, residual)

    def settle(self) -> None:
        """Computes the values, if they can still be known; else using them is an error."""
        if self._intact():
            self._array  # noqa: B018 (reading it computes it)

    def _can_join(self) -> bool:
        return self._open and is_grad_enabled() and self._recorded.changed() is None

    def activated(self, relu: Callable[[Tensor], Tensor]) -> Tensor | None:
        """``relu`` of this tensor in one pass, or None if it is in use already."""
        if not self._can_join():
            return None
        y = self._computed("relu")
        out = record_batch_norm(y, self._inputs, True, self._statistics, self._training)
        self._joined.append((out._node, relu))
        return out

    def plus(self, other: Any, add: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
        """The sum with another activation, which waits in turn; None if they do not fit."""
        if (
            not (isinstance(other, Tensor) and other is not self and self._inputs[3] is None)
            # Leaves may change in place at any time, as parameters do in a step.
            or other.is_leaf
            or (other.shape, other.dtype, other.device) != (self.shape, self.dtype, self.device)
            or not self._can_join()
        ):
            return None
        out = Deferred((*self._inputs[:3], other), self._statistics, self._training)
        self._joined.append((out, lambda this: add(this, other)))
        return out

    # What does not depend on the values.

    is_leaf = property(lambda self: False)  # type: ignore[assignment]

    @property
    def _like(self) -> Tensor:
        return self._inputs[0]  # type: ignore[return-value]

    shape = property(lambda self: self._like.shape)  # type: ignore[assignment]
    ndim = property(lambda self: self._like.ndim)  # type: ignore[assignment]
    dtype = property(lambda self: self._like.dtype)  # type: ignore[assignment]
    device = property(lambda self: self._like.device)  # type: ignore[assignment]
    is_cuda = property(lambda self: self._like.is_cuda)  # type: ignore[assignment]
