"""Normalisation: random shapes against the reference, moments, running statistics, far-off means."""

from __future__ import annotations

import numpy as np
import pytest
from harness import PROPERTY, check_everywhere
from hypothesis import given
from hypothesis import strategies as st

import fastnn
import fastnn.nn.functional as F
from fastnn import nn

CHANNELS = st.sampled_from([1, 3, 8, 17, 40])
DTYPE = st.sampled_from(["f32", "bf16"])
side = st.integers(1, 6)


@PROPERTY
@given(
    n=st.integers(2, 4), c=CHANNELS, h=side, w=side, dtype=DTYPE,
    options=st.sampled_from(["", "_eval", "_plain", "_relu", "_res", "_relu_res", "_notrack"]),
)  # fmt: skip
def test_batch_norm_on_random_shapes(n, c, h, w, options, dtype):
    check_everywhere("batch_norm", f"n{n}c{c}h{h}w{w}{options}_{dtype}")


@PROPERTY
@given(
    n=st.integers(0, 3),
    groups=st.integers(1, 5),
    each=st.integers(2, 9),
    h=side,
    w=side,
    dtype=DTYPE,
)
def test_group_norm_on_random_shapes(n, groups, each, h, w, dtype):
    check_everywhere("group_norm", f"n{n}c{groups * each}h{h}w{w}_g{groups}_{dtype}")


@PROPERTY
@given(n=st.integers(0, 3), c=CHANNELS, h=st.integers(2, 6), w=side, dtype=DTYPE)
def test_instance_norm_on_random_shapes(n, c, h, w, dtype):
    check_everywhere("instance_norm", f"n{n}c{c}h{h}w{w}_{dtype}")


@PROPERTY
@given(
    n=st.integers(0, 5), c=st.integers(2, 70), l=st.integers(2, 9), d=st.integers(1, 2), dtype=DTYPE
)
def test_layer_norm_on_random_shapes(n, c, l, d, dtype):  # noqa: E741
    check_everywhere("layer_norm", f"n{n}c{c}l{l}_d{d}_{dtype}")


@PROPERTY
@given(n=st.integers(0, 2), c=CHANNELS, h=side, size=st.integers(1, 9), dtype=DTYPE)
def test_local_response_norm_on_random_shapes(n, c, h, size, dtype):
    check_everywhere("local_response_norm", f"n{n}c{c}h{h}w2_size{size}_a0.5_{dtype}")


def test_batch_norm_gives_columns_the_moments_of_weight_and_bias():
    """Columns N(-10, 2), N(25, 5), N(3, 10) become means 2, 4, 8 and deviations 1, 2, 3."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1000, 3)) * [2, 5, 10] + [-10, 25, 3]
    norm = nn.BatchNorm1d(3)
    norm.load_state_dict({"weight": np.array([1, 2, 3]), "bias": np.array([2, 4, 8])}, strict=False)
    y = norm(fastnn.tensor(x)).detach().numpy()
    np.testing.assert_allclose(y.mean(0), [2, 4, 8], atol=1e-4)
    np.testing.assert_allclose(y.std(0), [1, 2, 3], atol=1e-4)


def test_a_mean_far_from_zero_costs_no_accuracy(isa):
    """The sum of squares would lose every digit: 1e4 squared is 1e8 times the variance."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((64, 5, 8, 8)) + 1e4).astype(np.float32)
    exact = x.astype(np.float64)
    want = (exact - exact.mean((0, 2, 3), keepdims=True)) / exact.std((0, 2, 3), keepdims=True)
    got = F.batch_norm(fastnn.tensor(x), training=True, eps=0.0).numpy()
    np.testing.assert_allclose(got, want, atol=5e-3)  # float32 holds 1e4 to 5e-4


def test_running_statistics_move_by_the_momentum():
    norm = nn.BatchNorm2d(1, momentum=0.5)
    norm(fastnn.tensor([[[[1.0, 3.0]]], [[[5.0, 7.0]]]]))
    assert norm.running_mean.item() == pytest.approx(2.0)
    assert norm.running_var.item() == pytest.approx(0.5 + 0.5 * 20 / 3)
    before = norm.running_mean.item()
    norm.eval()(fastnn.full((2, 1, 1, 2), 100.0))
    assert norm.running_mean.item() == before and norm.num_batches_tracked.item() == 1


def test_the_norms_are_special_cases_of_each_other(isa):
    x = fastnn.randn(3, 6, 4, 5)
    flat = x.reshape(3, -1)
    one = F.group_norm(x, 1).numpy().reshape(3, -1)
    np.testing.assert_allclose(one, F.layer_norm(flat, flat.shape[1:]).numpy(), atol=1e-5)
    np.testing.assert_allclose(F.group_norm(x, 6).numpy(), F.instance_norm(x).numpy(), atol=1e-6)
    each = F.batch_norm(x[:1], training=True).numpy()
    np.testing.assert_allclose(each, F.instance_norm(x[:1]).numpy(), atol=1e-5)


