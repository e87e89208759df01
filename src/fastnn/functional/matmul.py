"""Matrix products."""

from __future__ import annotations

import math
from typing import Any

import fastnn._core as _core
from fastnn.autograd import is_autocast_enabled, record
from fastnn.functional.view import expand, operands, reshape, squeeze, to, unsqueeze
from fastnn.tensor import Tensor

__all__ = ["linear", "matmul"]


def _check_tensors(name: str, **tensors: Any) -> None:
    for argument, value in tensors.items():
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(
                f"{name}: {argument} expects a fastnn.Tensor, got {type(value).__name__}"
            )


def matmul(input: Tensor, other: Tensor) -> Tensor:
    """Matrix product, with batches and vectors as in PyTorch and NumPy.

    Args:
        input: (..., M, K), or a vector (K,); float32 or bfloat16.
        other: (..., K, N), or a vector (K,); of the same dtype. Leading dimensions broadcast.

    Returns:
        (..., M, N); the dimension of a vector operand is dropped. Sums are float32.

    Raises:
        ValueError: the inner sizes differ, or the batches do not broadcast.
        TypeError: operands are not floating, or of different dtypes.
    """
    _check_tensors("matmul", input=input, other=other)
    if input.ndim == 0 or other.ndim == 0:
        raise ValueError(
            f"matmul: expected at least one dimension each, got {input.shape} and {other.shape}"
        )
    if is_autocast_enabled():
        input, other = to(input, "bfloat16"), to(other, "bfloat16")
    if input.ndim == 1:
        return squeeze(matmul(unsqueeze(input, 0), other), -2 if other.ndim > 1 else 0)
    if other.ndim == 1:
        return squeeze(matmul(input, unsqueeze(other, 1)), -1)
    k, n = other.shape[-2:]
    if input.shape[-1] != k:
        raise ValueError(
            f"matmul: other expects {input.shape[-1]} rows, got shapes {input.shape} "
            f"and {other.shape}"
        )
    if input.ndim == other.ndim == 2:
        return _product(input, other)
    m = input.shape[-2]
    if other.ndim == 2:  # one long matrix
        rows = math.prod(input.shape[:-1])
        return reshape(_product(reshape(input, rows, k), other), *input.shape[:-1], n)
    batch = _broadcast(input.shape[:-2], other.shape[:-2], input, other)
    count = math.prod(batch)
    left = reshape(expand(input, *batch, m, k), count, m, k)
    right = reshape(expand(other, *batch, k, n), count, k, n)
    return reshape(_product(left, right), *batch, m, n)


def _broadcast(a: tuple[int, ...], b: tuple[int, ...], x: Tensor, y: Tensor) -> tuple[int, ...]:
    rank = max(len(a), len(b))
    a, b = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    if any(i != j and 1 not in (i, j) for i, j in zip(a, b, strict=True)):
        raise ValueError(f"matmul: batches do not broadcast, got shapes {x.shape} and {y.shape}")
    return tuple(j if i == 1 else i for i, j in zip(a, b, strict=True))


def _product(a: Tensor, b: Tensor) -> Tensor:
    output = _core.matmul(a._array, b._array)
    return record("matmul", output, (a, b), (a._array, b._array), _matmul_backward)


def _matmul_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    a, b = saved
    return (
        _core.matmul_backward_a(grad_output, b) if needs[0] else None,
        _core.matmul_backward_b(grad_output, a) if needs[1] else None,
    )


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Affine map of the last dimension, ``y = x w^T + bias``.

    Args:
        input: (..., in_features), float32 or bfloat16.
        weight: (out_features, in_features), of the input's dtype.
        bias: (out_features,), or None.

    Returns:
        (..., out_features) of the input's dtype (bfloat16 under autocast). Sums are float32.

    Raises:
        ValueError: shapes do not fit together.
        TypeError: operands are not floating, or of different dtypes.
    """
    _check_tensors("linear", input=input, weight=weight, bias=bias)
    if input.ndim != 2:
        if input.ndim == 0 or weight.ndim != 2 or input.shape[-1] != weight.shape[1]:
            raise ValueError(
                f"linear: weight of shape {weight.shape} expects {weight.shape[-1]} input "
                f"features, got input of shape {input.shape}"
            )
        rows = math.prod(input.shape[:-1])
        flat = linear(reshape(input, rows, input.shape[-1]), weight, bias)
        return reshape(flat, *input.shape[:-1], weight.shape[0])
    input, values = operands(input, weight)
    output = _core.linear(input._array, values, bias._array if bias is not None else None)
    bias_dtype = None if bias is None else bias._array.dtype
    saved = (input._array, values, weight._array.dtype, bias_dtype)
    return record("linear", output, (input, weight, bias), saved, _linear_backward)


def _linear_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    x, w, weight_dtype, bias_dtype = saved
    return (
        _core.linear_backward_input(grad_output, w) if needs[0] else None,
        _core.linear_backward_weight(grad_output, x, weight_dtype) if needs[1] else None,
        _core.conv2d_backward_bias(grad_output, bias_dtype) if needs[2] else None,
    )


TENSOR_METHODS: dict[str, Any] = {
    "matmul": matmul,
    "__matmul__": matmul,
}
