"""2-D convolution and its transpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fastnn._core as _core
from fastnn.autograd import is_grad_enabled, is_recorded, record
from fastnn.functional.activation import CURVES, relu_backward
from fastnn.functional.deferred import Deferred, Inputs, array_of, may_wait
from fastnn.functional.view import operands
from fastnn.tensor import Tensor

__all__ = ["conv2d", "conv_transpose2d"]

# Values of an input from which on a pass over memory takes longer than making a tensor that waits.
WORTH_WAITING = 1 << 14


def _pair(name: str, argument: str, value: Any) -> tuple[int, int]:
    """An int or a pair of ints as a pair."""
    values = (value, value) if hasattr(value, "__index__") else value
    if not isinstance(values, Sequence) or len(values) != 2:
        raise TypeError(f"{name}: {argument} expects an int or a pair of ints, got {value!r}")
    return _integers(name, argument, values)


def _integers(name: str, argument: str, values: Sequence[Any]) -> Any:
    if isinstance(values, str) or not all(
        hasattr(v, "__index__") and not isinstance(v, bool) for v in values
    ):
        raise TypeError(f"{name}: {argument} expects integers, got {values!r}")
    integers = tuple(int(v) for v in values)
    if any(not -(2**63) <= v < 2**63 for v in integers):
        raise ValueError(f"{name}: {argument} expects integers of 64 bits, got {integers}")
    return integers


def _sides(
    name: str, padding: Any, stride: Sequence[int], dilation: Sequence[int], kernel: Sequence[int]
) -> tuple[int, int, int, int]:
    """Any form of padding as (left, right, top, bottom)."""
    if padding == "valid":
        return (0, 0, 0, 0)
    if padding == "same":
        if tuple(stride) != (1, 1):
            raise ValueError(f"{name}: padding='same' expects stride 1, got {tuple(stride)}")
        h, w = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return (w // 2, w - w // 2, h // 2, h - h // 2)
    if isinstance(padding, str):
        raise ValueError(f"{name}: padding expects 'same', 'valid' or integers, got {padding!r}")
    if isinstance(padding, Sequence) and len(padding) == 4:
        return _integers(name, "padding", padding)
    h, w = _pair(name, "padding", padding)
    return (w, w, h, h)


def _check_tensors(name: str, **tensors: Any) -> None:
    for argument, value in tensors.items():
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(
                f"{name}: {argument} expects a fastnn.Tensor, got {type(value).__name__}"
            )


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """2-D convolution (cross-correlation), ``y = activation(x * w + bias + residual)``.

    ``y[n, o, i, j] = sum over c, u, v of
    x[n, c, i*stride + u*dilation - pad, j*stride + v*dilation - pad] * w[o, c, u, v]``

    Args:
        input: (N, C, H, W), float32 or bfloat16.
        weight: (OC, C / groups, KH, KW), of the input's dtype.
        bias: (OC,), or None.
        stride: step of the window, an int or (h, w).
        padding: zeros around the input: an int, (h, w), (left, right, top, bottom), ``"valid"`` (none)
            or ``"same"`` (output size = input size; stride 1; the odd one goes right and bottom).
        dilation: distance between taps, an int or (h, w).
        groups: channels are cut into this many independent convolutions.
        activation: None, ``"relu"`` or ``"relu6"``, applied while the result is still in registers.
        residual: added before the activation; of the output's shape.

    Returns:
        (N, OC, OH, OW) of the input's dtype (bfloat16 under autocast), with
        ``OH = (H + top + bottom - dilation * (KH - 1) - 1) // stride + 1``.

    Raises:
        ValueError: shapes or settings do not fit together, or the kernel is larger than the padded
            input.
        TypeError: operands are not floating, or of different dtypes.

    Notes:
        Accumulation is float32 in one fixed order for each output. The values of larger outputs
        (without gradients: of those with a bias, for else a norm follows) are computed when first
        used, so that a :func:`relu`, or a sum and a ``relu``, right after it takes no pass of its own.
        Under :func:`fastnn.no_grad` what the kernels make of the weight stays with it until it
        changes. A number that is not finite may reach outputs beside its windows (Winograd's algorithm)
        and of neighbouring groups (small ones are taken together); in a weight, it may or may not
        reach outputs whose window has padding there. Cost: 2 N OC OH OW KH KW C / groups
        flops in each of the forward pass and the two gradients.

    References:
        LeCun et al., "Gradient-based learning applied to document recognition", 1998.
    """
    _check_tensors("conv2d", input=input, weight=weight, bias=bias, residual=residual)
    input, values = operands(input, weight)
    step = _pair("conv2d", "stride", stride)
    gaps = _pair("conv2d", "dilation", dilation)
    sides = _sides("conv2d", padding, step, gaps, weight.shape[2:] if weight.ndim == 4 else (1, 1))
    settings = (step, sides, gaps, _integers("conv2d", "groups", (groups,))[0])
    if activation is not None and not isinstance(activation, str):
        raise TypeError(f"conv2d: activation expects None, 'relu' or 'relu6', got {activation!r}")
    arrays = (input._array, values, array_of(bias))
    operator = _Convolution(arrays, settings, is_grad_enabled(), weight.requires_grad)
    inputs = (input, weight, bias, residual)
    # Without gradients nothing is gained before a norm, which follows where there is no bias.
    may_join = activation is None and residual is None and (bias is not None or is_recorded(inputs))
    if may_join and input.numel() >= WORTH_WAITING and may_wait(arrays):
        return Deferred(operator, inputs, _core.conv2d_shape(*arrays, *settings))
    output = operator.compute(activation or "", array_of(residual))
    return operator.record(output, inputs, activation or "")


class _Convolution:
    """A convolution.

    Args:
        operands: arrays: input, weight (in the dtype it is multiplied in) and bias.
        settings: stride, padding, dilation, groups.
        recording: whether gradients are; if not, what the kernels make of the weight stays with it.
        trains: whether the weight learns. What comes next, if it is no ReLU, may be a batch norm.
    """

    __slots__ = ("operands", "recording", "settings", "trains")
    name = "conv2d"

    def __init__(
        self, operands: tuple[Any, ...], settings: tuple[Any, ...], recording: bool, trains: bool
    ) -> None:
        self.operands, self.settings = operands, settings
        self.recording, self.trains = recording, trains

    def takes(self, activation: str, inputs: Inputs, recorded: bool) -> bool:
        # A curve takes as long between products as a pass that hides it behind memory, or longer.
        return activation not in CURVES

    def compute(self, activation: str, residual: Any) -> Any:
        return _core.conv2d(
            *self.operands,
            *self.settings,
            activation,
            residual,
            keep_packed=not self.recording,
            want_moments=self.recording and self.trains and not activation,
        )

    def record(self, y: Any, inputs: Inputs, activation: str) -> Tensor:
        x, w, bias = self.operands
        weight, residual = inputs[1], array_of(inputs[3])
        saved = (
            x, w, array_of(weight).dtype, activation, y if activation else None, self.settings,
            None if bias is None else bias.dtype, None if residual is None else residual.dtype,
        )  # fmt: skip
        out = record(self.name, y, inputs, saved, _conv2d_backward)
        if out._node is not None:
            out._node.adds = True
        return out


def _conv2d_backward(
    saved: Any, grad_output: Any, needs: tuple[bool, ...], so_far: Any = None
) -> Any:
    x, w, weight_dtype, activation, output, settings, bias_dtype, residual_dtype = saved
    if activation:
        grad_output = relu_backward(activation, grad_output, output)
    return (
        _core.conv2d_backward_input(grad_output, w, x.shape, *settings, so_far)
        if needs[0]
        else None,
        _core.conv2d_backward_weight(grad_output, x, w.shape, *settings, weight_dtype)
        if needs[1]
        else None,
        _core.conv2d_backward_bias(grad_output, bias_dtype) if needs[2] else None,
        _core.astype(grad_output, residual_dtype) if needs[3] else None,
    )


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Transposed 2-D convolution: the gradient of :func:`conv2d` with respect to its input.

    Each input pixel adds its channels times the kernel to the output around it.

    Args:
        input: (N, C, H, W), float32 or bfloat16.
        weight: (C, OC / groups, KH, KW), of the input's dtype.
        bias: (OC,), or None.
        stride: distance between the windows in the output, an int or (h, w).
        padding: rows and columns cut off the output: an int, (h, w) or (left, right, top, bottom).
        output_padding: rows and columns added at the bottom and right, below ``stride``.
        groups: channels are cut into this many independent convolutions.
        dilation: distance between taps, an int or (h, w).

    Returns:
        (N, OC, OH, OW) with
        ``OH = (H - 1) * stride - top - bottom + dilation * (KH - 1) + output_padding + 1``.

    Raises:
        ValueError: shapes or settings do not fit together, or the output would be empty.
        TypeError: operands are not floating, or of different dtypes.

    References:
        Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016.
    """
    name = "conv_transpose2d"
    _check_tensors(name, input=input, weight=weight, bias=bias)
    input, values = operands(input, weight)
    step, gaps = _pair(name, "stride", stride), _pair(name, "dilation", dilation)
    sides = _sides(name, padding, step, gaps, (1, 1))
    extra = _pair(name, "output_padding", output_padding)
    groups = _integers(name, "groups", (groups,))[0]
    output = _core.conv_transpose2d(
        input._array,
        values,
        bias._array if bias is not None else None,
        step,
        sides,
        extra,
        groups,
        gaps,
    )
    # As the gradient of a convolution, that one's padding ends where its last window does.
    ends = [
        max(0, (size - 1) * s + d * (k - 1) + 1 - out - before)
        for size, s, d, k, out, before in zip(
            input.shape[2:], step, gaps, weight.shape[2:], output.shape[2:], sides[2::-2],
            strict=True,
        )
    ]  # fmt: skip
    settings = (step, (sides[0], ends[1], sides[2], ends[0]), gaps, groups)
    bias_dtype = None if bias is None else bias._array.dtype
    saved = (input._array, values, weight._array.dtype, settings, bias_dtype)
    return record(name, output, (input, weight, bias), saved, _conv_transpose2d_backward)


def _conv_transpose2d_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    x, w, weight_dtype, settings, bias_dtype = saved
    grad = _core.astype(grad_output, x.dtype)
    return (
        _core.conv2d(grad, w, None, *settings, "", None) if needs[0] else None,
        _core.conv2d_backward_weight(x, grad, w.shape, *settings, weight_dtype)
        if needs[1]
        else None,
        _core.conv2d_backward_bias(grad, bias_dtype) if needs[2] else None,
    )


TENSOR_METHODS: dict[str, Any] = {}
