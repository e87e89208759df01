"""Convolutions and batch norms that wait for a ReLU or a sum: fewer passes, and nothing else to be
seen."""

import copy
import gc
import pickle
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
from harness import PROPERTY
from hypothesis import given, settings
from hypothesis import strategies as st

import fastnn
from fastnn import nn
from fastnn.functional.deferred import Deferred
from fastnn.nn import functional as F

SHAPE = (3, 8, 5, 7)


@pytest.fixture(autouse=True, scope="module")
def small_ones_wait_too():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastnn.functional.conv.WORTH_WAITING", 0)
        yield


class Net:
    """Two activations of one input, batch norms between convolutions, and a fixed loss."""

    def __init__(self, dtype=fastnn.float32):
        fastnn.manual_seed(3)
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.mix = nn.Conv2d(8, 8, 3, padding=1)
        self.bn.bias.detach().copy_(fastnn.randn(8))
        self.x = fastnn.randn(3, 4, 5, 7)
        self.spare = fastnn.randn(*SHAPE)
        self.weigh = fastnn.randn(*SHAPE)
        layers = self.conv, self.bn, self.mix
        self.parameters = [p for layer in layers for p in layer.parameters()]
        self.dtype = dtype

    def activation(self):
        return self.conv(self.x).to(self.dtype)

    def norm(self):
        return self.bn(self.activation())

    def gradients(self, out):
        for p in self.parameters:
            p.grad = None
        (out.to(fastnn.float32) * self.weigh).sum().backward()
        return [p.grad.numpy().copy() for p in self.parameters if p.grad is not None]


def settled(t):
    """The tensor after somebody has looked at its values and at its place on the tape."""
    assert t.grad_fn is not None
    t.detach()
    return t


def values(t):
    return t.detach().to(fastnn.float32).numpy().copy()


def name(t):
    return t._node.name


STEP = st.tuples(
    st.sampled_from("norm norm conv relu relu relu6 silu add add scale hook read write".split()),
    st.integers(0, 9),
    st.integers(0, 9),
)


OPERATORS = {
    "norm": lambda net, a, b: F.batch_norm(a, None, None, net.bn.weight, net.bn.bias, True),
    "conv": lambda net, a, b: net.mix(a),
    "relu": lambda net, a, b: F.relu(a),
    "relu6": lambda net, a, b: F.relu6(a),
    "silu": lambda net, a, b: F.silu(a),
    "add": lambda net, a, b: a + b,
    "scale": lambda net, a, b: a * 0.5,
}


def run_without_gradients(program):
    """Values, some of them changed in place."""
    net = Net()
    with fastnn.no_grad():
        known = [net.activation()]
        for kind, i, j in program:
            a, b = known[-1 - i % len(known)], known[-1 - j % len(known)]
            if kind == "hook":
                a += b
            elif kind == "read":
                a.sum().item()
            elif kind == "write":
                net.spare.add_(b)
                known.append(a + net.spare)
            else:
                known.append(OPERATORS[kind](net, a, b))
    return [values(t) for t in known]


