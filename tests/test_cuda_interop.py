"""Tensors of a GPU shared with PyTorch and CuPy, in the order of both sides' work. Needs a real GPU: an
emulated one has memory that they do not know."""

from __future__ import annotations

import gc
from types import ModuleType

import numpy as np
import pytest

import fastnn

pytestmark = pytest.mark.gpu
DTYPES = ("float32", "bfloat16", "int64", "int32", "uint8", "bool")


def needs_a_gpu(peer: str) -> ModuleType:
    """The library, if it and we have the same GPU."""
    module = pytest.importorskip(peer)
    if fastnn.device.cuda_is_emulated():
        pytest.skip("no GPU")
    if not module.cuda.is_available():
        pytest.skip(f"{peer} has no GPU")
    return module


@pytest.fixture(scope="module")
def torch() -> ModuleType:
    return needs_a_gpu("torch")


@pytest.fixture(scope="module")
def cupy() -> ModuleType:
    return needs_a_gpu("cupy")


def values(*shape: int) -> fastnn.Tensor:
    return fastnn.tensor((np.arange(np.prod(shape)) % 97).reshape(shape), device="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
def test_pytorch_takes_our_memory(torch, dtype):
    for ours in (values(2, 3, 4, 5).to(dtype), values(4, 6).to(dtype).T, values(6).to(dtype)[1:4]):
        theirs = torch.from_dlpack(ours)
        assert theirs.is_cuda and str(theirs.dtype) == f"torch.{dtype}"
        assert theirs.data_ptr() == ours.data_ptr() and theirs.stride() == ours.stride()
        expected = ours.cpu().float().numpy()
        assert np.array_equal(theirs.cpu().float().numpy(), expected)
        theirs.zero_()
        torch.cuda.synchronize()
        assert (ours.cpu().float().numpy() == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_we_take_pytorchs_memory(torch, dtype):
    wide = torch.arange(120, device="cuda").reshape(2, 3, 4, 5).to(getattr(torch, dtype))
    for theirs in (wide, wide.contiguous(memory_format=torch.channels_last), wide[0, 0].T):
        for ours in (fastnn.from_dlpack(theirs), fastnn.as_tensor(theirs)):
            assert ours.device == "cuda:0" and ours.dtype.name == dtype
            assert ours.data_ptr() == theirs.data_ptr() and ours.stride() == theirs.stride()
            assert np.array_equal(ours.cpu().float().numpy(), theirs.cpu().float().numpy())
    ours.zero_()
    fastnn.cuda.synchronize()
    assert not wide[0, 0].any().item() and wide[1].any().item()


def test_each_side_waits_for_the_others_stream(torch):
    """Work of milliseconds is queued before the exchange: who does not wait, reads what was there."""
    n = 4096
    theirs = torch.zeros(n, n, device="cuda")
    busy = torch.full((n, n), 1 / n, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(8):
            busy = busy @ busy  # all 1 / n, again
        theirs.copy_(busy * n)
        ours = fastnn.from_dlpack(theirs)
    assert ours.mean().item() == pytest.approx(1, rel=1e-2)
    made, busy_ours = fastnn.zeros(n, n, device="cuda"), fastnn.full((n, n), 1 / n, device="cuda")
    fastnn.cuda.synchronize()
    with fastnn.cuda.stream(fastnn.cuda.Stream()):
        for _ in range(8):
            busy_ours = busy_ours @ busy_ours
        made.copy_(busy_ours * n)
        result = torch.from_dlpack(made)  # on their default stream
    assert result.mean().item() == pytest.approx(1, rel=1e-2)


def test_memory_lives_as_long_as_either_side_uses_it(torch):
    theirs = torch.from_dlpack(values(1000, 1000))
    ours = fastnn.from_dlpack(torch.arange(1000, device="cuda"))
    gc.collect()
    torch.cuda.empty_cache()
    for _ in range(4):
        fastnn.full((1000, 1000), -1.0, device="cuda")
        torch.full((1000,), -1, device="cuda")
    assert np.array_equal(theirs.cpu().numpy().ravel(), np.arange(10**6) % 97)
    assert np.array_equal(ours.cpu().numpy(), np.arange(1000))


def test_pytorchs_as_tensor_has_to_be_waited_for(torch):
    """It reads the array interface, but for the stream: after a wait it has the same memory."""
    ours = values(5, 7).float()
    fastnn.cuda.synchronize()
    theirs = torch.as_tensor(ours, device="cuda")
    assert theirs.data_ptr() == ours.data_ptr()
    assert np.array_equal(theirs.cpu().numpy(), ours.cpu().numpy())


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8", "bool"])
def test_cupy_shares_memory_both_ways(cupy, dtype):
    ours = values(3, 4, 5).to(dtype).permute(2, 0, 1)
    for theirs in (cupy.from_dlpack(ours), cupy.asarray(ours)):
        assert theirs.data.ptr == ours.data_ptr() and theirs.shape == ours.shape
        assert np.array_equal(cupy.asnumpy(theirs), ours.cpu().numpy())
    with cupy.cuda.Stream(non_blocking=True):
        theirs = cupy.arange(10**6).astype(dtype)
        back = [fastnn.from_dlpack(theirs), fastnn.as_tensor(theirs)]
    for one in back:
        assert one.data_ptr() == theirs.data.ptr and one.dtype.name == dtype
        assert np.array_equal(one.cpu().numpy(), np.arange(10**6).astype(dtype))
