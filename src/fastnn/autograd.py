"""Reverse-mode differentiation: a tape of coarse operators, each with a hand-written backward.

An operator's functional calls its kernel on arrays and then :func:`record`, which wraps the result
and, where a gradient can be asked for, notes a :class:`Node`: the inputs, what the backward needs
(``saved``), and the backward itself, a module-level function
``backward(saved, grad_output, needs)`` that returns one array or None per input. Gradients are
arrays, not tensors, so a backward is never recorded: double backward is refused with a clear error
instead of being half right.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ContextDecorator, contextmanager
from typing import TYPE_CHECKING, Any

import fastnn._core as _core
from fastnn.device import name_of

if TYPE_CHECKING:
    from fastnn.function import Function as Function
    from fastnn.optim.optimizer import Step
    from fastnn.tensor import Tensor

Backward = Callable[..., Any]
#: A leaf whose ``.grad`` is read or becomes another, what that was before, and whether it is begun anew.
Touched = tuple["Tensor", "Tensor | None", bool]


def _wrap(array: Any) -> Tensor:
    """A tensor over an array. ``fastnn.tensor``, which needs this module first, puts the real one
    here: an import inside :func:`record` would cost as much as a small kernel."""
    raise ImportError("fastnn.autograd: import fastnn first")


class Watched:
    """What :func:`watched` saw.

    Attributes:
        steps: of optimizers, in order.
        leaves: whose ``.grad`` was read or became another, by identity.
        made: that began to want gradients, by identity.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.leaves: dict[int, Touched] = {}
        self.made: dict[int, Tensor] = {}


class _State(threading.local):
    grad = True
    autocast = False
    waits = True
    traced = False
    #: What this thread notes for :func:`watched`; None: nobody asks.
    seen: Watched | None = None


_state = _State()


class _Mode(ContextDecorator):
    """Sets one field of the thread's state while the block runs; also a decorator."""

    field = ""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._stack: list[bool] = []

    def _recreate_cm(self) -> _Mode:
        # A decorated function may run in several threads at once: each call gets its own.
        fresh = object.__new__(type(self))
        fresh.enabled, fresh._stack = self.enabled, []
        return fresh

    def __enter__(self) -> _Mode:
        self._stack.append(getattr(_state, self.field))
        setattr(_state, self.field, self.enabled)
        return self

    def __exit__(self, *exc: object) -> None:
        setattr(_state, self.field, self._stack.pop())


class set_grad_enabled(_Mode):
    """Turns recording on or off within a block: ``with fastnn.set_grad_enabled(False): ...``."""

    field = "grad"


class no_grad(set_grad_enabled):
    """Nothing is recorded within the block (or the decorated function)."""

    def __init__(self) -> None:
        super().__init__(False)


class inference_mode(set_grad_enabled):
    """As :class:`no_grad`, by PyTorch's name; ``inference_mode(False)`` turns recording on.

    Tensors made within are like any others, and may be used in recorded operators afterwards.
    """

    def __new__(cls, mode: Any = True) -> Any:
        # Also a decorator without parentheses.
        return cls()(mode) if callable(mode) else super().__new__(cls)

    def __init__(self, mode: bool = True) -> None:
        super().__init__(not mode)


class enable_grad(set_grad_enabled):
    """Recording is on within the block, also inside :class:`no_grad`."""

    def __init__(self) -> None:
        super().__init__(True)


class autocast(_Mode):
    """Convolutions and matrix products run on, and give, bfloat16 within the block.

    Parameters stay float32, and so do their gradients: sums of bfloat16 products that are never
    rounded to bfloat16. Norm statistics and losses compute in float32. On a CPU the bfloat16 values
    of a weight are kept with it (2 bytes per parameter) until it changes; an optimizer's step writes
    the new ones in its pass over the parameters.
    """

    field = "autocast"


class no_waiting(_Mode):
    """No result waits, within the block, for what comes next (``functional/deferred.py``)."""

    field = "waits"

    def __init__(self) -> None:
        super().__init__(False)


