"""Elementwise operators beyond the case table: random broadcasts and layouts, dtype promotion, NaN
and infinity, in-place forms."""

from __future__ import annotations

import operator

import numpy as np
import pytest
from harness import PROPERTY, check_everywhere
from hypothesis import given
from hypothesis import strategies as st

import fastnn
from fastnn.reference import elementwise as reference
from fastnn.reference.elementwise import OPS

ARITHMETIC = ("add", "sub", "mul", "div", "pow", "maximum", "minimum")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
UNARY = tuple(n for n in OPS if n in (
    "neg", "abs", "sign", "square", "sqrt", "rsqrt", "reciprocal", "exp", "log", "sin", "cos",
    "floor", "ceil", "round",
))  # fmt: skip
nan, inf = float("nan"), float("inf")


def line_of(shape):
    return "x".join(str(n) for n in shape)


@st.composite
def broadcasts(draw):
    """Two shapes that broadcast, as the keys of a case line."""
    full = draw(st.lists(st.sampled_from([0, 1, 2, 3, 5, 17, 33]), min_size=1, max_size=5))
    pair = []
    for _ in range(2):
        kept = full[draw(st.integers(0, len(full))) :]
        pair.append([draw(st.sampled_from([1, n])) for n in kept])
    return "".join(key + line_of(shape) for key, shape in zip(("s", "_o"), pair, strict=True))


@PROPERTY
@given(
    op=st.sampled_from([*ARITHMETIC, *COMPARISONS, "where"]),
    shapes=broadcasts(),
    dtype=st.sampled_from(["f32", "bf16", "int", "byte"]),
    threads=st.integers(1, 3),
)
def test_random_broadcasts(op, shapes, dtype, threads):
    fastnn.set_num_threads(threads)
    # Where either operand decides the result alone, there is no tie to break.
    if op == "where":
        left, _, right = shapes.partition("_o")
        shapes = f"{left}_o{right}_q{left[1:]}" if left[1:] else shapes
    check_everywhere(op, f"{shapes}_{dtype}")


@PROPERTY
@given(
    op=st.sampled_from(UNARY),
    shape=st.lists(st.sampled_from([0, 1, 2, 3, 7, 16, 35]), min_size=1, max_size=4),
    dtype=st.sampled_from(["f32", "bf16"]),
)
def test_random_shapes_of_one_argument(op, shape, dtype):
    check_everywhere(op, f"s{line_of(shape)}_{dtype}")


@st.composite
def strided(draw, shape=(6, 5, 8, 7)):
    """A NumPy array of a fixed shape in a random layout: permuted, stepped, reversed."""
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 2, 3, -1, -2])) for _ in shape]
    outer = [shape[d] * abs(steps[d]) for d in range(len(shape))]
    seed = draw(st.integers(0, 99))
    base = np.random.default_rng(seed).standard_normal([outer[d] for d in order])
    x = base.astype(np.float32).transpose(np.argsort(order))
    x = x[tuple(slice(None, None, step) for step in steps)]
    return x[tuple(slice(0, n) for n in shape)]


@PROPERTY
@given(x=strided(), y=strided(), op=st.sampled_from(["add", "mul", "maximum", "lt", "div"]))
def test_any_layout_of_operands(x, y, op):
    got = getattr(fastnn, op)(fastnn.from_numpy(x), fastnn.from_numpy(y)).numpy()
    assert np.array_equal(got, getattr(reference, op)(x, y))


@PROPERTY
@given(x=strided(), y=strided())
def test_in_place_on_any_layout(x, y):
    wanted = x * y
    target = fastnn.from_numpy(x)
    assert target.mul_(fastnn.from_numpy(y)) is target
    assert np.array_equal(x, wanted)


@pytest.mark.parametrize("channels", [1, 3, 5, 16, 24, 67])
def test_a_short_channel_vector(isa, channels):
    """The widened rows of few channels, also with a row count that has no good divisor."""
    rng = np.random.default_rng(0)
    for h, w in ((8, 8), (7, 1), (13, 11), (1, 1)):
        x = rng.standard_normal((3, channels, h, w)).astype(np.float32)
        b = rng.standard_normal((channels, 1, 1)).astype(np.float32)
        got = fastnn.sub(fastnn.tensor(x), fastnn.tensor(b)).numpy()
        assert np.array_equal(got, x - b)


