"""Losses: references and cases."""

from __future__ import annotations

import numpy as np

from fastnn.reference.case import BadCall, Op, Params, Problem
from fastnn.reference.softmax import log_softmax, softmax


def _rows(x):
    """(N, C, ...) as rows of classes."""
    return np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])


def _targets(input, target, weight, ignore_index, smoothing):
    """Per row the weights t_c w_c of the classes, and what a mean divides by."""
    classes = input.shape[1]
    w = np.ones(classes) if weight is None else weight
    if target.dtype.kind == "f":
        t, divisor = _rows(target), target.size / classes
    else:
        labels = target.reshape(-1)
        live = labels != ignore_index
        t = np.eye(classes)[np.where(live, labels, 0)]
        divisor = w[labels[live]].sum()
    t = (t * (1 - smoothing) + smoothing / classes) * w
    if target.dtype.kind != "f":
        t[~live] = 0
    return t, divisor


def _reduce(values, reduction, divisor):
    if reduction == "none":
        return values
    return values.sum() / (divisor if reduction == "mean" else 1)


def _row_scale(grad_output, reduction, divisor, rows):
    g = np.broadcast_to(grad_output.reshape(-1), rows)
    return (g / (divisor if reduction == "mean" else 1))[:, None]


def cross_entropy(input, target, weight=None, ignore_index=-100, reduction="mean",
                  label_smoothing=0.0):  # fmt: skip
    t, divisor = _targets(input, target, weight, ignore_index, label_smoothing)
    loss = -(t * log_softmax(_rows(input), 1)).sum(1)
    return _reduce(loss.reshape(input.shape[0], *input.shape[2:]), reduction, divisor)


def cross_entropy_backward(grad_output, input, target, weight=None, ignore_index=-100,
                           reduction="mean", label_smoothing=0.0):  # fmt: skip
    t, divisor = _targets(input, target, weight, ignore_index, label_smoothing)
    g = _row_scale(grad_output, reduction, divisor, len(t))
    rows = g * (t.sum(1, keepdims=True) * softmax(_rows(input), 1) - t)
    n, c, *rest = input.shape
    return {"input": np.moveaxis(rows.reshape(n, *rest, c), -1, 1)}


def nll_loss(input, target, weight=None, ignore_index=-100, reduction="mean"):
    t, divisor = _targets(input, target, weight, ignore_index, 0.0)
    loss = -(t * _rows(input)).sum(1)
    return _reduce(loss.reshape(input.shape[0], *input.shape[2:]), reduction, divisor)


def nll_loss_backward(grad_output, input, target, weight=None, ignore_index=-100,
                      reduction="mean"):  # fmt: skip
    t, divisor = _targets(input, target, weight, ignore_index, 0.0)
    n, c, *rest = input.shape
    rows = -_row_scale(grad_output, reduction, divisor, len(t)) * t
    return {"input": np.moveaxis(rows.reshape(n, *rest, c), -1, 1)}


def mse_loss(input, target, reduction="mean"):
    return _reduce((input - target) ** 2, reduction, input.size)


def mse_loss_backward(grad_output, input, target, reduction="mean"):
    g = grad_output * 2 * (input - target) / (input.size if reduction == "mean" else 1)
    return {"input": g, "target": -g}


def l1_loss(input, target, reduction="mean"):
    return _reduce(np.abs(input - target), reduction, input.size)


def l1_loss_backward(grad_output, input, target, reduction="mean"):
    g = grad_output * np.sign(input - target) / (input.size if reduction == "mean" else 1)
    return {"input": g, "target": -g}


def smooth_l1_loss(input, target, reduction="mean", beta=1.0):
    d = np.abs(input - target)
    square = d**2 / (2 * beta) if beta else d
    return _reduce(np.where(d < beta, square, d - beta / 2), reduction, input.size)


def smooth_l1_loss_backward(grad_output, input, target, reduction="mean", beta=1.0):
    d = input - target
    slope = np.clip(d / beta, -1, 1) if beta else np.sign(d)
    g = grad_output * slope / (input.size if reduction == "mean" else 1)
    return {"input": g, "target": -g}


def binary_cross_entropy_with_logits(input, target, weight=None, reduction="mean",
                                     pos_weight=None):  # fmt: skip
    w = 1 if weight is None else weight
    p = 1 if pos_weight is None else pos_weight
    soft = np.logaddexp(0, -input)  # -log sigmoid(x)
    loss = w * (p * target * soft + (1 - target) * (soft + input))
    return _reduce(loss, reduction, input.size)


