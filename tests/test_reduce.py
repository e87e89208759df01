"""Reductions beyond the case table: random shapes and dims, layouts, long sums, NaN, ties."""

from __future__ import annotations

import numpy as np
import pytest
from harness import PROPERTY, check, check_everywhere
from hypothesis import given
from hypothesis import strategies as st

import fastnn
from fastnn.reference.reduce import OPS

nan, inf = float("nan"), float("inf")


@st.composite
def lines(draw, several=True, smallest=0):
    """A shape and some of its dimensions, as the keys of a case line."""
    shape = draw(st.lists(st.sampled_from([smallest, 1, 2, 3, 5, 17, 40]), min_size=1, max_size=5))
    dims = draw(st.permutations(range(len(shape))))[: draw(st.integers(1, len(shape)))]
    dims = [d - len(shape) if draw(st.booleans()) else d for d in dims][: None if several else 1]
    line = "s" + "x".join(map(str, shape)) + "_d" + "x".join(map(str, dims))
    return line + ("_keep" if draw(st.booleans()) else "")


@PROPERTY
@given(
    op=st.sampled_from(["sum", "norm", "norm_l1", "norm_linf", "any", "all"]),
    line=lines(),
    dtype=st.sampled_from(["f32", "bf16"]),
)
def test_random_dims(op, line, dtype):
    name, _, kind = op.partition("_")
    check_everywhere(name, "_".join(filter(None, (line, kind, dtype))))


@PROPERTY
@given(op=st.sampled_from(["mean", "var_c0"]), line=lines(smallest=2),
       dtype=st.sampled_from(["f32", "bf16"]))  # fmt: skip
def test_random_moments(op, line, dtype):
    name, _, extra = op.partition("_")
    check(name, "_".join(filter(None, (line, extra, dtype))))


@PROPERTY
@given(
    op=st.sampled_from(["max", "min", "argmax", "argmin"]),
    line=lines(several=False, smallest=4),
    dtype=st.sampled_from(["f32", "bf16", "ties_bf16", "int", "byte", "bool"]),
)
def test_random_picks(op, line, dtype):
    check_everywhere(op, f"{line}_{dtype}")


@PROPERTY
@given(
    order=st.permutations(range(4)),
    dims=st.sets(st.integers(0, 3), min_size=1),
    reverse=st.booleans(),
    name=st.sampled_from(["sum", "max", "argmax", "var"]),
)
def test_any_layout(order, dims, reverse, name):
    base = np.random.default_rng(1).standard_normal((3, 4, 5, 6)).astype(np.float32)
    x = base.transpose(order)[:, :: -1 if reverse else 1]
    if name in ("max", "argmax"):
        (dim,) = list(dims)[:1]
        got = getattr(fastnn.from_numpy(x), name)(dim)
        got = got[0] if name == "max" else got
        assert np.array_equal(got.numpy(), getattr(np, name)(x, axis=dim))
    else:
        got = getattr(fastnn.from_numpy(x), name)(tuple(dims)).numpy()
        kwargs = {"ddof": 1} if name == "var" else {}
        if name == "sum" or np.prod([x.shape[d] for d in dims]) > 1:
            want = getattr(np, name)(x.astype(np.float64), axis=tuple(dims), **kwargs)
            assert np.allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_extremes_of_many_short_rows_with_nan(dtype, isa):
    """The first NaN of a row wins, else the first of equal numbers, in whole blocks of rows too."""
    x = np.random.default_rng(0).integers(-3, 4, (101, 7)).astype(np.float32)
    x[::3, 5] = x[::5, 2] = nan
    for name in ("max", "min"):
        values, at = getattr(fastnn.tensor(x).to(dtype), name)(1)
        assert np.array_equal(at.numpy(), getattr(np, "arg" + name)(x, axis=1))
        assert np.array_equal(values.float().numpy(), getattr(x, name)(axis=1), equal_nan=True)


@pytest.mark.parametrize("shape", [(1, 4_000_003), (4_000_003, 1), (500_000, 3), (70_000, 40)])
def test_long_sums_stay_accurate(isa, shape):
    """A plain running float32 sum of 4 million values near 1 would be off by 1e-3 and more."""
    x = np.random.default_rng(0).uniform(0.5, 1.5, shape).astype(np.float32)
    t = fastnn.from_numpy(x)
    for dim in (0, 1, None):
        want = x.sum(axis=dim, dtype=np.float64)
        got = t.sum(dim).numpy()
        assert np.max(np.abs(got - want) / np.abs(want)) < 2e-6


def test_variance_survives_an_offset(isa):
    x = np.random.default_rng(0).standard_normal((64, 4096)).astype(np.float32) + 1000
    want = x.astype(np.float64).var(axis=1, ddof=1)
    assert np.allclose(fastnn.from_numpy(x).var(1).numpy(), want, rtol=1e-3)
    assert np.allclose(fastnn.from_numpy(x.T.copy()).std(0).numpy(), np.sqrt(want), rtol=1e-3)


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("dim", [None, 0, 1, (0, 2, 3), (2, 3)])
def test_large_sums_have_the_same_bits_for_any_number_of_threads(threads, dim):
    x = fastnn.randn(5, 33, 61, 67)
    fastnn.set_num_threads(1)
    one = x.sum(dim).numpy().copy()
    fastnn.set_num_threads(threads)
    assert one.tobytes() == x.sum(dim).numpy().tobytes()