def test_the_fused_form_is_the_plain_one(isa):
    x, residual = fastnn.randn(2, 20, 5, 5), fastnn.randn(2, 20, 5, 5)
    fused = F.batch_norm(x, training=True, activation="relu", residual=residual).numpy()
    plain = F.relu(F.batch_norm(x, training=True) + residual).numpy()
    assert np.array_equal(fused, plain)


def test_a_nan_stays_in_its_channel(isa):
    x = fastnn.randn(2, 3, 4, 4)
    x[0, 1, 0, 0] = float("nan")
    bad = np.isnan(F.batch_norm(x, training=True).numpy()).all((0, 2, 3))
    assert bad.tolist() == [False, True, False]


@PROPERTY
@given(
    n=st.integers(1, 20), c=st.integers(1, 4) | st.integers(1, 40),
    oc=st.sampled_from([16, 32, 48, 64, 96]),
    h=st.integers(1, 21), w=st.integers(1, 21), k=st.sampled_from([1, 3]), s=st.integers(1, 2),
    far=st.sampled_from([0.0, 30.0]), dtype=st.sampled_from(["float32", "bfloat16"]),
    isa=st.sampled_from(fastnn.backends.cpu.available_isas()),
    winograd=st.sampled_from(["auto", "always"]), d=st.sampled_from([1, 1, 2, 5]),
)  # fmt: skip
def test_moments_from_the_convolution_before_are_the_outputs(
    n, c, oc, h, w, k, s, far, dtype, isa, winograd, d
):
    """Convolutions keep the moments of what they stored; batch norm then gives what it gives for a
    copy, about whose origin it knows nothing."""
    rng = np.random.default_rng(n * 31 + h)
    x = fastnn.tensor(rng.standard_normal((n, c, h, w)).astype(np.float32)).to(dtype)
    weight = fastnn.tensor(
        rng.standard_normal((oc, c, k, k)).astype(np.float32) / np.sqrt(c * k * k)
    )
    weight = weight.to(dtype).requires_grad_()
    bias = fastnn.tensor(np.full(oc, far, np.float32))
    with fastnn.backends.cpu.isa(isa), fastnn.backends.cpu.winograd(winograd):
        y = F.conv2d(x, weight, bias, stride=s, padding=k // 2 * d, dilation=d)
        if y.shape[0] * y.shape[2] * y.shape[3] == 1:
            return
        assert y._array.kept_blocks == 1
        kept = [fastnn.zeros(oc), fastnn.ones(oc)]
        plain = [fastnn.zeros(oc), fastnn.ones(oc)]
        got = F.batch_norm(y, *kept, training=True, momentum=1.0)
        want = F.batch_norm(y.detach() + 0, *plain, training=True, momentum=1.0)
    values = y.detach().float().numpy().astype(np.float64)
    spread = values.std((0, 2, 3)) + 1e-3
    assert np.abs(kept[0].numpy() - values.mean((0, 2, 3))).max() <= 1e-5 * (spread + far).max()
    assert np.allclose(kept[1].numpy(), plain[1].numpy(), rtol=1e-4, atol=1e-6)
    apart = np.abs(got.detach().float().numpy() - want.float().numpy())
    rounding = 2**-7 if dtype == "bfloat16" else 1e-4
    assert (apart <= rounding * np.abs(want.float().numpy()) + 1e-4).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("c", "k", "s"), [(48, 1, 1), (48, 3, 1), (48, 3, 2), (3, 3, 1)])
def test_moments_do_not_depend_on_the_number_of_threads(c, k, s, dtype, isa):
    x, weight = fastnn.randn(5, c, 27, 27).to(dtype), fastnn.randn(64, c, k, k).to(dtype)
    weight.requires_grad_()
    seen = set()
    for threads in (1, 2, 5):
        fastnn.set_num_threads(threads)
        mean, var = fastnn.zeros(64), fastnn.ones(64)
        y = F.conv2d(x, weight, stride=s, padding=k // 2)
        F.batch_norm(y, mean, var, training=True, momentum=1.0)
        seen.add(mean.numpy().tobytes() + var.numpy().tobytes())
    assert len(seen) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "wgmma"])
