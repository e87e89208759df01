"""Resampling of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fastnn._core as _core
from fastnn.autograd import record
from fastnn.functional.conv import _pair
from fastnn.tensor import Tensor

__all__ = ["interpolate"]


def interpolate(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> Tensor:
    """The image at another size.

    ``"nearest"`` reads pixel ``floor(o / scale)``; ``"bilinear"`` mixes the four pixels around
    ``(o + 0.5) / scale - 0.5`` or, with ``align_corners``, ``o (H - 1) / (OH - 1)``.

    Args:
        input: (N, C, H, W), float32 or bfloat16.
        size: output (h, w) or an int for both.
        scale_factor: instead of ``size``, output size over input size.
        mode: ``"nearest"`` or ``"bilinear"``.
        align_corners: bilinear only: corner pixels' centres coincide.

    Returns:
        (N, C, h, w) of the input's dtype.

    Raises:
        ValueError: neither or both of ``size`` and ``scale_factor``, a size that is not positive, or
            an unknown mode.
    """
    if (size is None) == (scale_factor is None):
        raise ValueError("interpolate: expected either size or scale_factor")
    scales = (0.0, 0.0)
    if scale_factor is not None:
        factors = tuple(scale_factor) if isinstance(scale_factor, Sequence) else (scale_factor,) * 2
        if len(factors) != 2 or not all(0 < f < 2**24 for f in factors):
            raise ValueError(
                f"interpolate: scale_factor expects values > 0 and below 2^24, got {scale_factor!r}"
            )
        if input.ndim != 4:
            raise ValueError(f"interpolate: input expects shape (N, C, H, W), got {input.shape}")
        size = tuple(int(n * f) for n, f in zip(input.shape[2:], factors, strict=True))
        scales = (1.0 / factors[0], 1.0 / factors[1])
    settings = (mode, bool(align_corners), *scales)
    output = _core.interpolate(input._array, _pair("interpolate", "size", size), *settings)
    return record("interpolate", output, (input,), (input.shape, settings), _backward)


def _backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    shape, settings = saved
    return _core.interpolate_backward(grad_output, shape, *settings)


TENSOR_METHODS: dict[str, Any] = {}