RANK = ["bool", "uint8", "int32", "int64", "bfloat16", "float32"]


@pytest.mark.parametrize("a", RANK)
@pytest.mark.parametrize("b", RANK)
def test_dtypes_promote(a, b):
    x, y = fastnn.ones(3).to(a), fastnn.ones(3).to(b)
    wanted = max(a, b, key=RANK.index)
    assert (x + y).dtype.name == wanted
    assert (x * y).dtype.name == wanted
    assert (x == y).dtype.name == "bool"
    divided = wanted if wanted in ("bfloat16", "float32") else "float32"
    assert (x / y).dtype.name == divided


@pytest.mark.parametrize("dtype", RANK)
def test_numbers_are_weak(dtype):
    x = fastnn.ones(3).to(dtype)
    floating = dtype in ("bfloat16", "float32")
    assert (x + 1).dtype.name == ("int64" if dtype == "bool" else dtype)
    assert (x + 1.5).dtype.name == (dtype if floating else "float32")
    assert (1.5 * x).dtype.name == (dtype if floating else "float32")
    assert (x + True).dtype.name == dtype
    assert (x + np.float64(2)).dtype.name == (dtype if floating else "float32")


def test_a_number_is_not_rounded_to_bfloat16():
    x = fastnn.full(1, 3.0, dtype="bfloat16")
    got = (x * 0.1).item()  # 0.1 is 0.10009765625 in bfloat16, times 3 rounds up instead
    assert got == float(np.float32(0.30078125))


def test_integer_arithmetic_wraps_and_keeps_63_bits():
    big = 2**62 + 1
    x = fastnn.tensor([big, -(2**63)])
    assert (x + 1).tolist() == [big + 1, -(2**63) + 1]
    assert (x + x).tolist() == [-(2**63) + 2, 0]
    assert (fastnn.tensor([250], dtype="uint8") + 10).tolist() == [4]
    assert (fastnn.tensor([3, -1, 0]) ** 5).tolist() == [243, -1, 0]
    assert (fastnn.tensor([2, -1, 1]) ** fastnn.tensor([-1, -3, -2])).tolist() == [0, -1, 1]


def test_nan_and_infinity(isa):
    x = fastnn.tensor([nan, inf, -inf, 0.0, -0.0, 1.0])
    one = fastnn.ones(6)
    assert fastnn.isnan(fastnn.maximum(x, one)).tolist() == [True] + [False] * 5
    assert fastnn.isnan(fastnn.minimum(one, x)).tolist() == [True] + [False] * 5
    assert np.isnan(fastnn.clamp(x, -1, 1).tolist()[0])
    assert fastnn.clamp(x, -1, 1).tolist()[1:] == [1, -1, 0, 0, 1]
    assert (x == x).tolist() == [False] + [True] * 5
    assert np.array_equal((1 / x).numpy(), [nan, 0, 0, inf, -inf, 1], equal_nan=True)
    assert np.array_equal(fastnn.exp(x).numpy()[:4], [nan, inf, 0, 1], equal_nan=True)
    assert np.array_equal(fastnn.log(x).numpy(), [nan, inf, nan, -inf, -inf, 0], equal_nan=True)
    assert np.array_equal(fastnn.sqrt(x).numpy(), [nan, inf, nan, 0, 0, 1], equal_nan=True)
    assert np.array_equal(fastnn.sign(x).numpy(), [nan, 1, -1, 0, 0, 1], equal_nan=True)
    assert (x - x).isnan().tolist() == [True, True, True, False, False, False]
    half = x.bfloat16()
    assert half.isnan().tolist() == [True] + [False] * 5
    assert half.isinf().tolist() == [False, True, True, False, False, False]
    assert (half + half).isnan().tolist() == [True] + [False] * 5


def test_sine_and_cosine_over_all_of_float32(isa):
    """Both sides of 8192, where the reduction changes; subnormal numbers count as zero."""
    rng = np.random.default_rng(0)
    x = (10.0 ** rng.uniform(-30, 38, 20_000) * rng.choice([-1, 1], 20_000)).astype(np.float32)
    x[:8000] = rng.uniform(-9000, 9000, 8000)
    x[8000:8100] = np.arange(100) * np.float32(np.pi / 2)  # where one of them is nearly zero
    t = fastnn.tensor(x)
    for name in ("sin", "cos"):
        want = getattr(np, name)(x.astype(np.float64))
        assert np.abs(getattr(fastnn, name)(t).numpy() - want).max() < 1.5e-7
    assert fastnn.isnan(fastnn.sin(fastnn.tensor([inf, -inf, nan]))).all()
    assert fastnn.isnan(fastnn.cos(fastnn.tensor([inf, -inf, nan]))).all()


