"""Pooling: references and cases."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastnn.reference.case import BadCall, Op, Params, Problem, pair


def _fixed(size, kernel, stride, padding, dilation, ceil_mode):
    """Per output of one dimension: the window's tap positions, and its extent within the padding."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    out = (-(-room // stride) if ceil_mode else room // stride) + 1
    if ceil_mode and (out - 1) * stride >= size + padding:
        out -= 1
    starts = [o * stride - padding for o in range(out)]
    taps = [[s + t * dilation for t in range(kernel)] for s in starts]
    return taps, [min(s + kernel, size + padding) - s for s in starts]


def _adaptive(size, out):
    return [list(range(o * size // out, -(-(o + 1) * size // out))) for o in range(out)]


def _each_window(x, rows, columns):
    """(oh, ow, valid rows, valid columns) of every window."""
    for i, r in enumerate(rows):
        for j, c in enumerate(columns):
            yield (
                i, j,
                [h for h in r if 0 <= h < x.shape[2]],
                [w for w in c if 0 <= w < x.shape[3]],
            )  # fmt: skip


def _max(x, rows, columns):
    out = np.empty((*x.shape[:2], len(rows), len(columns)), x.dtype)
    indices = np.empty(out.shape, np.int64)
    for i, j, r, c in _each_window(x, rows, columns):
        window = x[:, :, r][:, :, :, c].reshape(*x.shape[:2], len(r) * len(c))
        best = np.argmax(window, 2) if window.size else np.zeros(x.shape[:2], int)
        out[:, :, i, j] = window.max(2) if window.size else 0
        indices[:, :, i, j] = np.take(r, best // len(c)) * x.shape[3] + np.take(c, best % len(c))
    return out, indices


def _max_backward(g, x, indices):
    grad = np.zeros((*x.shape[:2], x.shape[2] * x.shape[3]), x.dtype)
    n, c = np.indices(x.shape[:2])
    for i in range(g.shape[2]):
        for j in range(g.shape[3]):
            np.add.at(grad, (n, c, indices[:, :, i, j]), g[:, :, i, j])
    return grad.reshape(x.shape)


def _windows(input, kernel_size, stride, padding, dilation, ceil_mode):
    k = pair(kernel_size)
    s = k if stride is None else pair(stride)
    p, d = pair(padding), pair(dilation)
    return [_fixed(input.shape[2 + i], k[i], s[i], p[i], d[i], ceil_mode) for i in range(2)]


def max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False,
               return_indices=False):  # fmt: skip
    (rows, _), (columns, _) = _windows(input, kernel_size, stride, padding, dilation, ceil_mode)
    out, indices = _max(input, rows, columns)
    return (out, indices) if return_indices else out


def max_pool2d_backward(grad_output, input, kernel_size, stride=None, padding=0, dilation=1,
                        ceil_mode=False, return_indices=False):  # fmt: skip
    _, indices = max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, True)
    return {"input": _max_backward(grad_output, input, indices)}


def _mean_matrix(size, taps, divisors):
    """(out, in): the weight of each input position in each output of one dimension."""
    matrix = np.zeros((len(taps), size))
    for o, positions in enumerate(taps):
        matrix[o, [t for t in positions if 0 <= t < size]] = 1 / divisors[o]
    return matrix


def _avg_matrices(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor):
    axes = _windows(input, kernel_size, stride, padding, 1, ceil_mode)
    matrices = []
    for i, (taps, extents) in enumerate(axes):
        size = input.shape[2 + i]
        inside = [sum(0 <= t < size for t in positions) for positions in taps]
        divisors = extents if count_include_pad else inside
        if divisor is not None:
            divisors = [divisor if i == 0 else 1] * len(taps)
        matrices.append(_mean_matrix(size, taps, divisors))
    return matrices


def avg_pool2d(input, kernel_size, stride=None, padding=0, ceil_mode=False,
               count_include_pad=True, divisor_override=None):  # fmt: skip
    rows, columns = _avg_matrices(input, kernel_size, stride, padding, ceil_mode,
                                  count_include_pad, divisor_override)  # fmt: skip
    return np.einsum("oh,nchw,pw->ncop", rows, input, columns)


def avg_pool2d_backward(grad_output, input, kernel_size, stride=None, padding=0, ceil_mode=False,
                        count_include_pad=True, divisor_override=None):  # fmt: skip
    rows, columns = _avg_matrices(input, kernel_size, stride, padding, ceil_mode,
                                  count_include_pad, divisor_override)  # fmt: skip
    return {"input": np.einsum("oh,ncop,pw->nchw", rows, grad_output, columns)}


def _adaptive_windows(input, output_size):
    size = [input.shape[2 + i] if s is None else s for i, s in enumerate(pair(output_size))]
    return [_adaptive(input.shape[2 + i], size[i]) for i in range(2)]


def _adaptive_matrices(input, output_size):
    windows = _adaptive_windows(input, output_size)
    return [
        _mean_matrix(input.shape[2 + i], taps, [len(t) for t in taps])
        for i, taps in enumerate(windows)
    ]


def adaptive_avg_pool2d(input, output_size):
    rows, columns = _adaptive_matrices(input, output_size)
    return np.einsum("oh,nchw,pw->ncop", rows, input, columns)


def adaptive_avg_pool2d_backward(grad_output, input, output_size):
    rows, columns = _adaptive_matrices(input, output_size)
    return {"input": np.einsum("oh,ncop,pw->nchw", rows, grad_output, columns)}


def adaptive_max_pool2d(input, output_size, return_indices=False):
    out, indices = _max(input, *_adaptive_windows(input, output_size))
    return (out, indices) if return_indices else out


def adaptive_max_pool2d_backward(grad_output, input, output_size, return_indices=False):
    _, indices = adaptive_max_pool2d(input, output_size, True)
    return {"input": _max_backward(grad_output, input, indices)}


def _image(p: Params, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((p["n"], p["c"], p["h"], p["w"]))


def _taps(p: Params) -> int:
    return int(np.prod(pair(p["k"]))) if "k" in p else p["h"] * p["w"]


def _settings(p: Params) -> dict[str, Any]:
    kwargs: dict[str, Any] = {"kernel_size": p["k"], "padding": p.get("p", 0)}
    if "s" in p:
        kwargs["stride"] = p["s"]
    if "ceil" in p:
        kwargs["ceil_mode"] = True
    return kwargs


def _max_problem(p: Params, rng: np.random.Generator) -> Problem:
    """n c h w, k kernel, s stride, p padding, d dilation, ceil, idx to return indices."""
    kwargs = {**_settings(p), "dilation": p.get("d", 1)}
    if "idx" in p:
        kwargs["return_indices"] = True
    # Distinct values: no ties, and distances that finite differences do not cross.
    x = _image(p, rng)
    x = (rng.permutation(x.size) / max(x.size, 1) * 4 - 2).reshape(x.shape)
    return Problem({"input": x}, kwargs, k=1, k_backward=_taps(p))


def _avg_problem(p: Params, rng: np.random.Generator) -> Problem:
    """n c h w, k kernel, s stride, p padding, ceil, nopad not to count padding, dv divisor."""
    kwargs = _settings(p)
    if "nopad" in p:
        kwargs["count_include_pad"] = False
    if "dv" in p:
        kwargs["divisor_override"] = p["dv"]
    return Problem({"input": _image(p, rng)}, kwargs, k=_taps(p))


def _adaptive_problem(p: Params, rng: np.random.Generator) -> Problem:
    """n c h w, o output size, keepw to keep the width, idx to return indices."""
    size = p["o"]
    if "keepw" in p:
        size = (size, None)
    kwargs: dict[str, Any] = {"output_size": size}
    if "idx" in p:
        kwargs["return_indices"] = True
    x = _image(p, rng)
    if "max" in p:
        x = (rng.permutation(x.size) / max(x.size, 1) * 4 - 2).reshape(x.shape)
    return Problem({"input": x}, kwargs, k=_taps(p))


_MAX = (
    "n1c1h1w1_k1_f32", "n2c3h7w9_k2_f32", "n2c17h8w8_k3s2p1_f32", "n2c16h6w7_k2s1_f32",
    "n0c4h5w5_k2_f32", "n2c5h9w8_k3s2_ceil_f32", "n1c4h9w9_k2s2d3_f32", "n2c3h7w8_k2x3s1x2p1x0_f32",
    "n1c33h5w5_k5p2s1_f32", "n2c6h7w7_k3s2p1_idx_f32", "n1c2h20w20_k17s1_idx_f32",
    "n2c24h7w7_k3s2p1_bf16", "n1c3h6w6_k3s3p1_ceil_idx_f32", "n1c3h4w4_k2s3_ceil_f32",
    "n2c3h2w3_k3s2_ceil_f32", "n1c5h4w2_k2s3d3_ceil_idx_f32",
    "n1c1h9w40_k3s2p1_f32", "n2c7h6w33_k3s1p1_f32", "n2c3h7w30_k2s3_bf16", "n1c6h5w25_k2s1d2_f32",
)  # fmt: skip
_AVG = (
    "n1c1h1w1_k1_f32", "n2c3h7w9_k2_f32", "n2c17h8w8_k3s2p1_f32", "n0c4h5w5_k2_f32",
    "n2c5h9w8_k3s2p1_ceil_f32", "n2c5h9w8_k3s2p1_ceil_nopad_f32", "n2c16h6w7_k3s1p1_nopad_f32",
    "n1c7h5w5_k2_dv3_f32", "n2c3h7w8_k2x3s1x2p1x0_f32", "n2c64h7w7_k7_f32", "n2c24h6w6_k3s2p1_bf16",
    "n1c3h4w4_k2s3_ceil_f32", "n2c3h2w3_k3s2_ceil_f32", "n2c5h16w17_k16x17_f32",
    "n2c5h5w5_k5_dv3_f32", "n1c1h9w40_k3s2p1_f32", "n2c7h6w33_k5s2p2_nopad_f32",
)  # fmt: skip
_ADAPTIVE = (
    "n1c1h1w1_o1_f32", "n2c17h7w7_o1_f32", "n2c5h7w9_o3x2_f32", "n2c4h5w5_o7_f32", "n0c4h5w5_o2_f32",
    "n1c6h8w6_o3_keepw_f32", "n2c33h6w5_o6x5_f32", "n3c5h16w17_o1_f32", "n2c1h19w17_o1_f32",
)  # fmt: skip
_BENCH = ("n16c64h112w112_k3s2p1_f32", "n16c64h112w112_k3s2p1_bf16")
_BENCH_GLOBAL = ("n16c2048h7w7_o1_f32",)

OPS: dict[str, Op] = {
    "max_pool2d": Op(max_pool2d, max_pool2d_backward, _max_problem, _MAX, _BENCH),
    "avg_pool2d": Op(avg_pool2d, avg_pool2d_backward, _avg_problem, _AVG, _BENCH),
    "adaptive_avg_pool2d": Op(
        adaptive_avg_pool2d, adaptive_avg_pool2d_backward, _adaptive_problem,
        (*_ADAPTIVE, "n2c24h7w7_o3_bf16", "n2c24h9w11_o1_bf16"), _BENCH_GLOBAL,
    ),
    "adaptive_max_pool2d": Op(
        adaptive_max_pool2d, adaptive_max_pool2d_backward, _adaptive_problem,
        tuple(line.replace("_f32", "_max_f32") for line in _ADAPTIVE) + (
            "n2c5h7w9_o3x2_max_idx_f32", "n1c2h40w30_o2_max_idx_f32", "n2c24h9w11_o1_max_idx_bf16",
            "n1c3h20w17_o1_max_idx_f32"),
        tuple(line.replace("_f32", "_max_f32") for line in _BENCH_GLOBAL),
    ),
}  # fmt: skip


def _bad(name: str, match: str, op: str, *args: Any, error: type[Exception] = ValueError,
         shape: tuple[int, ...] = (1, 2, 4, 4), **kwargs: Any) -> BadCall:  # fmt: skip
    return BadCall(
        name,
        lambda f: getattr(f.nn.functional, op)(f.zeros(*shape), *args, **kwargs),
        error,
        match,
    )


ERRORS: list[BadCall] = [
    _bad("max kernel", "max_pool2d: kernel of 5 .*larger than the padded input", "max_pool2d", 5),
    _bad("max zero kernel", "kernel_size expects values > 0", "max_pool2d", 0),
    _bad("max stride", "stride expects values > 0", "max_pool2d", 2, 0),
    _bad("max padding", "padding expects values from 0 to half the kernel", "max_pool2d", 2, 2, 2),
    _bad("max negative padding", "padding expects values from 0", "max_pool2d", 2, 2, -1),
    _bad("max dilation", "dilation expects values > 0", "max_pool2d", 2, 2, 0, 0),
    _bad("max rank", r"max_pool2d: input expects shape \(N, C, H, W\)", "max_pool2d", 2,
         shape=(2, 4, 4)),
    _bad("max empty image", "larger than the padded input", "max_pool2d", 1, shape=(1, 2, 0, 4)),
    _bad("max type", "kernel_size expects an int or a pair", "max_pool2d", 2.5, error=TypeError),
    _bad("avg kernel", "avg_pool2d: kernel of 5", "avg_pool2d", 5),
    _bad("avg divisor", "divisor_override expects a value > 0", "avg_pool2d", 2, divisor_override=0),
    _bad("adaptive size", "output_size expects values > 0", "adaptive_avg_pool2d", 0),
    _bad("adaptive rank", "adaptive_max_pool2d: input expects shape", "adaptive_max_pool2d", 1,
         shape=(2, 4, 4)),
    _bad("adaptive empty", "at least one pixel", "adaptive_avg_pool2d", 1, shape=(1, 2, 0, 0)),
    BadCall("integers", lambda f: f.nn.functional.max_pool2d(f.zeros(1, 1, 2, 2, dtype="int64"), 2),
            TypeError, "max_pool2d: input expects dtype float32 or bfloat16, got int64"),
]  # fmt: skip
