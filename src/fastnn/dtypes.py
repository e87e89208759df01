"""Element types: ``fastnn.float32``, ``bfloat16``, ``int64``, ``int32``, ``uint8`` and ``bool``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

_BY_NAME: dict[str, DType] = {}


class DType:
    """An element type. There is one instance of each, so ``is`` and ``==`` both compare them."""

    __slots__ = ("name", "itemsize", "is_floating_point")

    def __init__(self, name: str, itemsize: int, is_floating_point: bool = False) -> None:
        self.name = name
        self.itemsize = itemsize
        self.is_floating_point = is_floating_point
        _BY_NAME[name] = self

    def __repr__(self) -> str:
        return f"fastnn.{self.name}"

    def __reduce__(self) -> Any:
        return as_dtype, (self.name,)

    def numpy(self) -> np.dtype:
        """The NumPy dtype; bfloat16 comes from ml_dtypes."""
        if self.name == "bfloat16":
            import ml_dtypes

            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(self.name)


# In the order of promotion, the one that wins first.
float32 = DType("float32", 4, True)
bfloat16 = DType("bfloat16", 2, True)
int64 = DType("int64", 8)
int32 = DType("int32", 4)
uint8 = DType("uint8", 1)
bool_ = DType("bool", 1)


def promoted(dtypes: Iterable[DType]) -> DType:
    """The dtype of arithmetic with tensors of these."""
    order = list(_BY_NAME.values())
    return min(dtypes, key=order.index)


def as_dtype(dtype: Any) -> DType:
    """The fastnn dtype of a name, a NumPy dtype, or Python's float, int and bool.

    Raises:
        TypeError: it is none of ours.
    """
    if isinstance(dtype, DType):
        return dtype
    if dtype is float:
        return float32
    if dtype is int:
        return int64
    try:
        return _BY_NAME[dtype if isinstance(dtype, str) else np.dtype(dtype).name]
    except (KeyError, TypeError):  # NumPy does not know it either
        names = ", ".join(_BY_NAME)
        raise TypeError(f"dtype: expected one of {names}, got {dtype!r}") from None