class tracing(_Mode):
    """What reaches the kernels is noted for a program within the block (``program.py``)."""

    field = "traced"


@contextmanager
def watched() -> Iterator[Watched]:
    """What the host does within the block that a CUDA graph would not do again."""
    seen = Watched()
    before, _state.seen = _state.seen, seen
    try:
        yield seen
    finally:
        _state.seen = before
        if before is not None:
            before.steps += seen.steps
            before.leaves = seen.leaves | before.leaves
            before.made |= seen.made


def watcher() -> Watched | None:
    """Where this thread notes what it does; None where nobody asks."""
    return _state.seen


def touch(leaf: Tensor, anew: bool = False) -> None:
    """Notes, for :func:`watched`, that the leaf's ``.grad`` is read or about to become another, or None."""
    if _state.seen is not None and leaf.is_leaf:
        _state.seen.leaves.setdefault(id(leaf), (leaf, leaf._grad, anew))


def _gradient(tensor: Tensor) -> Tensor | None:
    touch(tensor)
    return tensor._grad


def _set_gradient(tensor: Tensor, gradient: Tensor | None) -> None:
    if gradient is not None:
        _check_gradient(tensor, gradient)
    touch(tensor, anew=True)
    tensor._grad = gradient


gradient_property = property(_gradient, _set_gradient)


def _check_gradient(tensor: Tensor, gradient: Any) -> None:
    """Refuses what cannot be the tensor's ``.grad``."""
    a, b = tensor._array, getattr(gradient, "_array", None)
    if b is not None and (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device):
        return
    if b is None:
        raise TypeError(f"grad: expected a Tensor or None, got {type(gradient).__name__}")
    if gradient.shape != tensor.shape:
        raise ValueError(f"grad: expected shape {tensor.shape}, got {gradient.shape}")
    if gradient.dtype is not tensor.dtype:
        want, got = tensor.dtype.name, gradient.dtype.name
        raise TypeError(f"grad: expected dtype {want}, got {got}; convert it with .to({want!r})")
    _check_device("grad", "the gradient", gradient._array, tensor._array)


def note_leaf(leaf: Tensor) -> None:
    """Notes, for :func:`watched`, that a tensor wants gradients from now on."""
    if _state.seen is not None:
        _state.seen.made[id(leaf)] = leaf


def forget_gradients(leaves: Iterable[Tensor], set_to_none: bool) -> None:
    """Forgets the gradients of leaves, or overwrites them with zeros."""
    for leaf in leaves:
        touch(leaf, anew=True)
        if set_to_none:
            leaf._grad = None
        elif leaf._grad is not None:
            leaf._grad.zero_()


def is_traced() -> bool:
    """Whether this thread's calls are being noted for a program."""
    return _state.traced


def is_waiting_enabled() -> bool:
    """Whether results may wait, in this thread."""
    return _state.waits


def is_grad_enabled() -> bool:
    """Whether operators are being recorded in this thread."""
    return _state.grad


def is_autocast_enabled() -> bool:
    """Whether this thread is inside :class:`autocast`."""
    return _state.autocast


