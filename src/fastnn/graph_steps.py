"""What the host does in a graphed step (:class:`fastnn.cuda.graphed`), which replays do not: gradients of
leaves, steps of optimizers, random numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import fastnn._core as _core
from fastnn import autograd
from fastnn.optim import optimizer
from fastnn.tensor import Tensor


class Gradient(NamedTuple):
    """The ``.grad`` of a leaf in a recorded step: begun anew by it or not, before it and after it; the
    memory of the leaf; and whether it wanted a gradient, None if that is the step's to set."""

    leaf: Tensor
    anew: bool
    before: Tensor | None
    after: Tensor | None
    array: Any
    wanted: bool | None


def without_tape(result: Tensor) -> Tensor:
    """A result of a recorded step, whose tape is the recording's."""
    if result.is_leaf:
        return result

    def refuse(*_: Any) -> Any:
        raise RuntimeError(
            "graphed: backward of a recorded step's result; call backward() in the function, whose "
            "replays then compute the gradients, too"
        )

    out = Tensor._wrap(result._array)
    out._node, out._requires_grad = autograd.Node("graphed", (), (), refuse, 1), True
    return out


def buffers_of(one: optimizer.Optimizer) -> Iterator[Tensor]:
    for held in one.state.values():
        yield from (b for b in held.values() if isinstance(b, Tensor))


def memory_of(steps: list[optimizer.Step]) -> list[Any]:
    """Where the parameters that were moved, and their optimizers' buffers, are; which of a group have
    made as many steps, for these are moved together; and what else a recording holds as it is."""
    found: list[Any] = []
    for one, gradients, _ in steps:
        counts: dict[tuple[int | None, int], int] = {}
        group_of = {id(p): i for i, group in enumerate(one.param_groups) for p in group["params"]}
        for p in (p for p, gradient in gradients if gradient is not None):
            held = one.state[id(p)]
            buffers = [b for b in held.values() if isinstance(b, Tensor)]
            found += [t._array.pointer for t in (p, *buffers)]
            together = group_of.get(id(p)), held["step"]
            found.append(counts.setdefault(together, len(counts)))
        if not type(one)._update.__module__.startswith("fastnn."):  # its settings are recorded
            settings = [{**group, "params": None} for group in one.param_groups]
            found += copy.deepcopy(settings)
    return found


@contextmanager
def drawn_apart() -> Iterator[list[tuple[int, int]]]:
    """What this thread draws within the block, it draws from a copy of the generator's state: replays
    draw it from the generator.

    Yields:
        A list of that copy before, and, when the block has ended, after.
    """
    states = [_core.begin_random_apart()]
    try:
        yield states
    finally:
        states.append(_core.end_random_apart())


@contextmanager
def taken_back_on_failure(known: autograd.Watched) -> Iterator[list[autograd.Watched]]:
    """What the host does in a step: without the device's part it has to be as if it had not been.

    Args:
        known: what the call before did.

    Yields:
        A list for what a recording does: it may come to other steps and leaves.
    """
    gradients = {id(p): (p, p.grad) for _, moved, _ in known.steps for p, _ in moved}
    gradients |= {key: (leaf, leaf.grad) for key, (leaf, *_) in known.leaves.items()}
    states = {id(one): (one, one._state_now()) for one, *_ in known.steps}
    came_to: list[autograd.Watched] = []
    try:
        yield came_to
    except BaseException:
        for seen in came_to:
            for key, (leaf, gradient, _) in seen.leaves.items():
                gradients.setdefault(key, (leaf, gradient))
            for one, _, state in seen.steps:
                states.setdefault(id(one), (one, state))
        for p, gradient in gradients.values():
            p.grad = gradient
        for one, state in states.values():
            one.state = state
        raise
