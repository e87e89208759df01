"""Random tensors and the generator: against NumPy, the same everywhere, in graphs."""

from __future__ import annotations

import numpy as np
import pytest
from harness import PROPERTY
from hypothesis import given
from hypothesis import strategies as st

import fastnn
from fastnn.reference import random as reference

SHAPES = ((), (1,), (7,), (0, 3), (33, 5), (2, 3, 4, 5), (1, 2, 3, 2, 3))


def in_memory_order(x):
    """Values as they lie: NHWC for rank 4."""
    values = x.cpu().float().numpy() if x.dtype is fastnn.bfloat16 else x.cpu().numpy()
    return (values.transpose(0, 2, 3, 1) if values.ndim == 4 else values).reshape(-1)


def check_drawn(device, seed, offset, shape, low, width):
    """All that is drawn on a device is the reference's: normal values to a unit in the last place,
    for logarithms and sines of doubles differ in theirs."""
    count = int(np.prod(shape))
    fastnn.set_rng_state((seed, offset))
    uniform = fastnn.empty(*shape, device=device).uniform_(low, low + width)
    normal = fastnn.empty(*shape, device=device).normal_(low, width)
    whole = fastnn.randint(int(low), int(low) + 1 + int(width), shape, device=device)
    assert fastnn.get_rng_state() == (seed, (offset + 3) % 2**64)
    for x in (uniform, normal, whole):
        assert x.shape == shape and x.device == fastnn.empty(0, device=device).device
    offsets = [(offset + i) % 2**64 for i in range(3)]
    want = reference.uniform(seed, offsets[0], count, low, low + width).astype(np.float32)
    assert np.array_equal(in_memory_order(uniform), want)
    want = reference.normal(seed, offsets[1], count, low, width).astype(np.float32)
    apart = np.abs(in_memory_order(normal).astype(np.float64) - want)
    assert (apart <= np.spacing(np.abs(want))).all()
    want = reference.integers(seed, offsets[2], count, int(low), int(low) + 1 + int(width))
    assert in_memory_order(whole).tolist() == want


@PROPERTY
@given(
    seed=st.integers(0, 2**64 - 1), offset=st.integers(0, 2**64 - 1), shape=st.sampled_from(SHAPES),
    low=st.integers(-36, 36), width=st.integers(0, 400),
)  # fmt: skip
def test_numbers_are_the_references(seed, offset, shape, low, width):
    check_drawn("cpu", seed, offset, shape, low / 4, width / 4)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [*SHAPES, (70_001,)])
def test_numbers_drawn_on_a_gpu_are_the_references(shape):
    check_drawn("cuda", 2**63 + 5, 2**64 - 2, shape, -1.5, 7.25)


def test_same_seed_same_numbers_on_any_number_of_threads():
    drawn = []
    for threads in (1, 2, 5):
        fastnn.set_num_threads(threads)
        fastnn.manual_seed(7)
        drawn.append((fastnn.randn(100_003).numpy(), fastnn.rand(50_001).numpy()))
    for normal, uniform in drawn[1:]:
        assert normal.tobytes() == drawn[0][0].tobytes()
        assert uniform.tobytes() == drawn[0][1].tobytes()


def test_generator_state_can_be_saved_and_restored():
    fastnn.manual_seed(3)
    fastnn.rand(5)
    state = fastnn.get_rng_state()
    first = fastnn.rand(5).tolist()
    fastnn.set_rng_state(state)
    assert fastnn.rand(5).tolist() == first
    assert fastnn.rand(5).tolist() != first


def test_what_is_no_generator_state_is_refused():
    before = fastnn.get_rng_state()
    for state in (5, (1,), (1, 2.0), "ab"):
        with pytest.raises(TypeError, match="set_rng_state: expected two integers, as"):
            fastnn.set_rng_state(state)
    for state in ((-1, 0), (0, 2**64)):
        with pytest.raises(ValueError, match=r"set_rng_state: expected integers from 0 to 2\*\*64"):
            fastnn.set_rng_state(state)
    assert fastnn.get_rng_state() == before
    fastnn.set_rng_state((2**64 - 1, 3))
    assert fastnn.get_rng_state() == (2**64 - 1, 3)


def test_random_numbers_are_not_truncated():
    whole, before = fastnn.zeros(3, dtype="int64"), fastnn.get_rng_state()
    for name, draw in {
        "normal_": whole.normal_,
        "uniform_": whole.uniform_,
        "rand": lambda: fastnn.rand(3, dtype="int64"),
        "randn": lambda: fastnn.randn(3, dtype="uint8"),
    }.items():
        with pytest.raises(TypeError, match=f"{name}: expected dtype float32 or bfloat16, got"):
            draw()
    assert fastnn.get_rng_state() == before


def test_random_numbers_have_the_right_moments():
    normal = fastnn.randn(1_000_000).numpy().astype(np.float64)
    uniform = fastnn.rand(1_000_000).numpy().astype(np.float64)
    # Five standard errors of each estimate.
    assert abs(normal.mean()) < 5e-3 and abs(normal.std() - 1) < 4e-3
    assert abs((normal**3).mean()) < 2e-2 and abs((normal**4).mean() - 3) < 5e-2
    assert abs(uniform.mean() - 0.5) < 1.5e-3 and abs(uniform.var() - 1 / 12) < 4e-4
    assert uniform.min() >= 0 and uniform.max() < 1


