"""Activations: references and cases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import erf as _erf
from typing import Any

import numpy as np

from fastnn.reference.case import BadCall, Op, Params, Problem

erf = np.vectorize(_erf, otypes=[float])
_ALPHA, _SCALE = 1.6732632423543772848, 1.0507009873554804934


def relu(input):
    return np.where(input < 0, 0, input)


def relu_backward(grad_output, input):
    return {"input": np.where(input <= 0, 0, grad_output)}


def hardtanh(input, min_val=-1.0, max_val=1.0):
    return np.clip(input, min_val, max_val)


def hardtanh_backward(grad_output, input, min_val=-1.0, max_val=1.0):
    return {"input": np.where((input <= min_val) | (input >= max_val), 0, grad_output)}


def relu6(input):
    return hardtanh(input, 0, 6)


def relu6_backward(grad_output, input):
    return hardtanh_backward(grad_output, input, 0, 6)


def leaky_relu(input, negative_slope=0.01):
    return np.where(input < 0, negative_slope * input, input)


def leaky_relu_backward(grad_output, input, negative_slope=0.01):
    return {"input": grad_output * np.where(input <= 0, negative_slope, 1)}


def elu(input, alpha=1.0):
    return np.where(input < 0, alpha * np.expm1(np.minimum(input, 0)), input)


def elu_backward(grad_output, input, alpha=1.0):
    return {"input": grad_output * np.where(input <= 0, alpha * np.exp(np.minimum(input, 0)), 1)}


def selu(input):
    return _SCALE * elu(input, _ALPHA)


def selu_backward(grad_output, input):
    return elu_backward(_SCALE * grad_output, input, _ALPHA)


def gelu(input, approximate="none"):
    if approximate == "tanh":
        return 0.5 * input * (1 + np.tanh(np.sqrt(2 / np.pi) * (input + 0.044715 * input**3)))
    return 0.5 * input * (1 + erf(input / np.sqrt(2)))


def gelu_backward(grad_output, input, approximate="none"):
    if approximate == "tanh":
        t = np.tanh(np.sqrt(2 / np.pi) * (input + 0.044715 * input**3))
        slope = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * input**2)
        return {"input": grad_output * (0.5 * (1 + t) + 0.5 * input * (1 - t**2) * slope)}
    density = np.exp(-(input**2) / 2) / np.sqrt(2 * np.pi)
    return {"input": grad_output * (0.5 * (1 + erf(input / np.sqrt(2))) + input * density)}


def sigmoid(input):
    return 1 / (1 + np.exp(-input))


def sigmoid_backward(grad_output, input):
    return {"input": grad_output * sigmoid(input) * sigmoid(-input)}


def silu(input):
    return input * sigmoid(input)


def silu_backward(grad_output, input):
    s = sigmoid(input)
    return {"input": grad_output * (s + input * s * (1 - s))}


def tanh(input):
    return np.tanh(input)


def tanh_backward(grad_output, input):
    return {"input": grad_output / np.cosh(input) ** 2}


def softplus(input, beta=1.0, threshold=20.0):
    return np.where(beta * input > threshold, input, np.logaddexp(0, beta * input) / beta)


def softplus_backward(grad_output, input, beta=1.0, threshold=20.0):
    return {"input": grad_output * np.where(beta * input > threshold, 1, sigmoid(beta * input))}


def hardsigmoid(input):
    return np.clip(input + 3, 0, 6) / 6


def hardsigmoid_backward(grad_output, input):
    return {"input": np.where(np.abs(input) >= 3, 0, grad_output / 6)}


def hardswish(input):
    return input * np.clip(input + 3, 0, 6) / 6


def hardswish_backward(grad_output, input):
    slope = np.where(input >= 3, 1, np.where(input <= -3, 0, input / 3 + 0.5))
    return {"input": grad_output * slope}


#: What convolutions and batch norms apply to their own results, with its gradient.
FUSED: dict[str | None, tuple[Callable[..., Any], Callable[..., Any]]] = {
    None: (lambda input: input, lambda grad_output, input: {"input": grad_output}),
    "relu": (relu, relu_backward),
    "relu6": (relu6, relu6_backward),
    "gelu": (gelu, gelu_backward),
    "gelu_tanh": (partial(gelu, approximate="tanh"), partial(gelu_backward, approximate="tanh")),
    "hardsigmoid": (hardsigmoid, hardsigmoid_backward),
    "hardswish": (hardswish, hardswish_backward),
    "sigmoid": (sigmoid, sigmoid_backward),
    "silu": (silu, silu_backward),
    "tanh": (tanh, tanh_backward),
}


def fused_of(p: Params) -> dict[str, str]:
    """The keyword for the activation that a case line names: ``relu``, ``relu6``, ``gelutanh``."""
    if "relu" in p:
        return {"activation": "relu6" if p["relu"] == 6 else "relu"}
    named = [name for name in FUSED if name and name.replace("_", "") in p]
    return {"activation": named[0]} if named else {}


def _along(vector, x):
    return vector.reshape((1, -1) + (1,) * (x.ndim - 2))


def prelu(input, weight):
    return np.where(input < 0, _along(weight, input) * input, input)


def prelu_backward(grad_output, input, weight):
    per_channel = np.where(input < 0, grad_output * input, 0).sum((0, *range(2, input.ndim)))
    return {
        "input": grad_output * np.where(input <= 0, _along(weight, input), 1),
        "weight": per_channel if weight.size > 1 else per_channel.sum(keepdims=True),
    }


def _groups(x, pool_size):
    return x.reshape(x.shape[0], x.shape[1] // pool_size, pool_size, *x.shape[2:])


def maxout(input, pool_size):
    return _groups(input, pool_size).max(2)


def maxout_backward(grad_output, input, pool_size):
    groups = _groups(input, pool_size)
    first = np.argmax(groups, 2)
    steps = np.arange(pool_size).reshape((1, 1, -1) + (1,) * (input.ndim - 2))
    grad = np.where(steps == np.expand_dims(first, 2), np.expand_dims(grad_output, 2), 0)
    return {"input": grad.reshape(input.shape)}


def _shape(p: Params) -> tuple[int, ...]:
    """n, c, l, h, w as far as given; ``s7`` is a vector of 7."""
    if "s" in p:
        return (p["s"],)
    return tuple(p[key] for key in "nclhw" if key in p)


def _problem(*options: tuple[str, str]) -> Callable[[Params, np.random.Generator], Problem]:
    """Elementwise problems; each option is (key in the line, keyword of the call)."""

    def build(p: Params, rng: np.random.Generator) -> Problem:
        x = rng.standard_normal(_shape(p)) * 2
        # Kinks are not differentiable: finite differences need a distance from them.
        x += np.copysign(0.05, x)
        for kink in (1, 3, 6):
            x = np.where(np.abs(np.abs(x) - kink) < 1e-3, kink - 0.5, x)
        kwargs: dict[str, Any] = {name: p[key] for key, name in options if key in p}
        if "tanh" in p:
            kwargs["approximate"] = "tanh"
        # An elementary function and a few products, of values of size 3.
        return Problem({"input": x}, kwargs, k=4, scale=3.0)

    return build


def _prelu_problem(p: Params, rng: np.random.Generator) -> Problem:
    """one: a single slope."""
    problem = _problem()(p, rng)
    x = problem.inputs["input"]
    problem.inputs["weight"] = rng.standard_normal(1 if "one" in p else p["c"])
    problem.k_backward = max(x.size // (1 if "one" in p else max(p["c"], 1)), 4)
    problem.float32_inputs = ("weight",)
    return problem


def _maxout_problem(p: Params, rng: np.random.Generator) -> Problem:
    """k channels are pooled."""
    return Problem({"input": rng.standard_normal(_shape(p))}, {"pool_size": p["k"]})


_SHAPES = (
    "s1_f32", "s7_f32", "s16_f32", "s1000_f32", "s33_bf16", "n2c3h5w7_f32", "n0c3h4w4_f32",
    "n1c1h1w1_f32", "n2c17h3w3_bf16", "n3c64h4w4_f32",
)  # fmt: skip
_BENCH = ("n16c64h56w56_f32", "n16c64h56w56_bf16")


def _op(forward: Any, backward: Any, *options: tuple[str, str], more: tuple[str, ...] = ()) -> Op:
    return Op(forward, backward, _problem(*options), _SHAPES + more, _BENCH)


OPS: dict[str, Op] = {
    "relu": _op(relu, relu_backward),
    "relu6": _op(relu6, relu6_backward),
    "hardtanh": _op(hardtanh, hardtanh_backward, ("l", "min_val"), ("u", "max_val"),
                    more=("s60_l-0.5u2.0_f32",)),
    "leaky_relu": _op(leaky_relu, leaky_relu_backward, ("a", "negative_slope"),
                      more=("s50_a0.3_f32",)),
    "elu": _op(elu, elu_backward, ("a", "alpha"), more=("s50_a0.5_f32",)),
    "selu": _op(selu, selu_backward),
    "gelu": _op(gelu, gelu_backward, more=("s100_tanh_f32", "n2c5h3w3_tanh_bf16")),
    "silu": _op(silu, silu_backward),
    "sigmoid": _op(sigmoid, sigmoid_backward),
    "tanh": _op(tanh, tanh_backward),
    "softplus": _op(softplus, softplus_backward, ("b", "beta"), ("t", "threshold"),
                    more=("s60_b2.0t3.0_f32",)),
    "hardsigmoid": _op(hardsigmoid, hardsigmoid_backward),
    "hardswish": _op(hardswish, hardswish_backward),
    "prelu": Op(prelu, prelu_backward, _prelu_problem,
                ("n2c3h5w7_f32", "n2c17h3w3_one_f32", "n4c9_f32", "n2c5l6_f32", "n0c3h2w2_f32",
                 "n3c20h4w4_bf16"), _BENCH),
    "maxout": Op(maxout, maxout_backward, _maxout_problem,
                 ("n2c6h3w3_k2_f32", "n4c12_k3_f32", "n1c5h2w2_k5_f32", "n0c4h2w2_k2_f32",
                  "n2c8h3w5_k4_bf16", "n2c3h3w3_k1_f32"),
                 ("n16c64h56w56_k2_f32",)),
}  # fmt: skip


def _bad(op: str, *rest: Any) -> Callable[[Any], Any]:
    return lambda f: getattr(f.nn.functional, op)(f.zeros(2, 6, 3, 3), *rest)


def _of_integers(op: str) -> Callable[[Any], Any]:
    return lambda f: getattr(f.nn.functional, op)(f.tensor([1, 2]))


ERRORS: list[BadCall] = [
    *(
        BadCall(
            f"{op} of integers",
            _of_integers(op),
            TypeError,
            rf"^{op}: input expects dtype float32 or bfloat16, got int64",
        )
        for op in ("relu", "elu", "selu", "gelu", "sigmoid", "softplus")
    ),
    BadCall("gelu", _bad("gelu", "erf"), ValueError, "approximate expects 'none' or 'tanh'"),
    BadCall("softplus", _bad("softplus", 0), ValueError, "beta expects a value other than 0"),
    BadCall(
        "hardtanh", _bad("hardtanh", 1, 1), ValueError, "max_val expects a value above 1, got 1"
    ),
    BadCall("maxout", _bad("maxout", 4), ValueError, "maxout: pool_size expects a divisor of 6"),
    BadCall("maxout zero", _bad("maxout", 0), ValueError, "pool_size expects a divisor of 6"),
    BadCall(
        "prelu",
        lambda f: f.nn.functional.prelu(f.zeros(2, 6), f.zeros(4)),
        ValueError,
        "prelu: weight expects 1 or 6 values",
    ),
]
