"""Softmax: references and cases."""

from __future__ import annotations

import numpy as np

from fastnn.reference.case import BadCall, Op, Params, Problem


def log_softmax(input, dim):
    if input.size == 0:
        return input
    shifted = input - input.max(dim, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(dim, keepdims=True))


def log_softmax_backward(grad_output, input, dim):
    return {
        "input": grad_output - np.exp(log_softmax(input, dim)) * grad_output.sum(dim, keepdims=True)
    }


def softmax(input, dim):
    return np.exp(log_softmax(input, dim))


def softmax_backward(grad_output, input, dim):
    y = softmax(input, dim)
    return {"input": y * (grad_output - (grad_output * y).sum(dim, keepdims=True))}


def _problem(p: Params, rng: np.random.Generator) -> Problem:
    """n c l h w sizes, d dimension, big: scores with a wide range."""
    shape = tuple(p[key] for key in "nclhw" if key in p)
    x = rng.standard_normal(shape) * p.get("big", 1)
    # exp and log err by a few units; log softmax carries that of its largest terms.
    scale = 1.0 + p.get("big", 1)
    count = shape[p["d"]]
    return Problem({"input": x}, {"dim": p["d"]}, k=8, k_backward=count + 8, scale=scale,
                   saved_scale=4 + 2 * count**0.5)  # fmt: skip


_CASES = (
    "n1c1_d1_f32", "n3c7_d1_f32", "n5c16_d1_f32", "n4c1000_d1_f32", "n3c7_d0_f32", "n2c5h3w4_d1_f32",
    "n2c33h3w4_d2_f32", "n2c5h3w17_d3_f32", "n3c5h2w2_d0_f32", "n2c3l9_d-1_f32", "n2c19l5_d1_f32",
    "n0c4_d1_f32", "n3c2h5w7_d1_f32", "n2c3h7w5_d1_f32", "n2c4h5w7_d1_bf16",
    "n4c20_d1_big30_f32", "n3c9_d1_bf16", "n2c17h3w3_d1_bf16", "n2c4h5w3_d-2_bf16",
    "n4101c7_d1_f32", "n5c24_d1_bf16", "n3c72_d1_bf16",
    # Few long columns.
    "n700c10_d0_f32", "n301c7_d0_bf16", "n2c100l5_d1_big30_f32", "n1c3h90w2_d2_f32",
)  # fmt: skip
_BENCH = ("n128c1000_d1_f32", "n16c21h128w128_d1_f32")

OPS: dict[str, Op] = {
    "softmax": Op(softmax, softmax_backward, _problem, _CASES, _BENCH),
    "log_softmax": Op(log_softmax, log_softmax_backward, _problem, _CASES, _BENCH),
}

ERRORS: list[BadCall] = [
    BadCall(
        "dim",
        lambda f: f.nn.functional.softmax(f.zeros(2, 3), 2),
        ValueError,
        "softmax: dim expects -2 to 1, got 2",
    ),
    BadCall(
        "integers",
        lambda f: f.nn.functional.log_softmax(f.tensor([1, 2]), 0),
        TypeError,
        "log_softmax: input expects dtype float32 or bfloat16, got int64",
    ),
]
