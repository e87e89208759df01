"""Views: the same elements under another shape, without a copy wherever strides can express it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import fastnn._core as _core
from fastnn.autograd import is_autocast_enabled, record
from fastnn.device import cuda_module, gpu_index_of, index_of
from fastnn.dtypes import DType, as_dtype
from fastnn.functional.elementwise import sum_to
from fastnn.tensor import Tensor

__all__ = [
    "clone", "contiguous", "expand", "flatten", "permute", "reshape", "squeeze", "to", "transpose",
    "unsqueeze", "view",
]  # fmt: skip


def _dim(name: str, dim: int, rank: int) -> int:
    if not -rank <= dim < rank:
        raise ValueError(f"{name}: dim expects {-rank} to {rank - 1}, got {dim}")
    return dim % rank


def _sizes(args: Sequence[Any]) -> tuple[int, ...]:
    sizes = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
    return tuple(map(int, sizes))


def _reshape_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return grad_output.reshape(saved[0])


def _permute_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    order = saved[0]
    return _permuted(grad_output, sorted(range(len(order)), key=order.__getitem__))


def _copy_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return grad_output


def reshape(input: Tensor, *shape: Any) -> Tensor:
    """The elements in row-major order under another shape; one size may be -1.

    A rank-4 tensor lies in memory as NHWC, so flattening it moves elements unless H = W = 1: what
    :func:`view` gives is then a copy, and changes of it do not reach ``input``. To change some of its
    elements, index ``input`` itself.

    Raises:
        ValueError: the sizes do not multiply to the number of elements.
    """
    sizes = _sizes(shape)
    count = input.numel()
    if sizes.count(-1) == 1:
        known = math.prod(size for size in sizes if size != -1)
        if known == 0 or count % known:
            raise ValueError(f"reshape: cannot fit shape {input.shape} into {sizes}")
        sizes = tuple(count // known if size == -1 else size for size in sizes)
    if math.prod(sizes) != count or min(sizes, default=0) < 0:
        raise ValueError(
            f"reshape: shape {sizes} is invalid for a tensor of shape {input.shape} "
            f"with {count} elements"
        )
    return record(
        "reshape", input._array.reshape(sizes), (input,), (input.shape,), _reshape_backward
    )


view = reshape


def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Merges dimensions ``start_dim`` to ``end_dim`` into one."""
    if input.ndim == 0:
        return reshape(input, 1)
    start, end = _dim("flatten", start_dim, input.ndim), _dim("flatten", end_dim, input.ndim)
    if start > end:
        raise ValueError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim}")
    shape = input.shape
    return reshape(input, (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]))


def _permuted(array: Any, dims: Sequence[int]) -> Any:
    shape, strides = array.shape, array.strides
    return array.as_strided([shape[d] for d in dims], [strides[d] for d in dims], 0)


def permute(input: Tensor, *dims: Any) -> Tensor:
    """Dimensions in another order; a view."""
    rank = input.ndim
    order = [_dim("permute", d, rank) for d in _sizes(dims)]
    if sorted(order) != list(range(rank)):
        raise ValueError(
            f"permute: expected each of the {rank} dimensions once, got {_sizes(dims)}"
        )
    return _reordered(input, order)


def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """Two dimensions swapped; a view."""
    rank = input.ndim
    order = list(range(rank))
    a, b = _dim("transpose", dim0, rank), _dim("transpose", dim1, rank)
    order[a], order[b] = b, a
    return _reordered(input, order)


def _reordered(input: Tensor, order: list[int]) -> Tensor:
    return record("permute", _permuted(input._array, order), (input,), (order,), _permute_backward)


