"""Optimizers and schedules: they descend, save, resume to the bit, and refuse nonsense."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
from harness import PROPERTY, check_everywhere
from hypothesis import given
from hypothesis import strategies as st

import fastnn
from fastnn import _core, nn, optim
from fastnn.tensor import _to_numpy

ALL = [
    (optim.SGD, {"lr": 0.1}), (optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    (optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}),
    (optim.Adam, {"lr": 0.1}), (optim.Adam, {"lr": 0.1, "amsgrad": True}),
    (optim.AdamW, {"lr": 0.1}), (optim.Adagrad, {"lr": 0.5}), (optim.RMSprop, {"lr": 0.05}),
    (optim.RMSprop, {"lr": 0.02, "centered": True, "momentum": 0.5}),
    (optim.Adadelta, {"lr": 20.0}),
]  # fmt: skip
IDS = [f"{cls.__name__}-{'-'.join(kw)}" for cls, kw in ALL]


@PROPERTY
@given(
    size=st.integers(1, 40_000), wd=st.sampled_from([0.0, 0.1]),
    case=st.sampled_from([
        ("sgd_step", "_mo0.9"), ("sgd_step", ""), ("adam_step", "_amsgrad"), ("adam_step", "_decoupled"),
        ("adagrad_step", "_decay0.1"), ("rmsprop_step", "_centered_mo0.5"), ("adadelta_step", ""),
    ]),
)  # fmt: skip
def test_steps_on_random_sizes(size, wd, case):
    op, options = case
    check_everywhere(op, f"size{size}{options}_wd{wd}_f32")


def descend(optimizer, parameter, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        ((parameter - 3.0) ** 2).sum().backward()
        optimizer.step()


@pytest.mark.parametrize(("cls", "options"), ALL, ids=IDS)
def test_every_optimizer_finds_the_minimum_of_a_parabola(cls, options):
    p = nn.Parameter(fastnn.zeros(5))
    descend(cls([p], **options), p, 300)
    np.testing.assert_allclose(p.detach().numpy(), 3.0, atol=0.15)


@pytest.mark.parametrize(("cls", "options"), ALL, ids=IDS)
def test_a_saved_optimizer_continues_to_the_bit(cls, options):
    straight = nn.Parameter(fastnn.zeros(2, 3, 3, 3))
    optimizer = cls([straight], **options)
    descend(optimizer, straight, 3)
    resumed = nn.Parameter(straight.detach().clone())
    other = cls([resumed], **options)
    other.load_state_dict(optimizer.state_dict())
    descend(optimizer, straight, 3)
    descend(other, resumed, 3)
    assert straight.detach().numpy().tobytes() == resumed.detach().numpy().tobytes()


@pytest.mark.parametrize(("cls", "options"), ALL, ids=IDS)
def test_the_memory_layout_of_a_parameter_changes_nothing(cls, options):
    start = fastnn.randn(4, 3, 2, 2).numpy()
    ends = []
    for array in (start.copy(), np.moveaxis(np.ascontiguousarray(np.moveaxis(start, 1, 3)), 3, 1)):
        p = nn.Parameter(fastnn.from_numpy(array))
        descend(cls([p], **options), p, 3)
        ends.append(np.ascontiguousarray(p.detach().numpy()))
    assert np.array_equal(*ends)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
def test_a_copied_optimizer_goes_on_with_the_copied_parameters(copied):
    def step(net, optimizer):
        optimizer.zero_grad()
        (net(fastnn.ones(2, 3)) ** 2).sum().backward()
        optimizer.step()
        return [p.tolist() for p in net.parameters()]

    net = nn.Linear(3, 2)
    optimizer = optim.Adam(net.parameters(), lr=0.1)
    for _ in range(3):
        step(net, optimizer)
    other = copied((net, optimizer))
    assert step(*other) == step(net, optimizer)
    assert [held["step"] for held in other[1].state.values()] == [4, 4]


def test_loading_does_not_share_buffers():
    a, b = nn.Parameter(fastnn.zeros(3)), nn.Parameter(fastnn.zeros(3))
    first, second = (optim.SGD([p], lr=0.1, momentum=0.9) for p in (a, b))
    descend(first, a, 1)
    second.load_state_dict(first.state_dict())
    before = second.state[id(b)]["momentum_buffer"].tolist()
    descend(first, a, 1)
    assert second.state[id(b)]["momentum_buffer"].tolist() == before


def test_groups_have_options_of_their_own():
    a, b = nn.Parameter(fastnn.zeros(1)), nn.Parameter(fastnn.zeros(1))
    optimizer = optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.0}], lr=0.1)
    ((a - 1.0) ** 2 + (b - 1.0) ** 2).sum().backward()
    optimizer.step()
    assert a.item() == pytest.approx(0.2) and b.item() == 0


def test_parameters_without_gradients_stay():
    a, b = nn.Parameter(fastnn.ones(1)), nn.Parameter(fastnn.ones(1))
    optimizer = optim.AdamW([a, b], lr=0.1)
    (a * 2.0).sum().backward()
    optimizer.step()
    assert b.item() == 1 and a.item() != 1


def test_mistakes_are_named():
    p = nn.Parameter(fastnn.zeros(1))
    with pytest.raises(ValueError, match="SGD: lr expects a value >= 0, got -1"):
        optim.SGD([p], lr=-1)
    with pytest.raises(ValueError, match="SGD: nesterov expects momentum > 0"):
        optim.SGD([p], lr=1, nesterov=True)
    with pytest.raises(ValueError, match=r"Adam: betas expect values in \[0, 1\)"):
        optim.Adam([p], betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="expected at least one parameter"):
        optim.SGD([], lr=1)
    with pytest.raises(ValueError, match="stands in the groups twice"):
        optim.SGD([p, p], lr=1)
    with pytest.raises(TypeError, match="expected tensors, got int"):
        optim.SGD([3], lr=1)
    with pytest.raises(ValueError, match=r"expected groups of \[1\] parameters, got \[2\]"):
        optim.SGD([p], lr=1).load_state_dict({"state": {}, "param_groups": [{"params": [0, 1]}]})


@pytest.mark.parametrize(("cls", "options"), ALL, ids=IDS)
def test_a_step_that_found_no_memory_is_made_again(cls, options, monkeypatch):
    """Memory runs out in each of the step's calls in turn; what is not yet written is NaN."""

    def outcome(fails_at):
        params = [nn.Parameter(fastnn.full((2, 3), float(i))) for i in range(2)]
        optimizer, calls = cls(params, **options), 0
        for p in params:
            p.grad = fastnn.full((2, 3), 0.5)

        def failing(call):
            def instead(*args):
                nonlocal calls
                calls += 1
                if calls == fails_at:
                    raise MemoryError
                return call(*args)

            return instead

        def unwritten(array, dtype, make=_core.empty_like):
            made = make(array, dtype)
            _to_numpy(made)[...] = np.nan
            return made

        with monkeypatch.context() as patch:
            patch.setattr(_core, "empty_like", unwritten)
            for name in ("empty_like", "copy_into", "new_full", "optimizer_step"):
                patch.setattr(_core, name, failing(getattr(_core, name)))
            try:
                optimizer.step()
            except MemoryError:
                assert {held["step"] for held in optimizer.state.values()} == {0}
                optimizer.step()
        optimizer.step()
        assert {held["step"] for held in optimizer.state.values()} == {2}
        return [p.tolist() for p in params], calls < fails_at

    expected, done = outcome(1 << 30)
    fails_at, done = 0, False
    while not done:
        fails_at += 1
        found, done = outcome(fails_at)
        assert found == expected


