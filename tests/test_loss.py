"""Losses: random shapes against the reference, hand-computed values, bad labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from harness import PROPERTY, check_everywhere
from hypothesis import given
from hypothesis import strategies as st

import fastnn
import fastnn.nn.functional as F

REDUCTION = st.sampled_from(["", "_sum", "_none"])
DTYPE = st.sampled_from(["f32", "bf16"])


@PROPERTY
@given(
    n=st.integers(1, 5), c=st.integers(1, 40), image=st.sampled_from(["", "h2w3", "l5"]),
    options=st.sampled_from(["", "_wt", "_ls0.2", "_wt_ls0.1", "_soft", "_soft_wt_ls0.3", "_ig0"]),
    reduction=st.sampled_from(["_sum", "_none"]), dtype=DTYPE,
)  # fmt: skip
def test_cross_entropy_on_random_shapes(n, c, image, options, reduction, dtype):
    check_everywhere("cross_entropy", f"n{n}c{c}{image}{options}{reduction}_{dtype}")


@PROPERTY
@given(
    op=st.sampled_from(["mse_loss", "l1_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits"]),
    n=st.integers(1, 4), c=st.integers(1, 40), reduction=REDUCTION, dtype=DTYPE,
)  # fmt: skip
def test_pair_losses_on_random_shapes(op, n, c, reduction, dtype):
    check_everywhere(op, f"n{n}c{c}{reduction}_{dtype}")


def test_equal_scores_cost_the_logarithm_of_the_classes(isa):
    for classes in (2, 10, 1000):
        loss = F.cross_entropy(fastnn.zeros(4, classes), fastnn.tensor([0, 1, 1, 0]))
        assert loss.item() == pytest.approx(math.log(classes), rel=1e-6)


def test_hand_computed_values(isa):
    x, t = fastnn.tensor([1.0, -2.0]), fastnn.tensor([0.0, 1.0])
    assert F.mse_loss(x, t).item() == 5.0
    assert F.l1_loss(x, t, "sum").item() == 4.0
    assert F.smooth_l1_loss(x, t, "none").tolist() == [0.5, 2.5]
    assert F.nll_loss(fastnn.tensor([[-1.0, -2.0]]), fastnn.tensor([1])).item() == 2.0
    want = (math.log1p(math.e) + math.log1p(math.exp(2))) / 2
    assert F.binary_cross_entropy_with_logits(x, t).item() == pytest.approx(want, rel=1e-6)


def test_extreme_logits_give_no_overflow(isa):
    x, t = fastnn.tensor([1e30, -1e30]), fastnn.tensor([1.0, 0.0])
    assert F.binary_cross_entropy_with_logits(x, t).item() == 0
    scores = fastnn.tensor([[1e30, 0.0]])
    assert F.cross_entropy(scores, fastnn.tensor([0])).item() == 0


def test_a_mean_over_nothing_is_nan_and_its_gradient_zero():
    x = fastnn.randn(2, 3, requires_grad=True)
    loss = F.cross_entropy(x, fastnn.tensor([-100, -100]))
    assert math.isnan(loss.item())
    F.cross_entropy(x, fastnn.tensor([-100, -100]), reduction="sum").backward()
    assert not x.grad.numpy().any()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("rows", [3, 100])  # on a CPU one at a time, and as many as a vector holds
def test_the_score_of_a_label_without_weight_counts_if_it_is_not_finite(device, rows, isa):
    scores = np.zeros((rows, 4), np.float32)
    scores[0, 1], scores[1, 1], scores[2, 3] = math.nan, -math.inf, -math.inf
    weight, labels = fastnn.tensor([1.0, 0.0, 1.0, 1.0]), fastnn.tensor([1, 1] + [0] * (rows - 2))
    loss = F.cross_entropy(
        *(t.to(device) for t in (fastnn.tensor(scores), labels, weight)), reduction="none"
    ).cpu()
    assert np.isnan(loss.numpy()[:2]).all()
    assert loss.numpy()[2] == pytest.approx(math.log(3), rel=1e-6)
    np.testing.assert_allclose(loss.numpy()[3:], math.log(4), rtol=1e-6)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("rows", [3, 100])
def test_a_mean_over_labels_without_weight_is_nan_where_it_has_a_gradient(device, rows, isa):
    """0 / 0; of nll_loss only a label's score has one, of cross_entropy each of its row."""
    labels = np.full(rows, 2)
    labels[1] = -100
    weight, there = (
        fastnn.tensor([1.0, 1.0, 0.0], device=device),
        fastnn.tensor(labels, device=device),
    )
    for loss, wrong in ((F.nll_loss, [False, False, True]), (F.cross_entropy, [True] * 3)):
        x = fastnn.zeros(rows, 3, device=device).requires_grad_()
        y = loss(x, there, weight)
        y.backward()
        expected = np.where((labels == 2)[:, None], wrong, False)
        assert math.isnan(y.item())
        assert np.array_equal(np.isnan(x.grad.cpu().numpy()), expected)
        assert (x.grad.cpu().numpy()[~expected] == 0).all()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss", "binary_cross_entropy_with_logits"])