class Node:
    """One recorded operator.

    Attributes:
        name: the operator's public name, for error messages.
        inputs: per input the tensor's edge: a Node with an output index, a leaf Tensor, or None
            where no gradient is wanted.
        saved: what the backward needs; None once it has been freed.
        backward: ``backward(saved, grad_output, needs) -> tuple of arrays or None``. For an
            operator with several outputs ``grad_output`` is a tuple with None for unused ones.
        outputs: number of outputs.
        hooks: per output index, functions applied to the gradient on its way through.
        adds: whether ``backward`` takes a fourth argument, a gradient of its first input so far, and
            gives the sum: it then costs no pass of its own.
    """

    __slots__ = (
        "name", "inputs", "needs", "saved", "versions", "backward", "outputs", "hooks", "adds",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        inputs: Sequence[Tensor | None],
        saved: tuple[Any, ...],
        backward: Backward,
        outputs: int,
    ) -> None:
        self.name = name
        self.needs = tuple([t is not None and t._requires_grad for t in inputs])
        self.inputs: tuple[Any, ...] = tuple(
            [
                None
                if t is None or not t._requires_grad
                else t
                if t._node is None
                else (t._node, t._index)
                for t in inputs
            ]
        )
        self.saved: tuple[Any, ...] | None = saved
        self.versions = [a.version if isinstance(a, _core.Array) else None for a in saved]
        self.backward = backward
        self.outputs = outputs
        self.hooks: dict[int, list[Callable[[Tensor], Tensor | None]]] | None = None
        self.adds = False

    def __repr__(self) -> str:
        return f"<{self.name} backward>"

    def changed(self) -> tuple[Any, int] | None:
        """The first saved array that was changed in place since, and its version then."""
        for value, version in zip(self.saved or (), self.versions, strict=False):
            if version is not None and value.version != version:
                return value, version
        return None

    def become(self, other: Node) -> None:
        """Computes what ``other`` does from now on, in its own place and with its own hooks."""
        self.name, self.inputs, self.needs = other.name, other.inputs, other.needs
        self.saved, self.versions, self.backward = other.saved, other.versions, other.backward
        self.adds = other.adds

    def run(self, grads: list[Any], so_far: Any = None) -> tuple[Any, ...]:
        """Gradients of the inputs, given those of the outputs; the first plus ``so_far``."""
        if self.saved is None:
            raise RuntimeError(
                f"{self.name}: backward ran a second time through a graph whose saved tensors "
                "were freed; call backward(retain_graph=True) the first time"
            )
        if (changed := self.changed()) is not None:
            value, version = changed
            raise RuntimeError(
                f"{self.name}: a tensor of shape {value.shape} needed for the gradient was "
                f"changed in place (version {value.version}, expected {version}); "
                "change a .clone() of it instead"
            )
        grad_output = grads[0] if self.outputs == 1 else tuple(grads)
        more = () if so_far is None else (so_far,)
        found = self.backward(self.saved, grad_output, self.needs, *more)
        return found if isinstance(found, tuple) else (found,)


def record(
    name: str,
    output: Any,
    inputs: Sequence[Tensor | None],
    saved: tuple[Any, ...],
    backward: Backward,
) -> Tensor:
    """Wraps ``output`` (an array) and records the operator if any input wants a gradient."""
    out = _wrap(output)
    if is_recorded(inputs):
        out._node = Node(name, inputs, saved, backward, 1)
        out._requires_grad = True
    return out


def is_recorded(inputs: Sequence[Tensor | None]) -> bool:
    """Whether an operator of these inputs goes on the tape."""
    if not _state.grad:
        return False
    for t in inputs:  # a loop: any() of a generator costs as much as a small kernel
        if t is not None and t._requires_grad:
            return True
    return False


def record_many(
    name: str,
    outputs: Sequence[Any],
    inputs: Sequence[Tensor | None],
    saved: tuple[Any, ...],
    backward: Backward,
) -> tuple[Tensor, ...]:
    """As :func:`record` for several outputs; integer outputs take no part in gradients."""
    wrapped = tuple(_wrap(output) for output in outputs)
    if is_recorded(inputs):
        node = Node(name, inputs, saved, backward, len(wrapped))
        for index, out in enumerate(wrapped):
            if out.dtype.is_floating_point:
                out._node, out._index, out._requires_grad = node, index, True
    return wrapped


def _topological(root: Node) -> list[Node]:
    """Nodes reachable from ``root``, every node before the nodes of its inputs."""
    order: list[Node] = []
    seen = {id(root)}
    stack: list[tuple[Node, Iterator[Any]]] = [(root, iter(root.inputs))]
    while stack:
        node, edges = stack[-1]
        for edge in edges:
            if isinstance(edge, tuple) and id(edge[0]) not in seen:
                seen.add(id(edge[0]))
                stack.append((edge[0], iter(edge[0].inputs)))
                break
        else:
            order.append(node)
            stack.pop()
    order.reverse()
    return order


