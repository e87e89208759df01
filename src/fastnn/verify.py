"""Runs operators against their NumPy references, case by case: the one harness behind the tests,
``fastnn verify`` and the fuzzer.

A case's data are rounded to its dtype first, so both sides see the same numbers; the reference
then computes in float64. Every gradient is compared as well as every output, and inputs that an
operator updates in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

import fastnn
import fastnn.dtypes
from fastnn.reference.case import EPS, Op, Problem, bound, build, parse

FAMILIES = (
    "activation", "conv", "dropout", "elementwise", "interpolate", "loss", "matmul", "norm",
    "optim", "pool", "reduce", "shape", "softmax",
)  # fmt: skip


def families() -> dict[str, dict[str, Op]]:
    """The operators of every family: ``{"conv": {"conv2d": Op, ...}, ...}``."""
    return {name: import_module(f"fastnn.reference.{name}").OPS for name in FAMILIES}


def operators() -> dict[str, Op]:
    """Every operator by name."""
    return {name: op for ops in families().values() for name, op in ops.items()}


@dataclass
class Comparison:
    """One array against its reference: the worst error as a share of what is allowed."""

    what: str
    worst: float
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.worst <= 1.0


@dataclass
class Result:
    """What one case gave: its comparisons, and the arrays for bitwise checks."""

    op: str
    case: str
    comparisons: list[Comparison]
    arrays: list[np.ndarray]
    device: str = "cpu"

    @property
    def ok(self) -> bool:
        return all(c.ok for c in self.comparisons)

    @property
    def worst(self) -> float:
        return max((c.worst for c in self.comparisons), default=0.0)

    def explain(self) -> str:
        """Why it failed and how to see it again, in a few lines."""
        where = f"--isa {fastnn.backends.cpu.active_isa()}"
        if self.device != "cpu":
            where = f"--device {self.device}"
        lines = [f'fastnn verify {self.op} "{self.case}" {where}']
        lines += [f"  {c.what}: {c.detail}" for c in self.comparisons if not c.ok]
        return "\n".join(lines)


def run_case(op_name: str, line: str, op: Op | None = None, device: str = "cpu") -> Result:
    """Runs one case on a device; on the CPU at the active ISA level with its number of threads.

    Raises:
        ValueError: there is no such operator, or the line is no case line.
    """
    if op is None:
        known = operators()
        if op_name not in known:
            raise ValueError(f"verify: expected an operator among {sorted(known)}, got {op_name!r}")
        op = known[op_name]
    dtype = parse(line)["dtype"]
    problem = build(op, line)
    exact = {
        name: _rounded(value, "float32" if name in problem.float32_inputs else dtype)
        for name, value in problem.inputs.items()
    }
    tensors = {
        name: _to_tensor(value, "float32" if name in problem.float32_inputs else dtype, problem,
                         name, device)
        for name, value in exact.items()
    }  # fmt: skip

    fastnn.manual_seed(0)
    returned = as_tuple(call_of(op_name, op)(**tensors, **problem.kwargs))
    outputs = tuple(fastnn.tensor(out) if isinstance(out, float) else out for out in returned)
    updated = {name: _copied(value) for name, value in exact.items()}
    expected = as_tuple(op.forward(**updated, **problem.kwargs))

    result = Result(op_name, line, [], [], device)
    if len(outputs) != len(expected):
        raise AssertionError(f"{op_name} {line}: {len(outputs)} outputs, expected {len(expected)}")
    for i, (got, want) in enumerate(zip(outputs, expected, strict=True)):
        what = "output" if len(outputs) == 1 else f"output {i}"
        apart = EPS[dtype] * problem.apart_scale if device != "cpu" else 0.0
        _compare(result, what, got, want, problem.k, problem.scale, apart)
    for name in problem.mutates:
        for j, (got, want) in enumerate(zip(_listed(tensors[name]), _listed(updated[name]),
                                            strict=True)):  # fmt: skip
            _compare(result, f"{name}[{j}] after", got, want, problem.k, problem.scale)  # fmt: skip
    if op.backward is not None and problem.differentiable:
        _check_gradients(result, op, problem, exact, tensors, outputs, dtype)
    return result


def _check_gradients(
    result: Result,
    op: Op,
    problem: Problem,
    exact: dict[str, Any],
    tensors: dict[str, Any],
    outputs: tuple[Any, ...],
    dtype: str,
) -> None:
    assert op.backward is not None
    first = outputs[0]
    rng = np.random.default_rng(first.numel())
    grad_output = _rounded(rng.standard_normal(first.shape), first.dtype.name)
    if first.requires_grad:
        gradient = fastnn.tensor(grad_output.astype(np.float32), dtype=first.dtype)
        first.backward(gradient.to(first.device))
    inputs = {name: _copied(value) for name, value in exact.items()}
    wanted = op.backward(grad_output, **inputs, **problem.kwargs)
    k = problem.k if problem.k_backward is None else problem.k_backward
    scale = problem.scale if problem.scale_backward is None else problem.scale_backward
    for name, want in wanted.items():
        for j, (t, w) in enumerate(zip(_listed(tensors[name]), _listed(want), strict=True)):
            if w is None:
                continue
            what = f"gradient of {name}" + (f"[{j}]" if isinstance(want, (list, tuple)) else "")
            if t.grad is None:
                result.comparisons.append(Comparison(what, np.inf, "no gradient was computed"))
                continue
            _compare(result, what, t.grad, w, k, scale, EPS[dtype] * problem.saved_scale)


def _compare(
    result: Result,
    what: str,
    got: Any,
    want: Any,
    k: int,
    scale: float,
    extra: float = 0.0,
) -> None:
    want = np.asarray(want)
    values = np.asarray(got)
    result.arrays.append(values.copy())
    if values.shape != want.shape:
        detail = f"expected shape {want.shape}, got {values.shape}"
        result.comparisons.append(Comparison(what, np.inf, detail))
        return
    if want.size == 0:
        result.comparisons.append(Comparison(what, 0.0))
        return
    if not got.dtype.is_floating_point:
        wrong = int((values != want).sum())
        detail = f"{wrong} of {want.size} values differ"
        result.comparisons.append(Comparison(what, np.inf if wrong else 0.0, detail))
        return
    values = values.astype(np.float64)
    want = want.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        same = (values == want) | (np.isnan(values) & np.isnan(want))
        error = np.where(same, 0.0, np.abs(values - want))
    error = np.where(np.isnan(error), np.inf, error)
    share = error / (bound(want, k, got.dtype.name, scale) + extra)
    at = np.unravel_index(int(np.argmax(share)), share.shape)
    where = tuple(int(i) for i in at)
    detail = (
        f"at {where}: got {values[at]:.9g}, expected {want[at]:.9g}, "
        f"error {error[at]:.3g} is {share[at]:.3g} of the bound"
    )
    result.comparisons.append(Comparison(what, float(share[at]), detail))


def call_of(op_name: str, op: Op) -> Any:
    """The public function of an operator."""
    found: Any = fastnn
    for part in (op.call or f"nn.functional.{op_name}").split("."):
        found = getattr(found, part)
    return found


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Outputs of an operator as a tuple; nothing for an operator that only updates in place."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _copied(value: Any) -> Any:
    if isinstance(value, list):
        return [_copied(v) for v in value]
    return value.copy() if isinstance(value, np.ndarray) else value


def _rounded(value: Any, dtype: str) -> Any:
    """Float arrays rounded to ``dtype`` and back to float64; anything else as it is."""
    if isinstance(value, list):
        return [_rounded(v, dtype) for v in value]
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        return value
    return value.astype(fastnn.dtypes.as_dtype(dtype).numpy()).astype(np.float64)


def _to_tensor(value: Any, dtype: str, problem: Problem, name: str, device: str) -> Any:
    if isinstance(value, list):
        return [_to_tensor(v, dtype, problem, name, device) for v in value]
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind != "f":
        return fastnn.tensor(value, device=device)
    wants_grad = problem.differentiable and name not in problem.mutates + problem.constants
    values = value.astype(np.float32)
    return fastnn.tensor(values, dtype=dtype, requires_grad=wants_grad, device=device)


def all_cases(only: str | None = None) -> Iterator[tuple[str, Op, str]]:
    """Every (operator name, operator, case line), of one operator if asked."""
    for name, op in operators().items():
        if only in (None, name):
            for line in op.cases:
                yield name, op, line
