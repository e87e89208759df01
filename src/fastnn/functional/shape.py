"""Joining, cutting and indexing tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

import fastnn._core as _core
from fastnn.autograd import is_grad_enabled, is_traced, record
from fastnn.creation import arange
from fastnn.device import CPU
from fastnn.dtypes import promoted
from fastnn.functional.elementwise import eq, logical_xor, where
from fastnn.functional.view import _dim, to, unsqueeze
from fastnn.memory import check_apart
from fastnn.tensor import Tensor, _to_numpy, _values, tensor

__all__ = ["cat", "chunk", "flip", "index_select", "one_hot", "split", "stack"]


def _slab(array: Any, dim: int, start: int, size: int) -> Any:
    """Elements ``start`` to ``start + size`` along a dimension, as a view."""
    shape = list(array.shape)
    shape[dim] = size
    return array.as_strided(shape, array.strides, start * array.strides[dim])


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors one after the other along ``dim``.

    Args:
        tensors: at least one, of equal shape but for ``dim``; dtypes promote as in arithmetic.
        dim: the dimension to join along.

    Raises:
        ValueError: shapes differ elsewhere, or there is nothing to join.
    """
    tensors = tuple(tensors)
    if not tensors:
        raise ValueError("cat: expected at least one tensor, got none")
    first = tensors[0]
    at = _dim("cat", dim, first.ndim)
    for i, t in enumerate(tensors):
        if t.ndim != first.ndim or any(
            a != b for d, (a, b) in enumerate(zip(t.shape, first.shape, strict=True)) if d != at
        ):
            raise ValueError(
                f"cat: tensor {i} expects shape {first.shape} but for dimension {at}, got {t.shape}"
            )
    if any(t.dtype is not first.dtype for t in tensors):
        dtype = promoted([t.dtype for t in tensors])
        tensors = tuple([to(t, dtype) for t in tensors])
    sizes = [t.shape[at] for t in tensors]
    output = _core.cat([t._array for t in tensors], at)
    return record("cat", output, tensors, (at, sizes), _cat_backward)


