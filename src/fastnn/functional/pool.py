"""Pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fastnn._core as _core
from fastnn.autograd import record, record_many
from fastnn.functional.conv import _pair
from fastnn.tensor import Tensor

__all__ = ["adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d", "max_pool2d"]

Size = int | Sequence[int]


def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Largest value of each window; a NaN in the window wins.

    Args:
        input: (N, C, H, W), float32 or bfloat16.
        kernel_size: window, an int or (h, w).
        stride: step of the window; the kernel size if left out.
        padding: minus infinity around the image, at most half the kernel.
        dilation: distance between the window's taps.
        ceil_mode: also windows that start inside but end outside the padded image.
        return_indices: also give the winners' flat positions ``h * W + w``.

    Returns:
        (N, C, OH, OW) with ``OH = (H + 2 padding - dilation (kernel - 1) - 1) // stride + 1``; with
        ``return_indices`` a pair with an int64 tensor.

    Raises:
        ValueError: the window is larger than the padded image, or a setting is out of range.

    Notes:
        Winners are remembered as 8-bit positions within the window; the backward gathers.
    """
    name = "max_pool2d"
    kernel = _pair(name, "kernel_size", kernel_size)
    settings = (
        kernel,
        kernel if stride is None else _pair(name, "stride", stride),
        _pair(name, "padding", padding),
        _pair(name, "dilation", dilation),
        bool(ceil_mode),
    )
    output, indices = _core.max_pool2d(input._array, *settings)
    saved = (indices, input.shape, settings)
    if not return_indices:
        return record(name, output, (input,), saved, _max_backward)
    flat = _core.max_pool2d_flat_indices(indices, input.shape, *settings)
    return record_many(name, (output, flat), (input,), saved, _max_backward)


def _max_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    indices, shape, settings = saved
    grad = grad_output[0] if isinstance(grad_output, tuple) else grad_output
    return _core.max_pool2d_backward(grad, indices, shape, *settings)


def avg_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Mean of each window.

    Args:
        input: (N, C, H, W), float32 or bfloat16.
        kernel_size: window, an int or (h, w).
        stride: step of the window; the kernel size if left out.
        padding: zeros around the image, at most half the kernel.
        ceil_mode: also windows that start inside but end outside the padded image.
        count_include_pad: whether padding counts in the divisor.
        divisor_override: divide by this instead.

    Returns:
        (N, C, OH, OW) with ``OH = (H + 2 padding - kernel) // stride + 1``.

    Raises:
        ValueError: the window is larger than the padded image, or a setting is out of range.
    """
    name = "avg_pool2d"
    if divisor_override is not None and divisor_override <= 0:
        raise ValueError(f"{name}: divisor_override expects a value > 0, got {divisor_override}")
    kernel = _pair(name, "kernel_size", kernel_size)
    settings = (
        kernel,
        kernel if stride is None else _pair(name, "stride", stride),
        _pair(name, "padding", padding),
        bool(ceil_mode),
        bool(count_include_pad),
        divisor_override or 0,
    )
    output = _core.avg_pool2d(input._array, *settings)
    return record(name, output, (input,), (input.shape, settings), _avg_backward)


def _avg_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    shape, settings = saved
    return _core.avg_pool2d_backward(grad_output, shape, *settings)


def _output_size(name: str, input: Tensor, output_size: Any) -> tuple[int, int]:
    """An int or a pair, in which None keeps the input's size."""
    sizes = (output_size,) * 2 if isinstance(output_size, int) else tuple(output_size)
    if len(sizes) != 2 or input.ndim != 4:
        return _pair(name, "output_size", sizes) if len(sizes) != 2 else (1, 1)
    kept = [input.shape[2 + i] if size is None else size for i, size in enumerate(sizes)]
    return _pair(name, "output_size", kept)


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """Mean over an even cut of the image into ``output_size`` windows.

    Window i of n covers rows ``floor(i H / n)`` up to ``ceil((i + 1) H / n)``; size 1 is the global mean.

    Args:
        input: (N, C, H, W), float32 or bfloat16.
        output_size: an int or (h, w); None keeps the input's size.

    Returns:
        (N, C, h, w).

    Raises:
        ValueError: a size is not positive, or the image is empty.
    """
    size = _output_size("adaptive_avg_pool2d", input, output_size)
    output = _core.adaptive_avg_pool2d(input._array, size)
    return record("adaptive_avg_pool2d", output, (input,), (input.shape,), _adaptive_avg_backward)


def _adaptive_avg_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return _core.adaptive_avg_pool2d_backward(grad_output, saved[0])


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Largest value over an even cut of the image into ``output_size`` windows.

    Args:
        input: (N, C, H, W), float32 or bfloat16.
        output_size: an int or (h, w); None keeps the input's size.
        return_indices: also give the winners' flat positions ``h * W + w``.

    Returns:
        (N, C, h, w); with ``return_indices`` a pair with an int64 tensor.

    Raises:
        ValueError: a size is not positive, or the image is empty.
    """
    name = "adaptive_max_pool2d"
    size = _output_size(name, input, output_size)
    output, indices = _core.adaptive_max_pool2d(input._array, size)
    saved = (indices, input.shape)
    if not return_indices:
        return record(name, output, (input,), saved, _adaptive_max_backward)
    flat = _core.adaptive_max_pool2d_flat_indices(indices, input.shape)
    return record_many(name, (output, flat), (input,), saved, _adaptive_max_backward)


def _adaptive_max_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    grad = grad_output[0] if isinstance(grad_output, tuple) else grad_output
    return _core.adaptive_max_pool2d_backward(grad, *saved)


TENSOR_METHODS: dict[str, Any] = {}
