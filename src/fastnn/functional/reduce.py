"""Reductions: sums, products, extremes, moments and norms.

``dim`` is an int, a tuple of ints, or None for all dimensions; negative ones count from the end.
``keepdim`` keeps reduced dimensions with size 1. Floating inputs are summed in float32, in blocks
whose sums are summed again, and rounded once to the input's dtype; results have the same bits for
any number of threads. Sums and products of integers and bool are int64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

import fastnn._core as _core
from fastnn.autograd import record, record_many
from fastnn.functional.elementwise import maximum, minimum
from fastnn.tensor import Tensor

__all__ = [
    "all", "any", "argmax", "argmin", "max", "mean", "min", "norm", "prod", "std", "sum", "var",
]  # fmt: skip

Dim = int | Sequence[int] | None


def _array(name: str, input: Any) -> Any:
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: input expects a Tensor, got {type(input).__name__}")
    return input._array


def _dims(name: str, dim: Any, rank: int) -> tuple[int, ...]:
    """The dimensions as a tuple; the kernel checks their range."""
    if dim is None or (isinstance(dim, (tuple, list)) and not dim):
        return tuple(range(rank))
    dims = dim if isinstance(dim, (tuple, list)) else (dim,)
    if not _are_ints(dims):
        raise TypeError(f"{name}: dim expects an int, a tuple of ints or None, got {dim!r}")
    if rank == 0 and dims in ((0,), (-1,)):
        return ()  # a scalar counts as one element along dimension 0
    return tuple([_as_int(name, d) for d in dims])


def _as_int(name: str, dim: Any) -> int:
    if not -(2**31) <= dim < 2**31:
        raise ValueError(f"{name}: dim expects a dimension of the input, got {dim}")
    return int(dim)


def _are_ints(values: Sequence[Any]) -> bool:
    return not [v for v in values if isinstance(v, bool) or not isinstance(v, (int, np.integer))]


def _shown(kept: Any, shape: tuple[int, ...], dims: tuple[int, ...], keepdim: bool) -> Any:
    """A result with reduced dimensions of size 1, without them unless they are to stay."""
    if keepdim:
        return kept
    if len(dims) == len(shape):
        return kept.reshape(())
    reduced = {d % len(shape) for d in dims}
    return kept.reshape([size for i, size in enumerate(shape) if i not in reduced])


def _kept(shape: tuple[int, ...], dims: tuple[int, ...]) -> list[int]:
    reduced = {d % len(shape) for d in dims}
    return [1 if i in reduced else size for i, size in enumerate(shape)]


def _spread(array: Any, shape: tuple[int, ...], dims: tuple[int, ...]) -> Any:
    """A view of a reduced array, repeated along the reduced dimensions."""
    kept = array.reshape(_kept(shape, dims))
    steps = [s if n == m else 0 for s, n, m in zip(kept.strides, kept.shape, shape, strict=True)]
    return kept.as_strided(shape, steps, 0)


def sum(input: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """Sum of the elements; 0 where there are none.

    Args:
        input: any shape and dtype.
        dim: dimensions to reduce, or None for all.
        keepdim: keep them with size 1.

    Raises:
        ValueError: a dimension is out of range or named twice.
    """
    x = _array("sum", input)
    dims = _dims("sum", dim, input.ndim)
    total = _core.sum(x, dims)
    if input.dtype.is_floating_point:
        total = _core.astype(total, x.dtype)
    return record(
        "sum", _shown(total, x.shape, dims, keepdim), (input,), (x.shape, dims), _sum_backward
    )


def _sum_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return _spread(grad_output, *saved)


def _count(shape: tuple[int, ...], dims: tuple[int, ...]) -> int:
    return math.prod(shape[d] for d in dims)


def _floating(name: str, input: Tensor) -> None:
    if not input.dtype.is_floating_point:
        raise TypeError(
            f"{name}: input expects dtype float32 or bfloat16, got {input.dtype.name}; "
            "convert it with .to(fastnn.float32)"
        )


def mean(input: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """Arithmetic mean of floating elements; NaN where there are none. See :func:`sum`."""
    x = _array("mean", input)
    _floating("mean", input)
    dims = _dims("mean", dim, input.ndim)
    kept = _core.mean(x, dims)
    output = _shown(_core.astype(kept, x.dtype), x.shape, dims, keepdim)
    return record("mean", output, (input,), (x.shape, dims), _mean_backward)


def _mean_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    shape, dims = saved
    return _spread(_core.div(grad_output, float(_count(shape, dims))), shape, dims)


def var(input: Tensor, dim: Dim = None, correction: float = 1, keepdim: bool = False) -> Tensor:
    """Variance of floating elements: squared deviations from the mean over ``n - correction``.

    Two passes, so that an offset does not cancel. NaN or infinite where ``n <= correction``.

    Args:
        input: any shape, float32 or bfloat16.
        dim: dimensions to reduce, or None for all.
        correction: 1 for the unbiased estimate (Bessel), 0 for the population's.
        keepdim: keep reduced dimensions with size 1.
    """
    x = _array("var", input)
    _floating("var", input)
    dims = _dims("var", dim, input.ndim)
    kept, mean_kept = _core.var("var", x, dims, float(correction))
    output = _shown(_core.astype(kept, x.dtype), x.shape, dims, keepdim)
    return record("var", output, (input,), (x, mean_kept, dims, correction), _var_backward)


def _var_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    x, mean_kept, dims, correction = saved
    freedom = _freedom(x.shape, dims, correction)
    scale = 2.0 / freedom if freedom else math.inf
    gradient = _core.var_backward(_spread(grad_output, x.shape, dims), x, mean_kept, scale)
    return _core.astype(gradient, x.dtype)


def _freedom(shape: tuple[int, ...], dims: tuple[int, ...], correction: float) -> float:
    free = _count(shape, dims) - correction
    return float(free) if free > 0 else 0.0


def std(input: Tensor, dim: Dim = None, correction: float = 1, keepdim: bool = False) -> Tensor:
    """Standard deviation, the square root of :func:`var`."""
    x = _array("std", input)
    _floating("std", input)
    dims = _dims("std", dim, input.ndim)
    variance, mean_kept = _core.var("std", x, dims, float(correction))
    deviation = _core.sqrt(variance)
    output = _shown(_core.astype(deviation, x.dtype), x.shape, dims, keepdim)
    saved = (x, mean_kept, deviation, dims, correction)
    return record("std", output, (input,), saved, _std_backward)


def _std_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    """d std = d var / (2 std), and 0 where all elements are equal."""
    x, mean_kept, deviation, dims, correction = saved
    grad_variance = _core.div(grad_output.reshape(deviation.shape), deviation)
    grad_variance = _core.where(_core.eq(deviation, 0.0), 0.0, grad_variance)
    return _var_backward((x, mean_kept, dims, correction), _core.mul(grad_variance, 0.5), needs)


def prod(input: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """Product of the elements; 1 where there are none. The gradient is right at zeros too."""
    x = _array("prod", input)
    dims = _dims("prod", dim, input.ndim)
    kept = _core.prod(x, dims)
    if input.dtype.is_floating_point:
        kept = _core.astype(kept, x.dtype)
    output = _shown(kept, x.shape, dims, keepdim)
    return record("prod", output, (input,), (x, dims), _prod_backward)


def _prod_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    x, dims = saved
    return _core.prod_backward(grad_output.reshape(_kept(x.shape, dims)), x, dims)


def max(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """Largest element, NaN if there is one; with ``dim``, the pair (values, indices).

    The index is that of the first largest element, which alone gets the gradient. Without ``dim``
    equal largest elements share it. ``max(x, y)`` of two tensors is ``maximum(x, y)``.

    Raises:
        ValueError: there is no element to choose from.
        TypeError: ``dim`` is not an int.
    """
    return _extreme("max", input, dim, keepdim)


def min(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """Smallest element, NaN if there is one; with ``dim``, the pair (values, indices).

    As :func:`max` in everything else.
    """
    return _extreme("min", input, dim, keepdim)


def _extreme(name: str, input: Tensor, dim: Any, keepdim: bool) -> Any:
    x = _array(name, input)
    if isinstance(dim, Tensor):
        return (maximum if name == "max" else minimum)(input, dim)
    if dim is None:
        output = getattr(_core, name)(x, _dims(name, None, input.ndim)).reshape(())
        if input.dtype.is_floating_point:
            output = _core.astype(output, x.dtype)
        return record(name, output, (input,), (x, output), _extreme_backward)
    at = _one_dim(name, dim)
    values, indices = getattr(_core, f"{name}_dim")(x, at)
    dims = (at,) if input.ndim else ()
    outputs = tuple(_shown(a, x.shape, dims, keepdim) for a in (values, indices))
    return record_many(name, outputs, (input,), (indices, x.shape, at), _extreme_dim_backward)


def _one_dim(name: str, dim: Any) -> int:
    if not _are_ints((dim,)):
        raise TypeError(f"{name}: dim expects an int or None, got {dim!r}")
    return _as_int(name, dim)


def _extreme_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    """Shared equally between equal elements."""
    x, extreme = saved
    chosen = _core.eq(x, extreme)
    count = _core.sum(chosen, tuple(range(len(x.shape)))).reshape(())
    share = _core.div(_core.astype(grad_output, "float32"), count)
    return _core.where(chosen, _core.astype(share, x.dtype), 0.0)


def _extreme_dim_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    indices, shape, dim = saved
    return _core.max_dim_backward(grad_output[0].reshape(indices.shape), indices, shape, dim)


def argmax(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Index (int64) of the first largest element; NaN counts as largest.

    Without ``dim``, the index into the elements in row-major order.

    Raises:
        ValueError: there is no element to choose from.
    """
    return _position("argmax", input, dim, keepdim)