def _hooked(hooks: Sequence[Callable[[Tensor], Tensor | None]], grad: Any) -> Any:
    from fastnn.tensor import Tensor

    with no_grad():
        for hook in hooks:
            replaced = hook(Tensor._wrap(grad))
            if replaced is not None:
                _check_device("register_hook", "a hook's gradient", replaced._array, grad)
                grad = replaced._array
    return grad


def _check_device(name: str, what: str, array: Any, like: Any) -> None:
    """RuntimeError unless ``array`` is where the tensor is whose gradient it is to be."""
    if array.device != like.device:
        raise RuntimeError(
            f"{name}: {what} is on {name_of(array.device)}, and the tensor on "
            f"{name_of(like.device)}; move it with .to(device)"
        )


class _Sum:
    """A gradient under accumulation; ``owned`` while nothing else can see its array."""

    __slots__ = ("array", "owned")

    def __init__(self, array: Any, owned: bool) -> None:
        self.array = array
        self.owned = owned and array.is_canonical()

    def add(self, array: Any) -> None:
        self.own()
        _core.accumulate(self.array, array)

    def own(self) -> Any:
        """The array, copied first if anything else could see it change."""
        if not self.owned:
            self.array = _core.clone(self.array)
            self.owned = True
        return self.array


def _is_fresh(array: Any, results: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether a backward's result is held by nothing but ``results``, and there once."""
    return (
        array.owners == 1
        and sum(array is r for r in results) == 1
        and not any(array is other for other in others)
    )


def run_backward(
    root: Tensor,
    grad: Any,
    retain_graph: bool,
    targets: dict[int, Any] | None = None,
) -> None:
    """Propagates ``grad`` from ``root``.

    Args:
        root: the tensor differentiated.
        grad: array, the gradient of the result with respect to ``root``.
        retain_graph: keep saved tensors for another pass.
        targets: if given, ``{key of tensor: None}``; filled with their gradients, and leaves'
            ``.grad`` are left alone.
    """
    if root._node is None:
        _reach_leaf(root, _Sum(grad, False), targets)
        return
    order = _topological(root._node)
    pending: dict[int, list[_Sum | None]] = {id(node): [None] * node.outputs for node in order}
    leaves: dict[int, tuple[Any, _Sum]] = {}
    pending[id(root._node)][root._index] = _Sum(grad, False)
    for node in order:
        sums = pending.pop(id(node))
        if all(s is None for s in sums):
            continue
        grads = [None if s is None else s.array for s in sums]
        if node.hooks:
            for index, hooks in node.hooks.items():
                if grads[index] is not None:
                    grads[index] = _hooked(hooks, grads[index])
        if targets is not None:
            for index, g in enumerate(grads):
                key = _key(node, index)
                if key in targets and g is not None:
                    targets[key] = g
        so_far = None
        if node.adds and isinstance(node.inputs[0], tuple):
            slot, index = pending[id(node.inputs[0][0])], node.inputs[0][1]
            if slot[index] is not None:
                so_far = slot[index].array  # type: ignore[union-attr]
                slot[index] = None
        results = node.run(grads, so_far)
        held = (*grads, *(node.saved or ()))
        for edge, g in zip(node.inputs, results, strict=True):
            if edge is None or g is None:
                continue
            if isinstance(edge, tuple):
                slot = pending[id(edge[0])]
                known = slot[edge[1]]
                if known is None:
                    slot[edge[1]] = _Sum(g, _is_fresh(g, results, held))
                else:
                    known.add(g)
            elif id(edge) in leaves:
                leaves[id(edge)][1].add(g)
            else:
                leaves[id(edge)] = (edge, _Sum(g, _is_fresh(g, results, held)))
        if not retain_graph:
            node.saved = None
    for leaf, total in leaves.values():
        _reach_leaf(leaf, total, targets)


def _key(node: Node | None, index: int, leaf: Any = None) -> int:
    return hash((id(node), index)) if node is not None else id(leaf)


def _reach_leaf(leaf: Tensor, total: _Sum, targets: dict[int, Any] | None) -> None:
    from fastnn.tensor import Tensor

    if leaf._hooks:
        total = _Sum(_hooked(leaf._hooks, total.array), False)
    _check_device("backward", "the gradient of a leaf", total.array, leaf._array)
    if targets is not None:
        if id(leaf) in targets:
            targets[id(leaf)] = total.own()
        return
    touch(leaf)
    if leaf._grad is None:
        leaf._grad = Tensor._wrap(total.own())
    else:
        # Out of place where the user's own view of .grad is not in canonical layout.
        if not leaf._grad._array.is_canonical():
            leaf._grad = Tensor._wrap(_core.clone(leaf._grad._array))
        _core.accumulate(leaf._grad._array, total.array)


def grad(
    output: Tensor,
    inputs: Tensor | Sequence[Tensor],
    grad_output: Tensor | None = None,
    retain_graph: bool = False,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of ``output`` with respect to ``inputs``, leaving every ``.grad`` alone.

    Args:
        output: a scalar, or any tensor with ``grad_output`` of its shape.
        inputs: tensors that require gradients.
        grad_output: float tensor of ``output``'s shape; ones for a scalar.
        retain_graph: keep the graph for another pass.
        create_graph: must be False; double backward is not supported.
        allow_unused: give None for an input that ``output`` does not depend on.

    Raises:
        RuntimeError: an input takes no part in ``output`` and ``allow_unused`` is False.
        NotImplementedError: ``create_graph=True``.
    """
    from fastnn.tensor import Tensor

    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    seed = _seed("grad", output, grad_output, create_graph)
    keys = []
    for i, t in enumerate(inputs):
        if not t.requires_grad:
            raise RuntimeError(f"grad: input {i} does not require a gradient")
        keys.append(_key(t._node, t._index, t))
    targets: dict[int, Any] = dict.fromkeys(keys)
    run_backward(output, seed, retain_graph, targets)
    found = []
    for i, key in enumerate(keys):
        if targets[key] is None and not allow_unused:
            raise RuntimeError(
                f"grad: output does not depend on input {i}; pass allow_unused=True to get None"
            )
        found.append(None if targets[key] is None else Tensor._wrap(targets[key]))
    return tuple(found)


def _seed(name: str, root: Tensor, grad_output: Tensor | None, create_graph: bool) -> Any:
    if create_graph:
        raise NotImplementedError(
            f"{name}: create_graph=True (double backward) is not supported; every operator's "
            "backward is a hand-written kernel that is not itself recorded"
        )
    if not root.requires_grad:
        raise RuntimeError(
            f"{name}: the tensor does not require a gradient and has no recorded operator; "
            "was it computed under no_grad() or from tensors without requires_grad?"
        )
    if grad_output is None:
        if root._array.count != 1:
            raise RuntimeError(
                f"{name}: a gradient can be left out only for a scalar, got shape {root.shape}; "
                f"pass gradient=... of that shape"
            )
        return _core.new_full(root._array, root.shape, 1.0, root.dtype.name)
    if grad_output.shape != root.shape:
        raise ValueError(f"{name}: gradient expects shape {root.shape}, got {grad_output.shape}")
    _check_device(name, "gradient", grad_output._array, root._array)
    return _core.astype(grad_output._array, root.dtype.name)


def __getattr__(name: str) -> Any:
    if name == "Function":  # is written with tensors, which need this module first
        from fastnn.function import Function

        return Function
    raise AttributeError(f"module 'fastnn.autograd' has no attribute {name!r}")
