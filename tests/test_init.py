"""Initial values: their moments, their bounds, and the seed."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastnn
from fastnn.nn import init


@pytest.mark.parametrize(
    ("fill", "variance"),
    [
        (lambda w: init.xavier_uniform_(w), 2 / (400 * 9 + 300 * 9)),
        (lambda w: init.xavier_normal_(w, gain=2.0), 4 * 2 / (400 * 9 + 300 * 9)),
        (lambda w: init.kaiming_uniform_(w, nonlinearity="relu"), 2 / (300 * 9)),
        (lambda w: init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"), 2 / (400 * 9)),
        (lambda w: init.kaiming_normal_(w, nonlinearity="linear"), 1 / (300 * 9)),
        (lambda w: init.normal_(w, 0.0, 0.5), 0.25),
    ],
)
def test_variance_is_the_formula(fill, variance):
    weight = fill(fastnn.empty(400, 300, 3, 3)).numpy().astype(np.float64)
    # A million draws: five standard errors of the variance are below 1%.
    assert weight.var() == pytest.approx(variance, rel=0.01)
    assert abs(weight.mean()) < 5 * math.sqrt(variance / weight.size)


def test_uniform_stays_within_its_bound():
    weight = init.xavier_uniform_(fastnn.empty(50, 40)).numpy()
    assert np.abs(weight).max() <= math.sqrt(6 / 90)


@pytest.mark.parametrize("shape", [(20, 20), (10, 30), (30, 10), (8, 3, 3, 3)])
def test_orthogonal_rows_or_columns(shape):
    matrix = init.orthogonal_(fastnn.empty(*shape), gain=2.0).numpy().reshape(shape[0], -1)
    product = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(product, 4 * np.eye(len(product)), atol=1e-5)


def test_truncated_normal_keeps_within_its_limits():
    values = init.trunc_normal_(fastnn.empty(10000), std=1.0, a=-1.0, b=0.5).numpy()
    assert values.min() >= -1 and values.max() <= 0.5


def test_constants():
    assert init.ones_(fastnn.empty(3)).tolist() == [1, 1, 1]
    assert init.zeros_(fastnn.empty(2)).tolist() == [0, 0]
    assert init.constant_(fastnn.empty(2), 7).tolist() == [7, 7]


def test_the_seed_decides():
    drawn = []
    for _ in range(2):
        fastnn.manual_seed(5)
        drawn.append(init.kaiming_normal_(fastnn.empty(7, 5)).numpy())
    assert np.array_equal(*drawn)


def test_gains():
    assert init.calculate_gain("relu") == pytest.approx(math.sqrt(2))
    assert init.calculate_gain("tanh") == pytest.approx(5 / 3)
    assert init.calculate_gain("leaky_relu", 1.0) == pytest.approx(1)
    with pytest.raises(ValueError, match="calculate_gain: expected linear"):
        init.calculate_gain("swoosh")


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"at least 2 dimensions, got shape \(3,\)"):
        init.xavier_normal_(fastnn.empty(3))
    for settings in ({"a": 3.0, "b": 1.0}, {"mean": 10.0}, {"std": 0.0}):
        with pytest.raises(ValueError, match="trunc_normal_: .* expects a likely range"):
            init.trunc_normal_(fastnn.empty(3), **settings)
    with pytest.raises(ValueError, match="mode expects 'fan_in' or 'fan_out', got 'fan'"):
        init.kaiming_normal_(fastnn.empty(3, 3), mode="fan")


@pytest.mark.parametrize(
    ("fill", "squash"),
    [
        (lambda w: init.xavier_normal_(w), np.tanh),
        (lambda w: init.kaiming_normal_(w, nonlinearity="relu"), lambda x: np.maximum(x, 0)),
    ],
)
def test_activations_neither_die_nor_explode_through_ten_layers(fill, squash):
    x = fastnn.randn(500, 256).numpy()
    for _ in range(10):
        x = squash(x @ fill(fastnn.empty(256, 256)).numpy().T)
    assert 0.1 < np.sqrt((x**2).mean()) < 3
