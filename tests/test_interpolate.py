"""Resampling: random sizes against the reference, hand-computed cases."""

from __future__ import annotations

import numpy as np
import pytest
from harness import PROPERTY, check_everywhere
from hypothesis import given
from hypothesis import strategies as st

import fastnn
import fastnn.nn.functional as F

size = st.integers(1, 9)


@PROPERTY
@given(
    n=st.integers(0, 2), c=st.sampled_from([1, 3, 17, 40]), h=size, w=size, oh=size, ow=size,
    mode=st.sampled_from(["", "_bil", "_bil_ac"]), dtype=st.sampled_from(["f32", "bf16"]),
)  # fmt: skip
def test_interpolate_to_random_sizes(n, c, h, w, oh, ow, mode, dtype):
    check_everywhere("interpolate", f"n{n}c{c}h{h}w{w}_o{oh}x{ow}{mode}_{dtype}")


def test_nearest_repeats_pixels(isa):
    x = fastnn.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert F.interpolate(x, scale_factor=2).tolist() == [
        [[[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]]
    ]


def test_bilinear_by_hand(isa):
    x = fastnn.tensor([[[[0.0, 3.0]]]])
    row = F.interpolate(x, (1, 4), mode="bilinear").numpy()[0, 0, 0]
    np.testing.assert_allclose(row, [0, 0.75, 2.25, 3], atol=1e-6)
    row = F.interpolate(x, (1, 4), mode="bilinear", align_corners=True).numpy()[0, 0, 0]
    np.testing.assert_allclose(row, [0, 1, 2, 3], atol=1e-6)


@pytest.mark.parametrize(
    ("align", "row"), [(False, [0, 0.25, 0.75, 1]), (True, [0, 1 / 3, 2 / 3, 1])]
)
def test_bilinear_is_the_product_of_both_directions(align, row, isa):
    x = fastnn.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    got = F.interpolate(x, 4, mode="bilinear", align_corners=align).numpy()[0, 0]
    np.testing.assert_allclose(got, np.add.outer(2 * np.array(row), row), atol=1e-6)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_the_same_size_changes_nothing(mode, isa):
    x = fastnn.randn(2, 5, 4, 7)
    np.testing.assert_allclose(F.interpolate(x, (4, 7), mode=mode).numpy(), x.numpy(), atol=1e-6)


def test_a_constant_image_stays_constant(isa):
    out = F.interpolate(fastnn.full((1, 3, 5, 4), 2.5), (13, 3), mode="bilinear")
    np.testing.assert_allclose(out.numpy(), 2.5, rtol=1e-6)
