"""Tensor: what a PyTorch user expects of creation, exchange, views, conversions; and bad input."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref

import ml_dtypes
import numpy as np
import pytest
from harness import PROPERTY
from hypothesis import given
from hypothesis import strategies as st

import fastnn

DTYPES = ["float32", "bfloat16", "int64", "int32", "uint8", "bool"]


# Creation.


def test_creation():
    assert fastnn.zeros(2, 3).shape == (2, 3) == fastnn.zeros((2, 3)).shape
    assert fastnn.ones(4).tolist() == [1, 1, 1, 1]
    assert fastnn.full((2, 2), 7.5).tolist() == [[7.5, 7.5], [7.5, 7.5]]
    assert fastnn.full(3, 7, dtype="int64").tolist() == [7, 7, 7]
    assert fastnn.empty(5, 0).shape == (5, 0)
    assert fastnn.arange(4).tolist() == [0, 1, 2, 3] and fastnn.arange(4).dtype is fastnn.int64
    assert fastnn.arange(1, 2, 0.25).tolist() == [1, 1.25, 1.5, 1.75]
    like = fastnn.ones_like(fastnn.zeros(2, 1, dtype="bfloat16"))
    assert like.dtype is fastnn.bfloat16 and like.shape == (2, 1)
    assert fastnn.zeros(()).shape == () and fastnn.zeros(()).item() == 0


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (3, "int64"),
        (3.5, "float32"),
        (True, "bool"),
        ([1, 2], "int64"),
        ([[1.0], [2.0]], "float32"),
        ([True, False], "bool"),
        (np.float64(2.5), "float32"),
        (np.ones(2, np.float64), "float32"),
        (np.ones(2, np.float16), "float32"),
        (np.ones(2, np.int16), "int64"),
        (np.ones(2, np.int32), "int32"),
        (np.ones(2, np.uint8), "uint8"),
    ],
)
def test_tensor_infers_a_dtype(data, dtype):
    t = fastnn.tensor(data)
    assert t.dtype.name == dtype
    assert t.shape == np.shape(data)
    assert np.array_equal(t.numpy(), np.asarray(data))


def test_tensor_copies_and_from_numpy_shares():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    copy, view = fastnn.tensor(values), fastnn.from_numpy(values)
    values[0, 0] = 100
    assert copy.numpy()[0, 0] == 0 and view.numpy()[0, 0] == 100
    view.mul_(2)
    assert values[0, 0] == 200
    assert view.data_ptr() == values.ctypes.data
    assert np.shares_memory(view.numpy(), values)


@pytest.mark.parametrize("data", ["text", [[1, 2], [3]], [1, "a"], None, object(), 1 + 2j])
def test_what_is_no_number_is_refused(data):
    with pytest.raises((TypeError, ValueError)):
        fastnn.tensor(data)


def test_the_class_is_not_called_directly():
    with pytest.raises(TypeError, match=r"fastnn\.tensor"):
        fastnn.Tensor()


def test_as_tensor_shares_where_it_can():
    values = np.ones(3, np.float32)
    assert fastnn.as_tensor(values).data_ptr() == values.ctypes.data
    t = fastnn.ones(3)
    assert fastnn.as_tensor(t) is t
    assert fastnn.as_tensor([1, 2]).tolist() == [1, 2]


# NumPy and DLPack.


def test_numpy_keeps_the_memory_alive():
    values = fastnn.randn(1000).numpy()
    gc.collect()
    other = fastnn.full(1000, 9.0)  # would reuse a freed block
    assert not np.array_equal(values, other.numpy())
    source = np.ones(1000, np.float32)
    owner = weakref.ref(source)
    t = fastnn.from_numpy(source)
    del source
    gc.collect()
    assert owner() is not None and t.sum().item() == 1000
    del t
    gc.collect()
    assert owner() is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_round_trip(dtype):
    t = fastnn.tensor([[0, 1], [2, 3]]).to(dtype)
    back = fastnn.from_numpy(t.numpy())
    assert back.dtype is t.dtype and back.tolist() == t.tolist()
    assert back.data_ptr() == t.data_ptr()


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != "bfloat16"])  # NumPy has none
def test_dlpack_with_numpy(dtype):
    t = fastnn.tensor([[0, 1, 2], [3, 4, 5]]).to(dtype).T
    view = np.from_dlpack(t)
    assert view.__array_interface__["data"][0] == t.data_ptr()
    assert np.array_equal(view, t.numpy())
    back = fastnn.from_dlpack(np.array(view))
    assert back.tolist() == t.tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_dlpack_with_torch(dtype):
    torch = pytest.importorskip("torch")
    theirs = torch.arange(24).reshape(2, 3, 4).to(getattr(torch, dtype)).permute(2, 0, 1)
    ours = fastnn.from_dlpack(theirs)
    assert ours.shape == (4, 2, 3) and ours.dtype.name == dtype
    assert ours.data_ptr() == theirs.data_ptr()
    assert ours.to("float32").tolist() == theirs.float().tolist()
    back = torch.from_dlpack(ours)
    assert back.data_ptr() == theirs.data_ptr() and torch.equal(back, theirs)
    if dtype == "float32":
        theirs[0, 0, 0] = 99
        assert ours.numpy()[0, 0, 0] == 99
    del theirs, back
    gc.collect()
    assert ours.shape == (4, 2, 3)


def test_negative_strides_are_not_exported():
    """PyTorch does not check them, and ends the process."""
    backwards = fastnn.arange(6).flip(0)
    with pytest.raises(BufferError, match=r"negative strides; export \.clone\(\)"):
        np.from_dlpack(backwards)
    assert np.from_dlpack(backwards.clone()).tolist() == backwards.numpy().tolist()


def test_torch_reads_a_channels_last_tensor_in_place():
    torch = pytest.importorskip("torch")
    ours = fastnn.randn(2, 3, 4, 5)
    theirs = torch.from_dlpack(ours)
    assert theirs.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(theirs.numpy(), ours.numpy())


def test_dlpack_copies_if_asked():
    ours = fastnn.ones(3)
    shared, copied = np.from_dlpack(ours), fastnn.from_dlpack(ours.__dlpack__(copy=True))
    turned = fastnn.from_numpy(np.arange(3.0, dtype=np.float32)[::-1])
    ours.fill_(2)
    assert shared.tolist() == [2] * 3 and copied.tolist() == [1] * 3
    assert fastnn.from_dlpack(turned.__dlpack__(copy=True)).tolist() == [2, 1, 0]
    frozen = np.ones(2, np.float32)
    frozen.setflags(write=False)
    assert fastnn.from_dlpack(fastnn.from_numpy(frozen).__dlpack__(copy=True)).tolist() == [1, 1]


def test_dlpack_refuses_what_it_cannot_express():
    with pytest.raises(BufferError, match="detach"):
        fastnn.ones(2, requires_grad=True).__dlpack__()
    with pytest.raises(TypeError, match="from_dlpack"):
        fastnn.from_dlpack(np.ones(2, np.float64))
    capsule = fastnn.ones(2).__dlpack__()
    fastnn.from_dlpack(capsule)
    with pytest.raises(ValueError, match="unused"):
        fastnn.from_dlpack(capsule)
    with pytest.raises(TypeError, match="from_dlpack"):
        fastnn.from_dlpack("text")


def test_numpy_functions_take_tensors():
    t = fastnn.tensor([1.0, 4.0])
    assert np.asarray(t).tolist() == [1, 4]
    assert np.asarray(t, dtype=np.float64).dtype == np.float64
    assert np.sqrt(np.asarray(t)).tolist() == [1, 2]
    assert np.allclose(t, [1, 4])


# Strange NumPy arrays: one clear exception or the right answer.


def odd_arrays():
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    yield "negative strides", base[::-1, ::-1]
    yield "stepped", base[::2, 1::3]
    yield "broadcast", np.broadcast_to(base[0], (3, 6))
    yield "Fortran order", np.asfortranarray(base)
    yield "byte-swapped", base.astype(">f4")
    raw = np.zeros(24 * 4 + 1, np.uint8)
    misaligned = raw[1:].view(np.float32).reshape(4, 6)
    misaligned[:] = base
    yield "misaligned", misaligned
    record = np.zeros(4, dtype=[("a", np.uint8), ("b", np.float32)])
    record["b"] = [1, 2, 3, 4]
    yield "a field of a packed record", record["b"]
    frozen = base.copy()
    frozen.flags.writeable = False
    yield "read-only", frozen
    yield "scalar", np.array(3.0, np.float32)
    yield "empty", np.zeros((0, 3), np.float32)
    yield "a negative step of nothing", np.zeros((3, 0), np.float32)[::-1]
    yield "five dimensions", np.arange(48, dtype=np.float32).reshape(2, 3, 1, 4, 2)[:, ::-1]


@pytest.mark.parametrize(("name", "values"), [pytest.param(n, v, id=n) for n, v in odd_arrays()])
def test_odd_numpy_arrays_give_the_right_answer(name, values):
    t = fastnn.from_numpy(values)
    assert t.shape == values.shape and np.array_equal(t.numpy(), values)
    assert np.array_equal((t + 1).numpy(), values + 1)
    assert np.array_equal(t.clone().numpy(), values)
    assert np.isclose(t.sum().item(), values.sum())
    assert np.array_equal(fastnn.tensor(values).numpy(), values)


def test_read_only_memory_is_never_written():
    values = np.ones(4, np.float32)
    values.flags.writeable = False
    t = fastnn.from_numpy(values)
    for change in (
        lambda: t.fill_(0), lambda: t.add_(1), lambda: t.zero_(), lambda: t.copy_(fastnn.zeros(4))
    ):  # fmt: skip
        with pytest.raises(ValueError, match="read-only"):
            change()
    assert not t.numpy().flags.writeable
    assert values.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("dtype", ["f8", "f2", "i2", "u8", "c8", "U3", "O", "M8[s]"])
def test_from_numpy_names_the_dtypes_it_takes(dtype):
    with pytest.raises(TypeError, match="from_numpy: expected"):
        fastnn.from_numpy(np.zeros(2, dtype))
    with pytest.raises(TypeError, match="from_numpy: expected a numpy.ndarray, got list"):
        fastnn.from_numpy([1.0])


def test_too_many_dimensions_are_refused():
    for make in (
        lambda: fastnn.from_numpy(np.zeros((1,) * 9, np.float32)),
        lambda: fastnn.zeros((1,) * 9),
        lambda: fastnn.ones(2).reshape((1,) * 8 + (2,)),
    ):
        with pytest.raises(ValueError, match="8"):
            make()


@pytest.mark.parametrize("sizes", [(2**62,), (2**40, 2**40), (2**63 - 1,), (2**31, 2**31, 2**31)])
def test_absurd_sizes_are_a_memory_error(sizes):
    for make in (fastnn.zeros, fastnn.ones, fastnn.empty, fastnn.randn, fastnn.rand):
        with pytest.raises(MemoryError):
            make(*sizes)
    with pytest.raises(MemoryError):
        fastnn.full(sizes, 1.0)
    with pytest.raises(MemoryError):
        fastnn.ones(1).expand(*sizes) + 1
    assert fastnn.ones(3).sum().item() == 3  # and the process lives on


@pytest.mark.parametrize("sizes", [("3",), (2.0,), (None,), (True,), ([1, "a"],)])
def test_sizes_that_are_no_integers(sizes):
    with pytest.raises(TypeError):
        fastnn.zeros(*sizes)


# Views.


def test_views_share_memory():
    x = fastnn.arange(24).to("float32").reshape(2, 3, 4)
    for view in (
        x.reshape(6, 4), x.view(-1), x.permute(2, 0, 1), x.transpose(0, 2), x.flatten(),
        x.unsqueeze(1), x.expand(5, 2, 3, 4), x.detach(), x.unsqueeze(0).squeeze(),
    ):  # fmt: skip
        assert view.data_ptr() == x.data_ptr()
    x.reshape(-1).mul_(2)
    assert x.numpy()[1, 2, 3] == 46


@st.composite
def shapes_and_reshapes(draw):
    factors = draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=5))
    target = draw(st.permutations(factors))
    split = draw(st.integers(0, len(target)))
    merged = [int(np.prod(target[:split])), *target[split:]]
    if draw(st.booleans()):
        merged[draw(st.integers(0, len(merged) - 1))] = -1
    return factors, merged, draw(st.permutations(range(len(factors))))


@PROPERTY
@given(shapes_and_reshapes())
def test_reshape_and_permute_as_numpy_does(case):
    shape, target, order = case
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    x = fastnn.tensor(values)
    assert np.array_equal(x.reshape(*target).numpy(), values.reshape(target))
    moved = x.permute(*order)
    assert np.array_equal(moved.numpy(), values.transpose(order))
    assert np.array_equal(moved.reshape(target).numpy(), values.transpose(order).reshape(target))
    assert np.array_equal(moved.flatten().numpy(), values.transpose(order).ravel())
    assert np.array_equal(moved.contiguous().numpy(), values.transpose(order))
    assert moved.contiguous().is_contiguous()


@PROPERTY
@given(
    rows=st.integers(1, 70), columns=st.integers(1, 70), batch=st.integers(1, 3),
    source=st.sampled_from(["float32", "bfloat16"]), target=st.sampled_from(["float32", "bfloat16"]),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_turned_copies_keep_every_bit(rows, columns, batch, source, target, seed):
    """NaNs with payloads, infinities and subnormals too, unless they are rounded."""
    kinds = {"float32": (np.uint32, np.float32), "bfloat16": (np.uint16, ml_dtypes.bfloat16)}
    word, number = kinds[source]
    bits = np.random.default_rng(seed).integers(0, 2 ** (8 * word().nbytes), (batch, rows, columns))
    values = bits.astype(word).view(number)
    if source != target:
        values = (
            np.linspace(-3, 3, values.size, dtype=np.float32).reshape(bits.shape).astype(number)
        )
    word, number = kinds[target]
    want = values.transpose(0, 2, 1).astype(number)
    for isa in fastnn.backends.cpu.available_isas():
        with fastnn.backends.cpu.isa(isa):
            got = fastnn.empty(batch, columns, rows, dtype=target)
            got.copy_(fastnn.tensor(values).transpose(1, 2))
            assert np.array_equal(got.numpy().view(word), np.ascontiguousarray(want).view(word)), (
                isa
            )


def test_shapes_of_views():
    x = fastnn.zeros(2, 1, 3, 1)
    assert x.squeeze().shape == (2, 3)
    assert x.squeeze(1).shape == (2, 3, 1) and x.squeeze(0).shape == (2, 1, 3, 1)
    assert x.squeeze((1, -1)).shape == (2, 3)
    assert x.unsqueeze(0).shape == (1, 2, 1, 3, 1) and x.unsqueeze(-1).shape == (2, 1, 3, 1, 1)
    assert x.flatten(1).shape == (2, 3) and x.flatten(0, 1).shape == (2, 3, 1)
    assert x.expand(-1, 5, -1, 4).shape == (2, 5, 3, 4)
    assert x.expand_as(fastnn.zeros(7, 2, 6, 3, 1)).shape == (7, 2, 6, 3, 1)
    assert x.transpose(-1, 0).shape == (1, 1, 3, 2)
    assert fastnn.zeros(2, 3).T.shape == (3, 2) and fastnn.zeros(2, 3).t().shape == (3, 2)
    assert fastnn.zeros(()).flatten().shape == (1,)
    assert fastnn.zeros(0, 3).reshape(3, 0).shape == (3, 0)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x: x.reshape(5), r"reshape: .*\(5,\).*\(2, 3\)"),
        (lambda x: x.reshape(-1, 4), "reshape"),
        (lambda x: x.reshape(-1, -1), "reshape"),
        (lambda x: x.reshape(-2, -3), "reshape"),
        (lambda x: x.permute(0), "permute"),
        (lambda x: x.permute(0, 0), "permute"),
        (lambda x: x.transpose(0, 2), "transpose: dim expects -2 to 1, got 2"),
        (lambda x: x.squeeze(2), "squeeze: dim"),
        (lambda x: x.unsqueeze(3), "unsqueeze: dim"),
        (lambda x: x.flatten(1, 0), "flatten"),
        (lambda x: x.expand(3), "expand"),
        (lambda x: x.expand(2, 4), r"expand: .*\(2, 3\).*\(2, 4\)"),
        (lambda x: x.expand(-1, 2, 3), "expand"),
    ],
)
def test_impossible_views(call, match):
    with pytest.raises(ValueError, match=match):
        call(fastnn.zeros(2, 3))


# Values and conversions.


def test_python_values():
    assert fastnn.tensor([[2.5]]).item() == 2.5 and isinstance(fastnn.tensor(3).item(), int)
    assert fastnn.tensor(True).item() is True
    assert float(fastnn.tensor(2.5)) == 2.5 and int(fastnn.tensor([7])) == 7
    assert bool(fastnn.tensor(0.0)) is False and bool(fastnn.tensor([5]))
    assert [10, 20, 30][fastnn.tensor(1)] == 20
    assert len(fastnn.zeros(3, 2)) == 3
    assert fastnn.tensor(1.5, dtype="bfloat16").item() == 1.5
    with pytest.raises(ValueError, match=r"item: .*\(2,\)"):
        fastnn.zeros(2).item()
    with pytest.raises(ValueError, match=r"\.any\(\) or \.all\(\)"):
        bool(fastnn.zeros(2))
    with pytest.raises(TypeError, match="integer"):
        range(fastnn.tensor(2.0))
    with pytest.raises(TypeError, match="scalar"):
        len(fastnn.tensor(2.0))


def test_conversions():
    x = fastnn.tensor([-1.7, 0.0, 2.5])
    assert x.long().tolist() == [-1, 0, 2] and x.int().dtype is fastnn.int32
    assert x.bool().tolist() == [True, False, True]
    assert x.bfloat16().float().tolist() == [np.float32(-1.703125), 0, 2.5]
    assert x.to(fastnn.float32) is x and x.to("cpu") is x
    assert x.to(np.int32).dtype is fastnn.int32 and x.to(fastnn.arange(1)).dtype is fastnn.int64
    with pytest.raises(TypeError, match="dtype"):
        x.to("float128")
    with pytest.raises(RuntimeError, match="cuda"):
        x.to("cuda:99")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_devices_by_an_object_of_their_name(device):
    class Named:
        def __str__(self):
            return f"{device}:0"

    x = fastnn.ones(2)
    for moved in (x.to(Named()), x.to(Named(), "int64"), fastnn.zeros(2, device=Named())):
        assert moved.device.split(":")[0] == device
    assert x.to(None) is x
    for wrong in ("gpu", 1.5, object()):
        with pytest.raises(TypeError, match="to: expected a dtype, a tensor, 'cpu', 'cuda' or"):
            x.to(wrong)


def test_facts():
    x = fastnn.zeros(2, 3, 4, 5)
    assert x.size() == (2, 3, 4, 5) and x.size(1) == 3 and x.size(-1) == 5
    assert x.ndim == x.dim() == 4 and x.numel() == 120 and x.element_size() == 4
    assert x.stride() == (60, 1, 15, 3), "rank 4 lies in memory as NHWC"
    assert x.device == "cpu" and x.is_leaf and not x.requires_grad


def test_a_scalar_is_formatted_as_its_number():
    for device in ("cpu", "cuda") if fastnn.cuda.is_available() else ("cpu",):
        loss, count = fastnn.tensor(0.125, device=device), fastnn.tensor(7, device=device)
        assert f"{loss:.2f}|{count:3d}" == "0.12|  7"
    vector = fastnn.tensor([1.0])
    assert f"{fastnn.tensor(1.5)} {vector}" == f"1.5 {vector!r}"
    with pytest.raises(TypeError, match="unsupported format string"):
        f"{vector:.2f}"


def test_repr():
    assert repr(fastnn.tensor([1.0, 2.5])) == "tensor([1. , 2.5])"
    assert repr(fastnn.tensor([1, 2])) == "tensor([1, 2], dtype=fastnn.int64)"
    assert "requires_grad=True" in repr(fastnn.zeros(1, requires_grad=True))
    assert "dtype=fastnn.bfloat16" in repr(fastnn.zeros(1, dtype="bfloat16"))
    y = fastnn.zeros(1, requires_grad=True) * 2
    assert "grad_fn=<mul>" in repr(y)
    assert "..." in repr(fastnn.zeros(100, 100)) and len(repr(fastnn.zeros(100, 100))) < 2000
    assert repr(fastnn.tensor(3.0)) == "tensor(3.)"


def test_copy_fill_and_zero():
    x = fastnn.zeros(2, 3)
    x.copy_(fastnn.tensor([1, 2, 3]))
    assert x.tolist() == [[1, 2, 3], [1, 2, 3]]
    x.T.fill_(4)
    assert x.tolist() == [[4, 4, 4], [4, 4, 4]]
    assert x.zero_().sum().item() == 0
    with pytest.raises(ValueError, match="expand"):
        x.copy_(fastnn.zeros(4))
    whole = fastnn.zeros(2, dtype="int64")
    assert whole.fill_(2**62 + 1).tolist() == [2**62 + 1] * 2, "no detour through a double"


@pytest.mark.parametrize("target", ["float32", "bfloat16", "int64", "uint8"])
@pytest.mark.parametrize("source", ["float32", "int64", "bool"])
def test_copies_of_expanded_tensors_repeat_their_elements(source, target):
    rng = np.random.default_rng(7)
    for shape, to in (
        ((1, 3, 1, 1), (4, 3, 40, 50)), ((5, 3, 1, 1), (5, 3, 9, 11)), ((2, 1, 3, 1), (2, 4, 3, 5)),
        ((1,), (3, 7)), ((7,), (2000, 7)), ((3, 1), (3, 70)), ((2, 1, 700), (2, 9, 700)),
        ((2, 3, 1, 1), (2, 3, 0, 4)), ((4, 1, 5, 6), (4, 2, 5, 6)), ((1, 1, 1, 40), (3, 2, 5, 40)),
    ):  # fmt: skip
        values = rng.integers(0, 2 if source == "bool" else 100, shape).astype(source)
        copy = fastnn.tensor(values).expand(*to).to(target).contiguous()
        np.testing.assert_array_equal(copy.float().numpy(), np.broadcast_to(values, to))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_values_are_not_written_to_elements_that_overlap(device):
    x = fastnn.zeros(2, 1, 3, device=device)
    wide = x.expand(2, 4, 3)
    windows = x.reshape(6)._array.as_strided((3, 3), (1, 1), 0)
    values = fastnn.arange(24).reshape(2, 4, 3).float()

    def assign(key, value):
        wide[key] = value

    for change in (
        lambda: wide.copy_(values), lambda: wide.T.copy_(values.T), wide.normal_, wide.uniform_,
        lambda: assign(slice(None), values), lambda: assign((0, [1]), 5.0),
        fastnn.Tensor._wrap(windows).normal_,
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"elements overlap in memory .* change a \.clone\(\)"):
            change()
    assert wide.fill_(2.0).tolist() == [[[2] * 3] * 4] * 2
    wide[:, 2] = values[:, 0]
    wide[..., 0] = 7
    assert x.tolist() == [[[7, 1, 2]], [[7, 13, 14]]]
    x.T.copy_(x.T + 1), x.flip(0).copy_(x), x.expand(2, 4, 3)[:0].copy_(values[:0])


def test_tensors_are_hashable_by_identity():
    a, b = fastnn.ones(2), fastnn.ones(2)
    assert len({a, b, a}) == 2 and {a: 1}[a] == 1


def test_pickle_and_deepcopy():
    x = fastnn.tensor([[1.0, 2.0]], requires_grad=True)
    for y in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x)):
        assert y.tolist() == x.tolist() and y.requires_grad and y.data_ptr() != x.data_ptr()
    half = pickle.loads(pickle.dumps(fastnn.ones(3, dtype="bfloat16")))
    assert half.dtype is fastnn.bfloat16 and half.tolist() == [1, 1, 1]


def test_deepcopy_takes_the_gradient_along_where_pytorch_does():
    for kind, kept in ((fastnn.tensor, True), (fastnn.nn.Parameter, False)):
        x = kind([[1.0, 2.0]], requires_grad=True)
        x.grad = fastnn.ones(1, 2)
        y, grad = copy.deepcopy([x, x.grad])
        assert type(y) is type(x) and y.requires_grad and y.tolist() == x.tolist()
        assert y.grad is (grad if kept else None) and grad is not x.grad
        assert pickle.loads(pickle.dumps(x)).grad is None


def test_iteration_gives_rows():
    rows = list(fastnn.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert [r.tolist() for r in rows] == [[1, 2], [3, 4]]
    with pytest.raises(TypeError, match="scalar"):
        iter(fastnn.tensor(1.0))


def test_no_warning_is_given_by_a_plain_round_trip():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastnn.from_numpy(fastnn.tensor([1, 2], dtype="bool").numpy()).float().numpy()


@pytest.mark.slow
def test_more_than_two_to_the_31_elements():
    count = 2**31 + 5
    x = fastnn.zeros(count, dtype="uint8")
    x += 1
    x.numpy()[-2] = 9
    assert x.sum().item() == count + 8
    assert x.argmax().item() == count - 2 and x.max().item() == 9
    assert x.reshape(-1, 1).argmax(0).item() == count - 2


def test_dlpack_memory_is_aligned():
    values = np.frombuffer(bytearray(41), np.uint8)[1:].view(np.float32)
    with pytest.raises(
        ValueError, match="from_dlpack: expected memory aligned to 4 bytes, got addr"
    ):
        fastnn.from_dlpack(values)
