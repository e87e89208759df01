"""Elementwise operators: arithmetic with broadcasting, comparisons, selection; functions of one
argument are in ``elementwise_unary.py``.

A gradient of a broadcast operand is the sum of the full-size gradient over the dimensions along
which that operand was repeated (:func:`sum_to`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fastnn.reference import elementwise_unary as one
from fastnn.reference.case import BadCall, Op, Params, Problem

Gradients = dict[str, np.ndarray]


def sum_to(gradient: np.ndarray, operand: Any) -> np.ndarray:
    """``gradient`` summed down to the shape of ``operand``, undoing a broadcast."""
    shape = np.shape(operand)
    lead = gradient.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(
        lead + i for i, n in enumerate(shape) if n == 1 and gradient.shape[lead + i] != 1
    )
    return gradient.sum(axis=axes).reshape(shape)


def _both(input: Any, other: Any, grad_input: Any, grad_other: Any) -> Gradients:
    """Gradients of the operands that are arrays (a Python scalar has none)."""
    pairs = {"input": (input, grad_input), "other": (other, grad_other)}
    return {
        name: sum_to(gradient, operand)
        for name, (operand, gradient) in pairs.items()
        if isinstance(operand, np.ndarray)
    }


# --- arithmetic -----------------------------------------------------------------------------------


def add(input, other, alpha=1):
    """``input + alpha * other``."""
    return input + alpha * other


def add_backward(grad_output, input, other, alpha=1):
    return _both(input, other, grad_output, alpha * grad_output)


def sub(input, other, alpha=1):
    """``input - alpha * other``."""
    return input - alpha * other


def sub_backward(grad_output, input, other, alpha=1):
    return _both(input, other, grad_output, -alpha * grad_output)


def mul(input, other):
    """``input * other``."""
    return input * other


def mul_backward(grad_output, input, other):
    return _both(input, other, grad_output * other, grad_output * input)


def div(input, other):
    """``input / other``; integers divide to floating point."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.true_divide(input, other)


def div_backward(grad_output, input, other):
    return _both(input, other, grad_output / other, -grad_output * input / (other * other))


def pow(input, exponent):
    """``input ** exponent``."""
    return np.power(input, exponent)


def pow_backward(grad_output, input, exponent):
    """d/dx x**y = y x**(y-1); d/dy x**y = x**y log(x)."""
    gradients = {}
    if isinstance(input, np.ndarray):
        gradients["input"] = sum_to(grad_output * exponent * np.power(input, exponent - 1.0), input)
    if isinstance(exponent, np.ndarray):
        slope = np.power(input, exponent) * np.log(input)
        gradients["exponent"] = sum_to(grad_output * slope, exponent)
    return gradients


def maximum(input, other):
    """The larger of two; NaN if either is NaN."""
    return np.maximum(input, other)


def maximum_backward(grad_output, input, other):
    """To the larger operand; equal operands get half each."""
    to_input = np.where(input == other, 0.5, input > other)
    return _both(input, other, grad_output * to_input, grad_output * (1 - to_input))


def minimum(input, other):
    """The smaller of two; NaN if either is NaN."""
    return np.minimum(input, other)


def minimum_backward(grad_output, input, other):
    """To the smaller operand; equal operands get half each."""
    to_input = np.where(input == other, 0.5, input < other)
    return _both(input, other, grad_output * to_input, grad_output * (1 - to_input))


# --- comparisons and logic: bool results ----------------------------------------------------------


def eq(input, other):
    """``input == other``."""
    return np.equal(input, other)


def ne(input, other):
    """``input != other``."""
    return np.not_equal(input, other)


def lt(input, other):
    """``input < other``."""
    return np.less(input, other)


def le(input, other):
    """``input <= other``."""
    return np.less_equal(input, other)


def gt(input, other):
    """``input > other``."""
    return np.greater(input, other)


def ge(input, other):
    """``input >= other``."""
    return np.greater_equal(input, other)


