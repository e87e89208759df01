"""Convolution beyond the case table: random settings, adjoints, strange layouts, autocast."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from harness import PROPERTY, check_everywhere
from hypothesis import given
from hypothesis import strategies as st

import fastnn
import fastnn.nn.functional as F

small = st.integers(1, 3)
DTYPE = st.sampled_from(["f32", "f32", "bf16"])


@st.composite
def conv_lines(draw, transpose=False):
    """A valid conv2d or conv_transpose2d case line."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    c = groups * draw(st.sampled_from([1, 2, 3, 5, 8, 17, 33]))
    oc = groups * draw(st.sampled_from([1, 2, 4, 7, 16, 35]))
    if draw(st.booleans()) and groups > 1:
        c = oc = groups  # depthwise
    stride = small if transpose else st.sampled_from([1, 1, 2, 3, 4, 9])
    kh, kw, sh, sw = draw(small), draw(st.integers(1, 5)), draw(stride), draw(stride)
    dh, dw = draw(small), draw(small)
    ph, pw = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    # Large enough for the window, or for a transposed output that is not cut away.
    side = -1 if not transpose else 1
    h = max(1, draw(st.integers(1, 8)) + dh * (kh - 1) + side * 2 * ph)
    w = max(1, draw(st.integers(1, 40)) + dw * (kw - 1) + side * 2 * pw)
    line = f"n{draw(st.integers(0, 3))}c{c}h{h}w{w}_oc{oc}"
    line += f"_k{kh}x{kw}s{sh}x{sw}p{ph}x{pw}d{dh}x{dw}g{groups}"
    if transpose:
        line += f"op{draw(st.integers(0, sh - 1))}x{draw(st.integers(0, sw - 1))}"
    else:
        line += draw(st.sampled_from(["", "_relu", "_res", "_relu_res"]))
    return line + draw(st.sampled_from(["", "_nobias"])) + f"_{draw(DTYPE)}"


@PROPERTY
@given(conv_lines())
def test_conv2d_with_random_settings(line):
    check_everywhere("conv2d", line)


@PROPERTY
@given(conv_lines(transpose=True))
def test_conv_transpose2d_with_random_settings(line):
    check_everywhere("conv_transpose2d", line)


@st.composite
def plane_lines(draw):
    """Channels of several blocks of columns: gradients of the weight copy the input to planes, where
    pixels that leave the same remainder of a stride lie together, or to planes tap by tap."""
    groups = draw(st.sampled_from([1, 1, 2]))
    c, oc = groups * draw(st.sampled_from([24, 48, 96])), groups * draw(st.sampled_from([1, 7, 18]))
    kh, kw, dh, dw = draw(small), draw(small), draw(small), draw(small)
    sh, sw = draw(st.sampled_from([1, 2, 2, 3, 5])), draw(st.sampled_from([1, 2, 2, 3, 5]))
    ph, pw = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    h = max(1, draw(st.integers(1, 12)) + dh * (kh - 1) - 2 * ph)
    w = max(1, draw(st.integers(1, 30)) + dw * (kw - 1) - 2 * pw)
    return (
        f"n{draw(st.integers(1, 3))}c{c}h{h}w{w}_oc{oc}"
        f"_k{kh}x{kw}s{sh}x{sw}p{ph}x{pw}d{dh}x{dw}g{groups}_nobias_{draw(DTYPE)}"
    )


@PROPERTY
@given(plane_lines())
def test_conv2d_of_planes(line):
    check_everywhere("conv2d", line)


@st.composite
def grouped_lines(draw):
    """Groups as small as those of ResNeXt: several to a vector, or a few vectors each."""
    each, groups = draw(st.sampled_from([2, 4, 8, 16, 32])), draw(st.sampled_from([2, 4, 8, 24]))
    n, h, w = draw(st.integers(0, 3)), draw(st.integers(3, 12)), draw(st.integers(3, 17))
    kh, sh, sw = draw(small), draw(small), draw(st.integers(1, 2))
    ph, pw = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    fused = draw(st.sampled_from(["", "_relu", "_relu_res", "_nobias"]))
    return (
        f"n{n}c{each * groups}h{h}w{w}_oc{each * groups}_k{kh}x3s{sh}x{sw}p{ph}x{pw}g{groups}{fused}"
        f"_{draw(DTYPE)}"
    )


@PROPERTY
@given(grouped_lines())
def test_conv2d_of_small_groups(line):
    check_everywhere("conv2d", line)


