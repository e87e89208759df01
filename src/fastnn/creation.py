"""Tensors from sizes: empty, full, zeros, ones, their ``_like`` forms, arange."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import fastnn._core as _core
from fastnn import device as _device
from fastnn.dtypes import as_dtype, float32
from fastnn.tensor import Tensor, tensor


def sizes_of(name: str, sizes: Sequence[Any]) -> tuple[int, ...]:
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = sizes[0]
    for size in sizes:
        if isinstance(size, bool) or not hasattr(size, "__index__"):
            raise TypeError(f"{name}: expected integer sizes, got {tuple(sizes)}")
        if not -(2**63) <= int(size) < 2**63:
            raise MemoryError(f"{name}: cannot allocate a tensor of shape {tuple(sizes)}")
        if int(size) < 0:
            raise ValueError(f"{name}: expected sizes >= 0, got shape {tuple(sizes)}")
    return tuple(int(size) for size in sizes)


def empty(
    *sizes: Any, dtype: Any = float32, requires_grad: bool = False, device: Any = None
) -> Tensor:
    """A tensor with unset values."""
    array = _core.empty(sizes_of("empty", sizes), as_dtype(dtype).name, _device.index_of(device))
    return Tensor._wrap(array).requires_grad_(requires_grad)


def full(
    size: Any,
    fill_value: float,
    dtype: Any = float32,
    requires_grad: bool = False,
    device: Any = None,
) -> Tensor:
    """A tensor with every value ``fill_value``; ``size`` is an int or a tuple."""
    shape = sizes_of("full", (size,))
    if isinstance(fill_value, int):  # whole numbers stay exact: no detour through a double
        unset = empty(shape, dtype=dtype, device=device)
        return unset.fill_(fill_value).requires_grad_(requires_grad)
    array = _core.full(shape, float(fill_value), as_dtype(dtype).name, _device.index_of(device))
    return Tensor._wrap(array).requires_grad_(requires_grad)


def zeros(
    *sizes: Any, dtype: Any = float32, requires_grad: bool = False, device: Any = None
) -> Tensor:
    """A tensor of zeros: ``zeros(2, 3)`` or ``zeros((2, 3))``."""
    shape = sizes_of("zeros", sizes)
    array = _core.full(shape, 0.0, as_dtype(dtype).name, _device.index_of(device))
    return Tensor._wrap(array).requires_grad_(requires_grad)


def ones(
    *sizes: Any, dtype: Any = float32, requires_grad: bool = False, device: Any = None
) -> Tensor:
    """A tensor of ones: ``ones(2, 3)`` or ``ones((2, 3))``."""
    shape = sizes_of("ones", sizes)
    array = _core.full(shape, 1.0, as_dtype(dtype).name, _device.index_of(device))
    return Tensor._wrap(array).requires_grad_(requires_grad)


def like(other: Tensor, dtype: Any, device: Any) -> dict[str, Any]:
    """The dtype and device of ``other``, unless others are given."""
    return {
        "dtype": other.dtype if dtype is None else dtype,
        "device": other.device if device is None else device,
    }


def zeros_like(other: Tensor, dtype: Any = None, device: Any = None) -> Tensor:
    """Zeros of ``other``'s shape, dtype and device."""
    return zeros(other.shape, **like(other, dtype, device))


def ones_like(other: Tensor, dtype: Any = None, device: Any = None) -> Tensor:
    """Ones of ``other``'s shape, dtype and device."""
    return ones(other.shape, **like(other, dtype, device))


def empty_like(other: Tensor, dtype: Any = None, device: Any = None) -> Tensor:
    """Unset values of ``other``'s shape, dtype and device."""
    return empty(other.shape, **like(other, dtype, device))


def arange(*bounds: float, dtype: Any = None, device: Any = None) -> Tensor:
    """Evenly spaced values, as :func:`numpy.arange`; int64 for integer bounds, else float32."""
    return tensor(np.arange(*bounds), dtype, device=device)