def _cat_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    dim, sizes = saved
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(
        _slab(grad_output, dim, start, size) if need else None
        for start, size, need in zip(starts, sizes, needs, strict=True)
    )


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors of one shape along a new dimension ``dim``; dtypes promote as in arithmetic.

    Raises:
        ValueError: shapes differ, or there is nothing to stack.
    """
    tensors = tuple(tensors)
    if not tensors:
        raise ValueError("stack: expected at least one tensor, got none")
    for i, t in enumerate(tensors):
        if t.shape != tensors[0].shape:
            raise ValueError(f"stack: tensor {i} expects shape {tensors[0].shape}, got {t.shape}")
    at = _dim("stack", dim, tensors[0].ndim + 1)
    return cat([unsqueeze(t, at) for t in tensors], at)


def split(
    input: Tensor, split_size_or_sections: int | Sequence[int], dim: int = 0
) -> tuple[Tensor, ...]:
    """Pieces along ``dim``, as views: of one size (the last may be smaller) or of given sizes.

    Raises:
        ValueError: the sizes do not add up.
    """
    at = _dim("split", dim, input.ndim)
    total = input.shape[at]
    if isinstance(split_size_or_sections, int):
        size = split_size_or_sections
        if size <= 0:
            raise ValueError(f"split: split size expects a value > 0, got {size}")
        sections = [min(size, total - i) for i in range(0, total, size)] or [0]
    else:
        sections = list(split_size_or_sections)
        if sum(sections) != total or any(s < 0 for s in sections):
            raise ValueError(f"split: sections expect to add up to {total}, got {sections}")
    pieces, start = [], 0
    for size in sections:
        pieces.append(_slice_view(input, [(0, s, 1) for s in input.shape], at, start, size))
        start += size
    return tuple(pieces)


def _slice_view(
    input: Tensor, whole: list[tuple[int, int, int]], dim: int, start: int, size: int
) -> Tensor:
    whole[dim] = (start, size, 1)
    return _strided(input, "split", whole, list(range(input.ndim)))


def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most ``chunks`` pieces of equal size along ``dim`` (the last may be smaller), as views.

    Raises:
        ValueError: ``chunks`` is not positive.
    """
    if chunks <= 0:
        raise ValueError(f"chunk: chunks expects a value > 0, got {chunks}")
    total = input.shape[_dim("chunk", dim, input.ndim)]
    return split(input, max(1, -(-total // chunks)), dim)


def flip(input: Tensor, dims: int | Sequence[int]) -> Tensor:
    """The elements in reverse order along ``dims``; a view with negative strides."""
    asked = (dims,) if isinstance(dims, int) else tuple(dims)
    reverse = {_dim("flip", d, input.ndim) for d in asked}
    ranges = [
        (size - 1, size, -1) if d in reverse and size else (0, size, 1)
        for d, size in enumerate(input.shape)
    ]
    return _strided(input, "flip", ranges, list(range(input.ndim)))


def one_hot(input: Tensor, num_classes: int = -1) -> Tensor:
    """A row of zeros with a one at the position that each element names.

    Args:
        input: integers from 0 on, any shape.
        num_classes: length of a row; -1: the largest of ``input``, and one.

    Returns:
        int64, of the input's shape and ``num_classes``.

    Raises:
        TypeError: ``input`` is not of integers.
        ValueError: an element is negative or not below ``num_classes``, or there is none to count by.
    """
    if input.dtype.is_floating_point or input.dtype.name == "bool":
        raise TypeError(f"one_hot: input expects integers, got {input.dtype.name}")
    if input.numel() == 0:
        if num_classes <= 0:
            raise ValueError(
                "one_hot: num_classes expects a value > 0 for an input without elements"
            )
    else:
        low, high = int(input.min().item()), int(input.max().item())
        num_classes = high + 1 if num_classes == -1 else num_classes
        if low < 0 or high >= num_classes:
            raise ValueError(f"one_hot: input expects 0 to {num_classes - 1}, got {low} to {high}")
    places = arange(num_classes, device=input.device)
    return to(eq(unsqueeze(input, -1), places), "int64")


def index_select(input: Tensor, dim: int, index: Any) -> Tensor:
    """Slices of ``input`` along ``dim`` at the positions ``index``, a 1-D integer tensor.

    Raises:
        IndexError: a position is out of range.
    """
    at = _dim("index_select", dim, input.ndim)
    key: list[Any] = [slice(None)] * input.ndim
    key[at] = index
    return getitem(input, tuple(key))


def _normal_key(input: Tensor, key: Any) -> tuple[tuple[Any, ...], bool]:
    """The index as a tuple of what NumPy understands, and whether it is slices and integers only."""
    key = key if isinstance(key, tuple) else (key,)
    plain = True
    parts = []
    for part in key:
        if isinstance(part, Tensor):
            part = _values(part._array)
        if isinstance(part, (list, np.ndarray)):
            part = np.asarray(part)
            if part.size == 0 and part.dtype.kind == "f":
                part = part.astype(np.int64)
            if part.dtype.kind not in "iub":
                raise TypeError(f"index: expected integers or booleans, got {part.dtype}")
            plain = False
        elif part is not None and part is not Ellipsis and not isinstance(part, slice):
            if isinstance(part, (bool, np.bool_)):
                plain = False
            elif not hasattr(part, "__index__"):
                raise TypeError(
                    f"index: expected integers, slices, None, ..., lists or tensors, got {part!r}"
                )
            else:
                part = int(part)
        parts.append(part)
    return tuple(parts), plain


def getitem(input: Tensor, key: Any) -> Tensor:
    """``input[key]`` with NumPy's meaning: views for slices and integers, copies for arrays.

    Rows of a tensor on a GPU, ``input[index]`` with integers that are there too, are taken without
    a wait for it: positions out of range are reported when the host next waits.

    Raises:
        IndexError: out of range, or too many indices.
    """
    first, *rest = key if isinstance(key, tuple) and key else (key,)
    if (
        isinstance(first, Tensor) and input.is_cuda and first._array.device == input._array.device
        and not first.dtype.is_floating_point and first.dtype.name != "bool"
        and len(rest) < input.ndim and _whole(rest)
    ):  # fmt: skip
        return _rows_there(input, first)
    parts, plain = _normal_key(input, key)
    return _basic(input, parts) if plain else _advanced(input, parts)


def _whole(parts: Sequence[Any]) -> bool:
    return all(isinstance(part, slice) and part == slice(None) for part in parts)


def _rows_there(input: Tensor, index: Tensor) -> Tensor:
    """``input[index]`` with positions on the input's GPU, where a kernel checks them."""
    size, index = input.shape[0], to(index, "int64")
    if size == 0 and index.numel():
        raise IndexError("index: no position is in range of a dimension of size 0")
    # Only what counts from the end: what is out of range is reported as it was given.
    from_end = logical_xor(index < 0, index < -size)
    positions = where(from_end, index + size, index)
    return _taken(input, positions._array, index.shape + input.shape[1:], by_rows=True)


def _basic(input: Tensor, parts: tuple[Any, ...]) -> Tensor:
    shape = input.shape
    named = len(parts) - parts.count(None) - parts.count(Ellipsis)
    if named > len(shape):
        raise IndexError(
            f"index: too many indices for a tensor of {len(shape)} dimensions, got {named}"
        )
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        rest = parts[at + 1 :]
        if Ellipsis in rest:
            raise IndexError("index: expected at most one '...'")
        parts = (*parts[:at], *[slice(None)] * (len(shape) - named), *rest)
    else:
        parts = (*parts, *[slice(None)] * (len(shape) - named))
    ranges: list[tuple[int, int, int]] = []
    kept: list[int | None] = []  # output dimensions: an input dimension, or None for a new one
    for part in parts:
        if part is None:
            kept.append(None)
            continue
        d = len(ranges)
        size = shape[d]
        if isinstance(part, slice):
            start, stop, step = part.indices(size)
            ranges.append((start, len(range(start, stop, step)), step))
            kept.append(d)
        else:
            if not -size <= part < size:
                raise IndexError(f"index: {part} is out of range for dimension {d} of size {size}")
            ranges.append((part % size, 1, 1))
    return _strided(input, "index", ranges, kept)


def _strided(
    input: Tensor, name: str, ranges: list[tuple[int, int, int]], kept: Sequence[int | None]
) -> Tensor:
    """The view of (start, count, step) along each dimension, showing dimensions ``kept``."""
    output = _view(input._array, ranges, kept)
    return record(name, output, (input,), (input.shape, ranges, kept), _strided_backward)


def _view(array: Any, ranges: list[tuple[int, int, int]], kept: Sequence[int | None]) -> Any:
    own, offset = array.strides, 0
    for (start, count, _), stride in zip(ranges, own, strict=True):
        if count == 0:
            offset = 0
            break
        offset += start * stride
    shape = [1 if d is None else ranges[d][1] for d in kept]
    strides = [1 if d is None else ranges[d][2] * own[d] for d in kept]
    return array.as_strided(shape, strides, offset)


def _strided_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    shape, ranges, kept = saved
    grad_input = _core.new_full(grad_output, shape, 0.0, grad_output.dtype)
    _core.copy_into(_view(grad_input, ranges, kept), grad_output)
    return grad_input


def _advanced(input: Tensor, parts: tuple[Any, ...]) -> Tensor:
    first = parts[0] if parts else None
    by_rows = (
        isinstance(first, np.ndarray) and first.dtype.kind in "iu" and len(parts) <= input.ndim
        and _whole(parts[1:])
    )  # fmt: skip
    if by_rows:
        # Rows of the first dimension: images of a batch. No map of all elements is needed.
        size = input.shape[0]
        rows = np.asarray(first).astype(np.int64)
        if rows.size and (rows.min() < -size or rows.max() >= size):
            raise IndexError(f"index: positions expect {-size} to {size - 1}, got {first}")
        positions, shape = np.where(rows < 0, rows + size, rows), rows.shape + input.shape[1:]
    else:
        flat = np.arange(input.numel(), dtype=np.int64).reshape(input.shape)
        positions = flat[parts]  # NumPy's own IndexError says what is wrong
        shape = positions.shape
    index = tensor(np.ascontiguousarray(positions), device=input.device)._array
    return _taken(input, index, shape, by_rows)


def _taken(input: Tensor, index: Any, shape: tuple[int, ...], by_rows: bool) -> Tensor:
    """The rows of the first dimension at positions, or the elements at theirs in row-major order."""
    if math.prod(shape) == 0:
        output = _core.new_empty(input._array, shape, input.dtype.name)
        return record("index", output, (input,), (None, 1, input.shape, False), _advanced_backward)
    width = math.prod(input.shape[1:]) if by_rows else 1
    # Rows of a canonical image batch stay canonical images only if the index is a plain list.
    images = by_rows and input.ndim == 4 and len(shape) == 4
    array = _core.canonical(input._array) if images else _core.row_major(input._array)
    output = _core.take(array, index, width, shape, images)
    saved = (index, width, input.shape, images)
    return record("index", output, (input,), saved, _advanced_backward)


def _advanced_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    index, width, shape, images = saved
    if index is None:
        return _core.new_full(grad_output, shape, 0.0, grad_output.dtype)
    return _core.take_backward(grad_output, index, width, shape, images)


def setitem(input: Tensor, key: Any, value: Any) -> None:
    """``input[key] = value``, in place and outside the tape.

    Raises:
        RuntimeError: the tensor requires a gradient and recording is on.
        IndexError: out of range.
        ValueError: the tensor views read-only memory, or the shapes do not fit, or values are assigned
            to elements that overlap in memory.
    """
    name = "index assignment"
    input._check_in_place(name, one_value=True)
    parts, plain = _normal_key(input, key)
    if input._array.overlaps_itself() and not (plain and np.ndim(value) == 0):
        check_apart(name, (_basic(input, parts) if plain else input)._array)
    if is_traced() and not plain:
        raise RuntimeError(
            "compile: an assignment to positions that a tensor or list names cannot be part of a "
            "program; build the tensor with where() or cat()"
        )
    by_view = plain and (input.is_cuda or is_traced())
    if isinstance(value, Tensor):
        if value.requires_grad and is_grad_enabled():
            raise RuntimeError(
                "index assignment: the value requires a gradient, which would be lost; assign "
                "value.detach(), or build the tensor with where() or cat()"
            )
        if not by_view:
            value = _values(value._array)
    if by_view:
        return _assign(_basic(input, parts), value)
    if input.is_cuda:  # by way of the CPU
        changed = _core.to_device(input._array, CPU)
        _to_numpy(changed)[parts] = value
        _core.copy_into(input._array, _core.to_device(changed, input._array.device))
        return
    if plain and Ellipsis not in parts:  # a view also of one number: it takes a value of shape (1,)
        parts = (*parts, Ellipsis)
    _to_numpy(input._array)[parts] = value
    input._array.bump_version()


def _assign(view: Tensor, value: Any) -> None:
    """``view[...] = value`` as NumPy has it: first dimensions of size 1 may be too many."""
    if isinstance(value, Tensor):
        values = value
    else:
        there = np.empty(np.shape(value), view.dtype.numpy())
        there[...] = value  # which refuses what it refuses on the CPU
        values = tensor(there)
    more = max(0, values.ndim - view.ndim)
    if more and all(size == 1 for size in values.shape[:more]):
        values = values.reshape(values.shape[more:])
    if values.ndim:
        view.copy_(values)
    else:
        view.fill_(values)


TENSOR_METHODS: dict[str, Any] = {
    "__getitem__": getitem,
    "__setitem__": setitem,
    "chunk": chunk,
    "flip": flip,
    "index_select": index_select,
    "split": split,
}