@st.composite
def joined_lines(draw):
    """Groups of few channels of any kind, which are taken together; multiples of channels too."""
    groups = draw(st.sampled_from([4, 6, 10, 16, 25, 40]))
    ic, oc = draw(st.sampled_from([1, 1, 2, 3, 4, 9])), draw(st.sampled_from([1, 2, 3, 5, 8]))
    kh, kw, sh, sw = draw(small), draw(st.sampled_from([1, 2, 3, 5])), draw(small), draw(small)
    dh, dw = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    ph, pw = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    h = draw(st.integers(1, 9)) + dh * (kh - 1)
    w = draw(st.integers(1, 17)) + dw * (kw - 1)
    fused = draw(st.sampled_from(["", "_relu", "_relu_res", "_nobias"]))
    return (
        f"n{draw(st.integers(1, 3))}c{ic * groups}h{h}w{w}_oc{oc * groups}"
        f"_k{kh}x{kw}s{sh}x{sw}p{ph}x{pw}d{dh}x{dw}g{groups}{fused}_{draw(DTYPE)}"
    )


@PROPERTY
@given(joined_lines())
def test_conv2d_of_few_channels_to_a_group(line):
    check_everywhere("conv2d", line)


@st.composite
def scattered_lines(draw):
    """From many channels to few, forward or backward: what a pixel adds to those around it is scattered
    over bands of rows, where a vector of channels would be mostly idle."""
    few = draw(st.sampled_from([1, 2, 3, 3, 5, 7, 18]))
    many = draw(st.sampled_from([24, 40, 65, 130]))
    forward = draw(st.booleans())
    kh, kw, dh = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 3, 4, 7])), draw(small)
    sh, sw = (1, 1) if forward else (draw(small), draw(st.integers(1, 5)))
    ph, pw = draw(st.integers(0, 4)), draw(st.integers(0, 6))
    h = max(1, draw(st.integers(1, 30)) + dh * (kh - 1) - 2 * ph)
    w = max(1, draw(st.integers(1, 20)) + kw - 1 - 2 * pw)
    c, oc = (many, few) if forward else (few, many)
    fused = draw(st.sampled_from(["", "_relu", "_relu_res", "_nobias", "_res"]))
    return (
        f"n{draw(st.integers(0, 3))}c{c}h{h}w{w}_oc{oc}"
        f"_k{kh}x{kw}s{sh}x{sw}p{ph}x{pw}d{dh}x1{fused}_{draw(DTYPE)}"
    )


@PROPERTY
@given(scattered_lines())
def test_conv2d_to_few_channels(line):
    check_everywhere("conv2d", line)


@st.composite
def depthwise_lines(draw):
    """A filter per channel: the widths that have kernels of their own, and others; a part of a vector
    of channels to a few vectors; rows of less than a block of outputs to a few blocks."""
    c = draw(st.sampled_from([2, 5, 16, 17, 32, 40, 48, 67]))
    kh, kw = draw(
        st.sampled_from([(3, 3), (3, 3), (5, 5), (7, 7), (2, 2), (4, 4), (2, 6), (3, 9), (9, 2)])
    )
    sh, sw = draw(small), draw(small)
    dh, dw = draw(st.sampled_from([1, 1, 2])), draw(st.sampled_from([1, 1, 2, 3]))
    ph, pw = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    h = max(1, draw(st.integers(1, 6)) + dh * (kh - 1) - 2 * ph)
    w = max(1, draw(st.integers(1, 40)) + dw * (kw - 1) - 2 * pw)
    fused = draw(st.sampled_from(["", "_relu", "_relu_res", "_nobias", "_nobias"]))
    return (
        f"n{draw(st.integers(0, 3))}c{c}h{h}w{w}_oc{c}"
        f"_k{kh}x{kw}s{sh}x{sw}p{ph}x{pw}d{dh}x{dw}g{c}{fused}_{draw(DTYPE)}"
    )


@PROPERTY
@given(depthwise_lines())
def test_depthwise_conv2d(line):
    check_everywhere("conv2d", line)


