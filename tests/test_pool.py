"""Pooling: random windows against the reference, hand-computed cases, NaN, indices."""

from __future__ import annotations

import numpy as np
import pytest
from harness import PROPERTY, check_everywhere
from hypothesis import given
from hypothesis import strategies as st

import fastnn
import fastnn.nn.functional as F

DTYPE = st.sampled_from(["f32", "bf16"])
CHANNELS = st.sampled_from([1, 3, 8, 17, 40])


@st.composite
def window_lines(draw, average=False):
    kh, kw = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    d = 1 if average else draw(st.integers(1, 2))
    p = draw(st.integers(0, min(kh, kw) // 2))
    h = d * (kh - 1) + draw(st.integers(1, 7))
    w = d * (kw - 1) + draw(st.integers(1, 7))
    line = f"n{draw(st.integers(0, 2))}c{draw(CHANNELS)}h{h}w{w}_k{kh}x{kw}s{draw(st.integers(1, 3))}p{p}"
    line += "" if average else f"d{d}"
    line += draw(st.sampled_from(["", "_ceil"]))
    if average:
        line += draw(st.sampled_from(["", "_nopad", "_dv3"]))
    return f"{line}_{draw(DTYPE)}"


@PROPERTY
@given(window_lines())
def test_max_pool2d_with_random_windows(line):
    check_everywhere("max_pool2d", line)


@PROPERTY
@given(window_lines(average=True))
def test_avg_pool2d_with_random_windows(line):
    check_everywhere("avg_pool2d", line)


@PROPERTY
@given(
    op=st.sampled_from(["adaptive_avg_pool2d", "adaptive_max_pool2d"]), n=st.integers(0, 2), c=CHANNELS,
    h=st.integers(1, 9), w=st.integers(1, 9), o=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    dtype=DTYPE,
)  # fmt: skip
def test_adaptive_pooling_of_random_sizes(op, n, c, h, w, o, dtype):
    mode = "_max" if "max" in op else ""
    check_everywhere(op, f"n{n}c{c}h{h}w{w}_o{o[0]}x{o[1]}{mode}_{dtype}")


def test_hand_computed_windows(isa):
    x = fastnn.tensor(np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4))
    assert F.max_pool2d(x, 2).tolist() == [[[[5, 7], [13, 15]]]]
    assert F.avg_pool2d(x, 2).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    values, indices = F.max_pool2d(x, 3, 1, return_indices=True)
    assert values.tolist() == [[[[10, 11], [14, 15]]]] == indices.float().tolist()
    assert F.adaptive_avg_pool2d(x, 1).tolist() == [[[[7.5]]]]
    assert F.avg_pool2d(x, 3, 2, 1, count_include_pad=False).tolist() == [[[[2.5, 4], [8.5, 10]]]]


def test_ceil_mode_by_hand(isa):
    x = fastnn.tensor([[[[1.0, 2.0, 3.0, 4.0, 5.0]]]])
    assert F.max_pool2d(x, (1, 2), 2).tolist() == [[[[2, 4]]]]
    assert F.max_pool2d(x, (1, 2), 2, ceil_mode=True).tolist() == [[[[2, 4, 5]]]]
    assert F.avg_pool2d(x, (1, 2), 2, ceil_mode=True).tolist() == [[[[1.5, 3.5, 5]]]]


def test_the_gradient_goes_to_the_first_of_equal_values(isa):
    x = fastnn.ones(1, 1, 2, 2, requires_grad=True)
    F.max_pool2d(x, 2).sum().backward()
    assert x.grad.tolist() == [[[[1, 0], [0, 0]]]]


def test_nan_wins_and_infinity_passes(isa):
    x = fastnn.zeros(1, 1, 4, 4)
    x[0, 0, 0, 1], x[0, 0, 2, 2], x[0, 0, 2, :2] = float("nan"), float("inf"), -float("inf")
    x[0, 0, 3, :2] = -float("inf")
    values, indices = F.max_pool2d(x, 2, return_indices=True)
    got = values.numpy()[0, 0]
    assert np.isnan(got[0, 0]) and got[0, 1] == 0 and got[1, 0] == -np.inf and got[1, 1] == np.inf
    assert indices.numpy()[0, 0].tolist() == [[1, 2], [8, 10]]


def test_overlapping_windows_add_up_their_gradients(isa):
    x = fastnn.tensor([[[[0.0, 9.0, 0.0]]]], requires_grad=True)
    F.max_pool2d(x, (1, 2), 1).sum().backward()
    assert x.grad.tolist() == [[[[0, 2, 0]]]]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_windows_that_their_indices_cannot_count_are_refused(device):
    """Without a copy of the image, which is one number."""
    x = fastnn.ones(1, 1, 1, 1, device=device).expand(1, 1, 1 << 16, 1 << 15)
    for pool in (lambda: F.adaptive_max_pool2d(x, 1), lambda: F.max_pool2d(x, (1 << 16, 1 << 15))):
        with pytest.raises(
            ValueError,
            match=r"max_pool2d: windows expect at most 2\^31 - 1 pixels, got 65536 x 32768",
        ):
            pool()