def test_a_group_without_memory_makes_no_step(monkeypatch):
    a, b = nn.Parameter(fastnn.zeros(2)), nn.Parameter(fastnn.zeros(3))
    optimizer = optim.SGD([{"params": [a]}, {"params": [b]}], lr=0.5, momentum=0.9)
    a.grad, b.grad = fastnn.ones(2), fastnn.ones(3)
    with monkeypatch.context() as patch:

        def none_for_b(array, dtype, make=_core.empty_like):
            if array.shape == (3,):
                raise MemoryError
            return make(array, dtype)

        patch.setattr(_core, "empty_like", none_for_b)
        with pytest.raises(MemoryError):
            optimizer.step()
    assert a.tolist() == [-0.5] * 2 and b.tolist() == [0] * 3
    assert [optimizer.state[id(p)]["step"] for p in (a, b)] == [1, 0]


def rates(scheduler, steps):
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        scheduler.step()
    return found


def sgd(lr=1.0):
    return optim.SGD([nn.Parameter(fastnn.zeros(1))], lr=lr)


def test_schedules_follow_their_formulas():
    s = optim.lr_scheduler
    assert rates(s.StepLR(sgd(), 2, 0.5), 5) == [1, 1, 0.5, 0.5, 0.25]
    assert rates(s.MultiStepLR(sgd(), [1, 3], 0.1), 5) == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])
    assert rates(s.ExponentialLR(sgd(), 0.5), 3) == [1, 0.5, 0.25]
    assert rates(s.LinearLR(sgd(), 0.5, 1.0, 2), 4) == [0.5, 0.75, 1, 1]
    assert rates(s.LambdaLR(sgd(2.0), lambda n: n + 1), 3) == [2, 4, 6]
    cosine = rates(s.CosineAnnealingLR(sgd(), 4, 0.2), 5)
    assert cosine == pytest.approx(
        [0.2 + 0.8 * (1 + math.cos(math.pi * n / 4)) / 2 for n in range(5)]
    )
    cycle = rates(s.OneCycleLR(sgd(), 1.0, 10), 10)
    assert max(cycle) == pytest.approx(1.0) and cycle[0] == pytest.approx(0.04)
    assert cycle[-1] < 1e-4 and cycle.index(max(cycle)) == 2


