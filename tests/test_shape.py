"""Joining, cutting, padding and indexing: random calls against NumPy, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from harness import PROPERTY, check
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastnn
import fastnn.nn.functional as F
from fastnn import _core, nn

shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5)


@st.composite
def indexed(draw):
    """A shape and an index NumPy accepts for it."""
    shape = draw(shapes)
    kind = draw(st.sampled_from(["basic", "arrays", "mask", "rows"]))
    if kind == "basic":
        return shape, draw(hnp.basic_indices(shape, allow_newaxis=True, max_dims=7))
    if kind == "mask":
        return shape, draw(hnp.arrays(bool, shape))
    if kind == "rows":
        rows = hnp.arrays(np.int64, hnp.array_shapes(max_dims=2, max_side=4),
                          elements=st.integers(-shape[0], shape[0] - 1))  # fmt: skip
        return shape, draw(rows)
    return shape, draw(hnp.integer_array_indices(shape, result_shape=hnp.array_shapes(max_dims=2)))


@PROPERTY
@given(indexed())
def test_indexing_has_numpys_meaning(case):
    shape, key = case
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    x = fastnn.tensor(values, requires_grad=True)
    got, want = x[key], values[key]
    assert got.shape == want.shape and np.array_equal(got.detach().numpy(), want)
    grad = np.random.default_rng(0).standard_normal(want.shape).astype(np.float32)
    got.backward(fastnn.tensor(grad))
    scattered = np.zeros(shape, np.float32)
    np.add.at(scattered, key, grad)
    np.testing.assert_allclose(x.grad.numpy(), scattered, atol=1e-5)


@pytest.mark.gpu
@PROPERTY
@given(shape=shapes, data=st.data(), dtype=st.sampled_from(["int64", "int32"]))
def test_rows_at_positions_on_a_gpu_are_numpys(shape, data, dtype):
    """They are not looked at on the host: the positions do not go there."""
    rows = hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4)
    elements = st.integers(-shape[0], shape[0] - 1)
    at = data.draw(hnp.arrays(np.int64, rows, elements=elements))
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    x, index = (fastnn.tensor(v, device="cuda") for v in (values, at.astype(dtype)))
    x.requires_grad_()
    got, want = x[index], values[at]
    grad = np.random.default_rng(0).standard_normal(want.shape).astype(np.float32)
    got.backward(fastnn.tensor(grad, device="cuda"))
    assert got.shape == want.shape and np.array_equal(np.asarray(got.detach()), want)
    scattered = np.zeros(shape, np.float32)
    np.add.at(scattered, at, grad)
    np.testing.assert_allclose(x.grad.cpu().numpy(), scattered, atol=1e-5)
    assert np.array_equal(x[index, ...].detach().cpu().numpy(), want)
    assert np.array_equal(x.detach()[index, :].cpu().numpy() if x.ndim > 1 else want, want)


@pytest.mark.gpu
def test_positions_on_a_gpu_are_reported_later():
    x, bad = fastnn.ones(3, 2, device="cuda"), fastnn.tensor([0, 3], device="cuda")
    for take in (lambda: x[bad], lambda: x.index_select(0, bad)):
        rows = take()
        with pytest.raises(RuntimeError, match="take: expected indices from 0 to 2, got 3 at"):
            rows.cpu()
    rows = x[bad - 4]
    with pytest.raises(RuntimeError, match="take: expected indices from 0 to 2, got -4 at"):
        rows.cpu()
    with pytest.raises(IndexError, match="no position is in range of a dimension of size 0"):
        x[:0][bad]
    for t in (x, x.cpu()):
        with pytest.raises(IndexError, match="too many indices"):
            t[bad, :, :]
    mask = fastnn.tensor([True, False, True], device="cuda")
    assert x[mask].shape == (2, 2) and x[bad.cpu() - 1].shape == (2, 2)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@PROPERTY
@given(case=indexed())
def test_index_assignment_has_numpys_meaning(device, case):
    shape, key = case
    values = np.zeros(shape, np.float32)
    x = fastnn.tensor(values, device=device)
    x[key] = 7.0
    values[key] = 7.0
    assert np.array_equal(np.asarray(x), values)
    rows = np.random.default_rng(0).standard_normal(values[key].shape).astype(np.float32)
    x[key] = fastnn.tensor(rows, device=device)
    values[key] = rows
    assert np.array_equal(np.asarray(x), values)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_large_integers_are_assigned_exactly(device):
    x = fastnn.zeros(3, dtype=fastnn.int64, device=device)
    x[0], x[1:] = 16777217.0, np.array([2**53 + 2, 5], np.float64)
    assert np.asarray(x.cpu()).tolist() == [16777217, 2**53 + 2, 5]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("key", [..., slice(1, 2), [True, False, False]])
def test_numbers_out_of_range_are_not_assigned(device, key):
    for dtype, number in (("uint8", -1), ("uint8", 300), ("int32", 2**40), ("int64", 2**70)):
        x = fastnn.ones(3, dtype=dtype, device=device)
        for value in (number, [number] * np.arange(3)[key].size):
            with pytest.raises(OverflowError):
                x[key] = value
        assert x.tolist() == [1, 1, 1]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_assigned_values_may_be_of_the_same_memory(device):
    values = np.arange(24, dtype=np.float32).reshape(6, 4)
    x = fastnn.tensor(values, device=device)
    before = x._array.version
    x[1:], values[1:] = x[:-1], values[:-1].copy()
    x[::-1, 2:], values[::-1, 2:] = x[:, :2], values[:, :2].copy()
    x[:2], values[:2] = x[5], values[5].copy()
    x[2], values[2] = fastnn.ones(1, 1, 4, device=device), 1
    assert np.array_equal(np.asarray(x), values) and x._array.version > before
    with pytest.raises(ValueError):
        x[:2] = fastnn.ones(3, 4, device=device)
    with pytest.raises(IndexError):
        x[6] = 0.0


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_one_number_is_assigned_from_a_tensor_of_one(device):
    x = fastnn.zeros(2, 3, device=device)
    for number, shape in enumerate([(), (1,), (1, 1)], 1):
        x[1, number - 1] = fastnn.full(shape, number, device=device)
    x[0, 0] = np.full((1, 1), 4.0)
    assert x.tolist() == [[4, 0, 0], [1, 2, 3]]
    with pytest.raises(ValueError):
        x[1, 2] = fastnn.ones(2, device=device)


@pytest.mark.gpu
def test_assigning_to_a_slice_moves_no_other_values(monkeypatch):
    x, moved, to_device = fastnn.zeros(50, 40, device="cuda"), [], _core.to_device

    def moving(array, device, *later):
        moved.append(array.count)
        return to_device(array, device, *later)

    monkeypatch.setattr(_core, "to_device", moving)
    x[3, ..., 1:3] = 5.0
    x[4] = [1.0] * 40
    assert max(moved) == 40
    monkeypatch.undo()
    assert x.sum().item() == 50


@PROPERTY
@given(
    shape=shapes,
    dim=st.integers(0, 3),
    parts=st.integers(1, 4),
    dtype=st.sampled_from(["f32", "bf16"]),
)
def test_cat_of_random_shapes(shape, dim, parts, dtype):
    sizes = "".join(f"{key}{n}" for key, n in zip("nchw", shape, strict=False))
    check("cat", f"{sizes}_d{dim % len(shape)}t{parts}_{dtype}")


def test_cat_undoes_split():
    x = fastnn.randn(3, 10, 4, 4)
    for pieces in (fastnn.split(x, 3, 1), fastnn.chunk(x, 4, 1), fastnn.split(x, [1, 9], 1)):
        assert np.array_equal(fastnn.cat(pieces, 1).numpy(), x.numpy())


@pytest.mark.parametrize(
    "dtypes",
    [("float32", "bfloat16"), ("bfloat16", "int64"), ("int32", "float32", "uint8"),
     ("bool", "uint8"), ("uint8", "int32", "int64"), ("bfloat16", "bfloat16")],
)  # fmt: skip
@pytest.mark.parametrize("join", ["cat", "stack"])
def test_joined_dtypes_promote_as_in_arithmetic(dtypes, join):
    parts = [fastnn.ones(2, 3, dtype=dtype) for dtype in dtypes]
    for part in parts:
        part.requires_grad = part.dtype.is_floating_point
    joined = getattr(fastnn, join)(parts, 1)
    assert joined.dtype is sum(parts[1:], parts[0].detach()).dtype
    assert joined.detach().float().numpy().min() == 1
    if joined.requires_grad:
        (joined * 2).sum().backward()
    for part in parts:
        assert part.grad is None or part.grad.dtype is part.dtype
        assert not part.requires_grad or part.grad.tolist() == [[2] * 3] * 2


def test_slices_share_memory_and_lists_do_not():
    x = fastnn.zeros(4, 4)
    x[1:3].fill_(1.0)
    x[[0]].fill_(5.0)
    assert x.sum().item() == 8


def test_labels_and_images_of_a_batch_keep_their_layout():
    images = fastnn.randn(10, 3, 4, 4)
    picked = images[np.array([3, 3, 0])]
    assert picked.stride() == images.stride()
    assert np.array_equal(picked.numpy(), images.numpy()[[3, 3, 0]])


def test_assignment_is_refused_where_it_would_be_lost():
    x = fastnn.zeros(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="index assignment: a tensor that requires a gradient"):
        x[0] = 1.0
    frozen = np.zeros(3, np.float32)
    frozen.setflags(write=False)
    with pytest.raises(ValueError, match="read-only"):
        fastnn.from_numpy(frozen)[0] = 1.0


def test_a_view_changed_in_place_is_noticed():
    x = fastnn.ones(4, requires_grad=True)
    y = x * x
    with fastnn.no_grad():
        x.detach()[0] = 5.0
    with pytest.raises(RuntimeError, match="changed in place"):
        y.sum().backward()


def test_grey_images_become_coloured():
    """One channel taken three times: sizes of 1 must not confuse the memory order."""
    x = fastnn.tensor(np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2))
    assert np.array_equal(x[:, [0, 0, 0]].numpy(), x.numpy()[:, [0, 0, 0]])
    assert np.array_equal(x[:, :, [1, 0]].numpy(), x.numpy()[:, :, [1, 0]])


def test_a_value_with_a_gradient_is_not_assigned_silently():
    with pytest.raises(RuntimeError, match="the value requires a gradient"):
        fastnn.zeros(3)[0] = fastnn.ones(1, requires_grad=True)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 1), (0, 3, 1, 2), "same", "valid"])
def test_padding_modes_of_a_convolution(mode, padding):
    """As PyTorch's: the border first, then a convolution without padding; compiled, too."""
    conv = nn.Conv2d(3, 5, 3, padding=padding, padding_mode=mode)
    assert ("padding_mode" in repr(conv)) == (mode != "zeros")
    x = fastnn.randn(2, 3, 6, 7, requires_grad=True)
    sides = {1: (1,) * 4, (2, 1): (1, 1, 2, 2), "same": (1,) * 4, "valid": (0,) * 4}.get(
        padding, padding
    )
    wide = F.pad(x, sides, "constant" if mode == "zeros" else mode)
    y, want = conv(x), F.conv2d(wide, conv.weight, conv.bias)
    np.testing.assert_allclose(y.detach().numpy(), want.detach().numpy(), atol=1e-5)
    gradients = []
    for out in (y, want):
        x.grad = None
        out.square().sum().backward()
        gradients.append(x.grad.numpy())
    np.testing.assert_allclose(*gradients, atol=1e-4)
    fast = fastnn.compile(nn.Sequential(conv, nn.ReLU()), x.detach())
    np.testing.assert_allclose(
        fast(x.detach()).numpy(), np.maximum(y.detach().numpy(), 0), atol=1e-5
    )


