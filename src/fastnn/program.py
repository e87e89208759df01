"""The program of a model: the kernel calls that a run of it makes, noted, rewritten and run again.

The tracer notes every call that reaches the kernels (the functions of ``fastnn._core`` and the two
view methods of its arrays). The program is rewritten:

1. batch norm after a convolution goes into the convolution's weight and bias,
2. additions and activations after a convolution or another batch norm become part of its pass,
3. what depends on constants alone is computed now, and what nobody uses is dropped.

Nothing is moved past a write to what it reads. An array is freed after its last use, so that the caching
allocator gives the next operator warm memory; weights are packed for the kernels once and kept.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fastnn._core as _core
from fastnn.device import CPU

#: Operators that draw random numbers, and those that change an operand, too.
_RANDOM = frozenset({"dropout", "next_random", "random_integers", "random_normal",
                     "random_permutation", "random_uniform"})  # fmt: skip
_IMPURE = _RANDOM | {"accumulate", "copy_into", "optimizer_step"}


@dataclass(frozen=True)
class _Ref:
    """The value of a step: its result, or a part of it (``y`` of a norm, 0 of a pair)."""

    step: int
    part: str | int | None = None


@dataclass
class _Step:
    """One call. Arguments are references, arrays (constants) or plain values."""

    name: str
    call: Callable[..., Any]
    args: list[Any]
    shape: tuple[int, ...] = ()
    dtype: str = ""
    keep: dict[str, Any] = field(default_factory=dict)  # keyword arguments
    places: list[int] = field(default_factory=list)  # of arguments that are or hold references

    def refs(self) -> Iterator[_Ref]:
        for arg in self.args:
            for value in arg if isinstance(arg, list) else (arg,):
                if isinstance(value, _Ref):
                    yield value


# Steps that change the dtype alone: their first argument is what they start from.
_CASTS = ("astype", "lowered")
# The arguments of _core.conv2d, by place; of _core.batch_norm, training, activation and residual.
_WEIGHT, _BIAS, _ACTIVATION, _RESIDUAL = 1, 2, 7, 8
_NORM_TRAINING, _NORM_ACTIVATION, _NORM_RESIDUAL = 5, 8, 9
# Arguments 0, 2 and 3 of _core.activation, for relu6.
_RELU6 = ["hardtanh", 0.0, 6.0]

# Of the module's functions while they are replaced, one thread after another.
TRACING = threading.RLock()
# Steps whose results are views of their first argument (or copies of it).
_VIEWS = ("as_strided", "reshape")


class Tracer:
    """Notes the calls of this thread while :meth:`watching`."""

    def __init__(self, inputs: Sequence[Any]) -> None:
        self.steps = [_Step("input", _core.clone, [], a.shape, str(a.dtype)) for a in inputs]
        self.inputs = len(inputs)
        self.arrays: list[Any] = list(inputs)  # that steps made
        self.alive: list[Any] = []  # what else they had: addresses must not be used twice
        self.copy_into, self.clone = _core.copy_into, _core.clone
        self.known = {self.key(a): _Ref(i) for i, a in enumerate(inputs)}
        self.thread = threading.get_ident()
        self.depends = set(range(len(inputs)))  # steps whose values are not those of the example
        self.drawn = 0  # the step that last drew random numbers
        self.changed: list[Any] = []  # constants that the program changes: a copy of its own

    @staticmethod
    def key(array: Any) -> tuple[Any, ...]:
        return array.pointer, array.shape, array.strides, array.dtype

    def encode(self, value: Any) -> Any:
        if isinstance(value, _core.Array):
            found = self.known.get(self.key(value), value)
            if found is value and self.is_changed(value):
                raise RuntimeError(
                    "compile: a tensor that is not the model's input is changed in place and used "
                    "by another view of its memory; make the views in forward()"
                )
            return found
        if isinstance(value, (list, tuple)) and any(isinstance(v, _core.Array) for v in value):
            return [self.encode(v) for v in value]
        return value

    def is_changed(self, array: Any) -> bool:
        """Whether it is a constant's memory, which stays as it is, and the program has other values."""
        return any(constant.shares_storage(array) for constant in self.changed)

    def note(self, name: str, call: Callable[..., Any], args: Sequence[Any]) -> Any:
        real, changed = list(args), changes(name, args)
        for place in changed:
            self.make_own(args[place])
            if self.is_changed(args[place]):
                real[place] = self.clone(args[place])
        encoded = [self.encode(a) for a in args]
        if name == "dropout":  # of a mask that every run draws
            encoded[3:5] = _Ref(self.drawn, 0), _Ref(self.drawn, 1)
        result = call(*real)
        parts: list[tuple[str | int | None, Any]] = [(None, result)]
        if isinstance(result, _core.Normed):
            parts = [(part, getattr(result, part)) for part in ("y", "mean", "invstd")]
        elif isinstance(result, tuple):
            parts = list(enumerate(result))
        arrays = [(p, a) for p, a in parts if isinstance(a, _core.Array)]
        if arrays or name in _IMPURE:
            first = arrays[0][1] if arrays else None
            kind = (first.shape, str(first.dtype)) if first is not None else ((), "")
            self.add(_Step(name, call, encoded, *kind))
            self.alive += [result, *args]
            for part, array in arrays:
                key, ref = self.key(array), _Ref(len(self.steps) - 1, part)
                if name == "lowered":  # one block, whatever values the weight has by now
                    self.known[key] = ref
                elif any(isinstance(a, _core.Array) and self.key(a) == key for a in args):
                    continue  # the argument itself, where there was nothing to do
                self.arrays.append(array)
                self.known.setdefault(key, ref)
        if name == "next_random":
            self.drawn = len(self.steps) - 1
        return result

    def add(self, step: _Step) -> _Ref:
        self.steps.append(step)
        at = len(self.steps) - 1
        if step.name in _RANDOM or reads_any(self.steps, step, self.depends):
            self.depends.add(at)
            for place in changes(step.name, step.args):
                self.depends.update(roots_of(self.steps, step.args[place])[0])
        return _Ref(at)

    def make_own(self, target: Any) -> None:
        """A constant, or an input, that is about to be changed becomes a copy that every run makes, and
        views of it become views of that."""
        steps, constant = roots_of(self.steps, self.encode(target))
        if constant is None and steps[-1] >= self.inputs:
            return
        array = self.arrays[steps[-1]] if constant is None else constant
        if not array.is_canonical():
            raise RuntimeError(
                "compile: a tensor that is not the model's input is changed in place, and its "
                "elements are not dense; register a .contiguous() one"
            )
        key, value = self.key(array), self.encode(array)
        mine = self.add(_Step("clone", self.clone, [value], array.shape, str(array.dtype)))
        renewed: dict[int, _Ref] = {}
        for i, step in enumerate(self.steps[: mine.step]):
            base = step.args[0] if step.name in _VIEWS else None
            own = renewed.get(base.step) if isinstance(base, _Ref) else None
            if base == value or (isinstance(base, _core.Array) and self.key(base) == key):
                own = mine
            if own is not None:
                again = copy.copy(step)
                again.args = [own, *step.args[1:]]
                renewed[i] = self.add(again)
        for name, ref in self.known.items():
            self.known[name] = renewed.get(ref.step, ref)
        self.known[key] = mine
        if constant is not None:
            self.depends.add(mine.step)
            self.changed.append(constant)

    def note_in_place(self, target: Any, result: Any) -> Any:
        """``target`` becomes ``result``: another value under its name, or, where it is a view or other
        steps made views of its memory, a copy into it."""
        if result.dtype != target.dtype:
            result = _core.astype(result, str(target.dtype))
        key, value = self.key(target), self.encode(target)
        is_view = isinstance(value, _Ref) and self.steps[value.step].name in _VIEWS
        if is_view or any(self.key(a) != key and a.shares_storage(target) for a in self.arrays):
            return _core.copy_into(target, result)
        self.known[key] = self.encode(result)
        if not isinstance(value, _Ref):  # a constant stays what every run starts from
            self.changed.append(target)
            self.depends.add(self.known[key].step)
        if not self.is_changed(target):
            self.copy_into(target, result)
        self.alive.append(target)
        return None

    def check_known(self, array: Any) -> None:
        """Refuses, with RuntimeError, that Python sees what is not the same in every run."""
        if any(at in self.depends for at in roots_of(self.steps, self.encode(array))[0]):
            raise RuntimeError(
                f"compile: values of shape {array.shape} that depend on the input, are random, or were "
                "changed in place are read in forward() (by item(), numpy(), an index, or a condition), "
                "and the program would keep those of the example; use where() or other operators"
            )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Routes calls through :meth:`note`; other threads are not affected."""
        originals: list[tuple[Any, str, Any]] = []

        def replace(owner: Any, name: str) -> None:
            call = getattr(owner, name)

            def noted(*args: Any, out: Any = None, **hints: Any) -> Any:
                # Other keywords say what to keep with a result; a program has its own.
                if threading.get_ident() != self.thread:
                    return call(*args, **hints) if out is None else call(*args, out=out, **hints)
                result = self.note(name, call, args)
                return result if out is None else self.note_in_place(out, result)

            originals.append((owner, name, call))
            setattr(owner, name, noted)

        for name, value in list(vars(_core).items()):
            if callable(value) and not isinstance(value, type) and not name.startswith("_"):
                replace(_core, name)
        for name in _VIEWS:
            replace(_core.Array, name)
        read = _core.Array.numpy

        def checked(array: Any) -> Any:
            if threading.get_ident() == self.thread:
                self.check_known(array)
            return read(array)

        originals.append((_core.Array, "numpy", read))
        _core.Array.numpy = checked
        try:
            yield
        finally:
            for owner, name, call in originals:
                setattr(owner, name, call)


def roots_of(steps: Sequence[_Step], value: Any) -> tuple[list[int], Any]:
    """The steps of views that lead to the memory of a value, and the step or constant that it is; the
    latter is None if it is a step's."""
    found: list[int] = []
    while isinstance(value, _Ref):
        found.append(value.step)
        if steps[value.step].name not in _VIEWS:
            return found, None
        value = steps[value.step].args[0]
    return found, value if isinstance(value, _core.Array) else None