@pytest.mark.parametrize(
    ("channels", "groups", "kernel", "stride"),
    [(80, 80, 5, 1), (48, 48, 3, 1), (24, 24, 3, 2), (128, 32, 3, 1)],
)
def test_rows_written_around_the_caches_are_those_written_through_them(
    isa, channels, groups, kernel, stride
):
    def passes(x):
        x = x.detach().requires_grad_()
        y = F.conv2d(x, weight, bias, stride, kernel // 2, groups=groups)
        y.backward(fastnn.ones_like(y))
        return y.detach().numpy(), x.grad.numpy()

    weight = fastnn.randn(channels, channels // groups, kernel, kernel)
    bias = fastnn.randn(channels)
    side = int((14e6 / (2 * 4 * channels)) ** 0.5) * stride
    images = fastnn.randn(2, channels, side, side)  # outputs of 14 MB, 7 each
    y, grad = passes(images)
    for i in range(2):
        y_alone, grad_alone = passes(images[i : i + 1])
        assert np.array_equal(y[i], y_alone[0])
        assert np.array_equal(grad[i], grad_alone[0])


def test_identity_kernel_returns_the_input(isa):
    x = fastnn.randn(2, 19, 5, 7)
    weight = fastnn.tensor(np.eye(19, dtype=np.float32).reshape(19, 19, 1, 1))
    assert np.array_equal(F.conv2d(x, weight).numpy(), x.numpy())


def test_a_hand_computed_case(isa):
    x = fastnn.tensor(np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3))
    weight = fastnn.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    # Cross-correlation: 0*1 + 1*2 + 3*3 + 4*4 = 27, and so on.
    assert F.conv2d(x, weight).tolist() == [[[[27, 37], [57, 67]]]]
    assert F.conv_transpose2d(fastnn.ones(1, 1, 1, 1), weight).tolist() == weight.tolist()


@pytest.mark.parametrize(
    "settings", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "groups": 2}]
)
def test_transpose_is_the_adjoint(settings, isa):
    """<conv(x), y> = <x, conv_transpose(y)>."""
    weight = fastnn.randn(6, 4 // settings.get("groups", 1), 3, 3)
    x = fastnn.randn(2, 4, 9, 9)
    y = fastnn.randn(*F.conv2d(x, weight, **settings).shape)
    left = (F.conv2d(x, weight, **settings) * y).numpy().astype(np.float64).sum()
    back = F.conv_transpose2d(y, weight, **settings)
    size = [slice(0, n) for n in back.shape]
    right = (back.numpy() * x.numpy()[tuple(size)]).astype(np.float64).sum()
    assert left == pytest.approx(right, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("view", ["nchw", "reversed", "sliced", "expanded"])
def test_inputs_of_any_strides(view, isa):
    base = np.random.default_rng(0).standard_normal((4, 6, 10, 10)).astype(np.float32)
    x = {
        "nchw": base, "reversed": base[::-1, :, ::-1], "sliced": base[:, 1:5, ::2, 1:],
        "expanded": np.broadcast_to(base[:1], (3, 6, 10, 10)),
    }[view]  # fmt: skip
    weight = fastnn.randn(5, x.shape[1], 3, 3)
    got = F.conv2d(fastnn.from_numpy(x), weight, padding=1).numpy()
    want = F.conv2d(fastnn.tensor(np.ascontiguousarray(x)), weight, padding=1).numpy()
    assert np.array_equal(got, want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_within_its_windows(value, dtype, isa):
    """And stays what it is: no zero that stands for nothing is multiplied by it."""
    for channels in (1, 3, 5):
        for c in range(channels):
            x = fastnn.zeros(1, channels, 8, 8)
            x[0, c, 4, 4] = value
            weight = fastnn.ones(17, channels, 3, 3)
            y = F.conv2d(x.to(dtype), weight.to(dtype), padding=1).float().numpy()
            want = np.zeros((1, 17, 8, 8), np.float32)
            want[:, :, 3:6, 3:6] = value
            assert np.array_equal(y, want, equal_nan=True), (channels, c)


def test_many_groups_are_many_convolutions(isa):
    x, weight = fastnn.randn(1, 60, 5, 5), fastnn.randn(120, 2, 3, 3)
    whole = F.conv2d(x, weight, groups=30).numpy()
    for g in range(30):
        part = F.conv2d(x[:, 2 * g : 2 * g + 2], weight[4 * g : 4 * g + 4]).numpy()
        np.testing.assert_allclose(whole[:, 4 * g : 4 * g + 4], part, rtol=1e-5, atol=1e-5)


def test_asymmetric_padding_is_padding_by_hand(isa):
    x, weight = fastnn.randn(2, 3, 6, 5), fastnn.randn(4, 3, 3, 2)
    sides = (1, 0, 2, 3)  # left, right, top, bottom
    got = F.conv2d(x, weight, padding=sides).numpy()
    assert np.array_equal(got, F.conv2d(F.pad(x, sides), weight).numpy())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("groups", [1, 16, 64])
@pytest.mark.parametrize("settings", [{"stride": 2**30}, {"dilation": 2**22}])
def test_absurd_settings_use_little_memory_and_time(settings, groups, dtype, isa):
    """All but one tap or pixel lies in the padding: the same as a 1x1 convolution of the rest."""
    size = next(iter(settings.values()))
    rng = np.random.default_rng(0)
    kernel, shape = (1, (1, 64, 3, 3)) if "stride" in settings else (3, (1, 64, 5, 5))
    x = fastnn.tensor(rng.standard_normal(shape), dtype=dtype, requires_grad=True)
    outputs, each = 20 if groups == 1 else 64, 64 // groups
    weight = fastnn.tensor(rng.standard_normal((outputs, each, kernel, kernel)), dtype=dtype)
    weight.requires_grad_()
    out = F.conv2d(x, weight, padding=size, groups=groups, **settings)
    out.sum().backward()
    x1, w1 = x.detach().clone().requires_grad_(), weight.detach()[:, :, kernel // 2, kernel // 2]
    w1 = w1.reshape(outputs, each, 1, 1).clone().requires_grad_()
    if "stride" in settings:  # one pixel of the image, the others padding
        want, got = F.conv2d(x1[:, :, :1, :1], w1, groups=groups), out[:, :, 1:2, 1:2]
        assert out.abs().sum().item() == got.abs().sum().item()
    else:
        want, got = F.conv2d(x1, w1, groups=groups), out
    want.sum().backward()
    middle = weight.grad[:, :, kernel // 2, kernel // 2]
    for a, b in ((got, want), (x.grad, x1.grad), (middle, w1.grad[:, :, 0, 0])):
        np.testing.assert_allclose(
            a.detach().float().numpy(), b.detach().float().numpy(), rtol=2e-5, atol=2e-5
        )


@pytest.mark.parametrize("stride", [5, 10**6, 2**30])
def test_one_window_of_few_channels_whatever_the_stride(stride, isa):
    x = fastnn.randn(1, 3, 5, 5, requires_grad=True)
    weight = fastnn.randn(8, 3, 3, 3, requires_grad=True)
    out = F.conv2d(x, weight, stride=stride)
    assert out.shape == (1, 8, 1, 1)
    out.sum().backward()
    window, w = x.detach().numpy()[0, :, :3, :3], weight.detach().numpy()
    np.testing.assert_allclose(
        out.detach().numpy()[0, :, 0, 0], (w * window).sum((1, 2, 3)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(weight.grad.numpy(), np.broadcast_to(window, w.shape), rtol=1e-6)
    np.testing.assert_allclose(x.grad.numpy()[0, :, :3, :3], w.sum(0), rtol=1e-5, atol=1e-5)


def test_gradients_are_zero_where_no_window_reaches(isa):
    """Also beside infinite gradients: nothing is multiplied by a zero that stands for nothing."""
    x = fastnn.ones(1, 2, 5, 5, requires_grad=True)
    out = F.conv2d(x, fastnn.ones(3, 2, 1, 1), stride=2)
    out.backward(fastnn.full(out.shape, float("inf")))
    want = np.zeros((1, 2, 5, 5), np.float32)
    want[:, :, ::2, ::2] = np.inf
    assert np.array_equal(x.grad.numpy(), want)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("outputs", [3, 33])
def test_an_image_without_pixels_gives_the_bias_where_it_is_padded(size, outputs, isa):
    x = fastnn.zeros(2, 64, *size, requires_grad=True)
    weight = fastnn.ones(outputs, 64, 3, 3, requires_grad=True)
    bias = fastnn.arange(outputs).float()
    y = F.conv2d(x, weight, bias, padding=2)
    assert y.shape == (2, outputs, size[0] + 2, size[1] + 2)
    assert (y.detach().numpy() == np.arange(outputs)[:, None, None]).all()
    y.sum().backward()
    assert x.grad.shape == x.shape and not weight.grad.numpy().any()


def test_same_padding_keeps_the_size():
    for kernel in (1, 2, 3, 4, 5):
        weight = fastnn.randn(2, 3, kernel, kernel)
        assert F.conv2d(fastnn.randn(1, 3, 7, 6), weight, padding="same").shape == (1, 2, 7, 6)


def test_same_bits_for_any_number_of_threads_on_a_larger_shape():
    x, weight = fastnn.randn(4, 48, 30, 30), fastnn.randn(80, 48, 3, 3)
    seen = set()
    for threads in (1, 2, 4, 70):  # more than there are ranges of tasks, too
        fastnn.set_num_threads(threads)
        leaf, w = x.clone().requires_grad_(), weight.clone().requires_grad_()
        out = F.conv2d(leaf, w, stride=2, padding=1)
        (out * out).sum().backward()
        seen.add(tuple(t.numpy().tobytes() for t in (out.detach(), leaf.grad, w.grad)))
    assert len(seen) == 1


@pytest.mark.parametrize("dtype", [fastnn.float32, fastnn.bfloat16])
@pytest.mark.parametrize(
    "c, h, w, oc, d", [(3, 16, 56, 16, 4), (3, 16, 24, 8, 4), (6, 16, 56, 16, 4)]
)
def test_same_bits_however_taps_are_gathered(isa, c, h, w, oc, d, dtype):
    """Fewer threads have larger tiles, whose inputs are copied another way."""
    x, weight = fastnn.randn(1, c, h, w).to(dtype), fastnn.randn(oc, c, 3, 3).to(dtype)
    seen = set()
    for threads in (1, 2, 4):
        fastnn.set_num_threads(threads)
        leaf = x.clone().requires_grad_()
        out = F.conv2d(leaf, weight, padding=d, dilation=d)
        out.sum().backward()
        seen.add(tuple(np.asarray(t.detach()).tobytes() for t in (out, leaf.grad)))
    assert len(seen) == 1


def test_autocast_computes_in_bfloat16_and_keeps_float32_gradients():
    x, weight = fastnn.randn(2, 4, 6, 6), fastnn.randn(3, 4, 3, 3, requires_grad=True)
    with fastnn.autocast():
        out = F.conv2d(x, weight, fastnn.zeros(3))
    assert out.dtype is fastnn.bfloat16
    out.sum().backward()
    assert weight.grad.dtype is fastnn.float32
    assert F.conv2d(x, weight).dtype is fastnn.float32


@st.composite
def winograd_lines(draw):
    """A 3x3 stride-1 case line with channels enough for Winograd's algorithm."""
    c, oc = draw(st.sampled_from([32, 35, 64])), draw(st.sampled_from([32, 36, 70]))
    h, w = draw(st.integers(1, 13)), draw(st.integers(1, 13))
    steps = st.sampled_from([1, 1, 1, 2, 3, 5])
    dh, dw = draw(steps), draw(steps)
    ph, pw = (draw(st.integers(max(0, (2 * d + 2 - n) // 2), 2 * d)) for d, n in ((dh, h), (dw, w)))
    line = f"n{draw(st.integers(0, 5))}c{c}h{h}w{w}_oc{oc}_k3p{ph}x{pw}d{dh}x{dw}"
    line += draw(st.sampled_from(["", "_relu", "_res", "_relu_res", "_nobias"]))
    return line + draw(st.sampled_from(["_f32", "_bf16"]))


@PROPERTY
@given(winograd_lines())
def test_winograd_keeps_the_bound_of_direct_sums(line):
    with fastnn.backends.cpu.winograd("always"):
        check_everywhere("conv2d", line)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("dilation", [1, 4])
def test_winograd_gives_the_same_bits_for_any_number_of_threads(dilation, threads, isa):
    x, weight = fastnn.randn(3, 40, 19, 18), fastnn.randn(70, 40, 3, 3)
    conv2d = partial(F.conv2d, x, weight, padding=dilation, dilation=dilation)
    with fastnn.backends.cpu.winograd("always"):
        fastnn.set_num_threads(1)
        alone = conv2d().numpy()
        fastnn.set_num_threads(threads)
        assert np.array_equal(conv2d().numpy(), alone)
    with fastnn.backends.cpu.winograd("off"):
        assert not np.array_equal(conv2d().numpy(), alone)


def test_winograd_modes():
    before = fastnn._core.winograd()
    with fastnn.backends.cpu.winograd("off"):
        assert fastnn._core.winograd() == "off"
    assert fastnn._core.winograd() == before
    with pytest.raises(ValueError, match="expected 'auto', 'off' or 'always', got 'no'"):
        fastnn.backends.cpu.set_winograd("no")


@st.composite
def tile_lines(draw):
    """bfloat16 case lines that reach every way AMX tiles read their input: small maps of many
    images, channels that do and do not fall into even steps, strides, large kernels."""
    n = draw(st.sampled_from([1, 2, 9, 17]))
    c = draw(st.sampled_from([1, 3, 16, 22, 32, 48, 70]))
    oc = draw(st.sampled_from([1, 15, 16, 32, 33, 80]))
    k, s = draw(st.sampled_from([1, 2, 3, 5])), draw(st.sampled_from([1, 1, 2, 3]))
    h, w = k + draw(st.integers(0, 9)), k + draw(st.integers(0, 9))
    line = f"n{n}c{c}h{h}w{w}_oc{oc}_k{k}s{s}p{draw(st.integers(0, 2))}"
    return line + draw(st.sampled_from(["", "_relu", "_res", "_relu_res"])) + "_bf16"


@PROPERTY
@given(tile_lines())
def test_bfloat16_tiles(line):
    check_everywhere("conv2d", line)
