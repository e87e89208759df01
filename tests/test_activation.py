"""Activations beyond the case table: random shapes, strange layouts, NaN and infinity."""

from __future__ import annotations

import numpy as np
from harness import PROPERTY, check_everywhere
from hypothesis import given
from hypothesis import strategies as st

import fastnn
import fastnn.nn.functional as F

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
