"""What this build and this machine can run on, and switches of the CPU backend."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import fastnn._core as _core
from fastnn.device import cuda_module, gpu_index_of

_Setting = TypeVar("_Setting")


@contextmanager
def _within(
    get: Callable[[], _Setting], put: Callable[[_Setting], None], value: _Setting
) -> Iterator[None]:
    """A switch set to ``value`` within a block."""
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


class cpu:
    """Switches of the CPU kernels."""

    @staticmethod
    def compiled_isas() -> list[str]:
        """ISA levels in this build, lowest first."""
        return _core.compiled_isas()

    @staticmethod
    def available_isas() -> list[str]:
        """ISA levels of this build that this machine can run, lowest first."""
        return _core.available_isas()

    @staticmethod
    def active_isa() -> str:
        """The level in use: the highest available, or what ``FASTNN_ISA`` asked for."""
        return _core.active_isa()

    @staticmethod
    def set_isa(name: str) -> None:
        """Uses another level. Not to be called while kernels run in other threads.

        Raises:
            ValueError: this machine does not have it.
        """
        _core.set_isa(name)

    @staticmethod
    def isa(name: str) -> AbstractContextManager[None]:
        """Uses a level within a block."""
        return _within(_core.active_isa, _core.set_isa, name)

    @staticmethod
    def set_winograd(mode: str) -> None:
        """When 3x3 convolutions of stride 1 use Winograd's algorithm.

        Args:
            mode: ``"auto"``, where it is expected to be faster (the default, or what
                ``FASTNN_WINOGRAD`` says); ``"off"``; or ``"always"`` from 16 channels on.
                It computes with a quarter of the multiplications and an error about 1.6 times
                that of the direct sum (docs/winograd.md).

        Raises:
            ValueError: another mode.
        """
        _core.set_winograd(mode)

    @staticmethod
    def winograd(mode: str) -> AbstractContextManager[None]:
        """:meth:`set_winograd` within a block."""
        return _within(_core.winograd, _core.set_winograd, mode)


def get_num_threads() -> int:
    """Threads that kernels may use: all cores, or ``FASTNN_NUM_THREADS`` or ``OMP_NUM_THREADS``."""
    return _core.get_num_threads()


def set_num_threads(count: int) -> None:
    """Sets the number of threads that kernels may use. Results do not depend on it.

    Raises:
        TypeError: not an int.
        ValueError: not from 1 to 4096.
    """
    try:
        whole = operator.index(count)
    except TypeError:
        raise TypeError(f"set_num_threads: expected an int, got {count!r}") from None
    _core.set_num_threads(whole)


class cuda:
    """Switches of the CUDA kernels."""

    @staticmethod
    def allow_tf32() -> bool:
        """Whether float32 convolutions and matrix products may use TF32."""
        return cuda_module().allow_tf32()

    @staticmethod
    def set_allow_tf32(allowed: bool) -> None:
        """Lets float32 convolutions and matrix products use the tensor cores, from sm_80 on.

        They round their operands to TF32, which has 10 bits of fraction; sums stay float32. Off at
        first: float32 means float32.
        """
        cuda_module().set_allow_tf32(bool(allowed))

    @staticmethod
    def tf32(allowed: bool) -> AbstractContextManager[None]:
        """:meth:`set_allow_tf32` within a block."""
        return _within(cuda.allow_tf32, cuda.set_allow_tf32, allowed)

    @staticmethod
    def use_tensor_cores() -> bool:
        """Whether products may use the tensor cores where they are there and pass their self-check."""
        return cuda_module().use_tensor_cores()

    @staticmethod
    def set_use_tensor_cores(used: bool) -> None:
        """Lets products of bfloat16 and TF32 use the tensor cores, from sm_80 on; on at first, unless
        ``FASTNN_TENSOR_CORES=0``.

        Without them the same sums are taken by the kernels for older GPUs, slowly: a way to tell
        whether a doubtful result is the tensor cores'. :meth:`tensor_cores` says what a GPU does.
        """
        cuda_module().set_use_tensor_cores(bool(used))

    @staticmethod
    def with_tensor_cores(used: bool) -> AbstractContextManager[None]:
        """:meth:`set_use_tensor_cores` within a block."""
        return _within(cuda.use_tensor_cores, cuda.set_use_tensor_cores, used)

    @staticmethod
    def tensor_cores(device: int | str | None = None) -> str:
        """What products of bfloat16 use on a device, and why: ``"used: passed their self-check"``.

        Each GPU runs the tensor cores' instructions on fixed operands when it is first used, and the
        results are compared with plain loops; where one differs, the tensor cores stay off.
        """
        index, module = gpu_index_of(device), cuda_module()
        if wrong := module.wrong_primitives(index):
            return f"not used: wrong in their self-check: {wrong}"
        if module.tensor_cores(index):
            return "used: passed their self-check"
        if not module.use_tensor_cores():
            return "not used: switched off"
        return "not used: code for them needs compute capability 8.0"

    @staticmethod
    def use_wgmma() -> bool:
        """Whether convolutions in bfloat16 and TF32 use the kernels for sm_90a."""
        return cuda_module().use_wgmma()

    @staticmethod
    def set_use_wgmma(used: bool) -> None:
        """Lets convolutions use warpgroup products and the tensor memory accelerator.

        In bfloat16, and in float32 where :meth:`set_allow_tf32` lets its operands be rounded (but for
        the gradient of the weight). Without effect but on GPUs of compute capability 9.0 whose tensor
        cores are used (:meth:`tensor_cores`). Off at first, unless ``FASTNN_WGMMA=1``: these kernels are
        checked by emulation and have not run on a GPU.
        """
        cuda_module().set_use_wgmma(bool(used))

    @staticmethod
    def wgmma(used: bool) -> AbstractContextManager[None]:
        """:meth:`set_use_wgmma` within a block."""
        return _within(cuda.use_wgmma, cuda.set_use_wgmma, used)