def test_a_schedule_continues():
    first = optim.lr_scheduler.StepLR(sgd(), 2)
    rates(first, 3)
    second = optim.lr_scheduler.StepLR(sgd(), 2)
    second.load_state_dict(first.state_dict())
    assert rates(first, 3) == rates(second, 3)


def momentum_of(optimizer):
    (held,) = optimizer.state.values()
    return next(v for v in held.values() if isinstance(v, fastnn.Tensor)).tolist()


def stepped(*gradients):
    p = nn.Parameter(fastnn.zeros(2))
    optimizer = optim.SGD([p], lr=0.1, momentum=0.9)
    for g in gradients:
        p.grad = fastnn.tensor([g, g])
        optimizer.step()
    return optimizer


def test_loading_leaves_states_that_were_handed_out_alone():
    one, other = stepped(1.0), stepped(2.0)
    a, b = one.state_dict(), other.state_dict()
    one.load_state_dict(b)
    other.load_state_dict(a)
    assert (momentum_of(one), momentum_of(other)) == ([2, 2], [1, 1])


def test_a_state_that_does_not_fit_changes_nothing():
    one = stepped(1.0)
    state = copy.deepcopy(stepped(2.0).state_dict())
    p = nn.Parameter(fastnn.zeros(2))
    one.add_param_group({"params": [p]})
    state["state"][1] = {"step": 1, "momentum_buffer": fastnn.zeros(3)}
    state["param_groups"].append({**state["param_groups"][0], "params": [1]})
    with pytest.raises(ValueError, match="expects shape"):
        one.load_state_dict(state)
    assert momentum_of(one) == [1, 1]


def test_the_state_of_a_single_number_is_loaded():
    p = nn.Parameter(fastnn.tensor(1.0))
    optimizer = optim.Adam([p], lr=0.1)
    p.grad = fastnn.tensor(1.0)
    optimizer.step()
    state = optimizer.state_dict()
    state["state"][0]["step"] = np.array(5)
    optimizer.load_state_dict(state)
    optimizer.step()
    assert optimizer.state_dict()["state"][0]["step"] == 6


@pytest.mark.parametrize("kind", [1, 2, float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_clipped_to_any_norm(kind, dtype):
    rng = np.random.default_rng(3)
    params = [fastnn.zeros(*shape).to(dtype).requires_grad_() for shape in ((3, 4), (5,), ())]
    values = [rng.standard_normal(p.shape) for p in params]
    for p, v in zip(params, values, strict=True):
        p.grad = fastnn.tensor(np.asarray(v, np.float32)).to(dtype)
    before = [p.grad.float().numpy() for p in params]
    length = np.linalg.norm(np.concatenate([v.ravel() for v in before]), kind)
    unchanged = nn.clip_grad_norm_(params, 100.0, kind)
    assert unchanged.item() == pytest.approx(length, rel=1e-5) and unchanged.dtype is fastnn.float32
    assert all(
        np.array_equal(p.grad.float().numpy(), v) for p, v in zip(params, before, strict=True)
    )
    assert nn.clip_grad_norm_(params, 0.5, norm_type=kind).item() == pytest.approx(length, rel=1e-5)
    after = np.concatenate([p.grad.float().numpy().ravel() for p in params])
    assert np.linalg.norm(after, kind) == pytest.approx(
        0.5, rel=1e-5 if dtype == "float32" else 1e-2
    )
    with pytest.raises(ValueError, match="max_norm expects a value >= 0"):
        nn.clip_grad_norm_(params, -1.0, kind)
    with pytest.raises(NotImplementedError, match="norm"):
        nn.clip_grad_norm_(params, 1.0, 3)


def test_clipping_scales_to_the_norm_and_limits_values():
    a, b = nn.Parameter(fastnn.zeros(2)), nn.Parameter(fastnn.zeros(1))
    a.grad, b.grad = fastnn.tensor([3.0, 0.0]), fastnn.tensor([4.0])
    assert nn.clip_grad_norm_([a, b], 10.0).item() == pytest.approx(5.0)
    assert a.grad.tolist() == [3, 0]
    assert nn.clip_grad_norm_([a, b], 1.0).item() == pytest.approx(5.0)
    np.testing.assert_allclose(a.grad.numpy(), [0.6, 0], rtol=1e-5)
    nn.clip_grad_value_([a, b], 0.5)
    assert a.grad.tolist() == [0.5, 0] and b.grad.tolist() == [0.5]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_clipping_by_a_norm_that_is_nan_makes_all_gradients_nan(device):
    a, b = (nn.Parameter(fastnn.zeros(2).to(device)) for _ in range(2))
    a.grad = fastnn.tensor([1.0, 2.0], device=device)
    b.grad = fastnn.tensor([math.nan, 0.0], device=device)
    assert math.isnan(nn.clip_grad_norm_([a, b], 1.0).item())
    assert np.isnan(np.asarray([a.grad.tolist(), b.grad.tolist()])).all()
