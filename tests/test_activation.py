"""Activations beyond the case table: random shapes, strange layouts, NaN and infinity."""

from __future__ import annotations

import numpy as np
import pytest
from harness import PROPERTY, check_everywhere
from hypothesis import given
from hypothesis import strategies as st

import fastnn
import fastnn.nn.functional as F
from fastnn import nn

size = st.integers(0, 9)


@PROPERTY
@given(n=size, c=st.integers(1, 40), h=size, w=size, dtype=st.sampled_from(["f32", "bf16"]))
def test_relu_on_random_shapes(n, c, h, w, dtype):
    check_everywhere("relu", f"n{n}c{c}h{h}w{w}_{dtype}")


def test_relu_propagates_nan_and_infinity(isa):
    x = fastnn.tensor([float("nan"), float("inf"), -float("inf"), -0.0])
    y = F.relu(x).numpy()
    assert np.isnan(y[0]) and y[1] == np.inf and y[2] == 0 and y[3] == 0


def test_relu_of_a_view_with_negative_strides(isa):
    x = np.arange(-12, 12, dtype=np.float32).reshape(4, 6)[::-1, ::2]
    assert np.array_equal(F.relu(fastnn.from_numpy(x)).numpy(), np.maximum(x, 0))


@pytest.mark.parametrize("activation", [F.relu, F.gelu])
@pytest.mark.parametrize("same", [True, False])
def test_a_dense_layout_is_kept(activation, same):
    """A linear layer's result on pixels is not copied to channels last and back."""
    x = fastnn.randn(2, 3, 4, 5).permute(0, 2, 3, 1)
    grad = fastnn.randn(*x.shape)
    grad = grad if same else grad.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    as_is, copied = x.detach().requires_grad_(), x.clone().requires_grad_()
    assert as_is._array.strides != copied._array.strides
    outputs = [activation(leaf) for leaf in (as_is, copied)]
    assert outputs[0]._array.strides == as_is._array.strides
    for out in outputs:
        out.backward(grad)
    np.testing.assert_array_equal(*(np.asarray(out.detach()) for out in outputs))
    np.testing.assert_array_equal(as_is.grad.numpy(), copied.grad.numpy())


IN_PLACE = [
    "ReLU",
    "ReLU6",
    "LeakyReLU",
    "ELU",
    "SELU",
    "SiLU",
    "Hardtanh",
    "Hardsigmoid",
    "Hardswish",
]


@pytest.mark.parametrize("name", IN_PLACE)
def test_inplace_is_accepted_without_effect(name):
    function = {"LeakyReLU": "leaky_relu", "SiLU": "silu"}.get(name, name.lower())
    x = fastnn.randn(2, 9) * 3
    before, layer = x.tolist(), getattr(nn, name)
    plain, in_place = layer(), layer(inplace=True)
    want = plain(x).tolist()
    assert in_place(x).tolist() == want == getattr(F, function)(x, inplace=True).tolist()
    assert x.tolist() == before and in_place.inplace and not plain.inplace
    assert "inplace=True" in repr(in_place) and "inplace" not in repr(plain)


SAMPLES = np.concatenate([
    np.random.default_rng(0).standard_normal(200_000) * 4,
    np.copysign(10.0 ** np.random.default_rng(1).uniform(-30, 1.9, 200_000),
                np.random.default_rng(2).standard_normal(200_000)),
]).astype(np.float32)  # fmt: skip


def test_elementary_functions_are_within_units_of_the_last_place(isa):
    """Over float32's range, against float64: exp and log through the tensor methods, the rest by name."""
    from math import erf

    x = SAMPLES.astype(np.float64)
    small = np.abs(x) < 80
    wide = np.vectorize(erf, otypes=[float])
    cases = {
        "exp": (fastnn.exp, np.exp, small, 4), "tanh": (F.tanh, np.tanh, small, 4),
        "sigmoid": (F.sigmoid, lambda v: 1 / (1 + np.exp(-v)), small, 6),
        "log": (fastnn.log, np.log, x > 0, 4),
        "elu": (F.elu, lambda v: np.where(v > 0, v, np.expm1(np.minimum(v, 0))), small, 6),
        "softplus": (F.softplus, lambda v: np.logaddexp(0, v), small & (x < 19), 6),
        "gelu": (F.gelu, lambda v: 0.5 * v * (1 + wide(v / np.sqrt(2))), (x > -1) & small, 8),
    }  # fmt: skip
    for name, (ours, exact, chosen, units) in cases.items():
        got = ours(fastnn.tensor(SAMPLES[chosen])).numpy().astype(np.float64)
        want = exact(x[chosen])
        normal = np.abs(want) > 1.2e-38
        ulps = np.abs(got - want)[normal] / np.spacing(np.abs(want[normal]).astype(np.float32))
        assert ulps.max() <= units, (
            f"{name} at {x[chosen][normal][ulps.argmax()]}: {ulps.max():.1f} ulp"
        )


@PROPERTY
@given(
    op=st.sampled_from(["leaky_relu", "elu", "selu", "gelu", "silu", "sigmoid", "tanh", "softplus",
                        "hardswish"]),
    n=size, c=st.integers(1, 40), h=size, dtype=st.sampled_from(["f32", "bf16"]),
)  # fmt: skip
def test_activations_on_random_shapes(op, n, c, h, dtype):
    check_everywhere(op, f"n{n}c{c}h{h}w3_{dtype}")