def test_a_weight_changed_in_place_is_detected(device, name):
    x = fastnn.ones(2, 3, device=device).requires_grad_()
    of_classes = name != "binary_cross_entropy_with_logits"
    target = fastnn.tensor([1, 0] if of_classes else np.eye(2, 3, dtype=np.float32), device=device)
    weight = fastnn.ones(3, device=device)
    loss = getattr(F, name)(x, target, weight)
    weight.mul_(2)
    with pytest.raises(RuntimeError, match=f"{name}: a tensor .* was changed in place"):
        loss.backward()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_an_infinite_gradient_of_a_loss_stays_in_its_row(device, isa):
    x = fastnn.zeros(2, 3, device=device).requires_grad_()
    loss = F.cross_entropy(x, fastnn.tensor([1, 0], device=device), reduction="none")
    loss.backward(fastnn.tensor([math.inf, 1.0], device=device))
    inf, third = math.inf, 1 / 3
    expected = [[inf, math.nan, inf], [third - 1, third, third]]
    np.testing.assert_allclose(x.grad.cpu().numpy(), expected, rtol=1e-6)


def test_a_bad_label_is_named_and_the_process_lives_on():
    x = fastnn.randn(4, 3, requires_grad=True)
    with pytest.raises(ValueError, match="got 7 at flat position 2"):
        F.cross_entropy(x, fastnn.tensor([0, 1, 7, 9]))
    F.cross_entropy(x, fastnn.tensor([0, 1, 2, 0])).backward()
    assert np.isfinite(x.grad.numpy()).all()


def test_losses_of_bfloat16_scores_are_float32():
    x = fastnn.randn(4, 3).to("bfloat16").requires_grad_()
    loss = F.cross_entropy(x, fastnn.tensor([0, 1, 2, 0]))
    loss.backward()
    assert loss.dtype is fastnn.float32 and x.grad.dtype is fastnn.bfloat16


def test_a_large_offset_common_to_all_scores_costs_nothing(isa):
    for offset in (1e4, 1e8):
        x = fastnn.full((1, 2), offset, requires_grad=True)
        loss = F.cross_entropy(x, fastnn.tensor([0]))
        loss.backward()
        assert loss.item() == pytest.approx(math.log(2), rel=1e-6)
        np.testing.assert_allclose(x.grad.numpy(), [[-0.5, 0.5]], rtol=1e-6)
        logs = F.log_softmax(x.detach(), 1).numpy()
        np.testing.assert_allclose(logs, -math.log(2), rtol=1e-6)


def test_confident_logits_keep_their_small_gradients(isa):
    x = fastnn.tensor([-18.0, -40.0], requires_grad=True)
    loss = F.binary_cross_entropy_with_logits(x, fastnn.zeros(2), reduction="none")
    loss.sum().backward()
    np.testing.assert_allclose(loss.detach().numpy(), np.exp([-18.0, -40.0]), rtol=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), np.exp([-18.0, -40.0]), rtol=1e-5)


def test_gradients_that_are_not_computed_are_refused():
    x, t = fastnn.randn(2, 3), fastnn.rand(2, 3).requires_grad_()
    with pytest.raises(NotImplementedError, match="no gradient with respect to target; detach it"):
        F.cross_entropy(x, t)