def binary_cross_entropy_with_logits_backward(grad_output, input, target, weight=None,
                                              reduction="mean", pos_weight=None):  # fmt: skip
    w = 1 if weight is None else weight
    p = 1 if pos_weight is None else pos_weight
    s = 1 / (1 + np.exp(-input))
    g = w * ((1 - target) * s - p * target * (1 - s))
    return {"input": grad_output * g / (input.size if reduction == "mean" else 1)}


def _reduction(p: Params) -> str:
    return next((name for name in ("sum", "none") if name in p), "mean")


def _class_problem(p: Params, rng: np.random.Generator) -> Problem:
    """n c l h w sizes; soft targets; wt weights; ls smoothing; ig ignored label; sum, none; int."""
    shape = tuple(p[key] for key in "nclhw" if key in p)
    x = rng.standard_normal(shape) * 2
    rest = (shape[0], *shape[2:])
    if "soft" in p:
        target = softmax(rng.standard_normal(shape), 1)
    else:
        target = rng.integers(0, p["c"], rest).astype(np.int32 if "int" in p else np.int64)
        if "ig" in p:
            target[rng.random(rest) < 0.3] = p["ig"]
    kwargs = {"reduction": _reduction(p)}
    if "ls" in p:
        kwargs["label_smoothing"] = p["ls"]
    if "ig" in p:
        kwargs["ignore_index"] = p["ig"]
    weight = rng.random(p["c"]) + 0.5 if "wt" in p else None
    rows = int(np.prod(rest)) if kwargs["reduction"] == "sum" else 1
    # Each row's loss errs by a few units of numbers of size log C; a sum of rows adds them.
    return Problem(
        {"input": x, "target": target, "weight": weight},
        kwargs,
        k=(8 + p["c"]) * max(rows, 1),
        k_backward=8 + p["c"],
        scale=2.0,
        float32_inputs=("target", "weight"),
        constants=("target", "weight"),
    )


def _nll_problem(p: Params, rng: np.random.Generator) -> Problem:
    problem = _class_problem(p, rng)
    problem.inputs["input"] = log_softmax(problem.inputs["input"], 1)
    return problem


def _pair_problem(p: Params, rng: np.random.Generator) -> Problem:
    """s or n c h w sizes; b beta; sum, none."""
    shape = (p["s"],) if "s" in p else tuple(p[key] for key in "nchw" if key in p)
    x, t = rng.standard_normal(shape), rng.standard_normal(shape)
    x += np.copysign(0.05, x - t)  # away from the kink at x = t
    kwargs = {"reduction": _reduction(p)}
    if "b" in p:
        kwargs["beta"] = p["b"]
    return Problem({"input": x, "target": t}, kwargs, k=8 * (x.size if "sum" in p else 1),
                   k_backward=4, scale=4.0)  # fmt: skip


def _binary_problem(p: Params, rng: np.random.Generator) -> Problem:
    """s or n c h w sizes; wt weight; pw pos_weight."""
    problem = _pair_problem(p, rng)
    shape = problem.inputs["input"].shape
    problem.inputs["target"] = rng.random(shape)
    problem.inputs["weight"] = rng.random(shape) if "wt" in p else None
    if "pw" in p:
        problem.inputs["pos_weight"] = rng.random(shape[-1:]) + 0.5
    problem.float32_inputs = problem.constants = ("target", "weight", "pos_weight")
    return problem


_CLASS = (
    "n1c1_f32", "n4c10_f32", "n7c3_sum_f32", "n5c17_none_f32", "n4c1000_f32", "n6c10_wt_f32",
    "n6c10_wt_ig3_f32", "n9c5_ig-100_f32", "n3c4h2w5_f32", "n2c19h3w3_none_f32", "n2c6l5_none_f32",
    "n4c10_int_f32", "n5c8_bf16", "n3c2h5w7_f32", "n2c3h5w7_bf16", "n2c9h3w3_wt_bf16",
    "n4099c5_wt_ig2_none_f32", "n6c33_bf16",
)  # fmt: skip
_SMOOTH = (
    "n4c10_ls0.1_f32", "n6c10_wt_ls0.3_ig2_f32", "n4c7_soft_f32", "n4c7_soft_wt_ls0.2_f32",
    "n2c5h3w2_soft_none_f32", "n2c5l3_soft_sum_f32", "n5c8_ls0.1_bf16", "n3c4h2w5_ls1.0_f32",
    "n3c40_wt_ls0.1_f32", "n5c70_soft_none_bf16",
)  # fmt: skip
_PAIR = ("s1_f32", "s7_f32", "s100_sum_f32", "s33_none_f32", "n2c3h4w5_f32", "s70000_f32",
         "s40_bf16", "n2c17h3w3_none_bf16")  # fmt: skip
