"""Autocast: what is bfloat16 in it and what is not, and the copies of weights it keeps."""

from __future__ import annotations

import numpy as np
import pytest

import fastnn
import fastnn.nn.functional as F
from fastnn import nn, optim
from fastnn.reference import conv as reference

#: input shape, weight shape, settings: every kernel of the gradient of a weight.
CONVOLUTIONS = {
    "plain": ((3, 32, 9, 9), (48, 32, 3, 3), {"padding": 1}),
    "pointwise": ((2, 40, 7, 5), (24, 40, 1, 1), {}),
    "few pixels": ((1, 64, 4, 4), (33, 64, 3, 3), {"padding": 1}),
    "strided": ((2, 16, 11, 11), (20, 16, 3, 3), {"stride": 2}),
    "stem": ((2, 3, 20, 20), (32, 3, 7, 7), {"stride": 2, "padding": 3}),
    "depthwise": ((2, 24, 9, 9), (24, 1, 3, 3), {"padding": 1, "groups": 24}),
    "small groups": ((2, 32, 8, 8), (32, 4, 3, 3), {"padding": 1, "groups": 8}),
    "wide groups": ((2, 64, 8, 8), (64, 32, 3, 3), {"padding": 1, "groups": 2}),
    "odd groups": ((2, 18, 8, 8), (12, 6, 3, 3), {"dilation": 2, "groups": 3}),
}


