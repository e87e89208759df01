"""Reductions: sums, products, extremes, moments and norms over all or some dimensions.

``dim`` is None (all dimensions), one dimension, or a tuple of them; negative ones count from the
end. ``keepdim`` keeps the reduced dimensions with size 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fastnn.reference.case import BadCall, Op, Params, Problem

Gradients = dict[str, np.ndarray]


def _axes(ndim: int, dim: Any) -> tuple[int, ...]:
    dims: Any = range(ndim) if dim is None else (dim,) if np.isscalar(dim) else dim
    return tuple(d % ndim for d in dims) if ndim else ()


def _spread(value: np.ndarray, input: np.ndarray, dim: Any) -> np.ndarray:
    """A reduced array with its reduced dimensions back as size 1, for broadcasting."""
    axes = _axes(input.ndim, dim)
    return np.reshape(value, [1 if i in axes else n for i, n in enumerate(input.shape)])


def _count(input: np.ndarray, dim: Any) -> int:
    return int(np.prod([input.shape[i] for i in _axes(input.ndim, dim)]))


def sum(input, dim=None, keepdim=False):
    """Sum; integers and bool add up in int64."""
    return input.sum(axis=_axes(input.ndim, dim), keepdims=keepdim)


def sum_backward(grad_output, input, dim=None, keepdim=False):
    return {"input": np.broadcast_to(_spread(grad_output, input, dim), input.shape)}


def mean(input, dim=None, keepdim=False):
    """Arithmetic mean; NaN of no elements."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.true_divide(sum(input, dim, keepdim), _count(input, dim))


def mean_backward(grad_output, input, dim=None, keepdim=False):
    gradient = _spread(grad_output, input, dim) / np.maximum(_count(input, dim), 1)
    return {"input": np.broadcast_to(gradient, input.shape)}


