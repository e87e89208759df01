"""Optimizer steps and gradient clipping: references and cases."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastnn.reference.case import BadCall, Op, Params, Problem


def _adjusted(p, g, weight_decay, maximize):
    g = -g if maximize else g
    return g + weight_decay * p


def sgd_step(params, grads, momentum_buffers=None, *, lr, momentum=0.0, dampening=0.0,
             weight_decay=0.0, nesterov=False, maximize=False, first=False):  # fmt: skip
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        g = _adjusted(p, g, weight_decay, maximize)
        if momentum:
            m = momentum_buffers[i]
            m[...] = g if first else momentum * m + (1 - dampening) * g
            g = g + momentum * m if nesterov else m
        p -= lr * g


def adam_step(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs=None, *, step, lr=1e-3,
              betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled=False,
              maximize=False):  # fmt: skip
    for i, (p, g, m, v) in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)):
        g = _adjusted(p, g, 0 if decoupled else weight_decay, maximize)
        if decoupled:
            p *= 1 - lr * weight_decay
        m[...] = betas[0] * m + (1 - betas[0]) * g
        v[...] = betas[1] * v + (1 - betas[1]) * g**2
        used = v
        if max_exp_avg_sqs is not None:
            used = max_exp_avg_sqs[i]
            used[...] = np.maximum(used, v)
        unbiased = used / (1 - betas[1] ** step)
        p -= lr / (1 - betas[0] ** step) * m / (np.sqrt(unbiased) + eps)


def adagrad_step(params, grads, state_sums, *, step, lr=1e-2, lr_decay=0.0, eps=1e-10,
                 weight_decay=0.0, maximize=False):  # fmt: skip
    for p, g, s in zip(params, grads, state_sums, strict=True):
        g = _adjusted(p, g, weight_decay, maximize)
        s += g**2
        p -= lr / (1 + (step - 1) * lr_decay) * g / (np.sqrt(s) + eps)


def rmsprop_step(params, grads, square_avgs, grad_avgs=None, momentum_buffers=None, *, lr=1e-2,
                 alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, maximize=False):  # fmt: skip
    for i, (p, g, v) in enumerate(zip(params, grads, square_avgs, strict=True)):
        g = _adjusted(p, g, weight_decay, maximize)
        v[...] = alpha * v + (1 - alpha) * g**2
        spread = v
        if grad_avgs is not None:
            grad_avgs[i][...] = alpha * grad_avgs[i] + (1 - alpha) * g
            spread = v - grad_avgs[i] ** 2
        change = g / (np.sqrt(spread) + eps)
        if momentum:
            momentum_buffers[i][...] = momentum * momentum_buffers[i] + change
            change = momentum_buffers[i]
        p -= lr * change


def adadelta_step(params, grads, square_avgs, acc_deltas, *, lr=1.0, rho=0.9, eps=1e-6,
                  weight_decay=0.0, maximize=False):  # fmt: skip
    for p, g, v, u in zip(params, grads, square_avgs, acc_deltas, strict=True):
        g = _adjusted(p, g, weight_decay, maximize)
        v[...] = rho * v + (1 - rho) * g**2
        change = np.sqrt(u + eps) / np.sqrt(v + eps) * g
        u[...] = rho * u + (1 - rho) * change**2
        p -= lr * change


def clip_grad_norm(grads, max_norm):
    norm = np.sqrt(sum((g**2).sum() for g in grads))
    for g in grads:
        g *= min(1.0, max_norm / (norm + 1e-6))
    return norm


def clip_grad_value(grads, clip_value):
    for g in grads:
        np.clip(g, -clip_value, clip_value, out=g)


_SIZES = {"small": ((3,), (2, 5), (1,)), "images": ((4, 3, 3, 3), (17,), (0, 2), (2, 33)),
          "large": ((20000,), (7,), (64, 33))}  # fmt: skip


def _values(p: Params, rng: np.random.Generator, positive: bool = False) -> list[np.ndarray]:
    key = next((k for k in _SIZES if k in p), "small")
    shapes = ((p["size"],),) if "size" in p else _SIZES[key]
    drawn = [rng.standard_normal(s) for s in shapes]
    return [np.abs(v) + 0.5 for v in drawn] if positive else drawn


def _problem(states: tuple[tuple[str, bool], ...], **options: Any) -> Any:
    """Problems of one optimizer: state buffers (name, positive) and keyword options by flag."""

    def build(p: Params, rng: np.random.Generator) -> Problem:
        inputs: dict[str, Any] = {"params": _values(p, rng), "grads": _values(p, rng)}
        for name, positive in states:
            if name in ("momentum_buffers", "grad_avgs", "max_exp_avg_sqs"):
                flag = {"momentum_buffers": "mo", "grad_avgs": "centered",
                        "max_exp_avg_sqs": "amsgrad"}[name]  # fmt: skip
                if flag not in p:
                    continue
            inputs[name] = _values(p, rng, positive)
        if "grad_avgs" in inputs:  # a mean is within its own spread
            inputs["grad_avgs"] = [0.2 * np.clip(v, -2, 2) for v in inputs["grad_avgs"]]
        kwargs: dict[str, Any] = {"lr": p.get("lr", 0.1)}
        names = {"mo": "momentum", "damp": "dampening", "wd": "weight_decay", "step": "step",
                 "decay": "lr_decay"}  # fmt: skip
        kwargs |= {name: p[key] for key, name in names.items() if key in p}
        kwargs |= {key: True for key in ("nesterov", "maximize", "first", "decoupled") if key in p}
        kwargs |= {k: v for k, v in options.items() if k not in kwargs}
        mutates = ("params", *(name for name, _ in states if name in inputs))
        return Problem(
            inputs, kwargs, k=8, scale=3.0, mutates=mutates, differentiable=False,
            float32_inputs=tuple(name for name, _ in states),
        )  # fmt: skip

    return build


def _clip_problem(name: str) -> Any:
    def build(p: Params, rng: np.random.Generator) -> Problem:
        return Problem({"grads": _values(p, rng)}, {name: p["v"]}, k=4, mutates=("grads",),
                       differentiable=False)  # fmt: skip

    return build


_ADAM = (("exp_avgs", False), ("exp_avg_sqs", True), ("max_exp_avg_sqs", True))
_BENCH = ("size25557032_f32",)

OPS: dict[str, Op] = {
    "sgd_step": Op(
        sgd_step, None, _problem((("momentum_buffers", False),)),
        ("small_f32", "images_mo0.9_f32", "large_mo0.9wd0.1_f32", "small_mo0.9damp0.5_f32",
         "images_mo0.9wd0.01_nesterov_f32", "small_mo0.9_first_f32", "small_wd0.1_maximize_f32",
         "images_mo0.9_bf16"),
        ("size25557032_mo0.9wd0.0001_f32",), "functional.optim.sgd_step",
    ),
    "adam_step": Op(
        adam_step, None, _problem(_ADAM, step=3),
        ("small_f32", "images_step1_f32", "large_wd0.1_f32", "images_wd0.1_decoupled_f32",
         "small_amsgrad_f32", "large_amsgrad_wd0.1_decoupled_f32", "small_maximize_f32",
         "images_step100_bf16"),
        _BENCH, "functional.optim.adam_step",
    ),
    "adagrad_step": Op(
        adagrad_step, None, _problem((("state_sums", True),), step=2),
        ("small_f32", "images_decay0.1step5_f32", "large_wd0.1_f32", "small_maximize_f32",
         "images_bf16"),
        _BENCH, "functional.optim.adagrad_step",
    ),
    "rmsprop_step": Op(
        rmsprop_step, None,
        _problem((("square_avgs", True), ("grad_avgs", False), ("momentum_buffers", False))),
        ("small_f32", "images_mo0.9_f32", "large_wd0.1_f32", "small_centered_f32",
         "images_centered_mo0.9wd0.1_f32", "small_maximize_f32", "images_mo0.5_bf16"),
        _BENCH, "functional.optim.rmsprop_step",
    ),
    "adadelta_step": Op(
        adadelta_step, None, _problem((("square_avgs", True), ("acc_deltas", True))),
        ("small_f32", "images_wd0.1_f32", "large_lr1.0_f32", "small_maximize_f32", "images_bf16"),
        _BENCH, "functional.optim.adadelta_step",
    ),
    "clip_grad_norm": Op(
        clip_grad_norm, None, _clip_problem("max_norm"),
        ("small_v1.0_f32", "images_v1000.0_f32", "large_v0.5_f32", "images_v1.0_bf16"),
        ("size25557032_v1.0_f32",), "functional.optim.clip_grad_norm",
    ),
    "clip_grad_value": Op(
        clip_grad_value, None, _clip_problem("clip_value"),
        ("small_v0.5_f32", "images_v0.1_f32", "large_v1.0_f32", "images_v0.5_bf16"),
        ("size25557032_v1.0_f32",), "functional.optim.clip_grad_value",
    ),
}  # fmt: skip

ERRORS: list[BadCall] = [
    BadCall("counts", lambda f: f.functional.optim.sgd_step([f.zeros(2)], [], lr=1.0), ValueError,
            "sgd: expected as many gradients as parameters, got 0 and 1"),
    BadCall("shapes", lambda f: f.functional.optim.sgd_step([f.zeros(2)], [f.zeros(3)], lr=1.0),
            ValueError, r"sgd: gradient 0 expects shape \(2,\), got \(3,\)"),
    BadCall("state", lambda f: f.functional.optim.adam_step(
                [f.zeros(2)], [f.zeros(2)], [f.zeros(3)], [f.zeros(2)], step=1),
            ValueError, "adam: state 0 of parameter 0 expects its shape"),
    BadCall("integers", lambda f: f.functional.optim.sgd_step([f.tensor([1])], [f.tensor([1])], lr=1.0),
            TypeError, "parameter expects dtype float32 or bfloat16, got int64"),
    BadCall("max_norm", lambda f: f.functional.optim.clip_grad_norm([f.zeros(2)], -1.0), ValueError,
            "max_norm expects a value >= 0"),
    BadCall("clip_value", lambda f: f.functional.optim.clip_grad_value([f.zeros(2)], -1.0), ValueError,
            "clip_value expects a value >= 0"),
]  # fmt: skip
