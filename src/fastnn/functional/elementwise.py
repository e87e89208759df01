"""Elementwise arithmetic, comparisons and functions of one argument, with NumPy broadcasting.

Dtypes promote bool < uint8 < int32 < int64 < bfloat16 < float32. A Python number takes the dtype of
the tensor it meets, unless it is of a higher kind (bool < integer < floating): then the result is
int64 or float32. Gradients of operands that were broadcast are summed down to their shape, in
float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastnn._core as _core
from fastnn.autograd import is_recorded, record
from fastnn.functional.deferred import Deferred
from fastnn.tensor import Tensor

__all__ = [
    "abs", "add", "ceil", "clamp", "cos", "div", "eq", "exp", "floor", "ge", "gt", "isfinite",
    "isinf", "isnan", "le", "log", "logical_and", "logical_not", "logical_or", "logical_xor", "lt",
    "masked_fill", "maximum", "minimum", "mul", "ne", "neg", "pow", "reciprocal", "round", "rsqrt",
    "sign", "sin", "sqrt", "square", "sub", "where",
]  # fmt: skip

Number = float | int | bool


def as_operand(name: str, argument: str, value: Any) -> Any:
    """What the kernel takes: the tensor's array, or a Python number."""
    if isinstance(value, Tensor):
        return value._array
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (bool, int, float)):
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"{name}: {argument} expects a number of 64 bits, got {value}")
        return value
    raise TypeError(
        f"{name}: {argument} expects a Tensor or a number, got {type(value).__name__}; "
        "fastnn.tensor(...) makes one"
    )


def _tensors(input: Any, other: Any) -> tuple[Tensor | None, Tensor | None]:
    """The operands that the tape follows; numbers have no gradient."""
    return (
        input if isinstance(input, Tensor) else None,
        other if isinstance(other, Tensor) else None,
    )


def _like(operand: Any) -> Any:
    """What a gradient must fit: ``(shape, dtype)`` of an array, None for a number."""
    return (operand.shape, operand.dtype) if isinstance(operand, _core.Array) else None


def _wide(grad_output: Any, operand: Any) -> Any:
    """The gradient in float32 if it will be summed down to the operand's shape."""
    wider = isinstance(operand, _core.Array) and operand.shape != grad_output.shape
    return _core.astype(grad_output, "float32") if wider else grad_output


