"""Tensor's operators (``x + y``, ``x += y``, ``~mask``) and in-place methods (``x.add_(y)``)."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

import numpy as np

import fastnn._core as _core
from fastnn.autograd import is_grad_enabled
from fastnn.dtypes import bool_
from fastnn.functional import elementwise as _ops
from fastnn.functional.deferred import Deferred
from fastnn.functional.elementwise import as_operand
from fastnn.tensor import Tensor, settle


def _is_operand(name: str, value: Any) -> bool:
    """Whether a binary operator takes it. NumPy would take an array over and give one back."""
    if isinstance(value, np.ndarray):
        raise TypeError(
            f"{name}: unsupported operand, a numpy.ndarray; use fastnn.from_numpy(array)"
        )
    return isinstance(value, (Tensor, bool, int, float, np.number, np.bool_))


def _operator(function: Callable[..., Tensor], reflected: bool = False) -> Callable[..., Any]:
    """A binary operator method; what is no operand is left to Python's own TypeError."""

    def method(self: Tensor, other: Any) -> Any:
        if not _is_operand(function.__name__, other):
            return NotImplemented
        return function(other, self) if reflected else function(self, other)

    return method


def _logical(function: Callable[..., Tensor], symbol: str) -> Callable[..., Any]:
    """``&``, ``|`` and ``^`` of bool tensors."""

    def method(self: Tensor, other: Any) -> Any:
        for x in (self, other):
            if not (isinstance(x, (bool, np.bool_)) or getattr(x, "dtype", None) is bool_):
                return NotImplemented
        return function(self, other)

    method.__doc__ = f"``self {symbol} other`` of bool tensors."
    return method


def _invert(self: Tensor) -> Tensor:
    """``~self`` of a bool tensor."""
    if self.dtype is not bool_:
        raise TypeError(f"~: expected a bool tensor, got {self.dtype.name}")
    return _ops.logical_not(self)


def _in_place(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``x.add_(y)``: writes the result into x's memory. Takes what ``function`` takes after x."""
    name = function.__name__
    parameters = list(signature(function).parameters.values())[1:]
    names = [p.name for p in parameters]
    defaults = {p.name: p.default for p in parameters if p.default is not Parameter.empty}
    positional = [p.name for p in parameters if p.kind is not Parameter.KEYWORD_ONLY]
    shown = ", ".join(names) or "no arguments"

    def method(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        given = {**dict(zip(positional, args, strict=False)), **kwargs}
        values = [given.get(n, defaults.get(n, Parameter.empty)) for n in names]
        if (
            len(given) != len(args) + len(kwargs)  # too many, or one given twice
            or any(key not in names for key in kwargs)
            or any(value is Parameter.empty for value in values)
        ):
            raise TypeError(f"{name}_: expected {shown}, got {(*args, *kwargs)!r}")
        if is_grad_enabled() and _needs_grad(self, *values):
            raise RuntimeError(
                f"{name}_: in-place changes are not recorded, and an operand requires a gradient; "
                f"use fastnn.no_grad(), or {name} instead"
            )
        if name == "add" and isinstance(self, Deferred) and self.take(*values):
            return self
        operands = [
            None if value is None and defaults.get(n, 0) is None
            else as_operand(f"{name}_", n, value)
            for n, value in zip(names, values, strict=True)
        ]  # fmt: skip
        settle(self._array)
        getattr(_core, name)(self._array, *operands, out=self._array)
        return self

    method.__name__ = f"{name}_"
    method.__doc__ = f"In-place :func:`fastnn.{name}`; not recorded, so only without gradients."
    return method


def _augmented(function: Callable[..., Tensor], in_place: Callable[..., Tensor]) -> Any:
    """``x += y``: in place, or, where a gradient is wanted, a new recorded tensor under the name.

    A leaf that requires a gradient is refused: the name would silently stop being that leaf.
    """

    def method(self: Tensor, other: Any) -> Any:
        if not _is_operand(function.__name__, other):
            return NotImplemented
        if not (is_grad_enabled() and _needs_grad(self, other)) or (
            self.is_leaf and self.requires_grad
        ):
            return in_place(self, other)
        return function(self, other)

    return method


def _format(self: Tensor, spec: str) -> str:
    """``f"{loss:.3f}"``: a scalar's number."""
    return format(self.item(), spec) if self.ndim == 0 else object.__format__(self, spec)


def _needs_grad(*values: Any) -> bool:
    return any(isinstance(x, Tensor) and x.requires_grad for x in values)


_IN_PLACE = {
    f"{name}_": _in_place(getattr(_ops, name))
    for name in ("add", "sub", "mul", "div", "pow", "maximum", "minimum", "clamp", "neg", "abs")
    + ("square", "sqrt", "rsqrt", "reciprocal", "exp", "log", "sin", "cos", "floor", "ceil")
    + ("round", "sign")
}

TENSOR_METHODS: dict[str, Any] = {
    **_IN_PLACE,
    "__add__": _operator(_ops.add),
    "__radd__": _operator(_ops.add, reflected=True),
    "__iadd__": _augmented(_ops.add, _IN_PLACE["add_"]),
    "__sub__": _operator(_ops.sub),
    "__rsub__": _operator(_ops.sub, reflected=True),
    "__isub__": _augmented(_ops.sub, _IN_PLACE["sub_"]),
    "__mul__": _operator(_ops.mul),
    "__rmul__": _operator(_ops.mul, reflected=True),
    "__imul__": _augmented(_ops.mul, _IN_PLACE["mul_"]),
    "__truediv__": _operator(_ops.div),
    "__rtruediv__": _operator(_ops.div, reflected=True),
    "__itruediv__": _augmented(_ops.div, _IN_PLACE["div_"]),
    "__pow__": _operator(_ops.pow),
    "__rpow__": _operator(_ops.pow, reflected=True),
    "__neg__": _ops.neg,
    "__abs__": _ops.abs,
    "__format__": _format,
    "__eq__": _operator(_ops.eq),
    "__ne__": _operator(_ops.ne),
    "__lt__": _operator(_ops.lt),
    "__le__": _operator(_ops.le),
    "__gt__": _operator(_ops.gt),
    "__ge__": _operator(_ops.ge),
    "__and__": _logical(_ops.logical_and, "&"),
    "__rand__": _logical(_ops.logical_and, "&"),
    "__or__": _logical(_ops.logical_or, "|"),
    "__ror__": _logical(_ops.logical_or, "|"),
    "__xor__": _logical(_ops.logical_xor, "^"),
    "__rxor__": _logical(_ops.logical_xor, "^"),
    "__invert__": _invert,
}