def test_powers_and_their_gradients_at_the_edges(isa):
    x = fastnn.tensor([0.0, 0.0, 0.0, -2.0, -2.0, 4.0], requires_grad=True)
    y = fastnn.tensor([0.0, 2.0, 0.5, 3.0, 0.5, -0.5], requires_grad=True)
    out = x**y
    assert np.allclose(out.detach().numpy(), [1, 0, 0, -8, nan, 0.5], equal_nan=True)
    out.backward(fastnn.ones(6))
    assert np.allclose(x.grad.numpy(), [0, 0, inf, 12, nan, -0.0625], equal_nan=True)
    assert np.allclose(y.grad.numpy()[:3], [0, 0, 0]) and np.isnan(y.grad.numpy()[3])
    whole = fastnn.tensor([3.0, -3.0, 0.0])
    for exponent in (0, 1, 2, 3, -1, -2, 4):
        with np.errstate(divide="ignore"):
            want = whole.numpy() ** np.float32(exponent)
        assert np.allclose((whole**exponent).numpy(), want), exponent
    assert np.allclose((fastnn.tensor([4.0, 0.25]) ** 0.5).numpy(), [2, 0.5])
    assert np.allclose((fastnn.tensor([4.0, 0.25]) ** -0.5).numpy(), [0.5, 2])


@pytest.mark.parametrize(
    ("symbol", "name"),
    [(operator.add, "add"), (operator.sub, "sub"), (operator.mul, "mul"), (operator.truediv, "div"),
     (operator.pow, "pow"), (operator.lt, "lt"), (operator.ge, "ge"), (operator.eq, "eq")],
)  # fmt: skip
def test_operators_and_their_reflections(symbol, name):
    values = np.array([0.5, 1.0, 2.0, 3.5], np.float32)
    x = fastnn.tensor(values)
    function = getattr(reference, name)
    assert np.allclose(symbol(x, 2).numpy(), function(values, 2))
    assert np.allclose(symbol(2, x).numpy(), function(np.float32(2), values))
    assert np.allclose(symbol(x, x).numpy(), function(values, values))
    assert np.allclose(symbol(np.float32(2), x).numpy(), function(np.float32(2), values))


def test_a_numpy_array_is_no_operand():
    with pytest.raises(TypeError):
        fastnn.ones(3) + np.ones(3, np.float32)
    with pytest.raises(TypeError):
        np.ones(3, np.float32) + fastnn.ones(3)
    assert (fastnn.ones(3) == None) is False  # noqa: E711 - equality with anything else is identity


def test_logic_of_bool_tensors():
    a, b = fastnn.tensor([True, True, False]), fastnn.tensor([True, False, False])
    assert (a & b).tolist() == [True, False, False]
    assert (a | b).tolist() == [True, True, False]
    assert (a ^ b).tolist() == [False, True, False]
    assert (~a).tolist() == [False, False, True]
    assert (a + b).tolist() == [True, True, False] and (a * b).tolist() == [True, False, False]
    with pytest.raises(TypeError):
        a & fastnn.ones(3)
    with pytest.raises(TypeError, match="bool"):
        ~fastnn.ones(3)


def test_in_place_changes_count_and_alias():
    x = fastnn.zeros(4)
    same = x
    before = x._array.version
    x += 2
    x *= fastnn.tensor([1.0, 2.0, 3.0, 4.0])
    x.sub_(1, alpha=2)
    assert same is x and x.tolist() == [0, 2, 4, 6]
    assert x._array.version == before + 3
    x.clamp_(min=1, max=5).sqrt_().neg_()
    assert np.allclose(x.numpy(), -np.sqrt([1, 2, 4, 5]))
    assert fastnn.arange(4).clamp_(None, 2).tolist() == [0, 1, 2, 2]
    half = fastnn.ones(3, dtype="bfloat16")
    half += fastnn.tensor([1.0, 2.0, 3.0])
    assert half.dtype is fastnn.bfloat16 and half.tolist() == [2, 3, 4]
    whole = fastnn.arange(3)
    whole += fastnn.tensor([True, False, True])
    assert whole.tolist() == [1, 1, 3]


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.add_(),
        lambda x: x.add_(1, 2),
        lambda x: x.add_(1, other=2),
        lambda x: x.mul_(2, alpha=1),
        lambda x: x.exp_(1),
        lambda x: x.clamp_(0, 1, 2),
        lambda x: x.div_(None),
        lambda x: x.pow_("2"),
    ],
)
def test_wrong_arguments_in_place_are_named(call):
    with pytest.raises(TypeError, match=r"^\w+_: (expected|other|exponent)"):
        call(fastnn.ones(3))