def changes(name: str, args: Sequence[Any]) -> tuple[int, ...]:
    """The places of the arguments that a step changes."""
    if name in ("copy_into", "accumulate"):
        return (0,)
    return (1, 2) if name == "batch_norm" and args[_NORM_TRAINING] and args[1] is not None else ()


def reads_any(steps: Sequence[_Step], step: _Step, some: set[int]) -> bool:
    """Whether a step uses the memory of some others."""
    return any(at in some for ref in step.refs() for at in roots_of(steps, ref)[0])


class Program:
    """Steps, and the places of the results among them."""

    def __init__(
        self, steps: list[_Step], outputs: list[Any], inputs: int, curves: frozenset[str]
    ) -> None:
        self.steps, self.outputs, self.inputs, self.curves = steps, outputs, inputs, curves
        self._fold_norms()
        self._fuse_epilogues()
        self._fold_constants()
        self._drop_unused()
        for step in self.steps:
            if step.name in ("conv2d", "linear") and isinstance(step.args[_WEIGHT], _core.Array):
                step.keep = {"keep_packed": True}
        self._plan_lifetimes()

    def _uses(self) -> list[int]:
        """How often each step's value is used; results of the program count."""
        counts = [0] * len(self.steps)
        for step in self.steps:
            for ref in step.refs():
                counts[ref.step] += 1
        for output in self.outputs:
            if isinstance(output, _Ref):
                counts[output.step] += 1
        return counts

    def _use_part(self, i: int, part: str | None) -> None:
        """Users of step i now use this part of its result (a norm's ``y``), or all of it."""

        def changed(value: Any) -> Any:
            if isinstance(value, list):
                return [changed(v) for v in value]
            return _Ref(i, part) if isinstance(value, _Ref) and value.step == i else value

        for step in self.steps:
            step.args = [changed(a) for a in step.args]
        self.outputs = [changed(o) for o in self.outputs]

    def _constant(self, value: Any) -> Any:
        """The float32 array behind a constant, seen through casts; None if it is none."""
        while isinstance(value, _Ref) and self.steps[value.step].name in _CASTS:
            value = self.steps[value.step].args[0]
        return _core.astype(value, "float32") if isinstance(value, _core.Array) else None

    def _root(self, value: Any) -> Any:
        """The step, or the constant, whose memory a value is."""
        steps, constant = roots_of(self.steps, value)
        return steps[-1] if constant is None and steps else constant

    def _may_move(self, i: int, to: int) -> bool:
        """Whether nothing that step i reads is written between it and step ``to``."""
        read = {self._root(ref) for ref in self.steps[i].refs()}
        for step in self.steps[i + 1 : to]:
            for place in changes(step.name, step.args):
                target = self._root(step.args[place])
                if target in read or not isinstance(target, int):
                    return False
        return True

    def _open(self, value: Any, uses: list[int], to: int) -> _Step | None:
        """The convolution, or batch norm, that made a value nobody else uses, without an activation
        yet, if it may be computed at step ``to``."""
        if not isinstance(value, _Ref) or uses[value.step] != 1:
            return None
        step = self.steps[value.step]
        if step.name == "conv2d":
            closed = step.args[_ACTIVATION]
        elif step.name == "batch_norm" and value.part == "y":
            closed = step.args[_NORM_TRAINING] or step.args[_NORM_ACTIVATION]
        else:
            return None
        return step if not closed and self._may_move(value.step, to) else None

    def _move(self, i: int, source: _Step, changes: dict[int, Any]) -> None:
        """Puts a changed convolution or batch norm where its consumer, step i, was."""
        args = [changes.get(place, value) for place, value in enumerate(source.args)]
        self.steps[i] = _Step(source.name, source.call, args, source.shape, source.dtype)
        self._use_part(i, "y" if source.name == "batch_norm" else None)

    def _fold_norms(self) -> None:
        """y = (w * x - mean) * scale + shift: scale goes into w, the rest is the bias."""
        uses = self._uses()
        for i, step in enumerate(self.steps):
            if step.name != "batch_norm" or step.args[_NORM_TRAINING]:
                continue
            conv = self._open(step.args[0], uses, i)
            if conv is None or conv.name != "conv2d" or conv.args[_RESIDUAL] is not None:
                continue
            weight, bias = self._constant(conv.args[_WEIGHT]), conv.args[_BIAS]
            given = [*step.args[1:5], bias]
            constants = [None if a is None else self._constant(a) for a in given]
            computed = any(
                a is not None and c is None for a, c in zip(given, constants, strict=True)
            )
            if computed or weight is None:
                continue
            mean, var, gamma, beta, offset = (
                None if c is None else _values(c).astype(np.float64) for c in constants
            )
            assert mean is not None and var is not None
            scale = (1.0 if gamma is None else gamma) / np.sqrt(var + step.args[7])
            shift = ((0.0 if offset is None else offset) - mean) * scale + (
                0.0 if beta is None else beta
            )
            folded = _values(weight) * scale[:, None, None, None]
            original = conv.args[_WEIGHT]
            kind = original.dtype if isinstance(original, _core.Array) else "bfloat16"
            changes = {
                _WEIGHT: _array(folded, kind, weight.device),
                _BIAS: _array(shift, "float32", weight.device),
                _ACTIVATION: step.args[_NORM_ACTIVATION],
                _RESIDUAL: step.args[_NORM_RESIDUAL],
            }
            self._move(i, conv, changes)

    def _activation(self, step: _Step) -> tuple[str, Any] | None:
        """The name of an activation that may join what it is applied to, and that."""
        if step.name == "relu":
            return "relu", step.args[0]
        if step.name != "activation":
            return None
        kind, value = step.args[:2]
        if [step.args[k] for k in (0, 2, 3)] == _RELU6:
            return "relu6", value
        return (kind, value) if kind in self.curves else None

    def _fuse_epilogues(self) -> None:
        """Additions of a tensor of the same shape, then activations, join what comes before."""
        uses = self._uses()
        for i, step in enumerate(self.steps):
            found = self._activation(step)
            if found is not None:
                name, value = found
                source = self._open(value, uses, i)
                if source is not None and source.name == "batch_norm":
                    self._move(i, source, {_NORM_ACTIVATION: name})
                elif source is not None and name in ("relu", "relu6"):
                    self._move(i, source, {_ACTIVATION: name})
            elif step.name == "add" and list(step.args[2:]) == [1]:
                for own, other in ((0, 1), (1, 0)):
                    source = self._open(step.args[own], uses, i)
                    residual = step.args[other]
                    if (
                        source is None
                        or not isinstance(residual, _Ref)
                        or residual.part is not None
                    ):
                        continue
                    place = _NORM_RESIDUAL if source.name == "batch_norm" else _RESIDUAL
                    added = self.steps[residual.step]
                    alike = step.shape == added.shape == source.shape
                    if source.args[place] is None and alike and added.dtype == source.dtype:
                        self._move(i, source, {place: residual})
                        break

    def _fold_constants(self) -> None:
        """Runs now, in order, what depends on constants alone, filling fresh arrays included."""
        values: dict[int, Any] = {}
        written = self._written_when_running()
        for i in range(self.inputs, len(self.steps)):
            step = self.steps[i]
            if i in written or _runs_always(step):
                continue
            if all(ref.step in values for ref in step.refs()):
                values[i] = step.call(*[_resolved(a, values) for a in step.args])
                step.name = "folded"
        for step in self.steps:
            step.args = [_resolved(a, values) for a in step.args]
        self.outputs = [_resolved(o, values) for o in self.outputs]

    def _written_when_running(self) -> set[int]:
        """Arrays, and the views they are written through, whose contents depend on the inputs, or are
        read by what does and then written again."""
        depends = set(range(self.inputs))
        written: set[int] = set()
        before = -1
        while len(depends) != before:  # what is written when running makes more of that
            before = len(depends)
            read: set[int] = set()  # memory that running steps have read so far
            for i, step in enumerate(self.steps):
                changed = [step.args[place] for place in changes(step.name, step.args)]
                roots = {self._root(target) for target in changed}
                if _runs_always(step) or reads_any(self.steps, step, depends) or roots & read:
                    targets = [at for t in changed for at in roots_of(self.steps, t)[0]]
                    depends.update([i, *targets])
                    written.update(targets)
                    read.update(self._root(ref) for ref in step.refs())
        return written

    def _drop_unused(self) -> None:
        keep = [
            i < self.inputs or s.name in _IMPURE or bool(changes(s.name, s.args))
            for i, s in enumerate(self.steps)
        ]
        for output in self.outputs:
            if isinstance(output, _Ref):
                keep[output.step] = True
        for i in range(len(self.steps) - 1, -1, -1):
            if keep[i]:
                for ref in self.steps[i].refs():
                    keep[ref.step] = True
        places = {old: new for new, old in enumerate(i for i, k in enumerate(keep) if k)}

        def moved(value: Any) -> Any:
            if isinstance(value, list):
                return [moved(v) for v in value]
            return _Ref(places[value.step], value.part) if isinstance(value, _Ref) else value

        self.steps = [s for s, k in zip(self.steps, keep, strict=True) if k]
        for step in self.steps:
            step.args = [moved(a) for a in step.args]
        self.outputs = [moved(o) for o in self.outputs]

    def _plan_lifetimes(self) -> None:
        last: dict[int, int] = {}
        for i, step in enumerate(self.steps):
            step.places = [p for p, a in enumerate(step.args) if isinstance(a, (_Ref, list))]
            for ref in step.refs():
                last[ref.step] = i
        kept = {o.step for o in self.outputs if isinstance(o, _Ref)}
        self.dead: list[list[int]] = [[] for _ in self.steps]
        for step_index, user in last.items():
            if step_index not in kept:
                self.dead[user].append(step_index)

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Arrays in, arrays out."""
        values: list[Any] = [None] * len(self.steps)
        values[: self.inputs] = inputs

        def value(arg: Any) -> Any:
            if type(arg) is _Ref:
                found = values[arg.step]
                if arg.part is None:
                    return found
                return getattr(found, arg.part) if isinstance(arg.part, str) else found[arg.part]
            if type(arg) is list:
                return [value(v) for v in arg]
            return arg

        for i in range(self.inputs, len(self.steps)):
            step = self.steps[i]
            args = step.args.copy()
            for place in step.places:
                args[place] = value(args[place])
            values[i] = step.call(*args, **step.keep)
            for dead in self.dead[i]:
                values[dead] = None
        # What does not depend on the inputs is the program's own.
        return [_core.clone(o) if isinstance(o, _core.Array) else value(o) for o in self.outputs]

    def __str__(self) -> str:
        lines = []
        for i, step in enumerate(self.steps):
            args = [_shown(a) for a in step.args if a is not None and a != ""]
            lines.append(f"%{i} {step.shape or ''} = {step.name}({', '.join(args)})")
        return "\n".join([*lines, "return " + ", ".join(_shown(o) for o in self.outputs)])


def _runs_always(step: _Step) -> bool:
    """Whether a step may not be computed once, even of constants."""
    return step.name != "copy_into" and (
        step.name in _IMPURE or bool(changes(step.name, step.args))
    )


def _resolved(value: Any, values: dict[int, Any]) -> Any:
    """A reference to a known value as that value; anything else as it is."""
    if isinstance(value, list):
        return [_resolved(v, values) for v in value]
    if not isinstance(value, _Ref) or value.step not in values:
        return value
    found = values[value.step]
    if value.part is None:
        return found
    return getattr(found, value.part) if isinstance(value.part, str) else found[value.part]


def _shown(value: Any) -> str:
    if isinstance(value, _Ref):
        return f"%{value.step}" + ("" if value.part is None else f".{value.part}")
    if isinstance(value, _core.Array):
        return f"{value.dtype}{value.shape}"
    return f"[{', '.join(map(_shown, value))}]" if isinstance(value, list) else repr(value)


def _values(array: Any) -> np.ndarray:
    return _core.to_device(array, CPU).numpy()


def _array(values: np.ndarray, dtype: str, device: int) -> Any:
    flat = np.ascontiguousarray(values, np.float32)
    array = _core.canonical(_core.astype(_core.clone(_core.from_numpy(flat, False)), dtype))
    return _core.to_device(array, device)