def test_permutations_hold_every_index_once():
    assert sorted(fastnn.randperm(1000).tolist()) == list(range(1000))
    assert fastnn.randperm(0).shape == (0,)
    with pytest.raises(ValueError, match="randperm: expected n >= 0, got -1"):
        fastnn.randperm(-1)


def test_integers_are_within_their_bounds_and_each_as_likely():
    counts = np.bincount(fastnn.randint(3, 10, (70_000,)).numpy(), minlength=10)
    assert counts[:3].sum() == 0 and len(counts) == 10
    # Of 6 degrees of freedom: 30 is passed once in 25,000 times.
    assert ((counts[3:] - 10_000) ** 2 / 10_000).sum() < 30
    whole = fastnn.randint(-(2**63), 2**63 - 1, (1000,)).numpy()
    assert (whole < -(2**62)).any() and (whole > 2**62).any()
    assert fastnn.randint(4, (2, 3)).shape == (2, 3)
    assert fastnn.randint(high=1, size=[5]).tolist() == [0] * 5
    assert fastnn.randint(0, 256, (9,), dtype="uint8").dtype is fastnn.uint8
    assert set(fastnn.randint(2, (99,), dtype=fastnn.bool).tolist()) == {False, True}


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((5,), {}, TypeError, r"expected \(high, size\) or \(low, high, size\), integers and a tuple"),
        ((1.5, (2,)), {}, TypeError, "got low=0, high=1.5"),
        ((True, (2,)), {}, TypeError, "got low=0, high=True"),
        ((3, 3, (2,)), {}, ValueError, "expected low < high, .* got low=3 and high=3"),
        ((0, 257, (2,)), {"dtype": "uint8"}, ValueError, "0 to 255 in uint8"),
        ((0, 2**63, (2,)), {}, ValueError, "in int64, got low=0 and high=9223372036854775808"),
        ((3, (2, -1)), {}, ValueError, r"expected sizes >= 0, got shape \(2, -1\)"),
        ((3, (2.0,)), {}, TypeError, "expected integer sizes"),
    ],
)  # fmt: skip
def test_what_randint_cannot_draw_is_refused(arguments, options, error, message):
    before = fastnn.get_rng_state()
    with pytest.raises(error, match=f"randint: .*{message}"):
        fastnn.randint(*arguments, **options)
    assert fastnn.get_rng_state() == before


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_like_another_tensor(device):
    other = fastnn.zeros(2, 3, 4, 5, dtype="bfloat16", device=device)
    for draw in (fastnn.rand_like, fastnn.randn_like):
        fastnn.manual_seed(4)
        x, y = draw(other), draw(other, dtype=fastnn.float32)
        assert (x.shape, x.dtype, x.device) == (other.shape, other.dtype, other.device)
        assert (y.dtype, y.device) == (fastnn.float32, other.device)
        assert in_memory_order(x).std() > 0.2
    with pytest.raises(TypeError, match="randn: expected dtype float32 or bfloat16, got int64"):
        fastnn.randn_like(fastnn.zeros(2, dtype="int64"))


@pytest.mark.gpu
def test_views_are_filled_on_their_gpu():
    whole = fastnn.zeros(4, 6, device="cuda")
    fastnn.manual_seed(8)
    whole[:, 1:4].normal_()
    fastnn.manual_seed(8)
    assert whole[:, 1:4].tolist() == fastnn.randn(4, 3, device="cuda").tolist()
    assert not whole[:, 0].any() and not whole[:, 4:].any()


@pytest.mark.gpu
def test_replays_draw_anew():
    """As the same calls outside a graph would."""

    def step(x):
        noise = x + fastnn.randn_like(x)
        noise[0] = fastnn.rand(5, device="cuda")
        return noise, fastnn.randint(100, (7,), device="cuda")

    drawn = []
    for run in (step, fastnn.cuda.graphed(step, warmup=1)):
        fastnn.manual_seed(6)
        drawn.append(
            [[y.tolist() for y in run(fastnn.ones(3, 5, device="cuda"))] for _ in range(5)]
        )
        assert fastnn.get_rng_state() == (6, 15)
    assert drawn[0] == drawn[1]
    assert len({str(results) for results in drawn[0]}) == 5


def test_programs_draw_anew():
    model = fastnn.nn.Identity()
    model.forward = lambda x: x + fastnn.randn_like(x) * fastnn.rand(3, 1) + fastnn.randint(9, (4,))
    run, x = fastnn.compile(model, fastnn.zeros(3, 4)), fastnn.ones(3, 4)
    drawn = []
    for call in (model, run):
        fastnn.manual_seed(3)
        drawn.append([call(x).tolist() for _ in range(3)])
    assert drawn[0] == drawn[1] and drawn[0][0] != drawn[0][1]
