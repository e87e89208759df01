"""Reductions against PyTorch: values, indices, result dtypes and gradients on random cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastnn

torch = pytest.importorskip("torch")

RANDOM = settings(max_examples=80, deadline=None, derandomize=True)
FOLDS = ["sum", "mean", "var", "std", "norm1", "norm2", "norminf", "any", "all"]
PICKS = ["max", "min", "argmax", "argmin"]


def call(module, name, x, dim, keepdim):
    if name.startswith("norm"):
        return x.norm(float(name[4:]), dim, keepdim=keepdim)
    return getattr(module, name)(x, dim=dim, keepdim=keepdim)


def same(ours, theirs, tolerance):
    assert ours.dtype.name == str(theirs.dtype).removeprefix("torch.")
    assert ours.shape == tuple(theirs.shape)
    a, b = ours.detach().float().numpy(), theirs.detach().float().numpy()
    assert np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True), (a, b)


@st.composite
def problems(draw, several):
    shape = draw(st.lists(st.integers(2, 7), min_size=1, max_size=5))
    dims = draw(st.permutations(range(len(shape))))[: draw(st.integers(1, len(shape)))]
    dims = [d - len(shape) if draw(st.booleans()) else d for d in dims]
    return shape, tuple(dims) if several else dims[0], draw(st.booleans()), draw(st.integers(0, 99))


def pair(shape, seed, dtype):
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    ours = fastnn.tensor(values, dtype=dtype, requires_grad=True)
    return ours, torch.tensor(values).to(getattr(torch, dtype)).requires_grad_()


@RANDOM
@given(st.sampled_from(FOLDS), problems(several=True), st.sampled_from(["float32", "bfloat16"]))
def test_folds(name, problem, dtype):
    shape, dims, keepdim, seed = problem
    x, tx = pair(shape, seed, dtype)
    out, wanted = (call(m, name, t, dims, keepdim) for m, t in ((fastnn, x), (torch, tx)))
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    same(out, wanted, tolerance)
    if name in ("any", "all"):
        return
    g = np.random.default_rng(seed).standard_normal(out.shape).astype(np.float32)
    out.backward(fastnn.tensor(g, dtype=dtype))
    wanted.backward(torch.tensor(g).to(wanted.dtype))
    same(x.grad, tx.grad, 1e-4 if dtype == "float32" else 5e-2)


@RANDOM
@given(st.sampled_from(PICKS), problems(several=False), st.sampled_from(["float32", "int64"]))
def test_picks(name, problem, dtype):
    shape, dim, keepdim, seed = problem
    values = np.random.default_rng(seed).permutation(int(np.prod(shape))).reshape(shape)
    x, tx = fastnn.tensor(values).to(dtype), torch.tensor(values).to(getattr(torch, dtype))
    out, wanted = (call(m, name, t, dim, keepdim) for m, t in ((fastnn, x), (torch, tx)))
    if name in ("max", "min"):
        for a, b in zip(out, wanted, strict=True):
            same(a, b, 0)
    else:
        same(out, wanted, 0)


@RANDOM
@given(st.sampled_from(["max", "min"]), problems(several=False))
def test_pick_gradients(name, problem):
    shape, dim, keepdim, seed = problem
    x, tx = pair(shape, seed, "float32")
    call(fastnn, name, x, dim, keepdim)[0].sum().backward()
    call(torch, name, tx, dim, keepdim)[0].sum().backward()
    same(x.grad, tx.grad, 0)
    for t, module in ((x, fastnn), (tx, torch)):
        t.grad = None
        getattr(module, name)(t).backward()
    same(x.grad, tx.grad, 0)


@RANDOM
@given(problems(several=False), st.booleans())
def test_products(problem, zeros):
    shape, dim, keepdim, seed = problem
    x, tx = pair(shape, seed, "float32")
    with fastnn.no_grad(), torch.no_grad():
        if zeros:
            x.mul_(fastnn.abs(x) > 0.3), tx.mul_(tx.abs() > 0.3)
    out, wanted = call(fastnn, "prod", x, dim, keepdim), call(torch, "prod", tx, dim, keepdim)
    same(out, wanted, 1e-5)
    out.sum().backward()
    wanted.sum().backward()
    same(x.grad, tx.grad, 1e-4)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "bool"])
def test_integers(dtype):
    values = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 9, (5, 7))
    x, tx = fastnn.tensor(values).to(dtype), torch.tensor(values).to(getattr(torch, dtype))
    for name in ("sum", "prod", "any", "all"):
        if name in ("any", "all") and dtype == "uint8":
            continue  # PyTorch gives uint8 here, for the sake of its oldest masks; fastnn bool
        for dim in (0, 1):
            same(call(fastnn, name, x, dim, False), call(torch, name, tx, dim, False), 0)
    same(x.max(), tx.max(), 0)
    same(x.min(), tx.min(), 0)
