"""Dropout: references and cases."""

from __future__ import annotations

import numpy as np

from fastnn.reference.case import BadCall, Op, Params, Problem
from fastnn.reference.random import words


def _factors(shape, p, seed, offset):
    """0 or 1 / (1 - p), with p in 16 bits, per element of memory order: NHWC for rank 4, else row-major."""
    dropped = int(p * 2**16 + 0.5)
    if dropped == 2**16:
        return np.zeros(shape)
    count = int(np.prod(shape))
    halves = words(seed, offset, -(-count // 2)).astype("<u4").view("<u2")[:count]
    factors = (halves >= dropped) / (1 - dropped / 2**16)
    if len(shape) == 4:
        n, c, h, w = shape
        return np.moveaxis(factors.reshape(n, h, w, c), 3, 1)
    return factors.reshape(shape)


def dropout(input, p=0.5, training=True, seed=0, offset=0):
    if not training or p == 0:
        return input
    return input * _factors(input.shape, p, seed, offset)


def dropout_backward(grad_output, input, p=0.5, training=True):
    return {"input": dropout(grad_output, p, training)}


def dropout2d(input, p=0.5, training=True, seed=0, offset=0):
    if not training or p == 0:
        return input
    return input * _factors(input.shape[:2], p, seed, offset)[:, :, None, None]


def dropout2d_backward(grad_output, input, p=0.5, training=True):
    return {"input": dropout2d(grad_output, p, training)}


def drop_path(input, p=0.0, training=True, seed=0, offset=0):
    if not training or p == 0:
        return input
    return input * _factors(input.shape[:1], p, seed, offset).reshape(
        (-1,) + (1,) * (input.ndim - 1)
    )


def drop_path_backward(grad_output, input, p=0.0, training=True):
    return {"input": drop_path(grad_output, p, training)}


def _problem(p: Params, rng: np.random.Generator) -> Problem:
    """s or n c l h w sizes, p probability, eval."""
    shape = (p["s"],) if "s" in p else tuple(p[key] for key in "nclhw" if key in p)
    kwargs = {"p": p["p"], "training": "eval" not in p}
    return Problem({"input": rng.standard_normal(shape)}, kwargs)


_IMAGES = ("n2c3h5w7_p0.5_f32", "n1c1h1w1_p0.5_f32", "n0c4h2w2_p0.5_f32", "n3c17h3w3_p0.75_f32",
           "n2c64h4w4_p0.1_f32", "n2c5h3w3_p1.0_f32", "n2c5h3w3_p0.0_f32", "n2c5h3w3_p0.5_eval_f32",
           "n2c19h4w4_p0.3_bf16", "n3c3h17w19_p0.5_f32", "n2c16h9w12_p0.2_bf16",
           "n2c260h3w3_p0.4_f32", "n5c130h1w1_p0.4_f32")  # fmt: skip
_MORE = ("s1_p0.5_f32", "s7_p0.5_f32", "s1025_p0.2_f32", "s70000_p0.9_f32", "n4c9_p0.5_f32",
         "n2c3l5_p0.5_f32", "s33_p0.5_bf16")  # fmt: skip
_BENCH = ("n16c64h56w56_p0.5_f32", "n16c64h56w56_p0.5_bf16")

OPS: dict[str, Op] = {
    "dropout": Op(dropout, dropout_backward, _problem, _IMAGES + _MORE, _BENCH),
    "dropout2d": Op(dropout2d, dropout2d_backward, _problem, _IMAGES, _BENCH),
    "drop_path": Op(drop_path, drop_path_backward, _problem,
                    (*_IMAGES, "n4c9_p0.5_f32", "s7_p0.5_f32"), _BENCH),
}  # fmt: skip

ERRORS: list[BadCall] = [
    BadCall("p above one", lambda f: f.nn.functional.dropout(f.zeros(3), 1.5), ValueError,
            "dropout: p expects a probability from 0 to 1, got 1.5"),
    BadCall("negative p", lambda f: f.nn.functional.drop_path(f.zeros(3), -0.1), ValueError,
            "drop_path: p expects a probability"),
    BadCall("nan p", lambda f: f.nn.functional.dropout(f.zeros(3), float("nan")), ValueError,
            "dropout: p expects a probability"),
    BadCall("rank", lambda f: f.nn.functional.dropout2d(f.zeros(3, 4)), ValueError,
            r"dropout2d: input expects shape \(N, C, H, W\), got \(3, 4\)"),
    BadCall("integers", lambda f: f.nn.functional.dropout(f.tensor([1, 2])), TypeError,
            "dropout: input expects dtype float32 or bfloat16, got int64"),
]  # fmt: skip
