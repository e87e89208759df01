"""Random data for benchmarks, in less time than drawing each number takes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

#: A prime, so that no image, row or channel is the one before again.
_MOST = 2**22 - 3


class Repeated(np.random.Generator):
    """A generator that repeats its normal numbers, after some millions, within one array.

    Arrays for a GPU have hundreds of millions, and drawing them would take longer than all that is timed.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__(np.random.PCG64(seed))

    def standard_normal(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        """As ``Generator.standard_normal``."""
        if size is None or out is not None or (count := math.prod(np.atleast_1d(size))) <= _MOST:
            return super().standard_normal(size, dtype, out)
        pool = super().standard_normal(_MOST, dtype)
        return np.resize(pool, count).reshape(size)
