"""How a tensor's elements lie in memory."""

from __future__ import annotations

from typing import Any


def overlaps_itself(array: Any) -> bool:
    """Whether two elements of an array may be one in memory, as of an expanded one."""
    if array.is_canonical() or array.is_row_major() or not array.count:
        return False
    extent = 0  # from the first element to the last, along the steps so far
    pairs = zip(array.strides, array.shape, strict=True)
    for step, size in sorted((abs(step), size) for step, size in pairs if size > 1):
        if step <= extent:
            return True
        extent += step * (size - 1)
    return False


def check_apart(name: str, array: Any) -> None:
    """Refuses to write different values to elements that are one in memory.

    Raises:
        ValueError: the array's may be.
    """
    if overlaps_itself(array):
        raise ValueError(
            f"{name}: the tensor's elements overlap in memory (it was expanded); change a .clone()"
        )
