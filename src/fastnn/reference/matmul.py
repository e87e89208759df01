"""Matrix products: references and cases."""

from __future__ import annotations

import numpy as np

from fastnn.reference.case import BadCall, Op, Params, Problem


def matmul(input, other):
    return np.matmul(input, other)


def _sum_to(grad, shape):
    """Sums over the dimensions that were broadcast."""
    grad = grad.sum(tuple(range(grad.ndim - len(shape))))
    repeated = tuple(i for i, size in enumerate(shape) if size == 1 and grad.shape[i] != 1)
    return grad.sum(repeated, keepdims=True)


def matmul_backward(grad_output, input, other):
    a = input[None, :] if input.ndim == 1 else input
    b = other[:, None] if other.ndim == 1 else other
    g = grad_output
    if other.ndim == 1:
        g = np.expand_dims(g, -1)
    if input.ndim == 1:
        g = np.expand_dims(g, -2)
    grad_a = _sum_to(g @ np.swapaxes(b, -1, -2), a.shape)
    grad_b = _sum_to(np.swapaxes(a, -1, -2) @ g, b.shape)
    return {"input": grad_a.reshape(input.shape), "other": grad_b.reshape(other.shape)}


def linear(input, weight, bias=None):
    return input @ weight.T + (0 if bias is None else bias)


def linear_backward(grad_output, input, weight, bias=None):
    rows = grad_output.reshape(-1, weight.shape[0])
    grads = {"input": grad_output @ weight, "weight": rows.T @ input.reshape(-1, weight.shape[1])}
    if bias is not None:
        grads["bias"] = rows.sum(0)
    return grads


def _matmul_problem(p: Params, rng: np.random.Generator) -> Problem:
    """m k n; b and ob batches of the two operands; va, vb for a vector operand."""
    a = () if "va" in p else (p["m"],)
    b = () if "vb" in p else (p["n"],)
    left, right = _batch(p, "b"), _batch(p, "ob")
    repeats = int(np.prod(np.broadcast_shapes(left, right), dtype=int))
    m, n, k = p.get("m", 1), p.get("n", 1), p["k"]
    return Problem(
        {
            "input": rng.standard_normal((*left, *a, k)),
            "other": rng.standard_normal((*right, k, *b)),
        },
        k=k,
        k_backward=max(m, n, 1) * max(repeats, 1),
        # The gradient of a broadcast operand sums products that were stored in the dtype.
        saved_scale=2.0 * repeats * max(m, n) ** 0.5 if left != right else 0.0,
        flops=2 * m * n * k * repeats,
    )


def _batch(p: Params, key: str) -> tuple[int, ...]:
    value = p.get(key, ())
    return (value,) if isinstance(value, int) else tuple(value)


def _linear_problem(p: Params, rng: np.random.Generator) -> Problem:
    """n rows (nxm for more dimensions), i and o features; nobias."""
    rows = p["n"] if isinstance(p["n"], tuple) else (p["n"],)
    count = int(np.prod(rows))
    inputs = {
        "input": rng.standard_normal((*rows, p["i"])),
        "weight": rng.standard_normal((p["o"], p["i"])),
        "bias": None if "nobias" in p else rng.standard_normal(p["o"]),
    }
    return Problem(
        inputs, k=p["i"], k_backward=max(count, p["o"]), flops=2 * count * p["i"] * p["o"]
    )


