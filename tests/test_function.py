"""Operators of a user's own."""

from __future__ import annotations

import numpy as np
import pytest

import fastnn
import fastnn.nn.functional as F
from fastnn import nn


class Scaled(fastnn.autograd.Function):
    """x * factor + y, and the sum of x."""

    @staticmethod
    def forward(ctx, x, factor, y):
        ctx.factor = factor
        ctx.save_for_backward(x, None)
        ctx.seen = ctx.needs_input_grad
        return x * factor + y, x.sum()

    @staticmethod
    def backward(ctx, grad_scaled, grad_sum):
        x, nothing = ctx.saved_tensors
        assert nothing is None and not grad_scaled.requires_grad
        return grad_scaled * ctx.factor + grad_sum.expand_as(x), None, grad_scaled


class Straight(fastnn.autograd.Function):
    """The sign forward, the identity within [-1, 1] backward: a binary network's activation."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return fastnn.where(x < 0, -1.0, 1.0)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return fastnn.where(x.abs() <= 1, grad_output, 0.0)


def function(backward, forward=lambda ctx, x: x * 2):
    return type("Mine", (fastnn.autograd.Function,), {
        "forward": staticmethod(forward), "backward": staticmethod(backward),
    })  # fmt: skip


def test_several_outputs_and_arguments_of_any_kind():
    x = fastnn.randn(3, 4, requires_grad=True)
    y = fastnn.randn(3, 4, requires_grad=True)
    scaled, total = Scaled.apply(x, 2.5, y)
    np.testing.assert_allclose(
        scaled.detach().numpy(), 2.5 * x.detach().numpy() + y.detach().numpy(), rtol=1e-6
    )
    (scaled.sum() + 3 * total).backward()
    assert np.allclose(x.grad.numpy(), 5.5) and np.allclose(y.grad.numpy(), 1)
    x.grad = y.grad = None
    Scaled.apply(x, 2.5, y)[1].backward()  # the other output counts as zero
    assert np.allclose(x.grad.numpy(), 1) and np.allclose(y.grad.numpy(), 0)
    assert not any(out.requires_grad for out in Scaled.apply(x.detach(), 2.0, y.detach()))
    with fastnn.no_grad():
        assert not Scaled.apply(x, 2.0, y)[0].requires_grad


def test_in_a_network_and_under_compile():
    class Sign(nn.Module):
        def forward(self, input):
            return Straight.apply(input)

    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Sign(), nn.Flatten(), nn.Linear(128, 2)
    )
    x = fastnn.randn(4, 3, 6, 6)
    F.cross_entropy(model(x), fastnn.tensor([0, 1, 0, 1])).backward()
    assert all(p.grad is not None and np.isfinite(p.grad.numpy()).all() for p in model.parameters())
    assert model[0].weight.grad.numpy().any()
    fast = fastnn.compile(model.eval(), x)
    np.testing.assert_allclose(fast(x).numpy(), model(x).detach().numpy(), atol=1e-5)


def test_gradients_by_finite_differences():
    class Softsign(fastnn.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x / (1 + x.abs())

        @staticmethod
        def backward(ctx, grad_output):
            (x,) = ctx.saved_tensors
            return grad_output / (1 + x.abs()).square()

    assert fastnn.gradcheck(Softsign.apply, (fastnn.randn(5, 3, requires_grad=True),))


def test_what_a_backward_may_not_give():
    x = fastnn.randn(2, 3, requires_grad=True)
    for backward, error, match in (
        (lambda ctx, g: (g, g), RuntimeError, "or None for each of forward's 1 arguments, got 2"),
        (lambda ctx, g: g.sum(), RuntimeError, r"expects to give shape \(2, 3\) on cpu .*got \(\)"),
        (lambda ctx, g: g.numpy(), TypeError, "a tensor or None for argument 0, got ndarray"),
    ):  # fmt: skip
        with pytest.raises(error, match=f"Mine: backward .*{match}"):
            function(backward).apply(x).sum().backward()
    two = function(lambda ctx, g: (g, g), lambda ctx, x, k: x * k)
    with pytest.raises(TypeError, match="expects to give None for argument 1, got Tensor"):
        two.apply(x, 3.0).sum().backward()
    unused = function(lambda ctx, g: None).apply(x).sum()
    unused.backward()
    assert x.grad is None
    rounded = function(lambda ctx, g: g.to("bfloat16")).apply(x).sum()
    rounded.backward()
    assert x.grad.dtype is fastnn.float32


def test_what_a_forward_may_not_do():
    x = fastnn.randn(2, 3, requires_grad=True)
    with pytest.raises(
        TypeError, match="Mine: forward expects to give a tensor or a tuple of tensors, got float"
    ):
        function(None, lambda ctx, x: 1.0).apply(x)
    with pytest.raises(TypeError, match="save_for_backward: expected tensors or None, got int"):
        function(None, lambda ctx, x: ctx.save_for_backward(3)).apply(x)
    with pytest.raises(NotImplementedError, match="write forward"):
        fastnn.autograd.Function.apply(x)
    assert not hasattr(fastnn.autograd, "Functional")


def test_saved_tensors_are_watched_and_freed():
    x = fastnn.randn(3, requires_grad=True)
    y = x * 1
    z = Straight.apply(y)
    y.detach().zero_()
    with pytest.raises(RuntimeError, match="Straight: a tensor of shape .* changed in place"):
        z.sum().backward()
    z = Straight.apply(x).sum()
    z.backward()
    with pytest.raises(RuntimeError, match="a second time"):
        z.backward()


def test_outputs_without_gradients():
    def forward(ctx, x):
        values, places = x.max(1)
        shown = values * 1
        ctx.mark_non_differentiable(shown)
        ctx.save_for_backward(places)
        ctx.columns = x.shape[1]
        return values, places, shown

    def backward(ctx, g, *rest):
        (places,) = ctx.saved_tensors
        return (fastnn.arange(ctx.columns) == places.unsqueeze(1)).float() * g.unsqueeze(1)

    x = fastnn.tensor([[1.0, 3.0], [5.0, 2.0]], requires_grad=True)
    values, places, shown = function(backward, forward).apply(x)
    assert (values.requires_grad, places.requires_grad, shown.requires_grad) == (True, False, False)
    values.sum().backward()
    assert x.grad.tolist() == [[0, 1], [1, 0]]