def squeeze(input: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    """Drops dimensions of size 1: all of them, or those named."""
    if dim is None:
        dropped = {d for d, size in enumerate(input.shape) if size == 1}
    else:
        asked = (dim,) if isinstance(dim, int) else dim
        dropped = {_dim("squeeze", d, input.ndim) for d in asked}
    keep = [d for d in range(input.ndim) if d not in dropped or input.shape[d] != 1]
    return record(
        "squeeze", _permuted(input._array, keep), (input,), (input.shape,), _reshape_backward
    )


def unsqueeze(input: Tensor, dim: int) -> Tensor:
    """A new dimension of size 1 at ``dim``."""
    at = _dim("unsqueeze", dim, input.ndim + 1)
    before, strides = input.shape, input._array.strides
    step = before[at] * strides[at] if at < len(before) else 1
    array = input._array.as_strided(
        [*before[:at], 1, *before[at:]], [*strides[:at], step, *strides[at:]], 0
    )
    return record("unsqueeze", array, (input,), (before,), _reshape_backward)


def expand(input: Tensor, *sizes: Any) -> Tensor:
    """Dimensions of size 1 repeated to ``sizes``, without a copy; -1 keeps a size."""
    target = _sizes(sizes)
    lead = len(target) - input.ndim
    shape, strides = [], []
    for i, size in enumerate(target):
        have = input.shape[i - lead] if i >= lead else 1
        step = input._array.strides[i - lead] if i >= lead else 0
        if size == -1 and i >= lead:
            size = have
        if size < 0 or have not in (1, size):
            raise ValueError(f"expand: cannot expand shape {input.shape} to {target}")
        shape.append(size)
        strides.append(step if have == size else 0)
    if lead < 0:
        raise ValueError(f"expand: cannot expand shape {input.shape} to {target}")
    return record(
        "expand",
        input._array.as_strided(shape, strides, 0),
        (input,),
        (input.shape,),
        _expand_backward,
    )


def _expand_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return sum_to(grad_output, saved[0], grad_output.dtype)


def contiguous(input: Tensor) -> Tensor:
    """The tensor itself if it is dense in row-major order, else a copy that is."""
    return record("contiguous", _core.row_major(input._array), (input,), (), _copy_backward)


def clone(input: Tensor) -> Tensor:
    """A copy in canonical layout."""
    return record("clone", _core.clone(input._array), (input,), (), _copy_backward)


def to(
    input: Tensor, *args: Any, dtype: Any = None, device: Any = None, non_blocking: bool = False
) -> Tensor:
    """The tensor in another dtype and on another device; itself if nothing changes.

    ``to(dtype)``, ``to(device)``, ``to(device, dtype)`` and ``to(other)`` as in PyTorch, and a last
    ``non_blocking``; a device's name or the index of a GPU. With
    ``non_blocking`` a copy from pinned memory (:meth:`Tensor.pin_memory`) to a GPU, or from a GPU, is
    only queued: synchronize before the values are read on the CPU.

    Raises:
        RuntimeError: the device is not available.
        TypeError: an argument is none of these.
    """
    for arg in args:
        if isinstance(arg, Tensor):
            device, dtype = arg.device, arg.dtype
        elif isinstance(arg, bool):
            non_blocking = arg
        elif isinstance(arg, int) or str(arg).split(":")[0] in ("cpu", "cuda"):
            device = arg
        else:
            dtype = None if arg is None else _named(arg)
    if device is not None:
        input = _moved(input, index_of(device), non_blocking)
    if dtype is None or as_dtype(dtype) is input.dtype:
        return input
    wanted: DType = as_dtype(dtype)
    return record(
        "to",
        _core.astype(input._array, wanted.name),
        (input if wanted.is_floating_point else None,),
        (input._array.dtype,),
        _to_backward,
    )


def _named(arg: Any) -> DType:
    try:
        return as_dtype(arg)
    except TypeError:
        raise TypeError(
            f"to: expected a dtype, a tensor, 'cpu', 'cuda' or 'cuda:0', got {arg!r}"
        ) from None


def cuda(input: Tensor, device: int | str | None = None, non_blocking: bool = False) -> Tensor:
    """:func:`to` a GPU, the current one if left out."""
    return _moved(input, gpu_index_of(device), non_blocking)


def operands(input: Tensor, weight: Tensor) -> tuple[Tensor, Any]:
    """An input, and the values of a weight, as convolutions and products take them: in bfloat16 under
    autocast, where a weight's copy stays with it and its gradient is the weight's own."""
    if is_autocast_enabled():
        return to(input, "bfloat16"), _core.lowered(weight._array)
    return input, weight._array


def _moved(input: Tensor, device: int, later: bool) -> Tensor:
    here = input._array.device
    if here == device:
        return input
    moved = _core.to_device(input._array, device, later)
    return record("to_device", moved, (input,), (here,), _moved_backward)


def _moved_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return _core.to_device(grad_output, saved[0])


def _to_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    return _core.astype(grad_output, saved[0])


def pin_memory(input: Tensor) -> Tensor:
    """The tensor in memory that a GPU copies from without staging; itself if it is.

    Raises:
        RuntimeError: CUDA is not available, or the tensor is not on the CPU.
    """
    cuda_module()
    return record("pin_memory", _core.pinned(input._array), (input,), (), _copy_backward)


TENSOR_METHODS = {
    "is_pinned": lambda input: input._array.pinned,
    "pin_memory": pin_memory,
    "clone": clone,
    "contiguous": contiguous,
    "expand": expand,
    "expand_as": lambda input, other: expand(input, *other.shape),
    "flatten": flatten,
    "permute": permute,
    "reshape": reshape,
    "squeeze": squeeze,
    "to": to,
    "transpose": transpose,
    "unsqueeze": unsqueeze,
    "view": view,
    "float": lambda input: to(input, "float32"),
    "bfloat16": lambda input: to(input, "bfloat16"),
    "long": lambda input: to(input, "int64"),
    "int": lambda input: to(input, "int32"),
    "bool": lambda input: to(input, "bool"),
    "cpu": lambda input: to(input, "cpu"),
    "cuda": cuda,
    "T": property(lambda input: permute(input, *reversed(range(input.ndim)))),
    "mT": property(lambda input: transpose(input, -1, -2)),
    "t": lambda input: transpose(input, 0, 1) if input.ndim == 2 else input,
}
