"""Borders around the last dimensions: of a number, or of what lies inside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import fastnn._core as _core
from fastnn.autograd import record
from fastnn.tensor import Tensor

__all__ = ["pad"]

_MODES = ("constant", "reflect", "replicate", "circular")


def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """A border around the last dimensions.

    Args:
        input: any shape and dtype.
        pad: (left, right) of the last dimension, then (top, bottom) of the one before, and so on. A
            negative width cuts instead (``"constant"`` only).
        mode: ``"constant"``; ``"reflect"``: mirrored, without the edge itself; ``"replicate"``: the edge
            throughout; ``"circular"``: what lies at the other end.
        value: what ``"constant"`` fills with.

    Returns:
        Each dimension as much larger as its two widths say, dtype as the input's.

    Raises:
        ValueError: an odd number of widths, too many, or a result of negative size; in the other modes a
            width below 0 or wider than what there is to repeat (``"reflect"``: size - 1), or a value.
    """
    widths = [int(w) for w in pad]
    if len(widths) % 2 or len(widths) > 2 * input.ndim:
        raise ValueError(
            f"pad: expected a pair of widths for at most {input.ndim} dimensions, got {widths}"
        )
    if mode not in _MODES:
        raise ValueError(f"pad: mode expects one of {', '.join(_MODES)}, got {mode!r}")
    pairs = [(widths[i], widths[i + 1]) for i in range(0, len(widths), 2)]
    borders = [(0, 0)] * (input.ndim - len(pairs)) + pairs[::-1]
    if mode != "constant":
        return _repeated(input, borders, mode, value)
    shape, inner_start, outer_start, inner = list(input.shape), [], [], []
    for d, (size, (before, after)) in enumerate(zip(input.shape, borders, strict=True)):
        shape[d] = size + before + after
        if shape[d] < 0:
            raise ValueError(f"pad: widths {widths} leave nothing of shape {input.shape}")
        inner_start.append(max(-before, 0))
        outer_start.append(max(before, 0))
        inner.append(max(0, size - max(-before, 0) - max(-after, 0)))
    output = _core.new_full(input._array, shape, value, input.dtype.name)
    source = _window(input._array, inner_start, inner)
    _core.copy_into(_window(output, outer_start, inner), source)
    saved = (input.shape, inner_start, outer_start, inner)
    return record("pad", output, (input,), saved, _pad_backward)


def _window(array: Any, start: Sequence[int], shape: Sequence[int]) -> Any:
    offset = sum(i * s for i, s in zip(start, array.strides, strict=True)) if 0 not in shape else 0
    return array.as_strided(list(shape), array.strides, offset)


def _pad_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    shape, inner_start, outer_start, inner = saved
    grad_input = _core.new_full(grad_output, shape, 0.0, grad_output.dtype)
    seen = _window(grad_output, outer_start, inner)
    _core.copy_into(_window(grad_input, inner_start, inner), seen)
    return grad_input


def _repeated(input: Tensor, borders: list[tuple[int, int]], mode: str, value: float) -> Tensor:
    if value != 0:
        raise ValueError(f"pad: mode {mode!r} takes no value, got {value}")
    for size, widths in zip(input.shape, borders, strict=True):
        most = size - 1 if mode == "reflect" else size if mode == "circular" or size == 0 else None
        if min(widths) < 0 or (most is not None and max(widths) > max(most, 0)):
            limit = "" if most is None else f" to {max(most, 0)}"
            raise ValueError(
                f"pad: mode {mode!r} expects widths from 0{limit} for size {size}, got {widths}"
            )
    shape = [n + before + after for n, (before, after) in zip(input.shape, borders, strict=True)]
    output = _core.new_empty(input._array, shape, input.dtype.name)
    start = [before for before, _ in borders]
    _core.copy_into(_window(output, start, input.shape), input._array)
    for _, border, source in _strips(output, input.shape, borders, mode):
        _core.copy_into(border, source)
    return record("pad", output, (input,), (input.shape, borders, mode), _repeated_backward)


def _strips(
    array: Any, inner: Sequence[int], borders: list[tuple[int, int]], mode: str
) -> Iterator[tuple[int, Any, Any]]:
    """Each side's dimension, border and what that repeats, as views: dimension by dimension, what is
    filled so far of those before, the middle of those after."""
    start, shape = [before for before, _ in borders], list(inner)
    for d, (before, after) in enumerate(borders):

        def rows(first: int, count: int, step: int, d: int = d) -> Any:
            sizes, strides = [*shape], list(array.strides)
            sizes[d] = count
            places = [*start[:d], first, *start[d + 1 :]]
            offset = sum(i * s for i, s in zip(places, strides, strict=True))
            strides[d] *= step
            return array.as_strided(sizes, strides, offset if 0 not in sizes else 0)

        end = before + inner[d]  # of the middle
        first, last, step = {
            "reflect": (2 * before, end - 2, -1),
            "replicate": (before, end - 1, 0),
            "circular": (inner[d], before, 1),
        }[mode]
        if before:
            yield d, rows(0, before, 1), rows(first, before, step)
        if after:
            yield d, rows(end, after, 1), rows(last, after, step)
        start[d], shape[d] = 0, array.shape[d]


def _repeated_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    """What a border receives goes to what it repeats, the last border first; sums are float32."""
    shape, borders, mode = saved
    total = _core.clone(_core.astype(grad_output, "float32"))
    for d, border, source in reversed(list(_strips(total, shape, borders, mode))):
        if mode == "replicate":  # the source is one row
            one = [1 if i == d else n for i, n in enumerate(source.shape)]
            source, border = source.as_strided(one, source.strides, 0), _core.sum(border, (d,))
        _core.add(source, border, out=source)
    middle = _window(total, [before for before, _ in borders], shape)
    return _core.canonical(_core.astype(middle, grad_output.dtype))
