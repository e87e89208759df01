"""Inference programs: a model run once, and what it did to tensors made ready to be done again.

``program.py`` notes the kernel calls of a run in evaluation mode and rewrites them; here are the shapes and
threads that they are run for. A batch runs as a whole on all cores; chunks of it, each on one core, are
for whoever has measured that they fit a core's cache.
"""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import fastnn._core as _core
from fastnn.autograd import autocast, is_traced, no_grad, no_waiting, tracing
from fastnn.creation import zeros
from fastnn.device import cuda_module
from fastnn.functional.activation import CURVES
from fastnn.graph_arguments import of_kind
from fastnn.nn.module import Module
from fastnn.program import TRACING, Program, Tracer
from fastnn.tensor import Tensor


def _flatten(value: Any, leaves: list[Any]) -> Any:
    """The structure of a result with its tensors moved to ``leaves``."""
    if isinstance(value, Tensor):
        leaves.append(value)
        return len(leaves) - 1
    if isinstance(value, dict):
        return {k: _flatten(v, leaves) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return of_kind(value, [_flatten(v, leaves) for v in value])
    raise TypeError(
        f"compile: the model's result expects tensors in tuples, lists or dicts, got "
        f"{type(value).__name__}"
    )


def _unflatten(structure: Any, leaves: Sequence[Any]) -> Any:
    if isinstance(structure, dict):
        return {k: _unflatten(v, leaves) for k, v in structure.items()}
    if isinstance(structure, (list, tuple)):
        return of_kind(structure, [_unflatten(v, leaves) for v in structure])
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
        self._programs: dict[tuple[Any, ...], tuple[Program, Any]] = {}
        self._lock = threading.Lock()  # of the pool: calls do not wait for who traces
        self._pool: tuple[ThreadPoolExecutor, int, int] | None = None
        self._first = self._program([t._array for t in example])[0]
        if self._chunk and len({t.shape[0] for t in example}) == 1:
            self._check_chunks()

    def _check_chunks(self) -> None:
        """Refuses, with ValueError, results that are not one per image: those of chunks are joined."""
        shapes = []
        for count in (self._chunk, 2 * self._chunk):
            inputs = [zeros(count, *shape, dtype=dtype)._array for shape, dtype in self._inputs]
            shapes.append([a.shape for a in self._program(inputs)[0].run(inputs)])
        for fewer, more in zip(*shapes, strict=True):
            if fewer[:1] != (self._chunk,) or more[:1] != (2 * self._chunk,):
                raise ValueError(
                    f"compile: chunk expects the batch as the first dimension of every result, got "
                    f"shape {fewer} for {self._chunk} images; leave chunk at 0"
                )

    def _program(self, inputs: list[Any]) -> tuple[Program, Any]:
        shapes = tuple(a.shape for a in inputs)
        if (known := self._programs.get(shapes)) is not None:
            return known
        with TRACING:
            if shapes in self._programs:
                return self._programs[shapes]
            device = inputs[0].device
            if device >= 0 and cuda_module().recording():
                # What the program starts from is the graph's to compute.
                try:
                    return self._trace(inputs)
                except RuntimeError as error:
                    raise RuntimeError(
                        f"compiled model: inputs of shapes {[*map(tuple, shapes)]} are new, and the "
                        "program for them cannot be made while a graph is recorded; call the model "
                        f"with such inputs once before ({error})"
                    ) from error
            program = self._trace(inputs)
            if device >= 0:
                module = cuda_module()
                # Other streams may come next.
                module.synchronize_stream(device, module.current_stream(device))
                module.check()
            self._programs[shapes] = program
            return program

    def _trace(self, inputs: list[Any]) -> tuple[Program, Any]:
        arrays = [_core.clone(a) for a in inputs]  # of their own, whatever else they are
        tracer = Tracer(arrays)
        mode = autocast() if self._dtype == "bfloat16" else nullcontext()
        leaves: list[Any] = []
        held = [(module, dict(vars(module))) for module in self._model.modules()]
        try:
            with no_grad(), no_waiting(), tracing(), mode, tracer.watching():
                structure = _flatten(self._model(*map(Tensor._wrap, arrays)), leaves)
        finally:  # what a model notes in its attributes is of a run
            for module, attributes in held:
                vars(module).clear()
                vars(module).update(attributes)
        outputs = [tracer.encode(t._array) for t in leaves]
        curves = frozenset() if inputs[0].device >= 0 else frozenset(CURVES)  # of the kernels there
        return Program(tracer.steps, outputs, len(inputs), curves), structure

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
        if is_traced():  # a part of another model's program
            with autocast() if self._dtype == "bfloat16" else nullcontext():
                return self._model(*inputs)
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
    are not seen. What it does to tensors is noted, not what Python does with their values; what it
    changes in place, of its own buffers or its inputs too, begins anew in every run, and does not
    reach the caller. Random numbers and masks are drawn in every run. Other batch sizes are traced
    when they first come.

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
        ValueError: an unknown ``dtype``, ``chunk`` below 0, or with chunks a result that is not one
            per image.
        RuntimeError: the model reads values on the host that are not the same in every run.
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
