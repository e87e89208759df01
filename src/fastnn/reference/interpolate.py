"""Resampling: reference and cases."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastnn.reference.case import BadCall, Op, Params, Problem, pair


def _matrix(size, out, factor, mode, align_corners):
    """(out, in): the weight of each input position in each output position of one dimension."""
    matrix = np.zeros((out, size))
    for o in range(out):
        if mode == "nearest":
            at = o * size // out if factor is None else int(np.floor(o * (1 / factor)))
            matrix[o, min(at, size - 1)] = 1
            continue
        if align_corners:
            at = o * (size - 1) / (out - 1) if out > 1 else 0.0
        else:
            step = size / out if factor is None else 1 / factor
            at = max(0.0, (o + 0.5) * step - 0.5)
        low = min(int(at), size - 1)
        share = min(at - low, 1.0)
        matrix[o, low] += 1 - share
        matrix[o, min(low + 1, size - 1)] += share
    return matrix


def _matrices(input, size, scale_factor, mode, align_corners):
    found = []
    for i in range(2):
        n = input.shape[2 + i]
        factor = None if scale_factor is None else pair(scale_factor)[i]
        out = pair(size)[i] if factor is None else int(n * factor)
        found.append(_matrix(n, out, factor, mode, align_corners))
    return found


def interpolate(input, size=None, scale_factor=None, mode="nearest", align_corners=None):
    rows, columns = _matrices(input, size, scale_factor, mode, align_corners)
    return np.einsum("oh,nchw,pw->ncop", rows, input, columns)


def interpolate_backward(
    grad_output, input, size=None, scale_factor=None, mode="nearest", align_corners=None
):
    rows, columns = _matrices(input, size, scale_factor, mode, align_corners)
    return {"input": np.einsum("oh,ncop,pw->nchw", rows, grad_output, columns)}


def _problem(p: Params, rng: np.random.Generator) -> Problem:
    """n c h w, o size or f scale factor, bil for bilinear, ac to align corners."""
    kwargs: dict[str, Any] = {"mode": "bilinear" if "bil" in p else "nearest"}
    if "o" in p:
        kwargs["size"] = p["o"]
    else:
        kwargs["scale_factor"] = p["f"]
    if "ac" in p:
        kwargs["align_corners"] = True
    x = rng.standard_normal((p["n"], p["c"], p["h"], p["w"]))
    rows, columns = _matrices(
        x, kwargs.get("size"), kwargs.get("scale_factor"), kwargs["mode"], "ac" in p
    )
    users = int((rows != 0).sum(0).max() * (columns != 0).sum(0).max())
    return Problem({"input": x}, kwargs, k=4, k_backward=users + 4)


_CASES = (
    "n1c1h1w1_o1_f32", "n2c3h4w5_o8x10_f32", "n2c17h5w7_o3x9_f32", "n0c3h4w4_o2_f32", "n1c4h7w7_o49_f32",
    "n2c5h4w3_f2_f32", "n1c3h5w5_f1.5_f32", "n1c3h9w8_f0.5_f32", "n2c3h4w5_o8x10_bil_f32",
    "n2c17h5w7_o3x9_bil_f32", "n1c3h5w5_o7_bil_ac_f32", "n1c3h5w5_o1_bil_ac_f32", "n1c3h1w1_o4_bil_f32",
    "n2c4h6w5_f2.5_bil_f32", "n2c20h4w4_o9_bil_ac_f32", "n2c8h5w5_o3_bf16", "n2c24h4w4_f2_bil_bf16",
    "n2c21h7w9_o33x170_bil_f32", "n1c3h40w300_o20x37_bil_f32", "n1c3h9w300_o5x37_f32",
    "n1c130h3w40_o5x90_bil_bf16", "n2c64h3w41_o5x90_f32", "n1c2h1w1_o9x1500_bil_bf16",
    "n1c5h700w3_o2x2_bil_f32",
)  # fmt: skip

OPS: dict[str, Op] = {
    "interpolate": Op(
        interpolate,
        interpolate_backward,
        _problem,
        _CASES,
        (
            "n16c64h56w56_f2_f32",
            "n16c64h56w56_f2_bil_f32",
            "n16c64h56w56_f2_bil_bf16",
            "n16c3h112w112_f2_f32",
            "n4c21h28w28_o224_bil_f32",
            "n4c21h28w28_o224_bil_bf16",
        ),
    ),
}


def _bad(name: str, match: str, error: type[Exception] = ValueError, **kwargs: Any) -> BadCall:
    shape = kwargs.pop("shape", (1, 2, 4, 4))
    return BadCall(
        name, lambda f: f.nn.functional.interpolate(f.zeros(*shape), **kwargs), error, match
    )


ERRORS: list[BadCall] = [
    _bad("neither", "expected either size or scale_factor"),
    _bad("both", "expected either size or scale_factor", size=3, scale_factor=2),
    _bad("mode", "mode expects 'nearest' or 'bilinear', got 'bicubic'", size=3, mode="bicubic"),
    _bad("size", "size expects two integers > 0", size=0),
    _bad("scale", "scale_factor expects values > 0", scale_factor=-1.0),
    _bad("infinite scale", "scale_factor expects values > 0", scale_factor=float("inf")),
    _bad("absurd size", "below 2\\^24", MemoryError, size=(2**40, 2**40)),
    _bad("corners", "align_corners can be set only", size=3, align_corners=True),
    _bad("rank", r"interpolate: input expects shape \(N, C, H, W\)", size=3, shape=(2, 4, 4)),
    _bad("rank and scale", "interpolate: input expects", scale_factor=2, shape=(2, 4, 4)),
    _bad("empty", "at least one pixel", size=3, shape=(1, 2, 0, 4)),
]