def logical_and(input, other):
    """Whether both are nonzero."""
    return np.logical_and(input, other)


def logical_or(input, other):
    """Whether either is nonzero."""
    return np.logical_or(input, other)


def logical_xor(input, other):
    """Whether exactly one is nonzero."""
    return np.logical_xor(input, other)


def logical_not(input):
    """Whether it is zero."""
    return np.logical_not(input)


def isnan(input):
    """Whether it is not a number."""
    return np.isnan(input)


def isinf(input):
    """Whether it is an infinity."""
    return np.isinf(input)


def isfinite(input):
    """Whether it is neither NaN nor an infinity."""
    return np.isfinite(input)


# --- selection ------------------------------------------------------------------------------------


def where(condition, input, other):
    """``input`` where ``condition`` holds, else ``other``."""
    return np.where(condition, input, other)


def where_backward(grad_output, condition, input, other):
    zero = np.zeros_like(grad_output)
    return _both(
        input, other, np.where(condition, grad_output, zero), np.where(condition, zero, grad_output)
    )


def masked_fill(input, mask, value):
    """``value`` where ``mask`` holds, else ``input``."""
    return np.where(mask, np.asarray(value, input.dtype), input)


def masked_fill_backward(grad_output, input, mask, value):
    return {"input": np.where(mask, 0, grad_output)}


def clamp(input, min=None, max=None):
    """``input`` limited to ``[min, max]``; ``max`` wins where ``min > max``."""
    low = input if min is None else np.maximum(input, min)
    return low if max is None else np.minimum(low, max)


def clamp_backward(grad_output, input, min=None, max=None):
    """Passes where ``min <= input <= max``."""
    inside = np.ones(input.shape, bool)
    if min is not None:
        inside &= input >= min
    if max is not None:
        inside &= input <= max
    return {"input": grad_output * inside}


# --- cases ----------------------------------------------------------------------------------------
# s2x3x4: shape of the input (s alone: a scalar tensor); o3x1: shape of the other operand; v2.5: a
# Python number as the other operand; int, byte, bool: int64, uint8 or bool data instead of floats.


def _shape(value: Any) -> tuple[int, ...]:
    return () if value is True else value if isinstance(value, tuple) else (value,)


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal."""
    return np.asarray(rng.standard_normal(shape))


def away(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Between 0.5 and 2 with either sign: safe to divide by."""
    return np.asarray(rng.uniform(0.5, 2.0, shape) * np.where(rng.random(shape) < 0.5, -1, 1))


def positive(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Between 0.25 and 3."""
    return np.asarray(rng.uniform(0.25, 3.0, shape))


def few(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """-1, 0 or 1: comparisons meet equal operands."""
    return np.asarray(rng.integers(-1, 2, shape), dtype=np.float64)


def special(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normal data, NaN, both infinities and both zeros."""
    palette = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -2.0])
    return np.asarray(palette[rng.integers(0, len(palette), shape)])


def _data(p: Params, rng: np.random.Generator, shape: tuple[int, ...], make: Callable) -> Any:
    """Operand data: what ``make`` draws, or small integers where the case asks for them."""
    if p.get("int"):
        nonzero = rng.integers(1, 5, shape) * np.where(rng.random(shape) < 0.5, -1, 1)
        drawn = nonzero if make is away else rng.integers(-4, 5, shape)
        return np.asarray(np.abs(drawn) if make is positive else drawn)
    if p.get("byte"):
        return np.asarray(rng.integers(0, 7, shape), dtype=np.uint8)
    if p.get("bool"):
        return np.asarray(rng.random(shape) < 0.5)
    return make(rng, shape)


def _is_float(p: Params) -> bool:
    return not (p.get("int") or p.get("byte") or p.get("bool"))


