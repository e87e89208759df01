"""Elementwise operators against PyTorch: values, result dtypes and gradients on random cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastnn

torch = pytest.importorskip("torch")

RANDOM = settings(max_examples=80, deadline=None, derandomize=True)
DTYPES = ["float32", "bfloat16", "int64", "int32", "uint8"]
BINARY = ["add", "sub", "mul", "div", "pow", "maximum", "minimum", "eq", "ne", "lt", "le", "gt",
          "ge", "logical_and", "logical_or", "logical_xor"]  # fmt: skip
UNARY = ["neg", "abs", "sign", "square", "sqrt", "rsqrt", "reciprocal", "exp", "log", "sin", "cos",
         "floor", "ceil", "round", "isnan", "isinf", "isfinite", "logical_not"]  # fmt: skip
SHAPES = [((3, 4), (3, 4)), ((2, 5, 3, 4), (5, 1, 1)), ((7,), ()), ((1, 6), (5, 1)), ((0, 3), (3,))]


def data(rng, shape, dtype, positive=False):
    if dtype in ("float32", "bfloat16"):
        x = np.abs(rng.standard_normal(shape)) + 0.3 if positive else rng.standard_normal(shape)
        return np.asarray(x, np.float32)
    return np.asarray(rng.integers(1 if positive else -3, 4, shape)) % 256


def both(values, dtype):
    theirs = torch.tensor(values).to(getattr(torch, dtype))
    return fastnn.tensor(values).to(dtype), theirs


def same(ours, theirs, tolerance=2e-6):
    assert ours.dtype.name == str(theirs.dtype).removeprefix("torch.")
    assert ours.shape == tuple(theirs.shape)
    if ours.dtype is fastnn.bfloat16:
        tolerance = max(tolerance, 2.0**-7)
    a = ours.detach().float().numpy()
    b = theirs.detach().float().numpy()
    assert np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True), (a, b)


@RANDOM
@given(st.sampled_from(BINARY), st.sampled_from(SHAPES), st.sampled_from(DTYPES),
       st.sampled_from(DTYPES), st.integers(0, 99))  # fmt: skip
def test_two_tensors(name, shapes, left, right, seed):
    rng = np.random.default_rng(seed)
    positive = name in ("pow", "div")
    x, tx = both(data(rng, shapes[0], left, positive), left)
    y, ty = both(data(rng, shapes[1], right, positive), right)
    if tx.dim() and not ty.dim():
        return  # PyTorch lets a scalar tensor promote like a number; here it is a tensor
    same(getattr(fastnn, name)(x, y), getattr(torch, name)(tx, ty), 1e-5)


@RANDOM
@given(
    st.sampled_from(["add", "sub", "mul", "div", "pow", "eq", "lt", "ge"]),
    st.sampled_from(DTYPES),
    st.sampled_from([2, 3, 0.5, 1.5, True]),
    st.integers(0, 99),
)
def test_tensor_and_number(name, dtype, number, seed):
    if name == "sub" and number is True:
        return  # PyTorch refuses to subtract a bool
    x, tx = both(data(np.random.default_rng(seed), (3, 5), dtype, positive=True), dtype)
    same(getattr(fastnn, name)(x, number), getattr(torch, name)(tx, number), 1e-5)


@RANDOM
@given(st.sampled_from(UNARY), st.sampled_from(DTYPES), st.integers(0, 99))
def test_one_tensor(name, dtype, seed):
    if dtype == "uint8" and name == "sign":
        dtype = "int32"
    x, tx = both(data(np.random.default_rng(seed), (4, 9), dtype, positive=True), dtype)
    same(getattr(fastnn, name)(x), getattr(torch, name)(tx), 1e-5)


GRADIENTS = {
    "add": lambda m, x, y: m.add(x, y, alpha=0.5),
    "sub": lambda m, x, y: x - y,
    "mul": lambda m, x, y: x * y,
    "div": lambda m, x, y: x / y,
    "pow": lambda m, x, y: x**y,
    "maximum": lambda m, x, y: m.maximum(x, y),
    "minimum": lambda m, x, y: m.minimum(x, y),
    "where": lambda m, x, y: m.where(x > y, x, y),
    "masked_fill": lambda m, x, y: (x * y).masked_fill(x > y, -1.5),
    "clamp": lambda m, x, y: m.clamp(x, 0.5, 1.25) * y,
    **{name: lambda m, x, y, name=name: getattr(m, name)(x) * y
       for name in UNARY[:14]},
}  # fmt: skip


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("shapes", SHAPES[:4])
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "float32")])
def test_gradients(name, shapes, dtypes):
    rng = np.random.default_rng(0)
    (x, tx), (y, ty) = (
        both(data(rng, shape, dtype, positive=True), dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    )
    for t in (x, y, tx, ty):
        t.requires_grad_()
    out, wanted = GRADIENTS[name](fastnn, x, y), GRADIENTS[name](torch, tx, ty)
    g = rng.standard_normal(out.shape).astype(np.float32)
    seed, their_seed = both(g, out.dtype.name)
    out.backward(seed)
    wanted.backward(their_seed.to(wanted.dtype))
    tolerance = 1e-4 if dtypes[0] == "float32" else 4e-2
    same(x.grad, tx.grad, tolerance)
    same(y.grad, ty.grad, tolerance)