def test_nan_stays_in_its_column_of_many(isa):
    x = np.zeros((300, 1100), np.float32)
    x[270, 3] = x[5, 1090] = nan  # of either block of rows, and of columns
    found = fastnn.from_numpy(x).norm(inf, dim=0).numpy()
    assert np.array_equal(np.isnan(found), np.isnan(x).any(0)) and np.nansum(found) == 0


def test_nan_is_the_extreme_and_the_first_equal_wins(isa):
    x = fastnn.tensor([[1.0, nan, 3.0, nan], [2.0, 5.0, 5.0, -inf], [-inf, -inf, -inf, -inf]])
    values, indices = x.max(1)
    assert np.isnan(values.tolist()[0]) and values.tolist()[1:] == [5, -inf]
    assert indices.tolist() == [1, 1, 0]
    assert x.argmin(dim=1).tolist() == [1, 3, 0]
    columns = fastnn.from_numpy(x.numpy().T.copy())
    assert columns.argmax(0).tolist() == [1, 1, 0] and columns.argmin(0).tolist() == [1, 3, 0]
    assert np.isnan(x.max().item()) and np.isnan(x.sum().item())
    assert x[1:].min().item() == -inf


def test_argmax_of_everything_counts_in_row_major_order():
    """Also for rank 4, which lies in memory as NHWC."""
    x = np.random.default_rng(3).standard_normal((3, 5, 7, 2)).astype(np.float32)
    assert fastnn.tensor(x).argmax().item() == int(x.argmax())
    assert fastnn.tensor(x).argmin().item() == int(x.argmin())


def test_nothing_to_reduce():
    empty = fastnn.zeros(2, 0)
    assert empty.sum().item() == 0 and empty.prod().item() == 1
    assert empty.sum(1).tolist() == [0, 0] and empty.norm().item() == 0
    assert np.isnan(empty.mean().item()) and np.isnan(empty.var().item())
    assert empty.any().item() is False and empty.all().item() is True
    assert np.isnan(fastnn.ones(1).var().item())  # no degree of freedom


def test_integer_sums_are_exact_in_int64():
    x = fastnn.full(100_000, 255).to("uint8")
    assert x.sum().item() == 25_500_000 and x.sum().dtype is fastnn.int64
    big = fastnn.tensor([2**53, 1, 1])
    assert big.sum().item() == 2**53 + 2
    assert (fastnn.ones(70_000) > 0).sum().item() == 70_000
    assert fastnn.tensor([3, 5]).prod().dtype is fastnn.int64


def test_bfloat16_sums_in_float32():
    assert fastnn.ones(4096, dtype="bfloat16").sum().item() == 4096  # a bfloat16 sum stops at 256
    assert fastnn.ones(300, 5, dtype="bfloat16").sum(0).tolist() == [300.0] * 5


def test_hand_computed():
    x = fastnn.tensor([[1.0, 2.0], [3.0, 5.0]], requires_grad=True)
    assert x.sum().item() == 11 and x.mean(0).tolist() == [2, 3.5] and x.prod(1).tolist() == [2, 15]
    assert x.var(1).tolist() == [0.5, 2] and x.var(1, correction=0).tolist() == [0.25, 1]
    assert x.norm(p=1).item() == 11 and x.norm(p=inf).item() == 5
    assert fastnn.tensor([3.0, 4.0]).norm().item() == 5
    x.norm(dim=1).sum().backward()
    assert np.allclose(x.grad.numpy()[0], np.array([1, 2]) / np.sqrt(5))


def test_max_of_two_tensors_is_the_larger_of_each():
    x, y = fastnn.tensor([1.0, 5.0]), fastnn.tensor([3.0, 2.0])
    assert fastnn.max(x, y).tolist() == [3, 5] and x.min(y).tolist() == [1, 2]


@pytest.mark.parametrize("dim", [2**70, -(2**40), 7])
def test_absurd_dims(dim):
    for name in OPS:
        with pytest.raises(ValueError, match=f"{name}: dim expects"):
            getattr(fastnn.ones(2, 3), name)(dim=dim)


def test_equal_extremes_share_the_gradient_of_the_whole():
    x = fastnn.tensor([1.0, 7.0, 7.0], requires_grad=True)
    x.max().backward()
    assert x.grad.tolist() == [0, 0.5, 0.5]
    y = fastnn.tensor([1.0, 7.0, 7.0], requires_grad=True)
    y.max(0)[0].backward()
    assert y.grad.tolist() == [0, 1, 0]


def test_the_gradient_of_a_norm_at_zero_is_zero():
    x = fastnn.zeros(3, 4, requires_grad=True)
    x.norm(dim=1).sum().backward()
    assert x.grad.tolist() == fastnn.zeros(3, 4).tolist()


@pytest.mark.parametrize("correction", [0, 1])
def test_the_gradient_of_a_deviation_of_equal_values_is_zero(correction):
    x = fastnn.tensor([[2.0, 2.0, 2.0], [1.0, 2.0, 3.0]], requires_grad=True)
    x.std(1, correction).sum().backward()
    assert x.grad[0].tolist() == [0, 0, 0] and x.grad[1, 1].item() == 0 < x.grad[1, 2].item()


def test_every_operator_is_a_method_too():
    for name in OPS:
        assert callable(getattr(fastnn.Tensor, name)), name