def test_in_place_reads_overlapping_memory_first():
    values = np.arange(6, dtype=np.float32)
    x = fastnn.from_numpy(values)
    fastnn.from_numpy(values[1:]).add_(fastnn.from_numpy(values[:-1]))
    assert x.tolist() == [0, 1, 3, 5, 7, 9]
    square = fastnn.tensor([[1.0, 2.0], [3.0, 4.0]])
    square.add_(square.T)
    assert square.tolist() == [[2, 5], [5, 8]]


def test_in_place_refuses_memory_it_must_not_write():
    frozen = np.ones(3, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        fastnn.from_numpy(frozen).add_(1)
    with pytest.raises(ValueError, match="overlap"):
        fastnn.ones(1).expand(3).add_(1)
    assert frozen.tolist() == [1, 1, 1]


def test_augmented_assignment_is_recorded_where_a_gradient_is_wanted():
    w = fastnn.tensor([1.0, 2.0], requires_grad=True)
    y = w * 3
    first = y
    y += w
    assert y is not first and first.tolist() == [3, 6]
    y.sum().backward()
    assert w.grad.tolist() == [4, 4]
    with pytest.raises(RuntimeError, match="no_grad"):
        w += 1
    with fastnn.no_grad():
        w += 1
    assert w.tolist() == [2, 3]


def test_gradients_of_broadcast_bfloat16_are_summed_in_float32():
    """2**-9 added 512 times to 1 stays 1 in bfloat16; in float32 it is 2."""
    small = np.full((513, 1), 2.0**-9, np.float32)
    small[0] = 1
    b = fastnn.ones(1, dtype="bfloat16", requires_grad=True)
    (b * fastnn.tensor(small, dtype="bfloat16")).backward(fastnn.ones(513, 1, dtype="bfloat16"))
    assert b.grad.item() == 2.0


def test_ten_dimensions_are_refused():
    with pytest.raises(ValueError):
        fastnn.ones((1,) * 10)


def test_masked_fill_keeps_shape_and_dtype():
    x = fastnn.randn(2, 3, 4, 5, requires_grad=True)
    mask = fastnn.rand(2, 1, 4, 5) < 0.5
    y = x.masked_fill(mask, -1.5)
    held = np.broadcast_to(mask.numpy(), x.shape)
    assert np.array_equal(y.detach().numpy(), np.where(held, np.float32(-1.5), x.detach().numpy()))
    y.sum().backward()
    assert np.array_equal(x.grad.numpy(), np.where(held, 0, 1))
    whole = fastnn.arange(4)
    assert whole.masked_fill(whole > 1, 7.0).tolist() == [0, 1, 7, 7]
    assert fastnn.masked_fill(whole, whole > 1, 7).dtype is fastnn.int64
    assert (whole > 1).masked_fill(whole == 0, True).tolist() == [True, False, True, True]
    half = fastnn.ones(2).to("bfloat16").masked_fill(fastnn.tensor([True, False]), float("-inf"))
    assert half.dtype is fastnn.bfloat16 and half.float().tolist() == [-np.inf, 1]
    for value, error, match in (
        (0.5, TypeError, "expects a whole number for int64, got 0.5"),
        (float("inf"), TypeError, "expects a whole number for int64, got inf"),
        ("1", TypeError, "value expects a number, got str"),
    ):
        with pytest.raises(error, match=f"masked_fill: value {match}|masked_fill: {match}"):
            whole.masked_fill(whole > 1, value)
    with pytest.raises(
        ValueError, match=r"mask expects a shape that broadcasts to \(4,\), got \(2, 4\)"
    ):
        whole.masked_fill(fastnn.ones(2, 4) > 0, 1)
    with pytest.raises(TypeError, match="dtype bool"):
        whole.masked_fill(whole, 1)