def var(input, dim=None, correction=1, keepdim=False):
    """Sum of squared deviations from the mean, over ``count - correction`` (0 if negative)."""
    deviation = input - mean(input, dim, keepdim=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = np.maximum(_count(input, dim) - correction, 0)
        return np.true_divide(sum(deviation**2, dim, keepdim), freedom)


def var_backward(grad_output, input, dim=None, correction=1, keepdim=False):
    deviation = input - mean(input, dim, keepdim=True)
    scale = 2.0 / (_count(input, dim) - correction)
    return {"input": _spread(grad_output, input, dim) * scale * deviation}


def std(input, dim=None, correction=1, keepdim=False):
    """Square root of :func:`var`."""
    return np.sqrt(var(input, dim, correction, keepdim))


def std_backward(grad_output, input, dim=None, correction=1, keepdim=False):
    grad_var = grad_output / (2 * std(input, dim, correction, keepdim))
    return var_backward(grad_var, input, dim, correction, keepdim)


def prod(input, dim=None, keepdim=False):
    """Product; integers and bool multiply in int64."""
    return input.prod(axis=_axes(input.ndim, dim), keepdims=keepdim)


def prod_backward(grad_output, input, dim=None, keepdim=False):
    """Each element's gradient is the product of all the others, also where some are zero."""
    gradient = np.empty(input.shape, input.dtype)
    for index in np.ndindex(input.shape):
        others = np.array(input)
        others[index] = 1
        line = tuple(
            slice(None) if i in _axes(input.ndim, dim) else slice(at, at + 1)
            for i, at in enumerate(index)
        )
        gradient[index] = others[line].prod()
    return {"input": gradient * _spread(grad_output, input, dim)}


def _extreme(reduce: Callable, locate: Callable, input: np.ndarray, dim: Any, keepdim: bool) -> Any:
    if dim is None:
        return reduce(input)
    indices = locate(input, axis=dim, keepdims=True)
    values = np.take_along_axis(input, indices, axis=dim)
    if keepdim:
        return values, indices
    return values.squeeze(dim), indices.squeeze(dim)


def max(input, dim=None, keepdim=False):
    """Largest element (NaN if there is one); with ``dim``, values and indices of the first one."""
    return _extreme(np.max, np.argmax, input, dim, keepdim)


def min(input, dim=None, keepdim=False):
    """Smallest element (NaN if there is one); with ``dim``, values and indices of the first one."""
    return _extreme(np.min, np.argmin, input, dim, keepdim)


def _extreme_backward(grad_output, input, dim, result) -> Gradients:
    """To the element chosen; the extreme of all elements shares equally between equals."""
    if dim is None:
        chosen = input == result
        return {"input": grad_output * chosen / chosen.sum()}
    gradient = np.zeros_like(input)
    np.put_along_axis(gradient, result[1], _spread(grad_output, input, dim), axis=dim)
    return {"input": gradient}


def max_backward(grad_output, input, dim=None, keepdim=False):
    return _extreme_backward(grad_output, input, dim, max(input, dim, True))


def min_backward(grad_output, input, dim=None, keepdim=False):
    return _extreme_backward(grad_output, input, dim, min(input, dim, True))


def argmax(input, dim=None, keepdim=False):
    """Index of the first largest element; without ``dim``, in the flattened input."""
    if dim is None:
        index = np.argmax(input)
        return np.reshape(index, (1,) * input.ndim) if keepdim else index
    return np.argmax(input, axis=dim, keepdims=keepdim)


def argmin(input, dim=None, keepdim=False):
    """Index of the first smallest element; without ``dim``, in the flattened input."""
    if dim is None:
        index = np.argmin(input)
        return np.reshape(index, (1,) * input.ndim) if keepdim else index
    return np.argmin(input, axis=dim, keepdims=keepdim)


def norm(input, p=2, dim=None, keepdim=False):
    """``sum(|x|)`` for p=1, ``sqrt(sum(x**2))`` for p=2, ``max(|x|)`` for p=inf."""
    axes = _axes(input.ndim, dim)
    if p == 1:
        return np.abs(input).sum(axis=axes, keepdims=keepdim)
    if p == 2:
        return np.sqrt((input**2).sum(axis=axes, keepdims=keepdim))
    return np.abs(input).max(axis=axes, keepdims=keepdim, initial=0.0)


def norm_backward(grad_output, input, p=2, dim=None, keepdim=False):
    """x / norm for p=2 (0 where the norm is 0); p=inf shares equally between equals."""
    g = _spread(grad_output, input, dim)
    if p == 1:
        return {"input": g * np.sign(input)}
    length = norm(input, p, dim, keepdim=True)
    if p == 2:
        return {"input": g * input / np.where(length == 0, 1, length)}
    chosen = np.abs(input) == length
    share = np.maximum(chosen.sum(axis=_axes(input.ndim, dim), keepdims=True), 1)
    return {"input": g * np.sign(input) * chosen / share}


def any(input, dim=None, keepdim=False):
    """Whether some element is nonzero (NaN is); False of no elements."""
    return np.any(input, axis=_axes(input.ndim, dim), keepdims=keepdim)


def all(input, dim=None, keepdim=False):
    """Whether every element is nonzero; True of no elements."""
    return np.all(input, axis=_axes(input.ndim, dim), keepdims=keepdim)


# --- cases ----------------------------------------------------------------------------------------
# s2x3x4: input shape; d1, d0x2: dim (none: all); keep: keepdim; c0: correction; l1, l2, linf: the
# norm; int, byte, bool: integer data; ties: few distinct values; zeros: some exact zeros.


def _data(p: Params, rng: np.random.Generator) -> np.ndarray:
    shape = p["s"]
    shape = () if shape is True else shape if isinstance(shape, tuple) else (shape,)
    if p.get("int"):
        return np.asarray(rng.integers(-4, 5, shape))
    if p.get("byte"):
        return np.asarray(rng.integers(0, 200, shape), dtype=np.uint8)
    if p.get("bool"):
        return np.asarray(rng.random(shape) < 0.5)
    if p.get("ties"):
        return np.asarray(rng.integers(-1, 2, shape), dtype=np.float64)
    data = np.asarray(rng.standard_normal(shape))
    return np.asarray(data * (rng.random(shape) < 0.9)) if p.get("zeros") else data


def _problem(p: Params, rng: np.random.Generator, differentiable: bool = True) -> Problem:
    x = _data(p, rng)
    kwargs: Params = {}
    if "d" in p:
        kwargs["dim"] = p["d"]
    if p.get("keep"):
        kwargs["keepdim"] = True
    if "c" in p:
        kwargs["correction"] = p["c"]
    if "l" in p or p.get("linf"):
        kwargs["p"] = p.get("l", float("inf"))
    floating = np.issubdtype(x.dtype, np.floating)
    count = _count(x, p.get("d"))
    return Problem(
        {"input": x},
        kwargs,
        k=count,
        k_backward=1,
        scale_backward=2.0,
        differentiable=differentiable and floating,
    )


def _mean(p: Params, rng: np.random.Generator) -> Problem:
    """The sum is divided by its length, and so is its error; moments sum squares."""
    problem = _problem(p, rng)
    problem.scale = 4.0 / np.maximum(problem.k, 1)
    return problem


def _std(p: Params, rng: np.random.Generator) -> Problem:
    """Offset data would cancel; the reciprocal of a small deviation scales the gradient."""
    problem = _mean(p, rng)
    problem.scale_backward = 8.0
    return problem


def _prod(p: Params, rng: np.random.Generator) -> Problem:
    """Products of many factors stay near 1 with factors near 1."""
    problem = _problem(p, rng)
    x: Any = problem.inputs["input"]
    if problem.differentiable:
        x = np.where(x == 0, 0.0, np.exp(0.1 * x)) * np.where(x < 0, -1.0, 1.0)
        x = np.asarray(x)
    problem.inputs["input"] = x
    problem.scale = problem.scale_backward = 4.0
    problem.k_backward = problem.k
    return problem


_SUMS = (
    "s_f32",
    "s1_f32",
    "s37_f32",
    "s1000_bf16",
    "s3x1000_d1_f32",
    "s33x5_d0_f32",
    "s300x19_d0_keep_bf16",
    "s300x24_d0_bf16",
    "s2x70x12_d1_f32",
    "s2x3x5x7_f32",
    "s2x19x5x7_d1_f32",
    "s2x19x5x7_d0x2x3_f32",
    "s3x16x9x9_d2x3_keep_f32",
    "s3x17x9x9_d2x3_bf16",
    "s2x3x5x7_d0x3_f32",
    "s2x3x5x7_d1x2_keep_f32",
    "s2x3x5x7_d-1_f32",
    "s4x5x6_d1_f32",
    "s4x5x6_d0x2_bf16",
    "s2x3x2x3x2_d1x3_f32",
    "s1x1x1x1_d1_f32",
    "s0x3_d0_f32",
    "s0x3_d1_f32",
    "s20x1x400x1_d2_f32",
    "s9x1030_d1_keep_f32",
    "s4099x5_d1_f32",
)
_INTEGERS = ("s3x37_int", "s3x37_d1_int", "s5x300_d0_byte", "s2x3x5x7_d1_keep_int", "s5x70_d1_bool")
_WIDE = "s300x1100_d0_f32"
_FULL = tuple(line for line in _SUMS if not line.startswith("s0"))
_PICK = (
    *("s_f32", "s1_f32", "s37_f32", "s1000_bf16", "s3x1000_d1_f32", "s33x5_d0_f32", "s300x19_d0"),
    *("s2x3x5x7_f32", "s2x19x5x7_d1_f32", "s2x19x5x7_d1_keep_bf16", "s2x19x5x7_d0_f32"),
    *("s2x19x5x7_d2_f32", "s2x19x5x7_d-1_keep_f32", "s4x5x6_d1_f32", "s0x3_d1_f32", "s3x37_int"),
    *("s3x37_d1_int", "s5x300_d0_byte", "s9x40_d1_ties_bf16", "s9x40_d0_ties_bf16"),
    *("s40_ties_bf16", "s5x67_d1_bool", "s2x3x33x2_ties_bf16"),
    *("s70x24_d0_ties_bf16", "s2x90x12_d1_f32", "s4099x6_d1_ties_bf16"),
)
_BENCH = ("s16x256x56x56_f32", "s16x256x56x56_d0x2x3_f32", "s16x256x56x56_d2x3_bf16")

_BENCH_PICK = ("s16x256x56x56_f32", "s16x256x56x56_d1_f32")


def _op(name: str, problem: Callable, cases: tuple[str, ...], bench=_BENCH) -> Op:
    return Op(globals()[name], globals().get(f"{name}_backward"), problem, cases, bench, call=name)


_not_differentiable = partial(_problem, differentiable=False)
_MOMENTS = tuple(line for line in _FULL if line not in ("s_f32", "s1_f32", "s1x1x1x1_d1_f32"))

OPS: dict[str, Op] = {
    "sum": _op("sum", _problem, (*_SUMS, *_INTEGERS, _WIDE)),
    "mean": _op("mean", _mean, _FULL),
    "var": _op("var", _mean, (*_MOMENTS, "s_c0_f32", "s3x37_d1_c0_f32", "s2x3x5x7_c0_bf16", _WIDE)),
    "std": _op("std", _std, (*_MOMENTS, "s3x37_d1_c0_f32", "s2x3x5x7_c0_bf16")),
    "prod": _op(
        "prod",
        _prod,
        ("s_f32", "s1_f32", "s37_f32", "s3x40_d1_f32", "s33x5_d0_bf16", "s2x3x5x7_d1_keep_f32")
        + ("s2x3x3x4_d2x3_f32", "s4x12_d1_zeros_f32", "s3x2x20_d2_zeros_bf16", "s12_zeros_f32")
        + ("s0x3_d0_f32", "s2x5_d1_int", "s6_int", "s5x70_d1_bool")
        # Columns of the gradient in pieces.
        + ("s701_f32", "s300x3_d0_zeros_bf16", "s2x290x3_d1_f32", "s3x130_d1_zeros_f32"),
        _BENCH[:1],
    ),
    "max": _op("max", _problem, _PICK, _BENCH_PICK),
    "min": _op("min", _problem, _PICK, _BENCH_PICK),
    "argmax": _op("argmax", _not_differentiable, (*_PICK, "s2x3x5_keep_f32"), _BENCH_PICK),
    "argmin": _op("argmin", _not_differentiable, (*_PICK, "s2x3x5_keep_f32"), _BENCH_PICK),
    "norm": _op(
        "norm",
        _problem,
        tuple(f"{line}_{kind}" for kind in ("l1", "l2", "linf") for line in _SUMS)
        + ("s9x5_d1_ties_linf_bf16", "s4x9_d1"),
    ),
    "any": _op("any", _not_differentiable, (*_SUMS, *_INTEGERS, "s50x2_d1_ties_bf16"), ()),
    "all": _op("all", _not_differentiable, (*_SUMS, *_INTEGERS, "s50x2_d1_ties_bf16"), ()),
}

ERRORS: list[BadCall] = [
    BadCall(
        "a dim out of range",
        lambda fn: fn.sum(fn.ones((2, 3)), dim=2),
        ValueError,
        r"sum: dim expects .*-2.*1.*got 2",
    ),
    BadCall(
        "a dim twice",
        lambda fn: fn.sum(fn.ones((2, 3)), dim=(1, -1)),
        ValueError,
        r"sum: dim .*more than once",
    ),
    BadCall("mean of integers", lambda fn: fn.mean(fn.arange(3)), TypeError, r"mean: .*int64"),
    BadCall("norm of integers", lambda fn: fn.norm(fn.arange(3)), TypeError, r"norm: .*int64"),
    BadCall(
        "an unknown norm", lambda fn: fn.norm(fn.ones((3,)), p=3), NotImplementedError, r"norm: .*3"
    ),
    BadCall("max of nothing", lambda fn: fn.max(fn.zeros((0,))), ValueError, r"max: .*\(0,\)"),
    BadCall(
        "argmin of nothing",
        lambda fn: fn.argmin(fn.zeros((2, 0)), dim=1),
        ValueError,
        r"argmin: .*\(2, 0\)",
    ),
    BadCall(
        "two dims where one is picked",
        lambda fn: fn.max(fn.ones((2, 3)), dim=(0, 1)),
        TypeError,
        r"max: dim expects an int",
    ),
    BadCall("a text dim", lambda fn: fn.sum(fn.ones((2,)), dim="x"), TypeError, r"sum: dim"),
]
