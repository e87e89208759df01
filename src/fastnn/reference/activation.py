"""Activations: references and cases."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastnn.reference.case import BadCall, Op, Params, Problem


def relu(input: np.ndarray) -> np.ndarray:
    return np.where(input < 0, 0, input)


def relu_backward(grad_output: np.ndarray, input: np.ndarray) -> dict[str, np.ndarray]:
    return {"input": np.where(input <= 0, 0, grad_output)}


def _shape(p: Params) -> tuple[int, ...]:
    """n, c, h, w as far as given; ``s7`` is a vector of 7."""
    if "s" in p:
        return (p["s"],)
    return tuple(p[key] for key in "nchw" if key in p)


def _elementwise(p: Params, rng: np.random.Generator, **kwargs: Any) -> Problem:
    x = rng.standard_normal(_shape(p))
    # Kinks are not differentiable: finite differences need a distance from zero.
    x += np.copysign(0.05, x)
    return Problem(inputs={"input": x}, kwargs=kwargs)


_SHAPES = (
    "s1_f32", "s7_f32", "s16_f32", "s1000_f32", "s33_bf16", "n2c3h5w7_f32", "n0c3h4w4_f32",
    "n1c1h1w1_f32", "n2c17h3w3_bf16", "n3c64h4w4_f32",
)  # fmt: skip
_BENCH = ("n16c64h56w56_f32", "n16c64h56w56_bf16")

OPS: dict[str, Op] = {
    "relu": Op(relu, relu_backward, _elementwise, _SHAPES, _BENCH),
}

ERRORS: list[BadCall] = [
    BadCall(
        "relu of integers",
        lambda fastnn: fastnn.nn.functional.relu(fastnn.tensor([1, 2])),
        TypeError,
        r"relu: input expects dtype float32 or bfloat16, got int64",
    ),
]
