"""Normalisations: references and cases."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastnn.reference.activation import FUSED, fused_of
from fastnn.reference.case import BadCall, Op, Params, Problem


def _along(vector, x):
    """A vector over channels, shaped to broadcast against x."""
    return np.reshape(vector, (1, -1) + (1,) * (x.ndim - 2))


def _affine(normed, weight, bias):
    if weight is not None:
        normed = normed * _along(weight, normed)
    return normed if bias is None else normed + _along(bias, normed)


def _normalised_backward(g, xhat, invstd, axes):
    """Gradient through (x - mean) / std, where mean and std run over ``axes``."""
    mean_g = g.mean(axes, keepdims=True)
    mean_gx = (g * xhat).mean(axes, keepdims=True)
    return invstd * (g - mean_g - xhat * mean_gx)


def batch_norm(
    input, running_mean=None, running_var=None, weight=None, bias=None, training=False,
    momentum=0.1, eps=1e-5, *, activation=None, residual=None,
):  # fmt: skip
    axes = (0, *range(2, input.ndim))
    if training and input.size:
        mean, var = input.mean(axes), input.var(axes)
        if running_mean is not None:
            count = input.size // input.shape[1]
            running_mean += momentum * (mean - running_mean)
            running_var += momentum * (var * count / (count - 1) - running_var)
    elif training:
        return input
    else:
        mean, var = running_mean, running_var
    out = (input - _along(mean, input)) / np.sqrt(_along(var, input) + eps)
    out = _affine(out, weight, bias)
    if residual is not None:
        out = out + residual
    return FUSED[activation][0](out)


def batch_norm_backward(
    grad_output, input, running_mean=None, running_var=None, weight=None, bias=None,
    training=False, momentum=0.1, eps=1e-5, *, activation=None, residual=None,
):  # fmt: skip
    axes = (0, *range(2, input.ndim))
    if training and input.size:
        mean, var = input.mean(axes), input.var(axes)
    else:
        zero = np.zeros(input.shape[1])
        mean = zero if running_mean is None else running_mean
        var = zero if running_var is None else running_var
    invstd = 1 / np.sqrt(_along(var, input) + eps)
    xhat = (input - _along(mean, input)) * invstd
    out = _affine(xhat, weight, bias) + (0 if residual is None else residual)
    g = FUSED[activation][1](grad_output, out)["input"]
    scaled = g if weight is None else g * _along(weight, g)
    if training and input.size:
        grads = {"input": _normalised_backward(scaled, xhat, invstd, axes)}
    else:
        grads = {"input": scaled * invstd}
    if weight is not None:
        grads["weight"] = (g * xhat).sum(axes)
    if bias is not None:
        grads["bias"] = g.sum(axes)
    if residual is not None:
        grads["residual"] = g
    return grads


def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5):
    if input.size == 0:
        return input
    x = input.reshape(input.shape[0], num_groups, -1)
    xhat = (x - x.mean(2, keepdims=True)) / np.sqrt(x.var(2, keepdims=True) + eps)
    return _affine(xhat.reshape(input.shape), weight, bias)


def group_norm_backward(grad_output, input, num_groups, weight=None, bias=None, eps=1e-5):
    g = grad_output
    grads = {"input": np.zeros_like(input)}
    xhat = np.zeros_like(input)
    if input.size:
        x = input.reshape(input.shape[0], num_groups, -1)
        invstd = 1 / np.sqrt(x.var(2, keepdims=True) + eps)
        normed = (x - x.mean(2, keepdims=True)) * invstd
        scaled = (g if weight is None else g * _along(weight, g)).reshape(x.shape)
        grads["input"] = _normalised_backward(scaled, normed, invstd, 2).reshape(input.shape)
        xhat = normed.reshape(input.shape)
    axes = (0, *range(2, input.ndim))
    if weight is not None:
        grads["weight"] = (g * xhat).sum(axes)
    if bias is not None:
        grads["bias"] = g.sum(axes)
    return grads


def instance_norm(
    input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True,
    momentum=0.1, eps=1e-5,
):  # fmt: skip
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None and input.size:
        axes = tuple(range(2, input.ndim))
        pixels = int(np.prod(input.shape[2:]))
        unbiased = input.var(axes).mean(0) * pixels / (pixels - 1)
        running_mean += momentum * (input.mean(axes).mean(0) - running_mean)
        running_var += momentum * (unbiased - running_var)
    return group_norm(input, input.shape[1], weight, bias, eps)


def instance_norm_backward(
    grad_output, input, running_mean=None, running_var=None, weight=None, bias=None,
    use_input_stats=True, momentum=0.1, eps=1e-5,
):  # fmt: skip
    if not use_input_stats:
        return batch_norm_backward(
            grad_output, input, running_mean, running_var, weight, bias, False, momentum, eps
        )
    return group_norm_backward(grad_output, input, input.shape[1], weight, bias, eps)


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    axes = tuple(range(input.ndim - len(normalized_shape), input.ndim))
    mean, var = input.mean(axes, keepdims=True), input.var(axes, keepdims=True)
    out = (input - mean) / np.sqrt(var + eps)
    return out * (1 if weight is None else weight) + (0 if bias is None else bias)


def layer_norm_backward(grad_output, input, normalized_shape, weight=None, bias=None, eps=1e-5):
    axes = tuple(range(input.ndim - len(normalized_shape), input.ndim))
    rest = tuple(range(input.ndim - len(normalized_shape)))
    invstd = 1 / np.sqrt(input.var(axes, keepdims=True) + eps)
    xhat = (input - input.mean(axes, keepdims=True)) * invstd
    scaled = grad_output * (1 if weight is None else weight)
    grads = {"input": _normalised_backward(scaled, xhat, invstd, axes)}
    if weight is not None:
        grads["weight"] = (grad_output * xhat).sum(rest)
    if bias is not None:
        grads["bias"] = grad_output.sum(rest)
    return grads


def _response_base(input, size, alpha, k):
    """k + alpha / size * sum of squares over each channel's window."""
    squares = np.pad(input**2, ((0, 0), (size // 2, (size - 1) // 2), (0, 0), (0, 0)))
    return k + alpha / size * sum(squares[:, o : o + input.shape[1]] for o in range(size))


def local_response_norm(input, size, alpha=1e-4, beta=0.75, k=1.0):
    return input * _response_base(input, size, alpha, k) ** -beta


def local_response_norm_backward(grad_output, input, size, alpha=1e-4, beta=0.75, k=1.0):
    base = _response_base(input, size, alpha, k)
    inner = grad_output * input * base ** (-beta - 1)
    # Channel c is in the windows of channels c - (size-1)//2 .. c + size//2.
    padded = np.pad(inner, ((0, 0), ((size - 1) // 2, size // 2), (0, 0), (0, 0)))
    summed = sum(padded[:, o : o + input.shape[1]] for o in range(size))
    return {"input": grad_output * base**-beta - 2 * alpha * beta / size * input * summed}


def _image(p: Params, rng: np.random.Generator) -> np.ndarray:
    """n c [l | h w], with the mean `far` standard deviations from zero."""
    shape = tuple(p[key] for key in "nclhw" if key in p)
    return rng.standard_normal(shape) + p.get("far", 0)


def _affine_inputs(p: Params, rng: np.random.Generator, shape: Any) -> dict[str, Any]:
    plain = "plain" in p
    return {
        "weight": None if plain else rng.standard_normal(shape) + 2,
        "bias": None if plain else rng.standard_normal(shape),
    }


def _running(p: Params, rng: np.random.Generator) -> dict[str, Any]:
    if "notrack" in p:
        return {"running_mean": None, "running_var": None}
    c = p["c"]
    return {"running_mean": rng.standard_normal(c), "running_var": rng.random(c) + 0.5}


_PARAMETERS = ("weight", "bias", "running_mean", "running_var")


def _problem(x, rest, kwargs, k, p, axes, running=False) -> Problem:
    far = 1 + abs(p.get("far", 0))
    mutates = ("running_mean", "running_var")
    # A deviation carries the rounding of values of size `far`, times 1 / std; the gradient, twice.
    steep = 1 / np.sqrt(x.var(axes).min() + 1e-5) if x.size else 1.0
    steep = max(1.0, float(steep))
    return Problem(
        {"input": x, **rest},
        kwargs,
        k=8 + int(np.log2(max(k, 2))),
        k_backward=max(x.size // max(x.shape[1] if x.ndim > 1 else 1, 1), 16),
        scale=4.0 * far * steep,
        scale_backward=4.0 * far * steep**2,
        mutates=mutates if running and rest["running_mean"] is not None else (),
        float32_inputs=_PARAMETERS,
    )


def _batch_problem(p: Params, rng: np.random.Generator) -> Problem:
    """eval uses running statistics; notrack has none; plain has no weight; mo momentum."""
    x = _image(p, rng)
    rest = {**_running(p, rng), **_affine_inputs(p, rng, p["c"])}
    kwargs: dict[str, Any] = {"training": "eval" not in p}
    if "mo" in p:
        kwargs["momentum"] = p["mo"]
    kwargs |= fused_of(p)
    if "res" in p:
        rest["residual"] = rng.standard_normal(x.shape)
    axes = (0, *range(2, x.ndim))
    problem = _problem(x, rest, kwargs, x.size // p["c"], p, axes, running=True)
    # With gradients, an activation other than a ReLU of a sum is an operator of its own.
    curved = kwargs.get("activation") not in (None, "relu", "relu6")
    problem.differentiable = not (curved and "res" in p)
    if curved:
        # The gradient before it is stored, and steep; its slopes are as exact as the dtype needs.
        steep = problem.scale_backward or problem.scale
        problem.apart_scale = 6.0  # normal values times a normal weight
        problem.saved_scale = 4 * steep + (x.size / max(p["c"], 1)) ** 0.5
    return problem


def _instance_problem(p: Params, rng: np.random.Generator) -> Problem:
    x = _image(p, rng)
    rest = {**_running(p, rng), **_affine_inputs(p, rng, p["c"])}
    axes = tuple(range(2, x.ndim))
    return _problem(x, rest, {"use_input_stats": "eval" not in p}, x.size, p, axes, running=True)


def _group_problem(p: Params, rng: np.random.Generator) -> Problem:
    x = _image(p, rng)
    rest, kwargs = _affine_inputs(p, rng, p["c"]), {"num_groups": p["g"]}
    problem = _problem(x, rest, kwargs, x.size, p, None)
    if x.size:
        groups = x.reshape(x.shape[0], p["g"], -1)
        steep = max(1.0, float(1 / np.sqrt(groups.var(2).min() + 1e-5)))
        problem.scale *= steep
        problem.scale_backward = problem.scale * steep
    return problem


def _layer_problem(p: Params, rng: np.random.Generator) -> Problem:
    """d trailing dimensions."""
    x = _image(p, rng)
    shape = x.shape[x.ndim - p["d"] :]
    rest = _affine_inputs(p, rng, shape)
    axes = tuple(range(x.ndim - p["d"], x.ndim))
    return _problem(x, rest, {"normalized_shape": shape}, int(np.prod(shape)), p, axes)


def _response_problem(p: Params, rng: np.random.Generator) -> Problem:
    """size of the window; a, b, k constants."""
    kwargs = {"size": p["size"], "alpha": p.get("a", 1e-4), "beta": p.get("b", 0.75),
              "k": p.get("k", 1.0)}  # fmt: skip
    x = _image(p, rng)
    # exp(-beta log(base)) errs by a few units for each of its factors.
    return Problem({"input": x}, kwargs, k=p["size"] + 16, scale=2.0)


_BATCH = (
    "n4c3h5w7_f32", "n2c1h1w1_f32", "n3c17_f32", "n5c33l6_f32", "n2c64h8w8_f32", "n0c4h3w3_f32",
    "n4c19h3w5_plain_notrack_f32", "n6c20h4w4_mo0.3_f32", "n2c16h6w6_relu_res_f32",
    "n2c16h6w6_relu_f32", "n2c40h9w9_relu6_f32",
    "n2c24h9w9_eval_relu6_res_f32", "n3c8h5w5_res_f32", "n3c16h5w5_eval_f32", "n0c5h2w2_eval_f32",
    "n3c7h5w5_eval_relu_res_f32", "n4c5h9w9_far100_f32", "n64c3h12w12_f32", "n2c40h70w70_f32",
    "n4c3h8w8_relu_f32", "n5c2h4w4_eval_relu_res_bf16", "n2c21h8w8_far100_f32", "n3c6h7w7_relu6_f32",
    "n2c24h6w6_bf16", "n2c16h6w6_relu_res_bf16", "n3c9_eval_bf16", "n1c6h4w4_plain_f32",
    "n2c24h9w9_silu_f32", "n3c5h7w7_silu_bf16", "n2c1030h3w2_hardswish_f32", "n4c40_gelu_f32",
    "n2c16h6w6_eval_res_silu_f32", "n2c100h7w9_eval_sigmoid_bf16", "n2c21h8w8_plain_tanh_f32",
    "n2c96h6w6_gelutanh_bf16", "n3c8l9_hardsigmoid_f32", "n0c4h3w3_silu_f32",
)  # fmt: skip
_IMAGES = ("n2c3h5w7_f32", "n3c17h4w4_f32", "n1c64h8w8_plain_f32", "n0c4h3w3_f32",
           "n2c5h9w9_far50_f32", "n2c16h6w6_bf16", "n2c6l9_f32")  # fmt: skip
_BENCH = ("n16c64h112w112_f32", "n16c256h56w56_f32", "n16c256h56w56_bf16")

OPS: dict[str, Op] = {
    "batch_norm": Op(
        batch_norm, batch_norm_backward, _batch_problem, _BATCH,
        (*_BENCH, "n16c256h56w56_relu_res_f32", "n16c3h224w224_f32"),
    ),
    "instance_norm": Op(
        instance_norm, instance_norm_backward, _instance_problem,
        (*_IMAGES, "n3c5h4w4_notrack_f32", "n3c8h4w4_eval_f32"), _BENCH,
    ),
    "group_norm": Op(
        group_norm, group_norm_backward, _group_problem,
        ("n2c6h5w5_g3_f32", "n3c32h4w4_g8_f32", "n2c5h3w3_g1_f32", "n2c5h3w3_g5_f32",
         "n4c12_g4_f32", "n0c4h3w3_g2_f32", "n2c6l7_g2_f32", "n1c64h9w9_g32_plain_f32",
         "n2c8h5w5_g2_far50_f32", "n2c24h5w5_g6_bf16", "n3c40h3w4_g5_plain_bf16",
         "n3c64h3w3_g2_f32", "n2c192h4w3_g2_far50_f32", "n2c2100h2w2_g1_f32"),
        tuple(f"{line[:line.rindex('_')]}_g32{line[line.rindex('_'):]}" for line in _BENCH),
    ),
    "layer_norm": Op(
        layer_norm, layer_norm_backward, _layer_problem,
        ("n4c7_d1_f32", "n3c5l17_d1_f32", "n3c5l17_d2_f32", "n2c6h4w5_d3_f32", "n2c6h4w5_d1_f32",
         "n1c1_d1_f32", "n9c1000_d1_f32", "n5c33_d1_plain_f32", "n4c64_d1_far50_f32",
         "n0c8_d1_f32", "n6c48_d1_bf16", "n2c4h3w3_d3_bf16", "n4103c6_d1_f32", "n9c32_d1_bf16"),
        ("n3136c768_d1_f32", "n3136c768_d1_bf16"),
    ),
    "local_response_norm": Op(
        local_response_norm, local_response_norm_backward, _response_problem,
        ("n2c7h3w4_size5_f32", "n1c1h1w1_size1_f32", "n2c3h5w5_size9_a0.5_f32",
         "n2c33h4w4_size4_a1.0b0.5k2.0_f32", "n0c4h2w2_size3_f32", "n2c16h5w5_size2_a0.3_f32",
         "n2c20h3w3_size5_a0.1_bf16"),
        ("n16c96h55w55_size5_f32",),
    ),
}  # fmt: skip


def _call(name, *shapes, **kwargs):
    return lambda fastnn: getattr(fastnn.nn.functional, name)(
        *(fastnn.zeros(s) if isinstance(s, tuple) else s for s in shapes), **kwargs
    )


ERRORS: list[BadCall] = [
    BadCall("batch rank", _call("batch_norm", (2, 3, 4, 5, 6), training=True), ValueError,
            r"batch_norm: input expects shape \(N, C\) or \(N, C, H, W\)"),
    BadCall("one value", _call("batch_norm", (1, 3), training=True), ValueError,
            "more than 1 value per channel"),
    BadCall("no statistics", _call("batch_norm", (2, 3)), ValueError, "are needed when training=False"),
    BadCall("weight", _call("batch_norm", (2, 3), None, None, (4,), training=True), ValueError,
            r"batch_norm: weight expects 3 values, got shape \(4,\)"),
    BadCall("statistics", _call("batch_norm", (2, 3), (4,), (4,)), ValueError,
            "running_mean expects 3 values"),
    BadCall("residual", _call("batch_norm", (2, 3), training=True, residual=None, activation="elu"),
            ValueError, "activation expects None, 'relu', 'relu6', 'gelu'"),
    BadCall("integers", lambda f: f.nn.functional.batch_norm(f.zeros(2, 3, dtype="int32"),
                                                             training=True),
            TypeError, "batch_norm: input expects dtype float32 or bfloat16, got int32"),
    BadCall("groups", _call("group_norm", (2, 6, 3, 3), 4), ValueError,
            "num_groups expects a divisor of 6 channels, got 4"),
    BadCall("no groups", _call("group_norm", (2, 6, 3, 3), 0), ValueError, "expects a divisor"),
    BadCall("layer shape", _call("layer_norm", (2, 6), 5), ValueError,
            r"layer_norm: input expects trailing sizes \(5,\), got shape \(2, 6\)"),
    BadCall("layer weight", _call("layer_norm", (2, 6), 6, (5,)), ValueError,
            r"weight expects shape \(6,\), got \(5,\)"),
    BadCall("one pixel", _call("instance_norm", (2, 3, 1, 1)), ValueError, "more than 1 pixel"),
    BadCall("instance rank", _call("instance_norm", (2, 3)), ValueError, "instance_norm: input expects"),
    BadCall("response rank", _call("local_response_norm", (2, 3), 5), ValueError, "input expects shape"),
    BadCall("response size", _call("local_response_norm", (2, 3, 4, 4), 0), ValueError,
            "size expects an integer > 0"),
]  # fmt: skip
