"""Every operator's reference against PyTorch in float64: values, gradients, in-place updates.

The kernels are held to the references by ``tests/test_cases.py``; here the references are held to
PyTorch's definitions, on every case line and on enlarged variants of it, so that the two together give
parity of every kernel.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import fastnn
from fastnn.reference.case import build, parse
from fastnn.verify import as_tuple, families

torch = pytest.importorskip("torch")
TF = torch.nn.functional

#: Elementwise operators and reductions have files of their own beside this one.
OPERATORS = {
    name: op
    for family, ops in families().items()
    if family not in ("elementwise", "reduce")
    for name, op in ops.items()
}

#: Operators PyTorch does not have in this form, and why.
NO_PEER = {
    "maxout": "not in PyTorch",
    "drop_path": "not in PyTorch",
    "dropout": "random: the masks are checked against Philox's definition",
    "dropout2d": "random: the masks are checked against Philox's definition",
    "sgd_step": "an optimizer: see test_optimizers_follow_pytorchs",
    "adam_step": "an optimizer: see test_optimizers_follow_pytorchs",
    "adagrad_step": "an optimizer: see test_optimizers_follow_pytorchs",
    "rmsprop_step": "an optimizer: see test_optimizers_follow_pytorchs",
    "adadelta_step": "an optimizer: see test_optimizers_follow_pytorchs",
    "clip_grad_norm": "works on parameters: see test_clipping_follows_pytorchs",
    "clip_grad_value": "works on parameters: see test_clipping_follows_pytorchs",
}


def fused(out, activation, residual):
    out = out if residual is None else out + residual
    if activation == "gelu_tanh":
        return TF.gelu(out, approximate="tanh")
    return out if activation is None else getattr(TF, activation)(out)


def conv2d(input, weight, bias=None, padding=0, *, activation=None, residual=None, **settings):
    if padding == "same":
        h, w = weight.shape[2] - 1, weight.shape[3] - 1
        padding = (w // 2, w - w // 2, h // 2, h - h // 2)
    if isinstance(padding, tuple) and len(padding) == 4:
        input, padding = TF.pad(input, padding), 0
    return fused(TF.conv2d(input, weight, bias, padding=padding, **settings), activation, residual)


def conv_transpose2d(input, weight, bias=None, padding=0, **settings):
    if not (isinstance(padding, tuple) and len(padding) == 4):
        return TF.conv_transpose2d(input, weight, bias, padding=padding, **settings)
    left, right, top, bottom = padding
    out = TF.conv_transpose2d(input, weight, bias, **settings)
    return out[:, :, top : out.shape[2] - bottom, left : out.shape[3] - right]


def batch_norm(
    input, running_mean=None, running_var=None, activation=None, residual=None, **settings
):
    if input.numel() == 0:
        return input * 1
    out = TF.batch_norm(input, running_mean, running_var, **settings)
    return fused(out, activation, residual)


ADAPTERS = {
    "conv2d": conv2d,
    "conv_transpose2d": conv_transpose2d,
    "batch_norm": batch_norm,
    # PyTorch refuses or skips empty batches here; the answer is the empty tensor.
    "instance_norm": lambda input, **kw: (
        TF.instance_norm(input, **kw) if input.numel() else input * 1
    ),
    "index_select": lambda input, dim, index: torch.index_select(
        input, dim, torch.tensor(index % input.shape[dim])
    ),
}


def peer(name):
    return ADAPTERS.get(name) or getattr(TF, name, None) or getattr(torch, name, None)


def to_torch(value, differentiable):
    if isinstance(value, list):
        return [to_torch(v, differentiable) for v in value]
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == np.int32:
        value = value.astype(np.int64)
    out = torch.tensor(value)
    return out.requires_grad_() if differentiable and value.dtype.kind == "f" else out


def enlarged(line):
    """The line, and one with more images and pixels (of the same kind)."""
    yield line
    grown = []
    for group in line.split("_"):
        for key, more in (("n", 1), ("h", 2), ("w", 3)):
            params = parse(group) if group[:1] in "nchw" else {}
            if isinstance(params.get(key), int) and group.startswith(("n", "s")):
                group = group.replace(f"{key}{params[key]}", f"{key}{params[key] + more}", 1)
        grown.append(group)
    if "_".join(grown) != line:
        yield "_".join(grown)


CASES = [
    pytest.param(name, line, id=f"{name}-{line}")
    for name, op in OPERATORS.items()
    if name not in NO_PEER
    for line in op.cases
    if parse(line)["dtype"] == "float32"
]


def test_every_operator_has_a_peer_or_a_reason():
    missing = [name for name in OPERATORS if name not in NO_PEER and peer(name) is None]
    assert not missing
    assert set(NO_PEER) <= set(OPERATORS)


@pytest.mark.parametrize("family", ["elementwise", "reduce"])
def test_the_families_with_files_of_their_own_name_every_operator_there(family):
    text = (Path(__file__).parent / f"test_torch_{family}.py").read_text()
    assert not [name for name in families()[family] if not re.search(rf"\b{name}\b", text)]


@pytest.mark.parametrize(("name", "line"), CASES)
def test_the_reference_is_pytorchs(name, line):
    op, call = OPERATORS[name], peer(name)
    for variant in enlarged(line):
        try:
            problem = build(op, variant)
        except (ValueError, IndexError):
            if variant == line:
                raise
            continue  # the larger image does not suit this line's other settings
        compare(name, op, call, problem)


def compare(name, op, call, problem):
    constants = problem.mutates + problem.constants
    tensors = {
        key: to_torch(value, problem.differentiable and key not in constants)
        for key, value in problem.inputs.items()
    }
    arguments = {k: v for k, v in (tensors | problem.kwargs).items() if v is not None}
    try:
        outputs = as_tuple(call(**arguments))
    except TypeError:  # PyTorch names a few arguments otherwise: by position then
        order = list(inspect.signature(op.forward).parameters)
        outputs = as_tuple(call(*(arguments[k] for k in order if k in arguments)))
    inputs = {
        k: [a.copy() for a in v] if isinstance(v, list) else v.copy() if v is not None else None
        for k, v in problem.inputs.items()
    }
    expected = as_tuple(op.forward(**inputs, **problem.kwargs))
    for got, want in zip(outputs, expected, strict=True):
        same(name, want, got)
    for key in problem.mutates:
        if isinstance(tensors[key], torch.Tensor):
            same(f"{name}: {key}", inputs[key], tensors[key])
    if op.backward is None or not outputs[0].requires_grad:
        return
    g = np.random.default_rng(1).standard_normal(tuple(outputs[0].shape))
    outputs[0].backward(torch.tensor(g))
    fresh = {
        k: [a.copy() for a in v] if isinstance(v, list) else v.copy() if v is not None else None
        for k, v in problem.inputs.items()
    }
    wanted = op.backward(g, **fresh, **problem.kwargs)
    leaves = {k: v if isinstance(v, list) else [v] for k, v in tensors.items()}
    with_gradient = {
        k for k, v in leaves.items() if any(getattr(t, "grad", None) is not None for t in v)
    }
    assert with_gradient <= set(wanted), f"{name}: PyTorch has gradients the reference leaves out"
    for key, want in wanted.items():
        theirs = tensors[key] if isinstance(tensors[key], list) else [tensors[key]]
        for t, w in zip(theirs, want if isinstance(want, list) else [want], strict=True):
            if w is not None and t.requires_grad:
                grad = torch.zeros_like(t) if t.grad is None else t.grad
                same(f"{name}: gradient of {key}", w, grad)


def same(what, ours, theirs):
    theirs = theirs.detach().double().numpy()
    assert np.shape(ours) == theirs.shape, what
    np.testing.assert_allclose(np.asarray(ours, float), theirs, rtol=1e-7, atol=1e-7, err_msg=what)


STEPS = [
    ("SGD", {"lr": 0.1}), ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "maximize": True, "weight_decay": 0.1}), ("Adam", {"lr": 0.1}),
    ("Adam", {"lr": 0.1, "amsgrad": True, "weight_decay": 0.1, "betas": (0.5, 0.9)}),
    ("Adam", {"lr": 0.1, "maximize": True}), ("AdamW", {"lr": 0.1}),
    ("AdamW", {"lr": 0.1, "amsgrad": True, "weight_decay": 0.3}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.2}),
    ("Adagrad", {"lr": 0.1, "weight_decay": 0.1, "maximize": True}), ("RMSprop", {"lr": 0.1}),
    ("RMSprop", {"lr": 0.1, "centered": True, "momentum": 0.9, "weight_decay": 0.1}),
    ("Adadelta", {"lr": 1.0}), ("Adadelta", {"lr": 0.5, "rho": 0.5, "weight_decay": 0.1}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), STEPS)
def test_optimizers_follow_pytorchs(name, options):
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(s).astype(np.float32) for s in ((3, 4), (5,), (2, 3, 3, 3))]
    ours = [fastnn.nn.Parameter(fastnn.tensor(v)) for v in start]
    theirs = [torch.tensor(v, requires_grad=True) for v in start]
    a = getattr(fastnn.optim, name)(ours, **options)
    b = getattr(torch.optim, name)(theirs, **options)
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            grad = rng.standard_normal(p.shape).astype(np.float32)
            p.grad, q.grad = fastnn.tensor(grad), torch.tensor(grad)
        a.step()
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=2e-5, atol=2e-5)


def test_clipping_follows_pytorchs():
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(s).astype(np.float32) for s in ((30, 4), (5,))]
    for limit in (0.5, 100.0):
        ours = [fastnn.nn.Parameter(fastnn.zeros(*g.shape)) for g in grads]
        theirs = [torch.zeros(g.shape, requires_grad=True) for g in grads]
        for p, q, g in zip(ours, theirs, grads, strict=True):
            p.grad, q.grad = fastnn.tensor(g), torch.tensor(g)
        norm = fastnn.nn.clip_grad_norm_(ours, limit)
        assert norm.item() == pytest.approx(
            torch.nn.utils.clip_grad_norm_(theirs, limit).item(), rel=1e-6
        )
        fastnn.nn.clip_grad_value_(ours, 0.1)
        torch.nn.utils.clip_grad_value_(theirs, 0.1)
        for p, q in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-6)


def test_a_network_computes_what_pytorchs_does():
    """The same weights through a small network: output, every gradient, running statistics."""
    nn = fastnn.nn
    ours = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 3, stride=2, groups=2), nn.GELU(), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip
    tn = torch.nn
    theirs = tn.Sequential(
        tn.Conv2d(3, 8, 3, padding=1), tn.BatchNorm2d(8), tn.ReLU(), tn.MaxPool2d(2),
        tn.Conv2d(8, 6, 3, stride=2, groups=2), tn.GELU(), tn.Flatten(), tn.Linear(6, 5),
    )  # fmt: skip
    ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    x = np.random.default_rng(0).standard_normal((4, 3, 7, 7)).astype(np.float32)
    y = np.array([0, 1, 4, 2])
    loss = fastnn.nn.functional.cross_entropy(ours(fastnn.tensor(x)), fastnn.tensor(y))
    other = TF.cross_entropy(theirs(torch.tensor(x)), torch.tensor(y))
    loss.backward()
    other.backward()
    assert loss.item() == pytest.approx(other.item(), rel=1e-5)
    gradients = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        want = gradients[name].grad.numpy()
        np.testing.assert_allclose(p.grad.numpy(), want, rtol=1e-3, atol=1e-5, err_msg=name)
    for name, value in ours.named_buffers():
        want = theirs.state_dict()[name].numpy()
        np.testing.assert_allclose(value.numpy(), want, rtol=1e-5, atol=1e-6, err_msg=name)
