"""Inference programs: a model traced once, rewritten, and run without the layers above the kernels.

The tracer runs the model in evaluation mode and notes every call that reaches the kernels (the
functions of ``fastnn._core`` and the two view methods of its arrays): the program. It is rewritten:

1. batch norm after a convolution goes into the convolution's weight and bias,
2. additions and activations after a convolution or another batch norm become part of its pass,
3. what depends on constants alone is computed now, and what nobody uses is dropped.

An array is freed after its last use, so that the caching allocator gives the next operator warm
memory; weights are packed for the kernels once and kept. A batch runs as a whole on all cores; chunks
of it, each on one core, are for whoever has measured that they fit a core's cache.
"""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fastnn._core as _core
from fastnn.autograd import autocast, no_grad, no_waiting
from fastnn.device import CPU
from fastnn.functional.activation import CURVES
from fastnn.nn.module import Module
from fastnn.tensor import Tensor

#: Operators that change an operand, or whose results are not a function of their operands.
_IMPURE = frozenset({"accumulate", "copy_into", "optimizer_step", "dropout", "next_random",
                     "random_normal", "random_permutation", "random_uniform"})  # fmt: skip


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


class _Tracer:
    """Notes the calls of this thread while :meth:`watching`."""

    def __init__(self, inputs: Sequence[Any]) -> None:
        self.steps = [_Step("input", _core.clone, [], a.shape, str(a.dtype)) for a in inputs]
        self.alive: list[Any] = list(inputs)  # addresses must not be used twice
        self.known = {self.key(a): _Ref(i) for i, a in enumerate(inputs)}
        self.thread = threading.get_ident()

    @staticmethod
    def key(array: Any) -> tuple[Any, ...]:
        return array.pointer, array.shape, array.strides, array.dtype

    def encode(self, value: Any) -> Any:
        if isinstance(value, _core.Array):
            return self.known.get(self.key(value), value)
        if isinstance(value, (list, tuple)) and any(isinstance(v, _core.Array) for v in value):
            return [self.encode(v) for v in value]
        return value

    def note(self, name: str, call: Callable[..., Any], args: Sequence[Any]) -> Any:
        encoded = [self.encode(a) for a in args]
        result = call(*args)
        parts: list[tuple[str | int | None, Any]] = [(None, result)]
        if isinstance(result, _core.Normed):
            parts = [(part, getattr(result, part)) for part in ("y", "mean", "invstd")]
        elif isinstance(result, tuple):
            parts = list(enumerate(result))
        arrays = [(p, a) for p, a in parts if isinstance(a, _core.Array)]
        if arrays or name in _IMPURE:
            first = arrays[0][1] if arrays else None
            kind = (first.shape, str(first.dtype)) if first is not None else ((), "")
            self.steps.append(_Step(name, call, encoded, *kind))
            self.alive += [result, *args]
            for part, array in arrays:
                self.alive.append(array)
                self.known.setdefault(self.key(array), _Ref(len(self.steps) - 1, part))
        return result

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Routes calls through :meth:`note`; other threads are not affected."""
        originals: list[tuple[Any, str, Any]] = []

        def replace(owner: Any, name: str) -> None:
            call = getattr(owner, name)

            def noted(*args: Any, **hints: Any) -> Any:
                # Keywords say what to keep with a result, never what it is; a program has its own.
                if threading.get_ident() != self.thread:
                    return call(*args, **hints)
                return self.note(name, call, args)

            originals.append((owner, name, call))
            setattr(owner, name, noted)

        for name, value in list(vars(_core).items()):
            if callable(value) and not isinstance(value, type) and not name.startswith("_"):
                replace(_core, name)
        for name in ("as_strided", "reshape"):
            replace(_core.Array, name)
        try:
            yield
        finally:
            for owner, name, call in originals:
                setattr(owner, name, call)


# Steps that change the dtype alone: their first argument is what they start from.
_CASTS = ("astype", "lowered")
# The arguments of _core.conv2d, by place; of _core.batch_norm, training, activation and residual.
_WEIGHT, _BIAS, _ACTIVATION, _RESIDUAL = 1, 2, 7, 8
_NORM_TRAINING, _NORM_ACTIVATION, _NORM_RESIDUAL = 5, 8, 9
# Arguments 0, 2 and 3 of _core.activation, for relu6.
_RELU6 = ["hardtanh", 0.0, 6.0]


class _Program:
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

    def _convolution(self, value: Any, uses: list[int]) -> _Step | None:
        """The convolution that made a value nobody else uses, its epilogue still open."""
        if not isinstance(value, _Ref) or uses[value.step] != 1:
            return None
        step = self.steps[value.step]
        return step if step.name == "conv2d" and not step.args[_ACTIVATION] else None

    def _open(self, value: Any, uses: list[int]) -> _Step | None:
        """The same of a batch norm that no convolution has taken, too."""
        if not isinstance(value, _Ref) or uses[value.step] != 1:
            return None
        step = self.steps[value.step]
        norm = step.name == "batch_norm" and not step.args[_NORM_TRAINING]
        if norm and value.part == "y" and not step.args[_NORM_ACTIVATION]:
            return step
        return self._convolution(value, uses)

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
            conv = self._convolution(step.args[0], uses)
            constants = [None if a is None else self._constant(a) for a in step.args[1:5]]
            if conv is None or conv.args[_RESIDUAL] is not None or constants[1] is None:
                continue
            weight = self._constant(conv.args[_WEIGHT])
            bias = conv.args[_BIAS]
            if weight is None or (bias is not None and self._constant(bias) is None):
                continue
            mean, var, gamma, beta = (
                None if c is None else _values(c).astype(np.float64) for c in constants
            )
            assert mean is not None and var is not None
            scale = (1.0 if gamma is None else gamma) / np.sqrt(var + step.args[7])
            start = 0.0 if bias is None else _values(self._constant(bias)).astype(np.float64)
            shift = (start - mean) * scale + (0.0 if beta is None else beta)
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
                source = self._open(value, uses)
                if source is not None:
                    norm = source.name == "batch_norm"
                    self._move(i, source, {_NORM_ACTIVATION if norm else _ACTIVATION: name})
            elif step.name == "add" and list(step.args[2:]) == [1]:
                for own, other in ((0, 1), (1, 0)):
                    source = self._open(step.args[own], uses)
                    residual = step.args[other]
                    if source is None or not isinstance(residual, _Ref):
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
            fills = step.name == "copy_into" and isinstance(step.args[0], _Ref)
            if i in written or (step.name in _IMPURE and not fills):
                continue
            if all(ref.step in values for ref in step.refs()):
                values[i] = step.call(*[_resolved(a, values) for a in step.args])
                step.name = "folded"
        for step in self.steps:
            step.args = [_resolved(a, values) for a in step.args]
        self.outputs = [_resolved(o, values) for o in self.outputs]

    def _written_when_running(self) -> set[int]:
        """Arrays, and the views they are written through, whose contents depend on the inputs."""
        depends = set(range(self.inputs))
        written: set[int] = set()
        for i, step in enumerate(self.steps):
            if any(ref.step in depends for ref in step.refs()):
                depends.add(i)
                target = step.args[0] if step.name in ("copy_into", "accumulate") else None
                while isinstance(target, _Ref):
                    written.add(target.step)
                    depends.add(target.step)
                    earlier = self.steps[target.step]
                    viewed = earlier.name in ("as_strided", "reshape")
                    target = earlier.args[0] if viewed else None
        return written

    def _drop_unused(self) -> None:
        keep = [i < self.inputs or s.name in _IMPURE for i, s in enumerate(self.steps)]
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
        return [value(o) for o in self.outputs]

    def __str__(self) -> str:
        lines = []
        for i, step in enumerate(self.steps):
            args = [_shown(a) for a in step.args if a is not None and a != ""]
            lines.append(f"%{i} {step.shape or ''} = {step.name}({', '.join(args)})")
        return "\n".join([*lines, "return " + ", ".join(_shown(o) for o in self.outputs)])


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


def _flatten(value: Any, leaves: list[Any]) -> Any:
    """The structure of a result with its tensors moved to ``leaves``."""
    if isinstance(value, Tensor):
        leaves.append(value)
        return len(leaves) - 1
    if isinstance(value, dict):
        return {k: _flatten(v, leaves) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_flatten(v, leaves) for v in value)
    raise TypeError(
        f"compile: the model's result expects tensors in tuples, lists or dicts, got "
        f"{type(value).__name__}"
    )


def _unflatten(structure: Any, leaves: Sequence[Any]) -> Any:
    if isinstance(structure, dict):
        return {k: _unflatten(v, leaves) for k, v in structure.items()}
    if isinstance(structure, (list, tuple)):
        return type(structure)(_unflatten(v, leaves) for v in structure)
    return leaves[structure]


class CompiledModel:
    """What :func:`compile` returns: call it like the model.

    ``print(compiled)`` shows the program for the example's shape. Calls from several threads are
    safe.
    """

    def __init__(
        self, model: Module, example: tuple[Tensor, ...], dtype: str | None, chunk: int
    ) -> None:
        self._model = copy.deepcopy(model).eval()
        if example[0].is_cuda:  # chunks are for the caches of cores
            chunk = 0
        self._dtype, self._chunk = dtype, chunk
        self._inputs = [(t.shape[1:], t.dtype.name) for t in example]
        self._programs: dict[tuple[Any, ...], tuple[_Program, Any]] = {}
        self._lock = threading.Lock()
        self._pool: tuple[ThreadPoolExecutor, int, int] | None = None
        self._first = self._program([t._array for t in example])[0]

    def _program(self, inputs: list[Any]) -> tuple[_Program, Any]:
        shapes = tuple(a.shape for a in inputs)
        with self._lock:
            if shapes not in self._programs:
                self._programs[shapes] = self._trace(inputs)
            return self._programs[shapes]

    def _trace(self, inputs: list[Any]) -> tuple[_Program, Any]:
        arrays = [_core.clone(a) for a in inputs]  # of their own, whatever else they are
        tracer = _Tracer(arrays)
        mode = autocast() if self._dtype == "bfloat16" else nullcontext()
        leaves: list[Any] = []
        with no_grad(), no_waiting(), mode, tracer.watching():
            structure = _flatten(self._model(*map(Tensor._wrap, arrays)), leaves)
        outputs = [tracer.encode(t._array) for t in leaves]
        curves = frozenset() if inputs[0].device >= 0 else frozenset(CURVES)  # of the kernels there
        return _Program(tracer.steps, outputs, len(inputs), curves), structure

    def __call__(self, *inputs: Tensor) -> Any:
        """The model's result for ``inputs``, shaped like the example but for the batch size.

        Raises:
            TypeError: not as many tensors as the example had, or of other dtypes.
            ValueError: other shapes.
        """
        if len(inputs) != len(self._inputs):
            raise TypeError(
                f"compiled model: expected {len(self._inputs)} inputs, got {len(inputs)}"
            )
        for i, (tensor, (shape, dtype)) in enumerate(zip(inputs, self._inputs, strict=True)):
            if not isinstance(tensor, Tensor) or tensor.dtype.name != dtype:
                got = tensor.dtype.name if isinstance(tensor, Tensor) else type(tensor).__name__
                raise TypeError(f"compiled model: input {i} expects a {dtype} tensor, got {got}")
            if tensor.ndim != len(shape) + 1 or tensor.shape[1:] != shape:
                wanted = ", ".join(["N", *map(str, shape)])
                raise ValueError(
                    f"compiled model: input {i} expects shape ({wanted}), got {tensor.shape}"
                )
        # Views are noted with the strides of the example, whose copy was canonical.
        arrays = [_core.canonical(t._array) for t in inputs]
        batch = inputs[0].shape[0]
        if 0 < self._chunk < batch and all(t.shape[0] == batch for t in inputs):
            return self._in_chunks(inputs, batch)
        program, structure = self._program(arrays)
        return _unflatten(structure, [Tensor._wrap(a) for a in program.run(arrays)])

    def _in_chunks(self, inputs: Sequence[Tensor], batch: int) -> Any:
        from fastnn.functional.shape import cat

        with no_grad():
            parts = [
                [_core.canonical(t[start : start + self._chunk]._array) for t in inputs]
                for start in range(0, batch, self._chunk)
            ]
        programs = [self._program(part) for part in parts]  # traced here, where calls are noted
        runs = [program.run for program, _ in programs]
        found = list(self._workers().map(lambda run, part: run(part), runs, parts))
        with no_grad():
            joined = [
                cat([Tensor._wrap(a) for a in pieces], 0) for pieces in zip(*found, strict=True)
            ]
        return _unflatten(programs[0][1], joined)

    def _workers(self) -> ThreadPoolExecutor:
        """One thread per core, on which kernels run alone; anew after a fork."""
        state = (_core.get_num_threads(), os.getpid())
        with self._lock:
            if self._pool is None or self._pool[1:] != state:
                pool = ThreadPoolExecutor(
                    state[0], "fastnn-compiled", initializer=lambda: _core.set_serial(True)
                )
                self._pool = (pool, *state)
            return self._pool[0]

    def __str__(self) -> str:
        return str(self._first)

    def __repr__(self) -> str:
        steps = len(self._first.steps) - self._first.inputs
        return f"<fastnn compiled model: {steps} steps, inputs {self._inputs}>"


def compile(
    model: Module,
    example: Tensor | tuple[Tensor, ...],
    *,
    dtype: str | None = None,
    chunk: int = 0,
) -> CompiledModel:
    """A model made ready for inference: batch norms folded, epilogues fused, weights packed once.

    The model runs once on ``example`` in evaluation mode, on a copy: later changes of its weights
    are not seen. What it does to tensors is noted; Python control flow that depends on their values
    is not. Other batch sizes are traced when they first come.

    Args:
        model: any :class:`fastnn.nn.Module`.
        example: an input, or a tuple of inputs, of the shapes and dtypes to come.
        dtype: ``"bfloat16"`` computes as under :class:`fastnn.autocast`; None as the model is.
        chunk: run this many images at a time on each core, which takes the weights through its
            cache anew; 0 runs a batch as a whole, on all cores.

    Returns:
        A callable with the model's results. In float32 they agree with ``model.eval()`` to the
        rounding of folded weights and another order of sums: about 1e-5 of the largest output for
        networks of some 50 layers. In bfloat16 to a few roundings of 2^-8 per layer.

    Raises:
        TypeError: ``model`` is no module, ``example`` holds something other than tensors, or the
            model returns something other than tensors.
        ValueError: an unknown ``dtype``, or ``chunk`` below 0.
    """
    if not isinstance(model, Module):
        raise TypeError(f"compile: model expects a fastnn.nn.Module, got {type(model).__name__}")
    inputs = example if isinstance(example, tuple) else (example,)
    for value in inputs:
        if not isinstance(value, Tensor) or value.ndim == 0:
            raise TypeError(f"compile: example expects tensors with a batch, got {value!r:.80}")
    if dtype not in (None, "bfloat16"):
        raise ValueError(f"compile: dtype expects None or 'bfloat16', got {dtype!r}")
    if chunk < 0:
        raise ValueError(f"compile: chunk expects a value >= 0, got {chunk}")
    return CompiledModel(model, inputs, dtype, chunk)
