"""The tape: gradients, their accumulation, hooks, modes, and everything that must be refused."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
from harness import PROPERTY
from hypothesis import given
from hypothesis import strategies as st

import fastnn
import fastnn.nn.functional as F


def leaf(*values):
    return fastnn.tensor([float(v) for v in values], requires_grad=True)


# What is computed.


def test_a_chain():
    x = leaf(1, 2, 3)
    y = (x * x + 2 * x).sum()
    y.backward()
    assert x.grad.tolist() == [4, 6, 8]
    assert x.is_leaf and not y.is_leaf and x.grad_fn is None and y.grad_fn is not None


def test_gradients_accumulate_until_they_are_cleared():
    x = leaf(1, 2)
    for times in (1, 2, 3):
        (x * 3).sum().backward()
        assert x.grad.tolist() == [3 * times] * 2
    x.grad = None
    (x * 3).sum().backward()
    assert x.grad.tolist() == [3, 3]


def test_a_tensor_used_twice_gets_both_gradients():
    x = leaf(3)
    y = x * x  # both operands
    z = y + y * x  # y twice
    z.backward()
    assert x.grad.tolist() == [2 * 3 + 3 * 9]


def test_a_diamond_runs_each_operator_once():
    x = leaf(2)
    y = x * 3
    calls = []
    y.register_hook(lambda g: calls.append(g.item()))
    ((y + 1) * (y + 2)).backward()
    assert calls == [15.0] and x.grad.item() == 45


def test_a_deep_chain_needs_no_recursion():
    x = leaf(1)
    y = x
    for _ in range(20_000):
        y = y + 0.0
    y.backward()
    assert x.grad.item() == 1


def test_gradients_of_broadcast_operands_are_summed():
    x, b, s = fastnn.ones(4, 3, requires_grad=True), leaf(1, 2, 3), leaf(2)
    ((x + b) * s).sum().backward()
    assert b.grad.tolist() == [8, 8, 8] and b.grad.shape == (3,)
    assert s.grad.tolist() == [4 * (2 + 3 + 4)]
    assert x.grad.tolist() == [[2] * 3] * 4


def test_views_are_differentiable():
    x = fastnn.tensor(np.arange(6, dtype=np.float32).reshape(2, 3), requires_grad=True)
    w = fastnn.tensor(np.arange(6, dtype=np.float32).reshape(3, 2))
    (x.T * w).sum().backward()
    assert np.array_equal(x.grad.numpy(), w.numpy().T)
    for view in (
        lambda t: t.reshape(3, 2), lambda t: t.flatten(), lambda t: t.unsqueeze(1).squeeze(1),
        lambda t: t.expand(4, 2, 3), lambda t: t.contiguous(), lambda t: t.clone(),
        lambda t: t.permute(1, 0), lambda t: t.to("bfloat16"), lambda t: t.float(),
    ):  # fmt: skip
        x.grad = None
        y = view(x)
        y.sum().backward()
        assert x.grad.shape == x.shape and x.grad.dtype is x.dtype
        assert np.all(x.grad.numpy() == y.numel() / 6)


def test_gradient_argument():
    x = leaf(1, 2)
    (x * 2).backward(fastnn.tensor([1.0, 10.0]))
    assert x.grad.tolist() == [2, 20]
    with pytest.raises(ValueError, match=r"backward: gradient expects shape \(2,\), got \(3,\)"):
        (x * 2).backward(fastnn.ones(3))
    with pytest.raises(RuntimeError, match="scalar"):
        (x * 2).backward()


def test_backward_of_a_leaf():
    x = fastnn.tensor(3.0, requires_grad=True)
    x.backward()
    assert x.grad.item() == 1


def test_a_gradient_is_the_users_own():
    """Changing a gradient, or what it was computed from, changes nothing else."""
    x, y = leaf(1, 2), leaf(3, 4)
    seed = fastnn.ones(2)
    (x + y).backward(seed)
    x.grad.mul_(100)
    seed.mul_(7)
    assert y.grad.tolist() == [1, 1] and x.grad.tolist() == [100, 100]


def test_second_backward_does_not_disturb_a_gradient_taken_away():
    x = leaf(1, 2)
    x.sum().backward()
    first = x.grad
    x.grad = None
    (x * 5).sum().backward()
    assert first.tolist() == [1, 1] and x.grad.tolist() == [5, 5]


def test_bfloat16_and_float32_meet():
    x = fastnn.ones(3, dtype="bfloat16", requires_grad=True)
    y = leaf(1, 2, 3)
    (x * y).sum().backward()
    assert x.grad.dtype is fastnn.bfloat16 and x.grad.tolist() == [1, 2, 3]
    assert y.grad.dtype is fastnn.float32 and y.grad.tolist() == [1, 1, 1]


# Modes.


def test_no_grad():
    x = leaf(1)
    with fastnn.no_grad():
        y = x * 2
        assert not fastnn.is_grad_enabled() and not y.requires_grad and y.is_leaf
        with fastnn.enable_grad():
            assert (x * 2).requires_grad
        assert not (x * 2).requires_grad
    assert fastnn.is_grad_enabled() and (x * 2).requires_grad

    @fastnn.no_grad()
    def decorated():
        return x * 2

    assert not decorated().requires_grad
    with pytest.raises(ZeroDivisionError), fastnn.no_grad():
        1 / 0  # noqa: B018
    assert fastnn.is_grad_enabled()


def test_inference_mode_is_no_grad():
    x = leaf(1)

    @fastnn.inference_mode()
    def called(t):
        return t * 2

    @fastnn.inference_mode
    def bare(t):
        return t * 2

    assert not called(x).requires_grad and not bare(x).requires_grad
    with fastnn.inference_mode():
        y = x * 2
        with fastnn.inference_mode(False):
            assert (x * 2).requires_grad
    assert not y.requires_grad and (x * y).requires_grad


def test_what_cannot_be_a_gradient_is_refused():
    x = fastnn.ones(2, 3, requires_grad=True)
    with pytest.raises(TypeError, match="grad: expected a Tensor or None, got list"):
        x.grad = [1.0]
    with pytest.raises(ValueError, match=r"grad: expected shape \(2, 3\), got \(3, 2\)"):
        x.grad = fastnn.ones(3, 2)
    with pytest.raises(TypeError, match="grad: expected dtype float32, got bfloat16; convert it"):
        x.grad = fastnn.ones(2, 3, dtype="bfloat16")
    assert x.grad is None
    x.grad = given = fastnn.ones(2, 3)
    assert x.grad is given


def test_modes_belong_to_a_thread():
    seen = []
    with fastnn.no_grad():
        thread = threading.Thread(target=lambda: seen.append(fastnn.is_grad_enabled()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_nothing_is_recorded_without_need():
    assert (fastnn.ones(2) * 2).grad_fn is None
    x = leaf(1, 2)
    assert (x > 1).grad_fn is None and not (x > 1).requires_grad
    assert not x.argmax().requires_grad and not x.detach().requires_grad
    assert x.detach().data_ptr() == x.data_ptr()
    assert not x.long().requires_grad


def test_only_floating_tensors_can_require_gradients():
    with pytest.raises(TypeError, match="requires_grad: .*int64"):
        fastnn.arange(3).requires_grad_()
    with pytest.raises(TypeError, match="requires_grad"):
        fastnn.tensor([1, 2], requires_grad=True)
    x = leaf(1)
    with pytest.raises(RuntimeError, match="leaf"):
        (x * 2).requires_grad = False
    x.requires_grad_(False)
    assert not (x * 2).requires_grad


def test_numpy_of_a_tensor_with_gradient_is_refused():
    with pytest.raises(RuntimeError, match=r"\.detach\(\)\.numpy\(\)"):
        leaf(1).numpy()


# What must be refused.


def test_freed_graph():
    x = leaf(1, 2)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        y.backward()
    assert x.grad.tolist() == [2, 4]


def test_retain_graph():
    x = leaf(1, 2)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.tolist() == [4, 8]


def test_saved_memory_is_freed_by_backward():
    x = leaf(*range(100))
    hidden = x * 2
    y = (hidden * hidden).sum()
    watch = weakref.ref(hidden)
    del hidden
    node = y.grad_fn
    y.backward()
    gc.collect()
    assert watch() is None and node.saved is None


def test_no_reference_cycle_keeps_a_graph_alive():
    gc.disable()
    try:
        before = fastnn.memory_stats()["allocated"]
        x = fastnn.randn(1 << 16, requires_grad=True)
        hidden = x.exp()
        hidden.retain_grad()
        y = (hidden * x).sum()
        del x, y, hidden
        assert fastnn.memory_stats()["allocated"] == before
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("record", "names"),
    [
        (lambda x, y: x * y, "xy"),
        (lambda x, y: x / y, "xy"),
        (lambda x, y: F.relu(x) + y, ""),
        (lambda x, y: x + y, ""),
        (lambda x, y: fastnn.maximum(x, y), "xy"),
        (lambda x, y: x.log() + y, "x"),
        (lambda x, y: x.prod() * y.sum(), "x"),
        (lambda x, y: x.norm() + y, "x"),
        (lambda x, y: x**y, "xy"),
    ],
)
def test_an_in_place_change_of_a_saved_tensor_is_detected(record, names):
    for name in "xy":
        x, y = leaf(1, 2), leaf(3, 4)
        out = record(x, y).sum()
        with fastnn.no_grad():
            (x if name == "x" else y).add_(1)
        if name in names:
            with pytest.raises(RuntimeError, match="changed in place"):
                out.backward()
        else:
            out.backward()


def test_an_in_place_change_through_a_view_is_detected():
    x = fastnn.ones(2, 3, requires_grad=True)
    y = (x * x).sum()
    x.detach().T.zero_()
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


def test_a_saved_output_changed_in_place_is_detected():
    x = leaf(1, 2)
    y = x.exp()
    with fastnn.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="exp: .*changed in place"):
        y.sum().backward()


def test_unrecorded_in_place_changes_are_refused():
    x = leaf(1, 2)
    for change in (
        lambda: x.add_(1), lambda: x.fill_(0), lambda: x.zero_(), lambda: x.copy_(fastnn.ones(2)),
        lambda: (x * 2).mul_(2), lambda: fastnn.ones(2).add_(x),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="no_grad"):
            change()


def test_double_backward_is_refused():
    x = leaf(2)
    with pytest.raises(NotImplementedError, match="double backward"):
        (x * x).backward(create_graph=True)
    with pytest.raises(NotImplementedError, match="double backward"):
        fastnn.grad((x * x).sum(), x, create_graph=True)
    (x * x).backward()
    assert not x.grad.requires_grad


def test_backward_without_a_graph():
    with pytest.raises(RuntimeError, match="does not require a gradient"):
        fastnn.ones(1).backward()


# grad, hooks, gradcheck.


def test_grad_leaves_leaves_alone():
    x, y = leaf(1, 2), leaf(3, 4)
    h = x * y
    out = (h * h).sum()
    gx, gh = fastnn.grad(out, (x, h), retain_graph=True)
    assert gx.tolist() == [2 * 1 * 9, 2 * 2 * 16] and gh.tolist() == [6, 16]
    assert x.grad is None and y.grad is None
    (gy,) = fastnn.grad(out, y)
    assert gy.tolist() == [6, 32]
    with pytest.raises(RuntimeError, match="does not depend on input 0"):
        fastnn.grad((x * 2).sum(), y)
    assert fastnn.grad((x * 2).sum(), y, allow_unused=True) == (None,)
    with pytest.raises(RuntimeError, match="does not require"):
        fastnn.grad(x.sum(), fastnn.ones(2))


def test_a_leaf_hook_sees_the_whole_gradient_once():
    x = leaf(1, 2)
    seen = []
    handle = x.register_hook(lambda g: seen.append(g.tolist()))
    (x * 2 + x * 3).sum().backward()
    assert seen == [[5, 5]]
    handle.remove()
    x.sum().backward()
    assert len(seen) == 1 and x.grad.tolist() == [6, 6]


def test_a_hook_can_replace_the_gradient():
    x = leaf(1, 2)
    x.register_hook(lambda g: g * 10)
    y = x * 2
    y.register_hook(lambda g: g + 1)
    y.sum().backward()
    assert x.grad.tolist() == [40, 40]
    with pytest.raises(RuntimeError, match="register_hook"):
        fastnn.ones(1).register_hook(lambda g: g)


def test_retain_grad():
    x = leaf(1, 2)
    y = x * 2
    y.retain_grad()
    (y * y).sum().backward()
    assert y.grad.tolist() == [4, 8]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_gradcheck_passes_and_fails(device):
    x = fastnn.tensor(np.linspace(0.5, 2, 12).reshape(3, 4), device=device).requires_grad_()
    w = fastnn.randn(4, device=device).requires_grad_()
    assert fastnn.gradcheck(lambda a, b: ((a * b).exp() + a.log()).mean(0), (x, w))
    with pytest.raises(AssertionError, match="gradcheck: input 0"):
        fastnn.gradcheck(lambda a: (a * a.detach()).sum(), x)


OPERATIONS = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / (b * b + 1),
    "maximum": fastnn.maximum,
    "exp": lambda a, b: (a * 0.1).exp(),
    "view": lambda a, b: a.T.contiguous().T,
    "sum": lambda a, b: a.sum(1, keepdim=True) * b,
    "mean": lambda a, b: a - b.mean(0),
    "relu": lambda a, b: F.relu(a) + b * 0.5,
    "where": lambda a, b: fastnn.where(a > b, a, b * 2),
}


STEP = st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 50), st.integers(0, 50))


@PROPERTY
@given(st.lists(STEP, min_size=1, max_size=12))
def test_random_graphs_against_pytorch(program):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(len(program))
    values = [rng.standard_normal((4, 4)).astype(np.float32) for _ in range(2)]
    theirs_namespace = {"maximum": torch.maximum, "relu": lambda a, b: torch.relu(a) + b * 0.5,
                        "where": lambda a, b: torch.where(a > b, a, b * 2)}  # fmt: skip

    def run(make, operations):
        leaves = [make(v) for v in values]
        pool = list(leaves)
        for name, i, j in program:
            y = operations[name](pool[i % len(pool)], pool[j % len(pool)])
            pool.append(y * (1 / (1 + (y * y).mean())))  # keeps values near 1
        (pool[-1] * pool[len(pool) // 2]).sum().backward()
        return [None if t.grad is None else t.grad.numpy() for t in leaves]

    ours = run(lambda v: fastnn.tensor(v, requires_grad=True), OPERATIONS)
    theirs = run(lambda v: torch.tensor(v, requires_grad=True), OPERATIONS | theirs_namespace)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert np.allclose(a, b, rtol=2e-3, atol=2e-4), np.abs(a - b).max()
