"""What optimizers share: groups of parameters, lazily made state, saving and loading."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

import fastnn._core as _core
from fastnn.autograd import forget_gradients, watcher
from fastnn.tensor import Tensor, settle, tensor

#: State of parameters by their identity.
State = dict[int, dict[str, Any]]
#: What an optimizer's step moved: the optimizer, each parameter with its gradient, and the state before.
Step = tuple["Optimizer", list[tuple[Tensor, Tensor | None]], State]


class Optimizer:
    """Base of the optimizers.

    Args:
        params: tensors, or dicts with ``"params"`` and options of their own.
        defaults: options of groups that do not set them.

    Attributes:
        param_groups: list of dicts, ``"params"`` and the options; change ``group["lr"]`` at will.
        state: per parameter (by identity) its buffers.

    Raises:
        ValueError: no parameters, or a parameter in two groups.
        TypeError: something that is no tensor.
    """

    _graphed = False  # whether a CUDA graph holds its buffers

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self.state: State = {}
        if isinstance(params, Tensor):
            raise TypeError(f"{type(self).__name__}: expected an iterable of tensors, got a Tensor")
        given = list(params)
        if not given:
            raise ValueError(f"{type(self).__name__}: expected at least one parameter, got none")
        groups = given if isinstance(given[0], dict) else [{"params": given}]
        for group in groups:
            self.add_param_group(group)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Adds parameters with options of their own."""
        params = group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        for p in params:
            if not isinstance(p, Tensor):
                raise TypeError(f"{type(self).__name__}: expected tensors, got {type(p).__name__}")
        known = {id(p) for other in self.param_groups for p in other["params"]}
        if len({id(p) for p in params} | known) != len(params) + len(known):
            raise ValueError(f"{type(self).__name__}: a parameter stands in the groups twice")
        self.param_groups.append({**self.defaults, **group, "params": params})

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients, or overwrites them with zeros."""
        params = (p for group in self.param_groups for p in group["params"])
        forget_gradients(params, set_to_none)

    def step(self) -> None:
        """Moves every parameter that has a gradient.

        Raises:
            MemoryError: there is no memory for buffers. Groups that have moved by then have their step
                counted; the parameters of the others, and their counts, are as they were.
        """
        settle()
        if (seen := watcher()) is not None:
            self._graphed = True
            params = [p for group in self.param_groups for p in group["params"]]
            seen.steps.append((self, [(p, p.grad) for p in params], self._state_now()))
        for group in self.param_groups:
            live = [p for p in group["params"] if p.grad is not None]
            # Parameters that have made different numbers of steps take them apart.
            counts: dict[int, list[Tensor]] = {}
            for p in live:
                held = self.state.setdefault(id(p), {"step": 0})
                counts.setdefault(held["step"] + 1, []).append(p)
            for count, params in counts.items():
                self._update(group, params, [p.grad for p in params], count)
                # Only now: where memory has run out, these have not moved.
                for p in params:
                    self.state[id(p)]["step"] = count

    def _update(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Any], step: int
    ) -> None:
        raise NotImplementedError

    def _buffers(self, params: list[Tensor], name: str, value: float = 0.0) -> list[Tensor]:
        """A float32 buffer of each parameter's shape and strides, made when first asked for."""
        found = []
        for p in params:
            held = self.state[id(p)]
            if name not in held:
                # Known once it has values: memory may run out before.
                held[name] = _buffer(p).fill_(value)
            found.append(held[name])
        return found

    # State.

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: the state beside its parameters, whose copies are others."""
        order = [p for group in self.param_groups for p in group["params"]]
        state = [(p, self.state[id(p)]) for p in order if id(p) in self.state]
        return {**self.__dict__, "state": state}

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)
        self.state = {id(p): held for p, held in values["state"]}

    def _state_now(self) -> State:
        return {key: dict(held) for key, held in self.state.items()}

    def state_dict(self) -> dict[str, Any]:
        """``{"state": {index: buffers}, "param_groups": options}``; indices count all parameters."""
        order = [p for group in self.param_groups for p in group["params"]]
        index = {id(p): i for i, p in enumerate(order)}
        groups = [
            {**{k: v for k, v in group.items() if k != "params"},
             "params": [index[id(p)] for p in group["params"]]}
            for group in self.param_groups
        ]  # fmt: skip
        state = {i: dict(self.state[id(p)]) for i, p in enumerate(order) if id(p) in self.state}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state of :meth:`state_dict`, of the same parameters in the same order.

        Raises:
            ValueError: the groups have other numbers of parameters, or buffers other shapes.
        """
        sizes = [len(group["params"]) for group in state["param_groups"]]
        own = [len(group["params"]) for group in self.param_groups]
        if sizes != own:
            raise ValueError(
                f"{type(self).__name__}: expected groups of {own} parameters, got {sizes}"
            )
        order = [p for group in self.param_groups for p in group["params"]]
        loaded: State = {}
        for key, buffers in state["state"].items():
            p = order[int(key)]
            held: dict[str, Any] = {}
            for name, value in buffers.items():
                if name == "step":
                    held[name] = int(value)
                elif isinstance(value, (Tensor, np.ndarray)) and np.ndim(value) == p.ndim:
                    if tuple(value.shape) != p.shape:
                        raise ValueError(
                            f"{type(self).__name__}: {name} of parameter {key} expects shape "
                            f"{p.shape}, got {tuple(value.shape)}"
                        )
                    held[name] = _buffer(p).copy_(
                        tensor(value) if not isinstance(value, Tensor) else value
                    )
                else:
                    held[name] = value
            loaded[id(p)] = held
        if self._graphed:  # the graph goes on with the buffers that it holds
            for key, held in loaded.items():
                for name, value in self.state.get(key, {}).items():
                    new = held.get(name)
                    if not isinstance(new, Tensor) or not isinstance(value, Tensor):
                        continue
                    if _lies_like(value, new):
                        held[name] = value.copy_(new)
        self.state = loaded
        for group, saved in zip(self.param_groups, state["param_groups"], strict=True):
            group.update({k: v for k, v in saved.items() if k != "params"})

    def __repr__(self) -> str:
        lines = [type(self).__name__ + " ("]
        for i, group in enumerate(self.param_groups):
            options = ", ".join(f"{k}={v}" for k, v in group.items() if k != "params")
            lines.append(f"  group {i}: {len(group['params'])} tensors, {options}")
        return "\n".join(lines) + "\n)"


def _buffer(p: Tensor) -> Tensor:
    """Float32 memory of a parameter's shape and strides, without values."""
    return Tensor._wrap(_core.empty_like(p._array, "float32"))


def _lies_like(buffer: Tensor, other: Tensor) -> bool:
    a, b = buffer._array, other._array
    return (a.shape, a.strides, a.device) == (b.shape, b.strides, b.device)


def check_range(owner: str, **values: float) -> None:
    """ValueError unless every value is a number >= 0."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{owner}: {name} expects a value >= 0, got {value}")
