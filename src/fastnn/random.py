"""The process-wide generator: Philox4x32-10, keyed by a seed and the count of random calls.

The same seed gives the same numbers on every device and ISA level and for any number of threads. (A GPU's
logarithm and sine may differ in the last place of a double, which shows in one normal value of some hundred
millions.) Tensors on a GPU are filled there, without a wait, and in a recorded graph anew by every replay.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import fastnn._core as _core
from fastnn.creation import like, sizes_of
from fastnn.device import index_of
from fastnn.dtypes import as_dtype, float32, int64
from fastnn.tensor import Tensor

_LIMITS = {"bool": (0, 1), "uint8": (0, 2**8 - 1), "int32": (-(2**31), 2**31 - 1)}


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


def _made(
    name: str, shape: Any, a: Any, b: Any, dtype: Any, device: Any, requires_grad: bool = False
) -> Tensor:
    """What the kernel ``name`` draws between, or about, ``a`` and ``b``, in ``dtype``."""
    drawn = getattr(_core, name)(shape, a, b, index_of(device))
    return Tensor._wrap(_core.astype(drawn, as_dtype(dtype).name)).requires_grad_(requires_grad)


def _overwritten(tensor: Tensor, values: Any) -> Tensor:
    _core.copy_into(tensor._array, values)
    return tensor


def rand(
    *sizes: Any, dtype: Any = float32, requires_grad: bool = False, device: Any = None
) -> Tensor:
    """Uniform values in [0, 1)."""
    _check_floating("rand", dtype)
    shape = sizes_of("rand", sizes)
    return _made("random_uniform", shape, 0.0, 1.0, dtype, device, requires_grad)


def randn(
    *sizes: Any, dtype: Any = float32, requires_grad: bool = False, device: Any = None
) -> Tensor:
    """Standard normal values."""
    _check_floating("randn", dtype)
    shape = sizes_of("randn", sizes)
    return _made("random_normal", shape, 0.0, 1.0, dtype, device, requires_grad)


def rand_like(other: Tensor, dtype: Any = None, device: Any = None) -> Tensor:
    """Uniform values in [0, 1), of ``other``'s shape, dtype and device."""
    return rand(other.shape, **like(other, dtype, device))


def randn_like(other: Tensor, dtype: Any = None, device: Any = None) -> Tensor:
    """Standard normal values, of ``other``'s shape, dtype and device."""
    return randn(other.shape, **like(other, dtype, device))


def randint(
    low: Any = 0, high: Any = None, size: Any = None, *, dtype: Any = int64, device: Any = None
) -> Tensor:
    """Integers from ``low`` to ``high - 1``, each as likely: ``randint(high, size)`` or
    ``randint(low, high, size)``.

    Raises:
        TypeError: the bounds are no integers, or the size is no tuple or list of them.
        ValueError: ``low`` is not below ``high``, or ``dtype`` does not hold all values between.
    """
    if size is None:
        low, high, size = 0, low, high
    whole = [isinstance(b, (int, np.integer)) and not isinstance(b, bool) for b in (low, high)]
    if not (all(whole) and isinstance(size, (tuple, list))):
        raise TypeError(
            "randint: expected (high, size) or (low, high, size), integers and a tuple, got low="
            f"{low!r}, high={high!r}, size={size!r}"
        )
    kind = as_dtype(dtype)
    least, most = _LIMITS.get(kind.name, (-(2**63), 2**63 - 2))
    if not least <= low < high <= most + 1:
        raise ValueError(
            f"randint: expected low < high, and {least} to {most} in {kind.name}, got low={low} and "
            f"high={high}"
        )
    return _made("random_integers", sizes_of("randint", size), int(low), int(high), kind, device)


def uniform_(tensor: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Overwrites the values with uniform ones in [low, high)."""
    _check_floating("uniform_", tensor.dtype)
    tensor._check_in_place("uniform_")
    return _overwritten(
        tensor, _core.random_uniform(tensor.shape, float(low), float(high), tensor._array.device)
    )


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Overwrites the values with normal ones of that mean and standard deviation."""
    _check_floating("normal_", tensor.dtype)
    tensor._check_in_place("normal_")
    return _overwritten(
        tensor, _core.random_normal(tensor.shape, float(mean), float(std), tensor._array.device)
    )


def randperm(n: int) -> Tensor:
    """A random permutation of 0 .. n-1, int64."""
    return Tensor._wrap(_core.random_permutation(int(n)))


TENSOR_METHODS = {"uniform_": uniform_, "normal_": normal_}