_MATMUL = (
    "m1k1n1_f32", "m3k5n7_f32", "m17k33n65_f32", "m64k64n64_f32", "m0k4n5_f32", "m4k0n5_f32",
    "m4k5n0_f32", "k9_va_vb_f32", "k9n5_va_f32", "m6k9_vb_f32", "m3k4n5_b2_f32", "m3k4n5_b2_ob2_f32",
    "m3k4n5_b2x3_ob3_f32", "m3k4n5_b2x1_ob1x3_f32", "m2k3n4_ob3_f32", "m100k3n2_f32", "m2k300n9_f32",
    "m15k31n33_bf16", "m5k64n20_b2_ob2_bf16", "m4k7_b3_vb_f32", "m7k545n510_f32", "m32k512n520_bf16",
    "m3k20n17_b11_f32", "m19k7n40_b12_bf16", "m40k512n1030_f32", "m33k515n1024_bf16",
    "m4k0n5_bf16", "m70k1056n600_bf16",
)  # fmt: skip
_LINEAR = (
    "n1i1o1_f32", "n5i3o7_f32", "n0i3o4_f32", "n33i120o84_f32", "n128i64o10_f32", "n2x3i9o17_f32",
    "n4i65o33_nobias_f32", "n8i100o10_bf16", "n1i400o3_f32", "n2x1x3i5o6_nobias_bf16",
    "n3i1024o260_f32", "n16i130o2020_nobias_f32", "n5i600o444_nobias_bf16", "n20i608o440_bf16",
    "n9i1000o288_bf16", "n31i1056o256_nobias_bf16", "n32i520o541_f32",
    "n2i1500o30_f32", "n5i1040o70_bf16", "n1i77o18_bf16", "n100i2048o2090_bf16",
    "n45i2080o2048_nobias_bf16",
)  # fmt: skip

OPS: dict[str, Op] = {
    "matmul": Op(
        matmul,
        matmul_backward,
        _matmul_problem,
        _MATMUL,
        (
            "m1024k1024n1024_f32",
            "m4096k256n256_f32",
            "m64k64n64_b64_f32",
            "m197k64n197_b16_f32",
        ),
        "matmul",
    ),
    "linear": Op(
        linear,
        linear_backward,
        _linear_problem,
        _LINEAR,
        (
            "n1i784o256_f32",
            "n128i512o1000_f32",
            "n16i2048o1000_f32",
            "n1i4096o4096_f32",
            "n16i4096o4096_f32",
            "n32i4096o4096_f32",
            "n64i4096o4096_f32",
            "n128i4096o4096_f32",
        ),
    ),
}

ERRORS: list[BadCall] = [
    BadCall(
        "inner sizes",
        lambda f: f.matmul(f.zeros(2, 3), f.zeros(4, 5)),
        ValueError,
        r"matmul: other expects 3 rows, got shapes \(2, 3\) and \(4, 5\)",
    ),
    BadCall(
        "batches",
        lambda f: f.matmul(f.zeros(2, 4, 3), f.zeros(3, 3, 5)),
        ValueError,
        "matmul: batches do not broadcast",
    ),
    BadCall(
        "scalar", lambda f: f.matmul(f.tensor(1.0), f.zeros(2)), ValueError, "at least one dim"
    ),
    BadCall(
        "dtypes",
        lambda f: f.matmul(f.zeros(2, 3), f.zeros(3, 2, dtype="bfloat16")),
        TypeError,
        "other expects the dtype of input, float32, got bfloat16",
    ),
    BadCall(
        "integers",
        lambda f: f.matmul(f.zeros(2, 3, dtype="int64"), f.zeros(3, 2)),
        TypeError,
        "matmul: input expects dtype float32 or bfloat16, got int64",
    ),
    BadCall(
        "no tensor", lambda f: f.matmul(f.zeros(2), 3), TypeError, "other expects a fastnn.Tensor"
    ),
    BadCall(
        "features",
        lambda f: f.nn.functional.linear(f.zeros(2, 3), f.zeros(5, 4)),
        ValueError,
        r"linear: weight expects 4 input features, got input of shape \(2, 3\)",
    ),
    BadCall(
        "features of a batch",
        lambda f: f.nn.functional.linear(f.zeros(2, 2, 3), f.zeros(5, 4)),
        ValueError,
        r"expects 4 input features, got input of shape \(2, 2, 3\)",
    ),
    BadCall(
        "bias",
        lambda f: f.nn.functional.linear(f.zeros(2, 4), f.zeros(5, 4), f.zeros(4)),
        ValueError,
        r"linear: bias expects shape \(5,\), got \(4,\)",
    ),
]