_BENCH = ("n16c64h56w56_f32",)

OPS: dict[str, Op] = {
    "cross_entropy": Op(
        cross_entropy, cross_entropy_backward, _class_problem, _CLASS + _SMOOTH,
        ("n128c1000_f32", "n16c21h128w128_f32"),
    ),
    "nll_loss": Op(nll_loss, nll_loss_backward, _nll_problem, _CLASS, ("n128c1000_f32",)),
    "mse_loss": Op(mse_loss, mse_loss_backward, _pair_problem, _PAIR, _BENCH),
    "l1_loss": Op(l1_loss, l1_loss_backward, _pair_problem, _PAIR, _BENCH),
    "smooth_l1_loss": Op(
        smooth_l1_loss, smooth_l1_loss_backward, _pair_problem,
        (*_PAIR, "s50_b0.5_f32", "s50_b2.0_none_f32", "s50_b0_f32"), _BENCH,
    ),
    "binary_cross_entropy_with_logits": Op(
        binary_cross_entropy_with_logits, binary_cross_entropy_with_logits_backward,
        _binary_problem, (*_PAIR, "n5c4_wt_f32", "n5c4_pw_f32", "n5c4_wt_pw_none_f32"), _BENCH,
    ),
}  # fmt: skip


def _class_error(name, message, scores, labels, error=ValueError, op="cross_entropy", **kwargs):
    return BadCall(
        name,
        lambda f: getattr(f.nn.functional, op)(
            f.zeros(scores), f.tensor(labels) if isinstance(labels, (list, int)) else labels(f),
            **{k: v(f) if callable(v) else v for k, v in kwargs.items()},
        ),
        error,
        message,
    )  # fmt: skip


ERRORS: list[BadCall] = [
    _class_error("label", r"cross_entropy: target labels expect 0 to 2 .*got 3 at flat position 1",
                 (2, 3), [0, 3]),
    _class_error("negative label", "got -1 at flat position 0", (2, 3), [-1, 0]),
    _class_error("nll label", "nll_loss: target labels expect 0 to 2", (2, 3), [5, 0], op="nll_loss"),
    _class_error("label shape", r"target labels expect shape \(2,\), got \(3,\)", (2, 3), [0, 1, 2]),
    _class_error("soft shape", "target probabilities expect the input's shape", (2, 3),
                 lambda f: f.zeros(2, 4)),
    _class_error("soft nll", "nll_loss: target expects int64 or int32 labels, got float32", (2, 3),
                 lambda f: f.zeros(2, 3), TypeError, "nll_loss"),
    _class_error("label dtype", "target expects int64 or int32 labels", (2, 3),
                 lambda f: f.zeros(2, dtype="uint8"), TypeError),
    _class_error("class weight", r"weight expects shape \(3,\), got \(4,\)", (2, 3), [0, 1],
                 weight=lambda f: f.zeros(4)),
    _class_error("reduction", "reduction expects 'mean', 'sum' or 'none', got 'max'", (2, 3), [0, 1],
                 reduction="max"),
    _class_error("smoothing", "label_smoothing expects 0 to 1, got 1.5", (2, 3), [0, 1],
                 label_smoothing=1.5),
    _class_error("score rank", "cross_entropy: input expects shape", (3,), [0]),
    BadCall("shapes", lambda f: f.nn.functional.mse_loss(f.zeros(2), f.zeros(3)), ValueError,
            r"mse_loss: target expects the input's shape \(2,\), got \(3,\)"),
    BadCall("integers", lambda f: f.nn.functional.l1_loss(f.tensor([1]), f.tensor([2])), TypeError,
            "l1_loss: input expects dtype float32 or bfloat16, got int64"),
    BadCall("beta", lambda f: f.nn.functional.smooth_l1_loss(f.zeros(2), f.zeros(2), beta=-1.0),
            ValueError, "smooth_l1_loss: beta expects a value >= 0"),
    BadCall("pair reduction",
            lambda f: f.nn.functional.mse_loss(f.zeros(2), f.zeros(2), reduction="avg"),
            ValueError, "mse_loss: reduction expects"),
]  # fmt: skip
