"""Softmax: random shapes against the reference, sums, shifts, extremes."""

from __future__ import annotations

import numpy as np
from harness import PROPERTY, check_everywhere
from hypothesis import given
from hypothesis import strategies as st

import fastnn
import fastnn.nn.functional as F

side = st.integers(1, 7)


@PROPERTY
@given(
    op=st.sampled_from(["softmax", "log_softmax"]), n=st.integers(0, 3),
    c=st.integers(2, 4) | st.integers(1, 70), h=side, w=side, d=st.integers(-4, 3),
    dtype=st.sampled_from(["f32", "bf16"]),
)  # fmt: skip
def test_softmax_on_random_shapes(op, n, c, h, w, d, dtype):
    check_everywhere(op, f"n{n}c{c}h{h}w{w}_d{d}_{dtype}")


def test_rows_sum_to_one_and_do_not_see_a_shift(isa):
    x = fastnn.randn(50, 37) * 5
    y = F.softmax(x, 1).numpy()
    np.testing.assert_allclose(y.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(F.softmax(x + 64.0, 1).numpy(), y, rtol=1e-4, atol=1e-7)


def test_huge_scores_do_not_overflow(isa):
    x = fastnn.tensor([[1e30, 0.0, -1e30], [3e38, 3e38, 0.0]])
    np.testing.assert_allclose(F.softmax(x, 1).numpy(), [[1, 0, 0], [0.5, 0.5, 0]], atol=1e-6)


def test_minus_infinity_is_probability_zero_and_nan_spreads(isa):
    x = fastnn.tensor([[0.0, -float("inf")], [float("nan"), 0.0]])
    y = F.softmax(x, 1).numpy()
    assert y[0].tolist() == [1, 0] and np.isnan(y[1]).all()
    assert F.log_softmax(x, 1).numpy()[0].tolist() == [0, -np.inf]