def _two(p, rng, make=normal, make_other=None, other_name="other", differentiable=True) -> Problem:
    """A call with two operands, the second an array or a Python number."""
    x = _data(p, rng, _shape(p["s"]), make)
    kwargs: Params = {"alpha": p["alpha"]} if "alpha" in p else {}
    if "v" in p:
        kwargs[other_name] = p["v"]
        return Problem({"input": x}, kwargs, differentiable=differentiable and _is_float(p))
    y = _data(p, rng, _shape(p.get("o", p["s"])), make_other or make)
    out = int(np.prod(np.broadcast_shapes(np.shape(x), np.shape(y))))
    repeats = max(out // max(np.size(x), 1), out // max(np.size(y), 1), 1)
    return Problem(
        {"input": x, other_name: y},
        kwargs,
        k_backward=repeats,
        scale_backward=4.0 if make is not normal else 1.5,
        differentiable=differentiable and _is_float(p),
    )


def _one(p, rng, make=normal, differentiable=True) -> Problem:
    x = _data(p, rng, _shape(p["s"]), make)
    return Problem({"input": x}, differentiable=differentiable and _is_float(p))


def _where(p, rng) -> Problem:
    problem = _two(p, rng)
    condition = np.asarray(rng.random(_shape(p.get("q", p["s"]))) < 0.5)
    if "u" in p:
        problem.inputs.pop("input")
        problem.kwargs["input"] = p["u"]
    arrays: list[Any] = list(problem.inputs.values())
    shapes = [np.shape(a) for a in arrays] + [condition.shape]
    out = int(np.prod(np.broadcast_shapes(*shapes)))
    sizes = [np.size(a) for a in arrays]
    repeats = max(1, *(out // max(n, 1) for n in sizes))
    problem.inputs = {"condition": condition, **problem.inputs}
    problem.k_backward = repeats
    return problem


def _masked_fill(p, rng) -> Problem:
    """q: shape of the mask, v: the value."""
    problem = _one(p, rng)
    problem.inputs["mask"] = np.asarray(rng.random(_shape(p.get("q", p["s"]))) < 0.5)
    problem.kwargs["value"] = p["v"]
    return problem


def _clamp(p, rng) -> Problem:
    problem = _one(p, rng)
    problem.kwargs = {name: p[key] for key, name in (("lo", "min"), ("hi", "max")) if key in p}
    return problem


def _pow(p, rng) -> Problem:
    """Whole exponents take bases of either sign, others positive ones."""
    whole = isinstance(p.get("v"), int) or not _is_float(p)
    problem = _two(p, rng, away if whole else positive, normal, "exponent")
    if not _is_float(p) and "exponent" in problem.inputs:
        exponent: Any = problem.inputs["exponent"]
        problem.inputs["exponent"] = np.abs(exponent)
    problem.scale_backward = 30.0
    return problem


_SHAPES = (
    "s_f32",
    "s1_f32",
    "s17_f32",
    "s3x37_f32",
    "s5x33_bf16",
    "s2x3x5x7_f32",
    "s2x16x3x3_bf16",
    "s0x3x4x4_f32",
    "s1x67x9x11_f32",
    "s2x3x2x5x2_f32",
)
_BROADCASTS = (
    "s3x1_o4_f32",
    "s3x4_o_f32",
    "s_o5_f32",
    "s2x5x3x4_o1x5x1x1_f32",
    "s2x5x3x4_o1x5x1x1_bf16",
    "s2x24x4x4_o24x1x1_f32",
    "s1x3x1x1_o4x3x9x5_f32",
    "s2x3x5x7_o2x1x5x7_f32",
    "s2x3x5x7_o7_bf16",
    "s2x3x5x7_o5x1_f32",
    "s2x1x5x1_o1x3x1x7_f32",
    "s0x3_o3_f32",
    "s70x19_o19_f32",
    "s70x19_o70x1_bf16",
    "s2x1x3x1x2_o4x1x5x1_f32",
    "s3x5x7x9_o3x5x1x1_f32",
    "s3x16x8x6_o3x16x1x1_bf16",
    "s2x3x2x12x5_o2x1x2x1x5_f32",
)
_INTEGERS = ("s3x37_int", "s2x3x5x7_o1x3x1x1_int", "s3x37_byte", "s2x17_v3_int", "s5x9_v2_byte")
_NUMBERS = ("s3x37_v2_f32", "s2x3x5x7_v0.3_f32", "s2x3x5x7_v0.3_bf16", "s0x3_v2.5_f32")
_BENCH_ONE = ("s16x256x56x56_f32", "s16x256x56x56_bf16")
_BENCH_TWO = (*_BENCH_ONE, "s16x256x56x56_o1x256x1x1_f32", "s16x256x56x56_v2_f32")

_ARITHMETIC = _SHAPES + _BROADCASTS + _INTEGERS + _NUMBERS
_COMPARISON = (
    *("s_f32", "s17_f32", "s3x37_bf16", "s0x3x4x4_f32", "s2x3x5x7_o1x3x1x1_f32", "s3x1_o4_f32"),
    *("s2x3x5x7_v1_bf16", "s70x19_o19_f32", "s5x9_v2.5_int", "s7x9_bool", *_INTEGERS),
)
_FLOATS_AND_INTEGERS = (*_SHAPES, "s3x37_int")


def _arithmetic(name: str, make=normal, make_other=None, cases=_ARITHMETIC) -> Op:
    return Op(
        forward=globals()[name],
        backward=globals()[f"{name}_backward"],
        problem=partial(_two, make=make, make_other=make_other),
        cases=cases,
        bench=_BENCH_TWO,
        call=name,
    )


def _comparison(name: str) -> Op:
    problem = partial(_two, make=few, differentiable=False)
    return Op(globals()[name], None, problem, _COMPARISON, _BENCH_ONE, call=name)


def _unary(name: str, make=normal, cases=_FLOATS_AND_INTEGERS) -> Op:
    forward, backward = getattr(one, name), getattr(one, f"{name}_backward")
    return Op(forward, backward, partial(_one, make=make), cases, _BENCH_ONE, call=name)


def _test(name: str, cases=(*_SHAPES, "s3x37_int")) -> Op:
    problem = partial(_one, make=special, differentiable=False)
    return Op(globals()[name], None, problem, cases, _BENCH_ONE[:1], call=name)


OPS: dict[str, Op] = {
    "add": _arithmetic("add", cases=(*_ARITHMETIC, "s3x37_alpha2.5_f32", "s5x9_o9_alpha3_int")),
    "sub": _arithmetic("sub", cases=(*_ARITHMETIC, "s3x37_alpha0.5_bf16")),
    "mul": _arithmetic("mul"),
    "div": _arithmetic("div", away, away),
    "pow": Op(
        pow,
        pow_backward,
        _pow,
        (
            *_ARITHMETIC,
            *(f"s5x33_v{v}_f32" for v in (0, 1, 3, 4, -1, -2, -3)),
            *(f"s5x33_v{v}_f32" for v in (0.5, 1.5, 2.5, 3.5, -0.5, -1.5)),
            *("s5x33_v-1.5_bf16", "s5x33_v2_bf16", "s5x33_v4.5_f32"),
        ),
        ("s16x64x56x56_v2_f32", "s16x64x56x56_v1.5_f32"),
        call="pow",
    ),
    "maximum": _arithmetic("maximum"),
    "minimum": _arithmetic("minimum"),
    **{name: _comparison(name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{name: _comparison(name) for name in ("logical_and", "logical_or", "logical_xor")},
    "logical_not": _test("logical_not", (*_SHAPES, "s3x37_int", "s3x37_bool")),
    **{name: _test(name) for name in ("isnan", "isinf", "isfinite")},
    "where": Op(
        where,
        where_backward,
        _where,
        (*_SHAPES, *_BROADCASTS[3:10], "s3x37_int", "s3x4_q4_f32", "s4_q3x4_o3x1_f32")
        + ("s2x3x5x7_q1x3x1x1_v0.5_bf16", "s5x9_u1.5_f32", "s4_q0x4_f32"),
        _BENCH_ONE,
        call="where",
    ),
    "masked_fill": Op(
        masked_fill,
        masked_fill_backward,
        _masked_fill,
        (*(f"{line}_v-1.5" for line in _SHAPES), "s3x37_v2_int", "s2x3x5x7_q1x3x1x1_v0.5_bf16")
        + ("s5x9_q9_v0_f32", "s2x17_v3_byte"),
        _BENCH_ONE[:0],
        call="masked_fill",
    ),
    "clamp": Op(
        clamp,
        clamp_backward,
        _clamp,
        tuple(f"{line}_lo-0.5_hi0.5" for line in _SHAPES)
        + ("s3x37_lo0.2_f32", "s3x37_hi-0.2_bf16", "s3x37_lo1_hi-1_f32", "s9_lo-2_hi2_int"),
        ("s16x256x56x56_lo0_hi6_f32",),
        call="clamp",
    ),
    "neg": _unary("neg"),
    "abs": _unary("abs"),
    "sign": _unary("sign"),
    "square": _unary("square"),
    "sqrt": _unary("sqrt", positive, (*_SHAPES, "s3x37_int")),
    "rsqrt": _unary("rsqrt", positive, _SHAPES),
    "reciprocal": _unary("reciprocal", away),
    "exp": _unary("exp"),
    "log": _unary("log", positive, _SHAPES),
    "sin": _unary("sin"),
    "cos": _unary("cos"),
    "floor": _unary("floor"),
    "ceil": _unary("ceil"),
    "round": _unary("round"),
}


def _bad(name: str, error: type[Exception], match: str, call: Callable[[Any], Any]) -> BadCall:
    return BadCall(name, call, error, match)


ERRORS: list[BadCall] = [
    _bad(
        "shapes that do not broadcast",
        ValueError,
        r"add: .*\(2, 3\).*\(4,\)",
        lambda fn: fn.add(fn.ones((2, 3)), fn.ones((4,))),
    ),
    _bad("a text operand", TypeError, r"mul: .*str", lambda fn: fn.mul(fn.ones((2,)), "3")),
    _bad("minus text", TypeError, r"unsupported operand", lambda fn: fn.ones((2,)) - "3"),
    _bad("minus bool", TypeError, r"neg: .*bool", lambda fn: fn.neg(fn.ones((2,)) > 0)),
    _bad(
        "subtraction of bool",
        TypeError,
        r"sub: .*bool",
        lambda fn: fn.sub(fn.ones((2,)) > 0, fn.ones((2,)) > 0),
    ),
    _bad(
        "an integer to a negative power",
        ValueError,
        r"pow: .*negative",
        lambda fn: fn.pow(fn.arange(3), -1),
    ),
    _bad(
        "a number that the dtype cannot hold",
        ValueError,
        r"add: .*300.*uint8",
        lambda fn: fn.add(fn.arange(3).to(fn.uint8), 300),
    ),
    _bad("no limits", ValueError, r"clamp: .*min.*max", lambda fn: fn.clamp(fn.ones((2,)))),
    _bad(
        "a condition that is not bool",
        TypeError,
        r"where: condition expects dtype bool, got float32",
        lambda fn: fn.where(fn.ones((2,)), fn.ones((2,)), 0.0),
    ),
    _bad(
        "an in-place result that does not fit",
        ValueError,
        r"add_: .*\(3,\).*\(2, 3\)",
        lambda fn: fn.ones((3,)).add_(fn.ones((2, 3))),
    ),
    _bad(
        "a float result in an integer tensor",
        TypeError,
        r"mul_: .*float32.*int64",
        lambda fn: fn.arange(3).mul_(0.5),
    ),
    _bad(
        "an unrecorded in-place change",
        RuntimeError,
        r"add_: .*no_grad",
        lambda fn: fn.ones((3,), requires_grad=True).add_(1.0),
    ),
]