def test_layers_that_pad():
    x = fastnn.arange(12).float().reshape(1, 1, 3, 4)
    widths = ((0, 0), (0, 0), (0, 1), (2, 1))  # (left, right, top, bottom) = (2, 1, 0, 1)
    for layer, mode in (
        (nn.ReflectionPad2d, "reflect"), (nn.ReplicationPad2d, "edge"), (nn.CircularPad2d, "wrap"),
        (nn.ZeroPad2d, "constant"),
    ):  # fmt: skip
        np.testing.assert_array_equal(
            layer((2, 1, 0, 1))(x).numpy(), np.pad(x.numpy(), widths, mode)
        )
        assert (
            layer(1)(x).shape == (1, 1, 5, 6)
            and repr(layer(1)) == f"{layer.__name__}((1, 1, 1, 1))"
        )
    assert nn.ConstantPad2d(1, 7.5)(x).numpy()[0, 0, 0].tolist() == [7.5] * 6
    assert nn.ZeroPad2d(-1)(x).numpy().tolist() == [[[[5, 6]]]]
    with pytest.raises(ValueError, match="padding_mode expects one of zeros, reflect"):
        nn.Conv2d(3, 4, 3, padding_mode="mirror")
    with pytest.raises(TypeError, match="ReflectionPad2d: padding expects"):
        nn.ReflectionPad2d(1.5)


def test_one_hot():
    labels = fastnn.tensor([[0, 2], [1, 2]])
    rows = F.one_hot(labels)
    assert rows.dtype is fastnn.int64 and np.array_equal(rows.numpy(), np.eye(3)[labels.numpy()])
    assert F.one_hot(labels, 5).shape == (2, 2, 5) and F.one_hot(labels[:0], 4).shape == (0, 2, 4)
    for call, error, match in (
        (lambda: F.one_hot(labels, 2), ValueError, "input expects 0 to 1, got 0 to 2"),
        (lambda: F.one_hot(labels - 1), ValueError, "input expects 0 to 1, got -1 to 1"),
        (lambda: F.one_hot(labels.float()), TypeError, "input expects integers, got float32"),
        (lambda: F.one_hot(labels[:0]), ValueError, "num_classes expects a value > 0"),
    ):
        with pytest.raises(error, match=f"one_hot: {match}"):
            call()
