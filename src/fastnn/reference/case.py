"""What a checked operator is: a reference, a way to build a problem from one line, and a bound.

A *case* is one line of text, ``n8c32h56w56_oc64_k3s2p1_f32``: underscore-separated groups of
``key value`` pairs (keys are letters, values integers, decimals, or ``3x5`` pairs), bare words as
flags (``relu``), and a dtype word (``f32`` or ``bf16``) at the end. The same line names the case in
the tests, in ``fastnn verify`` and in the benchmark table, and rebuilds the identical problem
anywhere: the random data are seeded from the line itself.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DTYPES = {"f32": "float32", "bf16": "bfloat16"}
#: Relative spacing of each dtype: one rounding errs by at most half of it.
EPS = {"float32": 2.0**-23, "bfloat16": 2.0**-7}

_PAIR = re.compile(r"([a-z]+)(-?\d+(?:\.\d+)?(?:x-?\d+(?:\.\d+)?)*)?")

Params = dict[str, Any]


@dataclass
class Problem:
    """One concrete call of an operator.

    Attributes:
        inputs: the array arguments by public argument name, in call order. Floating arrays are
            float64 (the harness rounds them to the case's dtype before both sides see them);
            integer and bool arrays are passed as they are; ``None`` is an absent optional input.
        kwargs: every other argument of the call, by public name.
        k: length of the longest reduction behind one output element (1 for elementwise work).
        k_backward: the same for the gradients; ``k`` if left out.
        scale: root-mean-square size of one term of that reduction (1 for standard normal data).
        scale_backward: the same for the gradients; ``scale`` if left out.
        mutates: names of inputs that the operator updates in place; they are compared too.
        float32_inputs: names of inputs that stay float32 in a bfloat16 case (norm parameters and
            statistics, optimizer state).
        constants: names of floating inputs that have no gradient.
        saved_scale: size of those terms of the gradients that come from results stored in the case's
            dtype (a softmax's backward reads its output); they carry one rounding more.
        apart_scale: size of what an activation is applied to, where that is an operator of its own, as
            it is on a GPU: one rounding to the case's dtype more.
        differentiable: False where gradients are not defined (integer results, comparisons).
        flops: multiply-adds times two of the forward pass, for the benchmark; 0 if it moves bytes.
    """

    inputs: dict[str, Any]  # np.ndarray, a list of them, or None
    kwargs: Params = field(default_factory=dict)
    k: int = 1
    k_backward: int | None = None
    scale: float = 1.0
    scale_backward: float | None = None
    mutates: tuple[str, ...] = ()
    float32_inputs: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    saved_scale: float = 0.0
    apart_scale: float = 0.0
    differentiable: bool = True
    flops: int = 0


@dataclass(frozen=True)
class Op:
    """An operator's reference.

    Attributes:
        forward: ``forward(**inputs, **kwargs) -> array or tuple of arrays``, NumPy only, computing
            in the dtype it is given (float64 for checks).
        backward: ``backward(grad_output, **inputs, **kwargs) -> {input name: gradient}``, or None.
        problem: builds a :class:`Problem` from the parsed parameters and a seeded generator.
        cases: the case lines every test, ``fastnn verify`` and the fuzzer start from.
        bench: case lines of the benchmark table (larger).
        call: the public function, as a dotted path under ``fastnn`` if it is not
            ``nn.functional.<op>``.
    """

    forward: Callable[..., Any]
    backward: Callable[..., dict[str, np.ndarray]] | None
    problem: Callable[[Params, np.random.Generator], Problem]
    cases: tuple[str, ...]
    bench: tuple[str, ...] = ()
    call: str = ""


@dataclass(frozen=True)
class BadCall:
    """A call that must raise: ``call(fastnn)`` gives ``error`` whose message matches ``match``."""

    name: str
    call: Callable[[Any], Any]
    error: type[Exception]
    match: str


def parse(line: str) -> Params:
    """Parameters of a case line; ``dtype`` is always among them.

    Raises:
        ValueError: the line is not of the grammar above.
    """
    params: Params = {"dtype": "float32"}
    for group in line.split("_"):
        if group in DTYPES:
            params["dtype"] = DTYPES[group]
            continue
        at = 0
        while at < len(group):
            found = _PAIR.match(group, at)
            if not found:
                raise ValueError(
                    f"case {line!r}: expected key-value pairs such as n8c32, got {group[at:]!r}"
                )
            at = found.end()
            key, text = found.groups()
            params[key] = True if text is None else _value(text)
    return params


def _value(text: str) -> Any:
    numbers = tuple(float(t) if "." in t else int(t) for t in text.split("x"))
    return numbers[0] if len(numbers) == 1 else numbers


def build(
    op: Op, line: str, generator: Callable[[int], np.random.Generator] = np.random.default_rng
) -> Problem:
    """The problem a case line names, with data of a generator that is seeded from the line.

    Raises:
        ValueError: the line is not of the grammar, or lacks what the operator's cases have.
    """
    params = parse(line)
    try:
        return op.problem(params, generator(zlib.crc32(line.encode())))
    except KeyError as error:
        raise ValueError(
            f"case {line!r} lacks {error}, which cases of its operator have"
        ) from error


def pair(value: Any) -> tuple[int, int]:
    """``3`` and ``(3, 5)`` as a pair."""
    return (value, value) if np.isscalar(value) else tuple(value)


def bound(
    expected: np.ndarray, k: int, dtype: str, scale: float = 1.0, roundings: int = 4
) -> np.ndarray:
    """Largest error that ``expected`` may carry, elementwise.

    A float32 sum of ``k`` terms of size ``scale`` in any order errs like a random walk with
    standard deviation below ``0.3 k eps scale``; six of these are allowed, and ``roundings`` units
    for the fixed number of roundings around the sum. Storing to ``dtype`` adds one rounding of
    the result.
    """
    accumulate = EPS["float32"] * scale * (2.0 * k + roundings)
    store = EPS[dtype] if dtype != "float32" else roundings * EPS["float32"]
    return accumulate + store * np.abs(np.nan_to_num(expected, posinf=0.0, neginf=0.0))