@pytest.mark.parametrize(
    ("n", "c", "oc", "h", "k", "s"),
    [(2, 5, 3, 9, 3, 1), (3, 8, 70, 13, 3, 2), (1, 16, 130, 20, 1, 1), (9, 3, 20, 7, 3, 1),
     (7, 32, 70, 9, 3, 1), (5, 40, 136, 11, 1, 1), (3, 32, 17, 13, 3, 2), (2, 130, 70, 5, 3, 1),
     (1, 5, 33, 129, 1, 1)],  # more parts than one launch merges
)  # fmt: skip
def test_moments_from_the_convolution_before_on_a_gpu(n, c, oc, h, k, s, kind):
    if kind == "wgmma" and not fastnn.device.cuda_module().has_wgmma(0):
        pytest.skip("needs code for sm_90a")
    dtype = "float32" if kind == "float32" else "bfloat16"
    x = (fastnn.randn(n, c, h, h) + 1).to("cuda").to(dtype)
    weight = fastnn.randn(oc, c, k, k).to("cuda").to(dtype).requires_grad_()
    with fastnn.backends.cuda.wgmma(kind == "wgmma"):
        y, again = (F.conv2d(x, weight, stride=s, padding=k // 2) for _ in range(2))
        assert y._array.kept_blocks == again._array.kept_blocks == 1
    kept, kept_again, plain = (
        [fastnn.zeros(oc, device="cuda"), fastnn.ones(oc, device="cuda")] for _ in range(3)
    )
    got = F.batch_norm(y, *kept, training=True, momentum=1.0).detach().float().cpu().numpy()
    want = F.batch_norm(y.detach() + 0, *plain, training=True, momentum=1.0).float().cpu().numpy()
    F.batch_norm(again, *kept_again, training=True, momentum=1.0)
    for a, b, same in zip(kept, plain, kept_again, strict=True):
        assert np.allclose(a.cpu().numpy(), b.cpu().numpy(), rtol=1e-5, atol=1e-5)
        assert a.cpu().numpy().tobytes() == same.cpu().numpy().tobytes()
    assert (
        np.abs(got - want) <= (2**-7 if dtype == "bfloat16" else 1e-4) * (1 + np.abs(want))
    ).all()
    exact = y.detach().float().cpu().numpy().astype(np.float64)
    assert np.abs(kept[0].cpu().numpy() - exact.mean((0, 2, 3))).max() <= 1e-5 * exact.std()


@pytest.mark.gpu
@pytest.mark.parametrize("change", ["in place", "interface", "address"])
def test_moments_on_a_gpu_are_forgotten_when_others_may_write(change):
    x, weight = fastnn.randn(4, 8, 6, 6).to("cuda"), fastnn.randn(8, 8, 3, 3).to("cuda")
    y = F.conv2d(x, weight.requires_grad_(), padding=1).detach()
    before = y._array.kept_blocks
    if change == "in place":
        y.mul_(0).add_(3)
        mean = fastnn.zeros(8, device="cuda")
        F.batch_norm(y, mean, fastnn.ones(8, device="cuda"), training=True, momentum=1.0)
        assert np.array_equal(mean.cpu().numpy(), np.full(8, 3, np.float32))
    else:
        y.__cuda_array_interface__ if change == "interface" else y.data_ptr()
    assert before == 1 and y._array.kept_blocks == 0


def test_moments_are_forgotten_when_the_convolutions_output_changes():
    x = fastnn.randn(4, 32, 8, 8).to(fastnn.bfloat16)
    weight = fastnn.randn(32, 32, 3, 3).to(fastnn.bfloat16).requires_grad_()
    for change in ("in place", "numpy"):
        y = F.conv2d(x, weight, padding=1).detach()
        if change == "in place":
            y.mul_(0).add_(3)
        else:
            y.numpy()[...] = fastnn.full((4, 32, 8, 8), 3.0).to(fastnn.bfloat16).numpy()
        mean = fastnn.zeros(32)
        F.batch_norm(y, mean, fastnn.ones(32), training=True, momentum=1.0)
        assert np.array_equal(mean.numpy(), np.full(32, 3, np.float32)), change


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_no_channels(activation, isa):
    x = fastnn.zeros(2, 0, 4, 4, requires_grad=True)
    y = F.batch_norm(x, training=True, activation=activation)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("kind", ["hardswish", "hardsigmoid", "silu"])
def test_an_infinite_gradient_does_not_pass_where_an_activation_is_flat(kind, isa):
    x = fastnn.full((2, 3, 4, 4), -90.0, requires_grad=True)
    stats = fastnn.zeros(3), fastnn.ones(3)
    F.batch_norm(x, *stats, activation=kind).backward(fastnn.full(x.shape, np.inf))
    if kind != "silu":  # whose slope is nowhere 0
        assert (x.grad.numpy() == 0).all()


@pytest.mark.parametrize("channels", [48, 144, 272, 300])
def test_curves_are_written_around_the_caches_as_through_them(channels, isa):
    from fastnn import _core

    x = fastnn.randn(4, channels, 6, 5)
    for dtype in (fastnn.float32, fastnn.bfloat16):
        given, found = x.to(dtype), []
        for forced in (False, True):
            _core.assume_left_caches(forced)
            try:
                found.append(F.batch_norm(given, training=True, activation="silu").numpy().copy())
            finally:
                _core.assume_left_caches(None)
        assert np.array_equal(*found)
