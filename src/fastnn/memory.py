"""How a tensor's elements lie in memory."""

from __future__ import annotations

from typing import Any


def check_apart(name: str, array: Any) -> None:
    """Refuses to write different values to elements that are one in memory.

    Raises:
        ValueError: the array's may be.
    """
    if array.overlaps_itself():
        raise ValueError(
            f"{name}: the tensor's elements overlap in memory (it was expanded); change a .clone()"
        )
