"""Matrix products: random shapes against the reference, NumPy's broadcasting, transposed views."""

from __future__ import annotations

import numpy as np
import pytest
from harness import PROPERTY, check_everywhere
from hypothesis import given
from hypothesis import strategies as st

import fastnn
import fastnn.nn.functional as F

size = st.sampled_from([0, 1, 2, 5, 13, 16, 31, 33, 70])
DTYPE = st.sampled_from(["f32", "bf16"])


@PROPERTY
@given(
    m=size,
    k=size,
    n=size,
    batch=st.sampled_from(["", "_b3", "_b9", "_b2x1_ob1x3", "_ob2"]),
    dtype=DTYPE,
)
def test_matmul_of_random_shapes(m, k, n, batch, dtype):
    check_everywhere("matmul", f"m{m}k{k}n{n}{batch}_{dtype}")


@PROPERTY
@given(
    n=size,
    i=size.filter(bool),
    o=size.filter(bool),
    bias=st.sampled_from(["", "_nobias"]),
    dtype=DTYPE,
)
def test_linear_of_random_shapes(n, i, o, bias, dtype):
    check_everywhere("linear", f"n{n}i{i}o{o}{bias}_{dtype}")


@PROPERTY
@given(
    n=st.integers(1, 34) | st.sampled_from([45, 64, 130]),
    i=st.sampled_from([17, 512, 523, 544, 1030]),
    o=st.sampled_from([16, 512, 544, 555, 1040]),
    bias=st.sampled_from(["", "_nobias"]),
    dtype=DTYPE,
)
def test_some_rows_by_a_large_matrix(n, i, o, bias, dtype):
    """Kernels of their own: up to 32 rows read the matrix as it lies, more pack pieces of it."""
    check_everywhere("linear", f"n{n}i{i}o{o}{bias}_{dtype}")


@pytest.mark.parametrize("case", ["n33i2050o2060_f32", "n47i2050o2060_bf16", "n35i4098o1030_bf16"])
def test_some_rows_by_a_very_large_matrix(case):
    """Of so many weights, pieces are packed in the forward pass too."""
    check_everywhere("linear", case)


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("size", ["i64o33", "i150o16", "i16o1"])
def test_weight_gradients_of_a_few_rows_around_the_caches(around_the_caches, n, size):
    """Rows of whole vectors go there, others do not."""
    for dtype in ("f32", "bf16"):
        check_everywhere("linear", f"n{n}{size}_{dtype}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weight_gradients_of_a_few_rows_are_those_of_many(isa, dtype):
    """Rows of zeros change nothing: of eight rows, another kernel's sums are these."""
    x, weight = fastnn.randn(8, 130, dtype=dtype), fastnn.randn(50, 130, dtype=dtype)
    grad = fastnn.randn(8, 50, dtype=dtype)
    found = []
    for zeros in (0, 1):
        w = weight.detach().requires_grad_()
        rows = [fastnn.cat([t, fastnn.zeros(zeros, t.shape[1], dtype=dtype)]) for t in (x, grad)]
        F.linear(rows[0], w).backward(rows[1])
        found.append(w.grad.float().numpy())
    np.testing.assert_allclose(*found, rtol=1e-2 if dtype == "bfloat16" else 1e-5, atol=1e-5)


def test_weight_gradient_in_several_rounds():
    """More rows than the partial sums of a large weight take in one go."""
    check_everywhere("linear", "n1100i600o610_f32")


def test_transposed_and_sliced_operands(isa):
    a, b = fastnn.randn(40, 23), fastnn.randn(40, 50)
    got = fastnn.matmul(a.transpose(0, 1), b[:, ::2]).numpy()
    np.testing.assert_allclose(got, a.numpy().T @ b.numpy()[:, ::2], rtol=1e-5, atol=1e-5)


def test_the_operator_is_the_function():
    a, b = fastnn.randn(3, 4), fastnn.randn(4, 5)
    assert np.array_equal((a @ b).numpy(), fastnn.matmul(a, b).numpy())


def test_the_identity_changes_nothing(isa):
    a = fastnn.randn(17, 29)
    eye = fastnn.tensor(np.eye(29, dtype=np.float32))
    assert np.array_equal((a @ eye).numpy(), a.numpy())
    assert np.array_equal(F.linear(a, eye).numpy(), a.numpy())


def test_nan_and_infinity_follow_ieee(isa):
    a = fastnn.tensor([[float("inf"), 1.0], [0.0, 1.0]])
    got = (a @ fastnn.tensor([[0.0], [1.0]])).numpy()
    assert np.isnan(got[0, 0]) and got[1, 0] == 1


def test_gradient_flows_through_a_small_network():
    x, w1, w2 = fastnn.randn(5, 4), fastnn.randn(6, 4), fastnn.randn(2, 6)
    for t in (x, w1, w2):
        t.requires_grad_()
    assert fastnn.gradcheck(lambda x, a, b: F.linear(F.tanh(F.linear(x, a)), b), (x, w1, w2))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_over_nothing_are_zero(device, dtype):
    x, weight = (fastnn.ones(*s, dtype=dtype, device=device) for s in ((3, 0), (4, 0)))
    bias = fastnn.arange(4, dtype="float32").to(device)
    x.requires_grad_()
    assert (F.linear(x, weight).float().cpu().detach().numpy() == np.zeros((3, 4))).all()
    y = F.linear(x, weight, bias)
    assert (y.float().cpu().detach().numpy() == [[0, 1, 2, 3]] * 3).all()
    y.backward(fastnn.ones_like(y))
    assert x.grad.shape == (3, 0)
    for batch in ((), (2,), (9,)):
        a, b = (fastnn.ones(*batch, *s, dtype=dtype, device=device) for s in ((3, 0), (0, 5)))
        assert (fastnn.matmul(a, b).float().cpu().numpy() == np.zeros((*batch, 3, 5))).all()
