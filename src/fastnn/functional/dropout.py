"""Dropout of elements, of channels, and of whole paths."""

from __future__ import annotations

from typing import Any

import fastnn._core as _core
from fastnn.autograd import record
from fastnn.device import cuda_module
from fastnn.tensor import Tensor

__all__ = ["drop_path", "dropout", "dropout2d"]


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Each element is zero with probability ``p``, else ``x / (1 - p)`` (inverted dropout).

    Args:
        input: any shape, float32 or bfloat16.
        p: probability of zero.
        training: False gives the input itself.
        inplace: accepted as by activations, and without effect; the same goes for :func:`dropout2d`.

    Returns:
        A tensor of the same shape and dtype.

    Raises:
        ValueError: ``p`` is no probability.

    Notes:
        The mask is a function of the seed and of the number of random calls before this one alone
        (Philox4x32-10): the same bits on every ISA level and for any number of threads. It is not
        stored but regenerated in the backward. Each element is decided by 16 random bits, so ``p``
        counts as the nearest multiple of 2**-16, in the factor too.

    References:
        Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", 2014.
    """
    return _apply("dropout", input, p, training)


def dropout2d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Each channel of each image is zero with probability ``p``, else ``x / (1 - p)``.

    Args:
        input: (N, C, H, W), float32 or bfloat16.
        p: probability of zero.
        training: False gives the input itself.

    Raises:
        ValueError: ``p`` is no probability, or the input is not rank 4.

    References:
        Tompson et al., "Efficient object localization using convolutional networks", 2015.
    """
    return _apply("dropout2d", input, p, training)


def drop_path(input: Tensor, p: float = 0.0, training: bool = True) -> Tensor:
    """Each sample is zero with probability ``p``, else ``x / (1 - p)`` (stochastic depth).

    Args:
        input: (N, ...), float32 or bfloat16: the residual branch of a block.
        p: probability of zero.
        training: False gives the input itself.

    Raises:
        ValueError: ``p`` is no probability.

    References:
        Huang et al., "Deep networks with stochastic depth", 2016.
    """
    return _apply("drop_path", input, p, training)


def _apply(kind: str, input: Tensor, p: float, training: bool) -> Tensor:
    if not 0 <= p <= 1:
        raise ValueError(f"{kind}: p expects a probability from 0 to 1, got {p}")
    if kind == "dropout2d" and input.ndim != 4:
        raise ValueError(f"dropout2d: input expects shape (N, C, H, W), got {input.shape}")
    if not training or p == 0:
        return input
    seed, offset = _core.next_random()
    output = _core.dropout(kind, input._array, p, seed, offset)
    saved = (kind, p, seed, offset, _mark(input))
    return record(kind, output, (input,), saved, _dropout_backward)


def _mark(input: Tensor) -> Any:
    """In place of the mask, which is in no array: a byte of the graph that is being recorded, which
    its replays change as they do the mask. None where none is."""
    if not input.is_cuda or not cuda_module().recording():
        return None
    byte = _core.canonical(_core.new_empty(input._array, (), "uint8"))
    return byte.as_strided(input.shape, [0] * input.ndim, 0)


def _dropout_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    kind, p, seed, offset, _ = saved
    return _core.dropout(kind, grad_output, p, seed, offset)


TENSOR_METHODS: dict[str, Any] = {}