def argmin(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Index (int64) of the first smallest element; NaN counts as smallest. See :func:`argmax`."""
    return _position("argmin", input, dim, keepdim)


def _position(name: str, input: Tensor, dim: int | None, keepdim: bool) -> Tensor:
    x = _array(name, input)
    if dim is None:
        index = getattr(_core, name)(x)
        return Tensor._wrap(index.reshape([1] * input.ndim if keepdim else []))
    at = _one_dim(name, dim)
    kept = getattr(_core, f"{name}_dim")(x, at)
    return Tensor._wrap(_shown(kept, x.shape, (at,) if input.ndim else (), keepdim))


def norm(input: Tensor, p: float = 2, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """Vector norm of floating elements: ``sum(|x|**p) ** (1/p)``, or the largest ``|x|``.

    Args:
        input: any shape, float32 or bfloat16.
        p: 1, 2 or infinity.
        dim: dimensions to reduce, or None for all.
        keepdim: keep them with size 1.

    Returns:
        The norms; 0 of no elements. The gradient at 0 is 0; for p=inf equal elements share it.

    Raises:
        NotImplementedError: another ``p``.
    """
    x = _array("norm", input)
    dims = _dims("norm", dim, input.ndim)
    kept = _core.norm(x, dims, float(p))
    output = _shown(_core.astype(kept, x.dtype), x.shape, dims, keepdim)
    return record("norm", output, (input,), (x, kept, dims, float(p)), _norm_backward)


def _norm_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    x, length, dims, p = saved
    g = _core.astype(grad_output.reshape(length.shape), "float32")
    if p == 2:
        share = _core.where(_core.gt(length, 0.0), _core.div(g, length), 0.0)
        return _core.astype(_core.mul(x, share), x.dtype)
    if p == 1:
        return _core.astype(_core.abs_backward(g, x), x.dtype)
    chosen = _core.eq(_core.abs(x), length)
    count = _core.sum(chosen, dims)
    gradient = _core.abs_backward(_core.div(g, count), x)
    return _core.astype(_core.where(chosen, gradient, 0.0), x.dtype)


def any(input: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """Whether some element is nonzero (NaN is); False where there are none."""
    return _truth("any", input, dim, keepdim)


def all(input: Tensor, dim: Dim = None, keepdim: bool = False) -> Tensor:
    """Whether every element is nonzero (NaN is); True where there are none."""
    return _truth("all", input, dim, keepdim)


def _truth(name: str, input: Tensor, dim: Dim, keepdim: bool) -> Tensor:
    x = _array(name, input)
    dims = _dims(name, dim, input.ndim)
    return Tensor._wrap(_shown(getattr(_core, name)(x, dims), x.shape, dims, keepdim))


TENSOR_METHODS = {name: globals()[name] for name in __all__}