def sum_to(gradient: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """A gradient summed in float32 down to a shape that broadcasts to its own, and cast."""
    lead = len(gradient.shape) - len(shape)
    dims = tuple(range(lead)) + tuple(
        lead + i for i, size in enumerate(shape) if size == 1 and gradient.shape[lead + i] != 1
    )
    if dims:
        gradient = _core.sum(gradient, dims).reshape(shape)
    return _core.astype(gradient, dtype)


def _binary(
    name: str,
    input: Any,
    other: Any,
    backward: Callable[..., Any] | None,
    extra: tuple[Any, ...] = (),
    argument: str = "other",
) -> Tensor:
    """Calls a kernel of two operands; ``saved`` is the operands and ``extra``."""
    a, b = as_operand(name, "input", input), as_operand(name, argument, other)
    if not (isinstance(a, _core.Array) or isinstance(b, _core.Array)):
        raise TypeError(f"{name}: input expects a Tensor, got {type(input).__name__}")
    output = getattr(_core, name)(a, b, *extra)
    if backward is None:
        return Tensor._wrap(output)
    inputs = _tensors(input, other)
    return record(name, output, inputs, (a, b, *extra), backward)


# Arithmetic.


def add(input: Tensor | Number, other: Tensor | Number, *, alpha: Number = 1) -> Tensor:
    """``input + alpha * other``.

    Args:
        input, other: shapes that broadcast, any dtypes; one may be a number.
        alpha: factor of ``other``; whole for integer tensors.

    Raises:
        ValueError: the shapes do not broadcast, or a number does not fit the dtype.
        TypeError: an operand is neither a tensor nor a number.
    """
    if type(alpha) is int and alpha == 1:
        for one, more in ((input, other), (other, input)):
            if isinstance(one, Deferred) and (joined := one.plus(more, add)) is not None:
                return joined
    return _scaled("add", input, other, alpha)


def sub(input: Tensor | Number, other: Tensor | Number, *, alpha: Number = 1) -> Tensor:
    """``input - alpha * other``; see :func:`add`. Not defined for bool."""
    return _scaled("sub", input, other, alpha)


def _scaled(name: str, input: Any, other: Any, alpha: Number) -> Tensor:
    """A sum saves the shapes of its operands only: changing them in place afterwards is fine."""
    a, b = as_operand(name, "input", input), as_operand(name, "other", other)
    if not (isinstance(a, _core.Array) or isinstance(b, _core.Array)):
        raise TypeError(f"{name}: input expects a Tensor, got {type(input).__name__}")
    factor = alpha if type(alpha) is int else as_operand(name, "alpha", alpha)
    output = getattr(_core, name)(a, b, factor)
    inputs = _tensors(input, other)
    if not is_recorded(inputs):
        return Tensor._wrap(output)
    saved = (_like(a), _like(b), factor if name == "add" else -factor)
    return record(name, output, inputs, saved, _add_backward)


def _add_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    like_input, like_other, factor = saved
    grad_input = sum_to(grad_output, *like_input) if needs[0] else None
    if not needs[1]:
        return grad_input, None
    scaled = grad_output
    if factor != 1:
        scaled = _core.mul(
            _core.astype(grad_output, "float32") if like_other[0] != grad_output.shape
            else grad_output, float(factor),
        )  # fmt: skip
    return grad_input, sum_to(scaled, *like_other)


def mul(input: Tensor | Number, other: Tensor | Number) -> Tensor:
    """``input * other``, broadcasting. On bool it is the logical and."""
    return _binary("mul", input, other, _mul_backward)


def _mul_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    a, b = saved
    return (
        sum_to(_core.mul(_wide(grad_output, a), b), *_like(a)) if needs[0] else None,
        sum_to(_core.mul(_wide(grad_output, b), a), *_like(b)) if needs[1] else None,
    )


def div(input: Tensor | Number, other: Tensor | Number) -> Tensor:
    """``input / other``, broadcasting; integers divide to float32. x / 0 is inf or NaN."""
    return _binary("div", input, other, _div_backward)


def _div_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    a, b = saved
    return (
        sum_to(_core.div(_wide(grad_output, a), b), *_like(a)) if needs[0] else None,
        sum_to(_core.div_backward_other(_wide(grad_output, b), a, b), *_like(b))
        if needs[1]
        else None,
    )


def pow(input: Tensor | Number, exponent: Tensor | Number) -> Tensor:
    """``input ** exponent``, broadcasting; NaN for a negative base and a fractional exponent.

    Integer powers wrap around. The gradient of ``0 ** y`` by ``y`` is 0. On a CPU whole and half
    numbers from -3 to 3 are products and square roots: powers of -inf and -0 are as theirs.

    Raises:
        ValueError: an integer tensor to a negative number.
    """
    return _binary("pow", input, exponent, _pow_backward, argument="exponent")


def _pow_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    a, b = saved
    grad_input = grad_exponent = None
    if needs[0]:
        grad_input = sum_to(_core.pow_backward_input(_wide(grad_output, a), a, b), *_like(a))
    if needs[1]:
        grad_exponent = sum_to(_core.pow_backward_exponent(_wide(grad_output, b), a, b), *_like(b))
    return grad_input, grad_exponent


def maximum(input: Tensor | Number, other: Tensor | Number) -> Tensor:
    """The larger of two, broadcasting; NaN if either is. Equal operands share the gradient."""
    return _binary("maximum", input, other, _maximum_backward)


def _maximum_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    a, b = saved
    return _larger(grad_output, a, b, a, needs[0]), _larger(grad_output, b, a, b, needs[1])


def minimum(input: Tensor | Number, other: Tensor | Number) -> Tensor:
    """The smaller of two, broadcasting; NaN if either is. Equal operands share the gradient."""
    return _binary("minimum", input, other, _minimum_backward)


def _minimum_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    a, b = saved
    return _larger(grad_output, b, a, a, needs[0]), _larger(grad_output, a, b, b, needs[1])


def _larger(grad_output: Any, x: Any, y: Any, operand: Any, needed: bool) -> Any:
    """The gradient where ``x > y``, half of it where equal, summed to the operand's shape."""
    if not needed:
        return None
    return sum_to(_core.maximum_backward(_wide(grad_output, operand), x, y), *_like(operand))


# Comparisons and logic: bool results without gradients.


def eq(input: Tensor | Number, other: Tensor | Number) -> Tensor:
    """``input == other`` as a bool tensor; operands broadcast."""
    return _binary("eq", input, other, None)


def ne(input: Tensor | Number, other: Tensor | Number) -> Tensor:
    """``input != other`` as a bool tensor; operands broadcast."""
    return _binary("ne", input, other, None)


def lt(input: Tensor | Number, other: Tensor | Number) -> Tensor:
    """``input < other`` as a bool tensor; operands broadcast."""
    return _binary("lt", input, other, None)


def le(input: Tensor | Number, other: Tensor | Number) -> Tensor:
    """``input <= other`` as a bool tensor; operands broadcast."""
    return _binary("le", input, other, None)


def gt(input: Tensor | Number, other: Tensor | Number) -> Tensor:
    """``input > other`` as a bool tensor; operands broadcast."""
    return _binary("gt", input, other, None)


def ge(input: Tensor | Number, other: Tensor | Number) -> Tensor:
    """``input >= other`` as a bool tensor; operands broadcast."""
    return _binary("ge", input, other, None)


def logical_and(input: Tensor | Number, other: Tensor | Number) -> Tensor:
    """Whether both are nonzero; NaN is nonzero."""
    return _binary("logical_and", input, other, None)


def logical_or(input: Tensor | Number, other: Tensor | Number) -> Tensor:
    """Whether either is nonzero; NaN is nonzero."""
    return _binary("logical_or", input, other, None)


def logical_xor(input: Tensor | Number, other: Tensor | Number) -> Tensor:
    """Whether exactly one is nonzero; NaN is nonzero."""
    return _binary("logical_xor", input, other, None)


def logical_not(input: Tensor) -> Tensor:
    """Whether each element is zero, as a bool tensor; NaN is not."""
    return Tensor._wrap(_core.logical_not(_tensor("logical_not", input)))


def isnan(input: Tensor) -> Tensor:
    """Whether each element is NaN, as a bool tensor; integers never are."""
    return Tensor._wrap(_core.isnan(_tensor("isnan", input)))


def isinf(input: Tensor) -> Tensor:
    """Whether each element is an infinity of either sign."""
    return Tensor._wrap(_core.isinf(_tensor("isinf", input)))


def isfinite(input: Tensor) -> Tensor:
    """Whether each element is neither NaN nor an infinity."""
    return Tensor._wrap(_core.isfinite(_tensor("isfinite", input)))


def _tensor(name: str, input: Any) -> Any:
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: input expects a Tensor, got {type(input).__name__}")
    return input._array


# Selection.


def where(condition: Tensor, input: Tensor | Number, other: Tensor | Number) -> Tensor:
    """``input`` where ``condition`` holds, else ``other``; all three broadcast.

    Raises:
        TypeError: ``condition`` is not a bool tensor.
    """
    mask = _tensor("where", condition)
    a, b = as_operand("where", "input", input), as_operand("where", "other", other)
    output = _core.where(mask, a, b)
    inputs = _tensors(input, other)
    return record("where", output, inputs, (mask, _like(a), _like(b)), _where_backward)


def _where_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    mask, like_input, like_other = saved
    return (
        sum_to(_core.where(mask, grad_output, 0.0), *like_input) if needs[0] else None,
        sum_to(_core.where(mask, 0.0, grad_output), *like_other) if needs[1] else None,
    )


def masked_fill(input: Tensor, mask: Tensor, value: Number) -> Tensor:
    """``value`` where ``mask`` holds, else ``input``, in the input's dtype and shape.

    Raises:
        TypeError: ``mask`` is not a bool tensor, ``value`` no number, or one with a fraction for integers.
        ValueError: ``mask`` does not broadcast to the input's shape.
    """
    if not isinstance(value, (bool, int, float, np.number)):
        raise TypeError(f"masked_fill: value expects a number, got {type(value).__name__}")
    floating = input.dtype.is_floating_point
    if not floating and not float(value).is_integer():
        raise TypeError(
            f"masked_fill: value expects a whole number for {input.dtype.name}, got {value}"
        )
    found = where(mask, value if floating else int(value), input)
    if found.shape != input.shape:
        raise ValueError(
            f"masked_fill: mask expects a shape that broadcasts to {input.shape}, got {mask.shape}"
        )
    return found if found.dtype is input.dtype else found.to(input.dtype)


def clamp(input: Tensor, min: Number | None = None, max: Number | None = None) -> Tensor:
    """``input`` limited to ``[min, max]``; NaN stays NaN, ``max`` wins where ``min > max``.

    The gradient passes where ``min <= input <= max``. For tensor limits use :func:`maximum` and
    :func:`minimum`.

    Raises:
        ValueError: neither limit is given.
        TypeError: a limit is not a number.
    """
    x = _tensor("clamp", input)
    for name, limit in (("min", min), ("max", max)):
        if limit is not None and not isinstance(limit, (bool, int, float, np.number)):
            raise TypeError(f"clamp: {name} expects a number, got {type(limit).__name__}")
    low = None if min is None else as_operand("clamp", "min", min)
    high = None if max is None else as_operand("clamp", "max", max)
    output = _core.clamp(x, low, high)
    return record("clamp", output, (input,), (x, low, high), _clamp_backward)


def _clamp_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    x, low, high = saved
    low = -float("inf") if low is None else float(low)
    high = float("inf") if high is None else float(high)
    return _core.clamp_backward(grad_output, x, low, high)


# Functions of one argument. Each saves its input or its output, whichever its gradient needs.


def neg(input: Tensor) -> Tensor:
    """``-input``; unsigned integers wrap around. Not defined for bool."""
    return record("neg", _core.neg(_tensor("neg", input)), (input,), (), _neg_backward)


def _neg_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return _core.neg(grad_output)


def _of_input(name: str, input: Tensor, backward: Callable[..., Any]) -> Tensor:
    x = _tensor(name, input)
    return record(name, getattr(_core, name)(x), (input,), (x,), backward)


def abs(input: Tensor) -> Tensor:
    """Magnitude ``|input|``, in the input's dtype; its gradient at 0 is 0."""
    return _of_input("abs", input, _abs_backward)


def _abs_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return _core.abs_backward(grad_output, saved[0])


def square(input: Tensor) -> Tensor:
    """``input * input``, in the input's dtype; integers wrap around."""
    return _of_input("square", input, _square_backward)


def _square_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return _core.square_backward(grad_output, saved[0])


def sqrt(input: Tensor) -> Tensor:
    """Square root; NaN below zero. Integers give float32, here and in all functions below."""
    return _of_input("sqrt", input, _sqrt_backward)


def _sqrt_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return _core.sqrt_backward(grad_output, saved[0])


def rsqrt(input: Tensor) -> Tensor:
    """``1 / sqrt(input)``; infinite at zero, NaN below."""
    return _of_input("rsqrt", input, _rsqrt_backward)


def _rsqrt_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return _core.rsqrt_backward(grad_output, saved[0])


def reciprocal(input: Tensor) -> Tensor:
    """``1 / input``; an infinity of zero's sign at zero."""
    return _of_input("reciprocal", input, _reciprocal_backward)


def _reciprocal_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return _core.reciprocal_backward(grad_output, saved[0])


def exp(input: Tensor) -> Tensor:
    """``e ** input``; infinite above 88.7, where float32 ends."""
    output = _core.exp(_tensor("exp", input))
    return record("exp", output, (input,), (output,), _exp_backward)


def _exp_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return _core.mul(grad_output, saved[0])


def log(input: Tensor) -> Tensor:
    """Natural logarithm; -inf at zero, NaN below."""
    return _of_input("log", input, _log_backward)


def _log_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return _core.div(grad_output, saved[0])


def sin(input: Tensor) -> Tensor:
    """Sine of an angle in radians; NaN of an infinity."""
    return _of_input("sin", input, _sin_backward)


def _sin_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return _core.sin_backward(grad_output, saved[0])


def cos(input: Tensor) -> Tensor:
    """Cosine of an angle in radians; NaN of an infinity."""
    return _of_input("cos", input, _cos_backward)


def _cos_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return _core.cos_backward(grad_output, saved[0])


def _step(name: str, input: Tensor) -> Tensor:
    return record(name, getattr(_core, name)(_tensor(name, input)), (input,), (), _step_backward)


def _step_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    """Steps are flat almost everywhere."""
    return _core.new_full(grad_output, grad_output.shape, 0.0, grad_output.dtype)


def sign(input: Tensor) -> Tensor:
    """-1, 0 or 1; NaN stays NaN. Its gradient is 0, as are those of the rounding functions."""
    return _step("sign", input)


def floor(input: Tensor) -> Tensor:
    """Largest integer not above, in the input's dtype."""
    return _step("floor", input)


def ceil(input: Tensor) -> Tensor:
    """Smallest integer not below, in the input's dtype."""
    return _step("ceil", input)


def round(input: Tensor) -> Tensor:
    """Nearest integer in the input's dtype, halves to the even one."""
    return _step("round", input)


TENSOR_METHODS: dict[str, Any] = {
    **{name: globals()[name] for name in __all__ if name != "where"},
    "where": lambda self, condition, other: where(condition, self, other),
}
