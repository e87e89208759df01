"""The process-wide generator: Philox4x32-10, keyed by a seed and the count of random calls.

The same seed gives the same numbers on every device and ISA level and for any number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import fastnn._core as _core
from fastnn.creation import sizes_of
from fastnn.device import index_of
from fastnn.dtypes import as_dtype, float32
from fastnn.tensor import Tensor


def manual_seed(seed: int) -> None:
    """Restarts the generator from ``seed`` (taken modulo 2**64)."""
    _core.manual_seed(int(seed) % 2**64)


def get_rng_state() -> tuple[int, int]:
    """Seed and number of random calls so far."""
    return _core.random_state()


def set_rng_state(state: tuple[int, int]) -> None:
    """Continues from a state of :func:`get_rng_state`.

    Raises:
        TypeError: not a pair of integers.
        ValueError: one of them is not from 0 to 2**64 - 1.
    """
    pair = isinstance(state, (tuple, list)) and len(state) == 2
    if not pair or not all(isinstance(word, (int, np.integer)) for word in state):
        raise TypeError(
            f"set_rng_state: expected two integers, as get_rng_state() gives, got {state!r}"
        )
    if not all(0 <= word < 2**64 for word in state):
        raise ValueError(f"set_rng_state: expected integers from 0 to 2**64 - 1, got {state}")
    _core.set_random_state(*state)


def _check_floating(name: str, dtype: Any) -> None:
    """Refuses to truncate random numbers."""
    if not as_dtype(dtype).is_floating_point:
        raise TypeError(
            f"{name}: expected dtype float32 or bfloat16, got {as_dtype(dtype).name}; "
            "convert the result with .to(dtype)"
        )


def _made(array: Any, dtype: Any, device: Any, requires_grad: bool) -> Tensor:
    array = _core.to_device(_core.astype(array, as_dtype(dtype).name), index_of(device))
    return Tensor._wrap(array).requires_grad_(requires_grad)


def _overwritten(tensor: Tensor, values: Any) -> Tensor:
    _core.copy_into(tensor._array, _core.to_device(values, tensor._array.device))
    return tensor


def rand(
    *sizes: Any, dtype: Any = float32, requires_grad: bool = False, device: Any = None
) -> Tensor:
    """Uniform values in [0, 1)."""
    _check_floating("rand", dtype)
    return _made(
        _core.random_uniform(sizes_of("rand", sizes), 0.0, 1.0), dtype, device, requires_grad
    )


def randn(
    *sizes: Any, dtype: Any = float32, requires_grad: bool = False, device: Any = None
) -> Tensor:
    """Standard normal values."""
    _check_floating("randn", dtype)
    return _made(
        _core.random_normal(sizes_of("randn", sizes), 0.0, 1.0), dtype, device, requires_grad
    )


def uniform_(tensor: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Overwrites the values with uniform ones in [low, high)."""
    _check_floating("uniform_", tensor.dtype)
    tensor._check_in_place("uniform_")
    return _overwritten(tensor, _core.random_uniform(tensor.shape, float(low), float(high)))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Overwrites the values with normal ones of that mean and standard deviation."""
    _check_floating("normal_", tensor.dtype)
    tensor._check_in_place("normal_")
    return _overwritten(tensor, _core.random_normal(tensor.shape, float(mean), float(std)))


def randperm(n: int) -> Tensor:
    """A random permutation of 0 .. n-1, int64."""
    return Tensor._wrap(_core.random_permutation(int(n)))


TENSOR_METHODS = {"uniform_": uniform_, "normal_": normal_}