def rounded(shape, seed):
    """Numbers that bfloat16 holds exactly, so that only sums and results are rounded."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return fastnn.tensor(values).to("bfloat16").to("float32").numpy()


def close_in_float32(found, expected, terms):
    """Within what sums of that many float32 products, and no bfloat16 rounding, may differ by."""
    scale = np.sqrt(np.mean(np.square(expected)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=scale * 2**-23 * (8 + terms**0.5))


def check_gradient(name, device):
    x_shape, w_shape, settings = CONVOLUTIONS[name]
    x, w = rounded(x_shape, 0), rounded(w_shape, 1)
    weight = fastnn.tensor(w, device=device, requires_grad=True)
    with fastnn.autocast():
        y = F.conv2d(fastnn.tensor(x, device=device), weight, **settings)
    g = rounded(y.shape, 2)
    assert y.dtype is fastnn.bfloat16
    y.backward(fastnn.tensor(g, device=device).to("bfloat16"))
    expected = reference.conv2d_backward(
        g.astype(np.float64), x.astype(np.float64), w.astype(np.float64), **settings
    )["weight"]
    assert weight.grad.dtype is fastnn.float32
    close_in_float32(weight.grad.cpu().numpy(), expected, g[:, 0].size)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_gradients_of_float32_weights_are_float32_sums(name, isa):
    check_gradient(name, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_on_a_gpu_too(name):
    check_gradient(name, "cuda")


@pytest.mark.parametrize("rows", [4, 40])
def test_gradients_of_linear_and_transposed_weights_too(rows, isa):
    x, w, g = rounded((rows, 100), 0), rounded((36, 100), 1), rounded((rows, 36), 2)
    weight = fastnn.tensor(w, requires_grad=True)
    with fastnn.autocast():
        y = F.linear(fastnn.tensor(x), weight)
    y.backward(fastnn.tensor(g).to("bfloat16"))
    close_in_float32(weight.grad.numpy(), g.T.astype(np.float64) @ x, rows)

    x, w = rounded((2, 6, 5, 5), 0), rounded((6, 9, 3, 3), 1)
    weight = fastnn.tensor(w, requires_grad=True)
    with fastnn.autocast():
        y = F.conv_transpose2d(fastnn.tensor(x), weight, stride=2)
    g = rounded(y.shape, 2)
    y.backward(fastnn.tensor(g).to("bfloat16"))
    expected = reference.conv_transpose2d_backward(
        g.astype(np.float64), x.astype(np.float64), w.astype(np.float64), stride=2
    )["weight"]
    assert weight.grad.dtype is fastnn.float32
    close_in_float32(weight.grad.numpy(), expected, 50)


# The copy of a weight in bfloat16, which the optimizer renews.


def layer(seed=0):
    fastnn.manual_seed(seed)
    return nn.Linear(24, 16)


def output(net, x):
    with fastnn.autocast(), fastnn.no_grad():
        return net(x).numpy()


def fresh(net, x):
    """What a layer that has never been used gives, of the same weights."""
    other = nn.Linear(24, 16)
    other.load_state_dict(net.state_dict())
    return output(other, x)


def train(net, optimizer, x, lowered=True):
    optimizer.zero_grad()
    with fastnn.autocast(lowered):
        loss = net(x).float().square().mean()
    loss.backward()
    optimizer.step()
    return loss


OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.5, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: optim.Adam(p, lr=0.1),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.1),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.1),
    "adadelta": lambda p: optim.Adadelta(p),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_renews_the_copy(name, isa):
    net, x = layer(), fastnn.randn(5, 24)
    optimizer = OPTIMIZERS[name](net.parameters())
    for _ in range(4):
        before = output(net, x)
        train(net, optimizer, x)
        assert net.weight._array.kept_blocks == 1  # written by the step
        assert not np.array_equal(output(net, x), before)
        assert np.array_equal(output(net, x), fresh(net, x))


def test_the_copy_goes_when_nobody_asks_for_it():
    net, x = layer(), fastnn.randn(5, 24)
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    train(net, optimizer, x)
    assert net.weight._array.kept_blocks == 1
    train(net, optimizer, x, lowered=False)  # written once more, for the use before
    train(net, optimizer, x, lowered=False)
    assert net.weight._array.kept_blocks == 0
    assert np.array_equal(output(net, x), fresh(net, x))


def test_a_graph_keeps_the_weights_it_was_made_with():
    net, x = layer(), fastnn.randn(5, 24)
    optimizer = optim.SGD(net.parameters(), lr=0.5)
    x.requires_grad_()
    with fastnn.autocast():
        early = net(x).float().sum()
    early.backward(retain_graph=True)
    expected = x.grad.numpy().copy()
    optimizer.step()
    x.grad = None
    early.backward()
    assert np.array_equal(x.grad.numpy(), expected)
    assert np.array_equal(output(net, x), fresh(net, x))


CHANGES = {
    "in place": lambda w: w.detach().mul_(2.0),
    "copy": lambda w: w.detach().copy_(w.detach() * 2.0),
    "through a view": lambda w: w.detach()[3:5].mul_(2.0),
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_change_is_seen(how):
    net, x = layer(), fastnn.randn(5, 24)
    before = output(net, x)
    assert net.weight._array.kept_blocks == 1
    CHANGES[how](net.weight)
    assert not np.array_equal(output(net, x), before)
    assert np.array_equal(output(net, x), fresh(net, x))


def by_a_step(w):
    w.grad = fastnn.ones(*w.shape)
    optim.SGD([w], lr=0.5).step()


@pytest.mark.parametrize("lowered", [False, True])
@pytest.mark.parametrize("change", [*CHANGES.values(), by_a_step])
def test_packed_weights_stay_without_gradients_until_the_weight_changes(change, lowered, isa):
    net, x = nn.Conv2d(16, 24, 3), fastnn.randn(2, 16, 6, 6)

    def output(weight):
        with fastnn.no_grad(), fastnn.autocast(lowered):
            return F.conv2d(x, weight, net.bias).float().numpy()

    for _ in range(3):
        before = output(net.weight)
        assert np.array_equal(output(net.weight), before)  # by what was kept
        assert net.weight._array.kept_blocks == 1
        change(net.weight)
        assert not np.array_equal(output(net.weight), before)
        assert np.array_equal(output(net.weight), output(net.weight.detach().clone()))


def by_numpy(w):
    view = w.detach().numpy()
    return lambda: np.multiply(view, 2, out=view)


def by_dlpack(w):
    view = fastnn.from_dlpack(w.detach())  # memory like any other library's
    return lambda: view.mul_(2.0)


@pytest.mark.parametrize("borrow", [by_numpy, by_dlpack])
def test_what_others_write_is_seen(borrow):
    net, x = layer(), fastnn.randn(5, 24)
    output(net, x)
    double = borrow(net.weight)
    for _ in range(2):  # again and again, as long as the view lives
        before = output(net, x)
        double()
        assert not np.array_equal(output(net, x), before)
        assert net.weight._array.kept_blocks == 0
    expected = fresh(net, x)
    del double
    assert np.array_equal(output(net, x), expected)
    assert net.weight._array.kept_blocks == 1  # nobody else can write any more


def test_an_address_given_away_ends_the_keeping():
    net, x = layer(), fastnn.randn(5, 24)
    output(net, x)
    assert net.weight.data_ptr() and net.weight._array.kept_blocks == 0
    output(net, x)
    assert net.weight._array.kept_blocks == 0


def test_a_weight_over_foreign_memory_is_never_kept():
    memory = np.ones((16, 24), np.float32)
    weight, x = fastnn.from_numpy(memory), fastnn.ones(1, 24)
    with fastnn.autocast():
        assert float(F.linear(x, weight)[0, 0].item()) == 24
        memory[:] = 2
        assert float(F.linear(x, weight)[0, 0].item()) == 48


def test_weights_shared_by_two_layers_get_both_gradients():
    w = fastnn.tensor(rounded((8, 8), 0), requires_grad=True)
    x = fastnn.tensor(rounded((4, 8), 1))
    with fastnn.autocast():
        F.linear(F.linear(x, w), w).float().sum().backward()
    both = w.grad.numpy().copy()
    separate = [fastnn.tensor(w.detach().numpy().copy(), requires_grad=True) for _ in range(2)]
    with fastnn.autocast():
        F.linear(F.linear(x, separate[0]), separate[1]).float().sum().backward()
    assert np.allclose(both, separate[0].grad.numpy() + separate[1].grad.numpy(), rtol=1e-6)