def run(program, wanted):
    """Values, gradients of some tensors and of the parameters, and what hooks saw."""
    net = Net()
    known, seen = [net.activation()], []
    for kind, i, j in program:
        a, b = known[-1 - i % len(known)], known[-1 - j % len(known)]  # mostly recent ones
        if kind == "hook":
            place = len(seen)
            seen.append([])
            a.register_hook(lambda g, place=place: seen[place].append(values(g)))
        elif kind == "read":
            a.sum().item()
        elif kind == "write":  # to a tensor that nobody needs in the backward
            with fastnn.no_grad():
                net.spare.add_(1.0)
            known.append(known[-1] + net.spare)
        else:
            known.append(OPERATORS[kind](net, a, b))
    loss = (known[-1] * net.weigh).sum() + (known[len(known) // 2] * net.weigh).sum()
    asked = [known[w % len(known)] for w in wanted]
    grads = fastnn.grad(loss, asked, retain_graph=True, allow_unused=True) if asked else ()
    loss.backward()
    return [
        *[values(t) for t in known],
        *[np.zeros(1) if g is None else values(g) for g in grads],
        *[values(p.grad) for p in net.parameters if p.grad is not None],
        *[g for one in seen for g in one],
    ]


@settings(PROPERTY, max_examples=400)
@given(
    program=st.lists(STEP, min_size=2, max_size=14), wanted=st.lists(st.integers(0, 14), max_size=3)
)
def test_random_programs_do_not_notice(program, wanted):
    def both():
        return run(program, wanted) + run_without_gradients(program)

    got = both()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Deferred, "_can_join", lambda self: False)
        plain = both()
    assert len(got) == len(plain)
    for a, b in zip(got, plain, strict=True):
        # Not exact: a sum that waits is rounded once, a gradient adds up in another order, and a
        # value at the edge of a relu may fall on its other side.
        assert np.mean(np.abs(a - b) > 1e-3 * (np.abs(b).max() + 1)) <= 0.01, (a, b)


@pytest.mark.parametrize("dtype", [fastnn.float32, fastnn.bfloat16])
@pytest.mark.parametrize(
    "relu", [F.relu, nn.ReLU(), lambda t: t.relu()], ids=["function", "module", "method"]
)
def test_relu_is_one_operator_with_the_same_bits(relu, dtype):
    net = Net(dtype)
    fused, plain = relu(net.norm()), relu(settled(net.norm()))
    assert (name(fused), name(plain)) == ("batch_norm", "relu")
    np.testing.assert_array_equal(values(fused), values(plain))
    for a, b in zip(net.gradients(fused), net.gradients(plain), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [fastnn.float32, fastnn.bfloat16])
@pytest.mark.parametrize("relu6", [F.relu6, nn.ReLU6()], ids=["function", "module"])
@pytest.mark.parametrize("kind", ["activation", "norm"])
def test_relu6_is_one_operator_too(kind, relu6, dtype):
    net = Net(dtype)
    for layer in (net.conv, net.bn):  # many values beyond 6
        layer.weight.detach().mul_(8.0)
    make = getattr(net, kind)
    fused, plain = relu6(make()), relu6(settled(make()))
    if kind == "norm" or dtype == fastnn.float32:  # else a cast follows the convolution
        assert name(fused) != "relu6" == name(plain)
    np.testing.assert_array_equal(values(fused), values(plain))
    assert values(fused).max() == 6 and np.mean(values(fused) == 6) > 0.05
    for a, b in zip(net.gradients(fused), net.gradients(plain), strict=True):
        if dtype == fastnn.float32:
            np.testing.assert_array_equal(a, b)
        else:  # what bfloat16 rounds to 6 was below: the norm sees that, the output does not
            np.testing.assert_allclose(a, b, atol=0.02 * np.abs(b).max())


CURVES = {
    "gelu": (F.gelu, nn.GELU()),
    "gelu_tanh": (lambda t: F.gelu(t, "tanh"), nn.GELU("tanh")),
    "hardsigmoid": (F.hardsigmoid, nn.Hardsigmoid()),
    "hardswish": (F.hardswish, nn.Hardswish()),
    "sigmoid": (F.sigmoid, nn.Sigmoid()),
    "silu": (F.silu, nn.SiLU()),
    "tanh": (F.tanh, nn.Tanh()),
}


def close(got, want, dtype, roundings=1.0):
    # In bfloat16 what is joined is rounded once less.
    eps = 2.0**-8 * roundings if dtype == fastnn.bfloat16 else 1e-6
    np.testing.assert_allclose(got, want, rtol=eps, atol=2 * eps * np.abs(want).max())


@pytest.mark.parametrize("dtype", [fastnn.float32, fastnn.bfloat16])
@pytest.mark.parametrize("written", [0, 1], ids=["function", "module"])
@pytest.mark.parametrize("kind", CURVES)
def test_other_activations_join_a_batch_norm(kind, written, dtype, isa):
    curve = CURVES[kind][written]
    net = Net(dtype)
    fused, plain = curve(net.norm()), curve(settled(net.norm()))
    assert name(fused) == "batch_norm" != name(plain)
    close(values(fused), values(plain), dtype)
    # Of all at once: that of a bias before a norm is nothing but rounding.
    joined, apart = (np.concatenate([g.ravel() for g in net.gradients(t)]) for t in (fused, plain))
    close(joined, apart, dtype, roundings=4)


@pytest.mark.parametrize("kind", CURVES)
def test_an_activation_that_cannot_join_is_an_operator_of_its_own(kind):
    net = Net()
    curve, residual = CURVES[kind][0], fastnn.randn(*SHAPE, requires_grad=True)

    def norm(**kwargs):
        weight, bias = net.bn.weight, net.bn.bias
        return F.batch_norm(net.activation(), None, None, weight, bias, True, **kwargs)

    asked, plain = norm(activation=kind, residual=residual), curve(norm(residual=residual))
    assert name(asked) == name(plain) and name(plain).startswith(kind.split("_")[0])
    for a, b in zip(net.gradients(asked), net.gradients(plain), strict=True):
        np.testing.assert_array_equal(a, b)
    assert name(curve(net.activation())).startswith(kind.split("_")[0])  # after a convolution


def additions(t, z):
    def augmented():
        out = t
        out += z
        return out

    return {"t + z": lambda: t + z, "z + t": lambda: z + t, "t += z": augmented}


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("written", ["t + z", "z + t", "t += z"])
def test_a_sum_joins_too(written, relu):
    def run(look):
        net = Net()
        z = net.activation() * 2
        out = additions(look(net.norm()), z)[written]()
        out = F.relu(look(out)) if relu else out
        return out, net

    (fused, net), (plain, other) = run(lambda t: t), run(settled)
    assert name(fused) == "batch_norm"
    assert name(plain) == ("relu" if relu else "add")
    np.testing.assert_allclose(values(fused), values(plain), rtol=1e-6, atol=1e-6)
    for a, b in zip(net.gradients(fused), other.gradients(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_two_norms_in_one_sum():
    net, second = Net(), nn.BatchNorm2d(8)

    def run(look):
        h = net.activation()
        return F.relu(look(net.bn(h)) + look(second(h * 3)))

    fused, plain = run(lambda t: t), run(settled)
    assert name(fused) == "batch_norm"
    np.testing.assert_allclose(values(fused), values(plain), rtol=1e-6, atol=1e-6)
    for a, b in zip(net.gradients(fused), net.gradients(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_shape_and_kind_are_known_without_the_values():
    t = Net(fastnn.bfloat16).norm()
    assert (t.shape, t.ndim, t.dtype, t.device) == (SHAPE, 4, fastnn.bfloat16, "cpu")
    assert t.size(1) == 8 and not t.is_cuda and not t.is_leaf and t.requires_grad
    assert name(F.relu(t)) == "batch_norm"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        t.nothing  # noqa: B018


def test_a_hook_set_before_or_after_sees_the_gradient():
    seen = []
    for early in (True, False):
        net = Net()
        t = net.norm()
        if early:
            t.register_hook(lambda g: seen.append(values(g)))
        out = F.relu(t)
        if not early:
            t.register_hook(lambda g: seen.append(values(g)))
        net.gradients(out)
        expected = np.where(values(t) > 0, values(net.weigh), 0)
        np.testing.assert_array_equal(seen.pop(), expected)
    assert not seen


def test_a_hook_may_replace_the_gradient():
    net = Net()
    t = net.norm()
    out = F.relu(t)
    t.register_hook(lambda g: g * 0)
    assert all((g == 0).all() for g in net.gradients(out))


def test_gradients_of_every_step_of_a_chain():
    net = Net()
    z = net.activation() * 2
    t = net.norm()
    s = t + z
    out = F.relu(s)
    got = fastnn.grad((out * net.weigh).sum(), [t, s, z, out], retain_graph=True)
    masked = np.where(values(s) > 0, values(net.weigh), 0)
    for g, expected in zip(got, [masked, masked, masked, values(net.weigh)], strict=True):
        np.testing.assert_array_equal(values(g), expected)


@pytest.mark.parametrize("first", ["t", "s"])
def test_the_order_of_looking_does_not_matter(first):
    net = Net()
    z = net.activation() * 2
    t = net.norm()
    s = t + z
    out = F.relu(s)
    seen = {"t": [], "s": []}
    order = [("t", t), ("s", s)] if first == "t" else [("s", s), ("t", t)]
    for key, tensor in order:
        tensor.register_hook(lambda g, key=key: seen[key].append(values(g)))
    net.gradients(out)
    masked = np.where(values(s) > 0, values(net.weigh), 0)
    for key in seen:
        assert len(seen[key]) == 1
        np.testing.assert_array_equal(seen[key][0], masked)


def test_more_than_one_use():
    def run(look):
        net = Net()
        t = look(net.norm())
        return net.gradients(F.relu(t) + t * 2 + F.relu(t) * t)

    for a, b in zip(run(lambda t: t), run(settled), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_retained_gradient_and_graph():
    net = Net()
    t = net.norm()
    out = F.relu(t)
    t.retain_grad()
    loss = (out * net.weigh).sum()
    loss.backward(retain_graph=True)
    once = values(t.grad)
    loss.backward()
    np.testing.assert_array_equal(values(t.grad), 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_values_after_the_step():
    net = Net()
    t = net.norm()
    net.gradients(F.relu(t))
    with fastnn.no_grad():
        expected = values(
            F.batch_norm(net.activation(), None, None, net.bn.weight, net.bn.bias, True)
        )
        net.bn.weight.copy_(fastnn.randn(8))  # an optimizer's step
    # Moments that the convolution counted while it stored, against those of a pass of their own.
    np.testing.assert_allclose(values(t), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["activation", "norm"])
@pytest.mark.parametrize("residual", [False, True])
def test_what_joined_has_the_values_from_before_a_change_in_place(kind, residual):
    def run(look):
        net = Net()
        t = look(getattr(net, kind)())
        s = look(t + net.spare) if residual else t
        out = F.relu(s)
        with fastnn.no_grad():
            for changed in {t, s}:
                changed.neg_()
        return net.gradients(out + t + s)

    for a, b in zip(run(lambda t: t), run(settled), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_a_curve_too_has_the_values_from_before_a_change_in_place():
    net = Net()
    expected = net.gradients(F.silu(net.norm()))
    t = net.norm()
    out = F.silu(t)
    with fastnn.no_grad():
        t.neg_()
    t.register_hook(lambda g: None)
    for a, b in zip(net.gradients(out), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_values_from_before_a_change_that_nobody_knows_are_refused():
    net = Net()
    h = net.activation()
    t = net.bn(h)
    out = F.relu(t)
    with fastnn.no_grad():
        t.neg_()
        h.zero_()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="changed in place"):
            t.register_hook(lambda g: None)
    assert out.shape == SHAPE


def test_running_statistics_move_once_and_at_once():
    net = Net()
    t = net.norm()
    moved = values(net.bn.running_mean)
    assert np.abs(moved).max() > 0
    F.relu(t)
    F.relu(t)
    settled(t)
    np.testing.assert_array_equal(values(net.bn.running_mean), moved)
    assert net.bn.num_batches_tracked.item() == 1


def layers():
    return {"conv2d": lambda net: net.mix, "batch_norm": lambda net: net.bn}


@pytest.mark.parametrize("layer", layers())
def test_who_changes_an_operand_has_the_values_computed_first(layer):
    def changes(h, same, net):
        yield lambda: h.mul_(2)
        yield lambda: h.detach().zero_()
        yield lambda: h.__setitem__((0, 0), 1.0)
        yield lambda: h.uniform_()
        yield lambda: net.mix.weight.fill_(1.0)
        yield lambda: net.mix.load_state_dict(nn.Conv2d(8, 8, 3).state_dict())
        yield lambda: h.detach().numpy().fill(0)
        yield lambda: same.numpy().fill(0)

    for i in range(8):
        net = Net()
        h = net.activation()
        same = h.detach()
        apply = layers()[layer](net)
        expected = values(settled(apply(h)))
        t = apply(h)
        with fastnn.no_grad():
            list(changes(h, same, net))[i]()
        np.testing.assert_array_equal(values(t), expected)
        np.testing.assert_array_equal(values(F.relu(t)), np.maximum(expected, 0))


def test_an_optimizer_moves_weights_after_what_waits_for_them():
    net = Net()
    optimizer = fastnn.optim.SGD(net.mix.parameters(), lr=0.5)
    h = net.activation()
    expected = values(settled(net.mix(h)))
    net.mix(h).sum().backward()
    for autocast in (False, True):
        with fastnn.autocast(autocast):
            t = net.mix(h)
            expected = values(settled(net.mix(h)))
        optimizer.step()
        np.testing.assert_array_equal(values(t), expected)


def test_a_change_that_nobody_announced_is_refused():
    for apply in ("mix", "bn"):
        net = Net()
        h = net.activation()
        t = getattr(net, apply)(h)
        h._array.bump_version()
        with pytest.raises(
            RuntimeError, match="an operand of its result .*changed in place before"
        ):
            F.relu(t)
        fastnn.ones(2).detach()  # is nobody's business
        assert t.shape == SHAPE


def test_memory_that_others_may_write_to_is_read_at_once():
    net = Net()
    there = np.ones((3, 4, 5, 7), np.float32)
    for x in (fastnn.from_numpy(there), fastnn.from_dlpack(fastnn.from_numpy(there))):
        assert type(net.conv(x)) is fastnn.Tensor
    h = net.activation()
    assert type(net.bn(h)) is Deferred
    view = h.detach().numpy()
    assert type(net.bn(h)) is type(net.mix(h)) is fastnn.Tensor
    assert type(net.bn(net.activation()) + h) is fastnn.Tensor
    del view
    assert type(net.bn(h)) is type(net.mix(h)) is Deferred


def test_a_convolution_takes_its_relu_and_its_sum():
    def run(look, residual):
        net = Net()
        h, z = net.activation(), net.activation() * 2
        out = look(net.mix(h))
        return F.relu(look(out + z.to(out.dtype)) if residual else out), net

    for residual in (False, True):
        for autocast in (False, True):
            with fastnn.autocast(autocast):
                (fused, net), (plain, other) = run(lambda t: t, residual), run(settled, residual)
            assert (name(fused), name(plain)) == ("conv2d", "relu")
            error = (0.02 if autocast else 1e-6) if residual else 0
            np.testing.assert_allclose(values(fused), values(plain), rtol=error, atol=error)
            for a, b in zip(net.gradients(fused), other.gradients(plain), strict=True):
                bound = (0.03 if autocast else 1e-5) * np.abs(b).max()
                np.testing.assert_allclose(a, b, rtol=0, atol=bound)


def test_a_small_convolution_does_not_wait(monkeypatch):
    monkeypatch.setattr("fastnn.functional.conv.WORTH_WAITING", 3 * 4 * 5 * 7 + 1)
    assert type(Net().activation()) is fastnn.Tensor
    monkeypatch.setattr("fastnn.functional.conv.WORTH_WAITING", 3 * 4 * 5 * 7)
    assert type(Net().conv(Net().x)) is Deferred


def test_without_a_weight_that_learns_nothing_is_recorded():
    conv = nn.Conv2d(4, 8, 3)
    for p in conv.parameters():
        p.requires_grad_(False)
    t = conv(fastnn.randn(1, 4, 5, 5))
    assert t.is_leaf and not t.requires_grad and F.relu(t).grad_fn is None
    x = fastnn.randn(1, 4, 5, 5).requires_grad_()
    t = conv(x)
    assert type(t) is Deferred
    F.relu(t).sum().backward()
    assert x.grad is not None and conv.weight.grad is None


def test_a_weight_changed_between_is_refused_in_the_backward():
    net = Net()
    t = net.norm()
    with fastnn.no_grad():
        net.bn.weight.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        net.gradients(F.relu(t))


@pytest.fixture
def calls(monkeypatch):
    """Names of the kernels called since, of those that make or join an activation."""
    seen = []
    for kernel in ("conv2d", "batch_norm_apply", "relu", "add"):
        call = getattr(fastnn._core, kernel)

        def counted(*args, kernel=kernel, call=call, **hints):
            seen.append(kernel)
            return call(*args, **hints)

        monkeypatch.setattr(fastnn._core, kernel, counted)
    return seen


RESIDUALS = {
    "none": lambda t, z: t,
    "t + z": lambda t, z: t + z,
    "z + t": lambda t, z: z + t,
    "t += z": lambda t, z: t.__iadd__(z),
    "t.add_(z)": lambda t, z: t.add_(z),
}


@pytest.mark.parametrize("dtype", [fastnn.float32, fastnn.bfloat16])
@pytest.mark.parametrize("kind", ["activation", "norm"])
@pytest.mark.parametrize("written", RESIDUALS)
def test_without_gradients_all_is_one_pass_too(calls, written, kind, dtype):
    net = Net(dtype)
    net.bn.eval()
    if kind == "activation" and dtype == fastnn.bfloat16:  # without a cast behind it
        net.conv, net.x = net.conv.to(dtype), net.x.to(dtype)
    make = (lambda: net.conv(net.x)) if kind == "activation" else net.norm
    z = fastnn.randn(*SHAPE).to(dtype)
    with fastnn.no_grad():
        calls.clear()
        fused = F.relu(RESIDUALS[written](make(), z))
        assert calls[-1] == ("conv2d" if kind == "activation" else "batch_norm_apply")
        assert "relu" not in calls and "add" not in calls
        seen = values(make())
        plain = F.relu(fastnn.tensor(seen) + (z.float() if written != "none" else 0.0))
    assert fused.grad_fn is None and not fused.requires_grad
    error = 0 if written == "none" else 2.0**-7 if dtype == fastnn.bfloat16 else 1e-6
    np.testing.assert_allclose(values(fused), values(plain), rtol=error, atol=error)


def test_a_result_that_nobody_uses_is_computed_when_it_is_dropped(calls):
    net = Net()
    for mode in (fastnn.no_grad, fastnn.enable_grad):
        with mode():
            calls.clear()
            net.conv(net.x)
            assert calls == ["conv2d"]
            F.relu(net.conv(net.x))
            assert calls == ["conv2d"] * 2


def test_a_sum_in_place_is_seen_under_every_name():
    net = Net()
    with fastnn.no_grad():
        t, z = net.norm(), fastnn.randn(*SHAPE)
        before = F.relu(t)
        other = t
        t += z
        assert other is t
        after = values(F.relu(other))
        want = values(net.norm())
    np.testing.assert_array_equal(values(before), np.maximum(want, 0))
    np.testing.assert_allclose(after, np.maximum(want + values(z), 0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(values(t), want + values(z), rtol=1e-6, atol=1e-6)


def test_operands_changed_in_place_without_gradients():
    net = Net()
    with fastnn.no_grad():
        h, z = net.activation(), fastnn.randn(*SHAPE)
        want = np.maximum(values(net.bn(h)) + values(z), 0)
        t = net.bn(h)
        t += z
        z.mul_(3)
        h.zero_()
        np.testing.assert_allclose(values(F.relu(t)), want, rtol=1e-6, atol=1e-6)


def test_what_was_made_without_gradients_stays_without():
    net = Net()
    with fastnn.no_grad():
        t = net.norm()
    assert type(t) is Deferred
    out = F.relu(t)
    assert out.grad_fn is None and not out.requires_grad
    np.testing.assert_array_equal(values(out), np.maximum(values(t), 0))


def test_a_result_that_is_made_a_leaf_gets_its_gradient():
    net = Net()
    for make in (net.norm, net.activation):
        with fastnn.no_grad():
            t = make()
        t.requires_grad_()
        F.relu(t).sum().backward()
        np.testing.assert_array_equal(values(t.grad), (values(t) > 0).astype(np.float32))


def test_a_frozen_branch_beside_one_that_learns():
    net = Net()
    for p in net.parameters:
        p.requires_grad_(False)
    z = fastnn.randn(*SHAPE).requires_grad_()
    t = net.norm()
    out = F.relu(t + z)
    out.sum().backward()
    np.testing.assert_array_equal(values(z.grad), (values(out) > 0).astype(np.float32))
    assert t.is_leaf


def test_a_recorded_result_is_read_where_nothing_is_recorded():
    t = Net().norm()
    with fastnn.no_grad():
        out = F.relu(t)
    assert not out.requires_grad
    np.testing.assert_array_equal(values(out), np.maximum(values(t), 0))


def test_sums_that_do_not_fit_are_plain():
    net = Net()
    for other in (
        net.activation().to(fastnn.bfloat16),
        net.activation()[:, :1],
        1.5,
    ):
        t = net.norm()
        added = values(other) if isinstance(other, fastnn.Tensor) else other
        np.testing.assert_allclose(values(t + other), values(t) + added, rtol=1e-6)
    t = net.norm()
    np.testing.assert_array_equal(values(t + t), 2 * values(t))
    t = net.norm()
    z = net.activation()
    np.testing.assert_allclose(values(F.add(t, z, alpha=2)), values(t) + 2 * values(z), rtol=1e-6)


def test_threads_do_not_get_in_each_others_way():
    def work(seed):
        x = fastnn.from_numpy(np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32))
        bn = nn.BatchNorm2d(8)
        for _ in range(50):
            h = nn.Parameter(x) * 2
            t = bn(h)
            h.detach()  # settles the tensors of all threads
            (F.relu(t) + F.relu(bn(h))).sum().backward()
        return values(t)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, range(8)))
    for seed, got in enumerate(together):
        np.testing.assert_array_equal(got, work(seed))


def test_a_sum_in_place_while_another_thread_asks_for_all_values(monkeypatch):
    net, can_add = Net(), Deferred._can_add
    z = fastnn.randn(*SHAPE)

    def interrupted(self, other):
        fits = can_add(self, other)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(np.asarray, fastnn.ones(1)).result()
        return fits

    with fastnn.no_grad():
        want = values(net.norm()) + values(z)
        monkeypatch.setattr(Deferred, "_can_add", interrupted)
        t = net.norm()
        t += z
    np.testing.assert_allclose(values(t), want, rtol=1e-6, atol=1e-6)


def test_threads_that_ask_at_once_get_the_same_values(monkeypatch):
    call = fastnn._core.batch_norm_apply

    def slow(*args):
        time.sleep(0.1)
        return call(*args)

    monkeypatch.setattr(fastnn._core, "batch_norm_apply", slow)
    t = Net().norm()
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda t: t.detach(), [t, t])
    assert one.data_ptr() == other.data_ptr() == t.data_ptr()


def test_who_changes_an_operand_waits_for_another_threads_pass(monkeypatch):
    net, call, started, go = Net(), fastnn._core.batch_norm_apply, Event(), Event()

    def slow(x, moments, activation, residual):
        if activation:
            started.set()
            assert go.wait(30)
        return call(x, moments, activation, residual)

    def relu(t):
        with fastnn.no_grad():
            return F.relu(t)

    with fastnn.no_grad():
        h = net.activation()
        want = values(F.relu(net.bn(h)))
        t = net.bn(h)
    monkeypatch.setattr(fastnn._core, "batch_norm_apply", slow)
    with ThreadPoolExecutor(2) as pool:
        out = pool.submit(relu, t)
        assert started.wait(30)
        change = pool.submit(h.zero_)
        time.sleep(0.1)
        go.set()
        np.testing.assert_array_equal(values(out.result()), want)
        assert not change.result().any()


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))]
)
def test_copies_are_plain_tensors(duplicate):
    net = Net()
    with fastnn.no_grad():
        t = net.norm()
    assert type(t) is Deferred
    twin = duplicate(t)
    assert type(twin) is fastnn.Tensor and twin.data_ptr() != t.data_ptr()
    np.testing.assert_array_equal(values(twin), values(t))


def test_what_nobody_keeps_is_freed():
    net = Net()
    t = net.norm()
    s = t + net.activation()
    out = F.relu(s)
    held = [weakref.ref(t), weakref.ref(s)]
    gc.disable()
    try:
        del t, s
        assert [r() for r in held] == [None, None]
    finally:
        gc.enable()
    net.gradients(out)


def test_bad_input_is_refused_at_once():
    with pytest.raises(ValueError, match="weight expects 8 values"):
        F.batch_norm(Net().activation(), None, None, fastnn.ones(3), None, True)
    for bad in (
        fastnn.ones(8, 4, 9, 9),
        fastnn.ones(8, 3, 3, 3),
        fastnn.ones(8, 4, 3, 3).bfloat16(),
    ):
        with pytest.raises((ValueError, TypeError), match="conv2d: "):
            F.conv2d(fastnn.randn(3, 4, 5, 7).requires_grad_(), bad)
    with pytest.raises(ValueError, match="conv2d: bias expects shape"):
        F.conv2d(fastnn.randn(3, 4, 5, 7), nn.Parameter(fastnn.ones(8, 4, 3, 3)), fastnn.ones(3))
    with pytest.raises(ValueError, match="running_mean and running_var are needed"):
        F.batch_norm(Net().activation(), None, None, training=False)
