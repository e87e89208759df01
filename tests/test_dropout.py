"""Dropout: the generator's published vectors, masks, what survives, gradients."""

from __future__ import annotations

import numpy as np
import pytest
from harness import PROPERTY, check_everywhere
from hypothesis import given
from hypothesis import strategies as st

import fastnn
import fastnn.nn.functional as F
from fastnn import nn
from fastnn.reference.random import philox4x32, words


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
         (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)  # fmt: skip
def test_philox_gives_the_published_words(counter, key, expected):
    assert tuple(philox4x32(np.array([counter], np.uint64), key)[0]) == expected


def test_the_kernels_generator_is_the_references():
    fastnn.set_rng_state((0x123456789ABCDEF0, 2**33 + 5))
    drawn = fastnn.rand(10_001).numpy()
    want = (words(0x123456789ABCDEF0, 2**33 + 5, 10_001) >> 8) / 2**24
    assert np.array_equal(drawn, want.astype(np.float32))


@PROPERTY
@given(
    op=st.sampled_from(["dropout", "dropout2d", "drop_path"]), n=st.integers(0, 4),
    c=st.sampled_from([1, 3, 17, 40]), h=st.integers(1, 6), w=st.integers(1, 6),
    p=st.sampled_from([0.1, 0.5, 0.75, 1.0]), dtype=st.sampled_from(["f32", "bf16"]),
)  # fmt: skip
def test_dropout_on_random_shapes(op, n, c, h, w, p, dtype):
    check_everywhere(op, f"n{n}c{c}h{h}w{w}_p{p}_{dtype}")


def test_ones_become_zero_or_four(isa):
    y = F.dropout(fastnn.ones(10_000), 0.75).numpy()
    assert set(np.unique(y)) == {0.0, 4.0}
    # Binomial with 10,000 draws: five standard deviations.
    assert abs((y > 0).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 10_000)


@pytest.mark.parametrize("p", [0.9999, 1 - 2**-16, 1 - 2**-18, 2**-18])
def test_rare_survivors_are_scaled_by_how_rare_they_are(p):
    y = F.dropout(fastnn.ones(4_000_000), p).numpy()
    rounded = round(p * 2**16) / 2**16
    kept = 1 - rounded
    assert set(np.unique(y)) <= {0.0, np.float32(1 / kept) if kept else 0.0}
    expected = 1.0 if kept else 0.0
    spread = np.sqrt(rounded / kept / y.size) if kept else 0.0
    assert abs(y.mean(dtype=np.float64) - expected) <= 5 * spread + 1e-6


def test_gradient_of_the_norm_after_dropout_depends_on_the_survivors():
    """Row norm 4 sqrt(k) for k survivors: each has gradient 4 / sqrt(k): 4, 2.8284, 2.3094, ..."""
    x = fastnn.ones(200, 8, requires_grad=True)
    y = F.dropout(x, 0.75)
    kept = (y.detach().numpy() > 0).sum(1)
    rows = [i for i in range(200) if kept[i]]
    y[rows].norm(dim=1).sum().backward()
    seen = {}
    for i in rows:
        values = x.grad.numpy()[i]
        seen[int(kept[i])] = sorted({round(float(v), 4) for v in values[values > 0]})
    assert seen[1] == [4.0] and seen[2] == [2.8284] and seen[3] == [2.3094]


def test_dropout2d_zeroes_whole_channels(isa):
    y = F.dropout2d(fastnn.ones(20, 30, 4, 4), 0.5).numpy()
    per_channel = y.reshape(600, 16)
    assert ((per_channel == 0).all(1) | (per_channel == 2).all(1)).all()
    assert 0.3 < (per_channel[:, 0] == 0).mean() < 0.7


def test_the_mask_is_the_same_on_every_level_and_for_any_number_of_threads():
    x, seen = fastnn.randn(5, 33, 9, 9), set()
    for isa in fastnn.backends.cpu.available_isas():
        for threads in (1, 3):
            fastnn.set_num_threads(threads)
            with fastnn.backends.cpu.isa(isa):
                fastnn.manual_seed(11)
                seen.add(F.dropout(x, 0.3).numpy().tobytes())
    assert len(seen) == 1


def test_two_calls_draw_two_masks_and_the_seed_repeats_them():
    fastnn.manual_seed(1)
    first, second = (F.dropout(fastnn.ones(100)).tolist() for _ in range(2))
    assert first != second
    fastnn.manual_seed(1)
    assert F.dropout(fastnn.ones(100)).tolist() == first


def test_dropped_elements_are_zero_whatever_they_were(isa):
    for value in (float("nan"), float("inf")):
        y = F.dropout(fastnn.full(1000, value), 0.5).numpy()
        kept = ~np.isfinite(y)
        assert kept.any() and not kept.all() and (y[~kept] == 0).all()


def test_evaluation_passes_the_input_on_and_draws_nothing():
    x, state = fastnn.randn(5), fastnn.get_rng_state()
    assert F.dropout(x, 0.5, training=False, inplace=True) is x
    assert nn.Dropout2d(0.5, inplace=True).eval()(x[:, None, None, None]).shape == (5, 1, 1, 1)
    assert F.dropout(x, 0.5, training=False) is x and F.dropout(x, 0.0) is x
    assert fastnn.get_rng_state() == state
