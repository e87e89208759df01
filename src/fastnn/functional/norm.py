"""Normalisations: batch, layer, instance, group, and local response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fastnn._core as _core
from fastnn.autograd import is_recorded, no_grad, record
from fastnn.functional.activation import CURVES
from fastnn.functional.deferred import Deferred, Inputs, array_of, may_wait
from fastnn.functional.view import squeeze, unsqueeze
from fastnn.tensor import Tensor

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm", "local_response_norm"]


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Batch normalisation over all dimensions but the channels.

    ``y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``

    Args:
        input: (N, C), (N, C, L) or (N, C, H, W), float32 or bfloat16.
        running_mean: (C,) float32, used when not training, updated in place when training.
        running_var: (C,) float32, likewise; the update is with the unbiased variance.
        weight: (C,), or None for ones.
        bias: (C,), or None for zeros.
        training: use the batch's own (biased) moments.
        momentum: ``running = (1 - momentum) * running + momentum * batch``.
        eps: added to the variance.
        activation: None, ``"relu"``, ``"relu6"``, ``"gelu"``, ``"gelu_tanh"``, ``"hardsigmoid"``,
            ``"hardswish"``, ``"sigmoid"``, ``"silu"`` or ``"tanh"``. The ReLUs are part of the same pass;
            the others on a CPU and without gradients or without a residual, else they take a pass of
            their own.
        residual: of the input's shape, added before the activation in the same pass.

    Returns:
        A tensor of the input's shape and dtype. Moments are computed and kept in float32, in two
        passes over chunks that are merged by Chan's formula; no cancellation for far-off means.
        The values are computed when first used, so that a :func:`relu`, or a sum and a ``relu``,
        right after it takes no pass of its own (nor, where ``activation`` takes them, a ``silu`` and
        the like). In bfloat16 these then see the values before they are rounded.

    Raises:
        ValueError: shapes do not fit, one value per channel when training, or no running
            statistics when not training.

    References:
        Ioffe and Szegedy, "Batch normalization", 2015.
    """
    if input.ndim == 3:
        flat = None if residual is None else unsqueeze(residual, 2)
        out = batch_norm(
            unsqueeze(input, 2), running_mean, running_var, weight, bias, training, momentum, eps,
            activation=activation, residual=flat,
        )  # fmt: skip
        return squeeze(out, 2)
    arrays = (input._array, *map(array_of, (running_mean, running_var, weight, bias)))
    inputs = (input, weight, bias, residual)
    if activation is None and residual is None and may_wait((input._array,)):
        moments = _core.batch_norm_statistics(*arrays, training, momentum, eps)
        return Deferred(_BatchNorm(input._array, moments, training), inputs, input.shape)
    if activation is not None and not isinstance(activation, str):
        raise TypeError(f"batch_norm: activation expects None or a name, got {activation!r}")
    if activation in CURVES and not _BatchNorm.takes(activation, inputs, is_recorded(inputs)):
        plain = batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps,
            residual=residual,
        )  # fmt: skip
        return CURVES[activation](plain)
    result = _core.batch_norm(
        *arrays, training, momentum, eps, activation or "", array_of(residual)
    )
    operator = _BatchNorm(input._array, result, training)
    return operator.record(result.y, inputs, activation or "")


def _like(grad: Any, parameter: Any) -> Any:
    """A gradient in its operand's dtype; itself if it has it, so that nobody else holds it."""
    if parameter is None or grad is None or grad.dtype == parameter.dtype:
        return None if parameter is None else grad
    return _core.astype(grad, parameter.dtype)


class _BatchNorm:
    """A batch norm whose moments are known; ``training`` if they are the batch's own."""

    __slots__ = ("moments", "operands", "training")
    name = "batch_norm"

    def __init__(self, x: Any, moments: Any, training: bool) -> None:
        self.operands, self.moments, self.training = (x,), moments, training

    @staticmethod
    def takes(activation: str, inputs: Inputs, recorded: bool) -> bool:
        # With a residual the backward would need the sum, which nobody keeps.
        on_gpu = array_of(inputs[0]).device >= 0
        return activation not in CURVES or not (on_gpu or (recorded and inputs[3] is not None))

    def compute(self, activation: str, residual: Any) -> Any:
        return _core.batch_norm_apply(*self.operands, self.moments, activation, residual)

    def record(self, y: Any, inputs: Inputs, activation: str) -> Tensor:
        x, weight, bias, residual = map(array_of, inputs)
        mask = y if activation and residual is not None else None
        mean, invstd = self.moments.mean, self.moments.invstd
        kind = None if residual is None else residual.dtype
        saved = (x, activation, mask, weight, bias, kind, mean, invstd, self.training)
        return record(self.name, y, inputs, saved, _batch_norm_backward)


def _batch_norm_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    x, activation, y, weight, bias, residual_dtype, mean, invstd, training = saved
    masked = bool(activation) and needs[3]  # else the residual's gradient is the output's
    grads = _core.batch_norm_backward(
        grad_output, x, activation, y, weight, bias, mean, invstd, training, masked
    )
    return (
        grads.input,
        _like(grads.weight, weight),
        _like(grads.bias, bias),
        _core.astype(grads.residual if masked else grad_output, residual_dtype)
        if needs[3]
        else None,
    )


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalisation of each image over groups of channels and all pixels.

    Args:
        input: (N, C), (N, C, L) or (N, C, H, W), float32 or bfloat16.
        num_groups: a divisor of C; 1 normalises over everything, C is instance norm.
        weight: (C,), or None for ones.
        bias: (C,), or None for zeros.
        eps: added to the variance.

    Returns:
        A tensor of the input's shape and dtype.

    Raises:
        ValueError: C is not divisible by ``num_groups``.

    References:
        Wu and He, "Group normalization", 2018.
    """
    if input.ndim == 3:
        return squeeze(group_norm(unsqueeze(input, 2), num_groups, weight, bias, eps), 2)
    return _grouped(input, num_groups, weight, bias, eps)[0]


def _grouped(
    input: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Any]:
    """Group norm, and the moments it used: ``.mean`` and ``.invstd`` of shape (N, num_groups)."""
    result = _core.group_norm(input._array, num_groups, array_of(weight), array_of(bias), eps)
    saved = (
        input._array, num_groups, array_of(weight), array_of(bias), result.mean, result.invstd,
    )  # fmt: skip
    return record("group_norm", result.y, (input, weight, bias), saved, _group_backward), result


def _group_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    x, groups, weight, bias, mean, invstd = saved
    grads = _core.group_norm_backward(grad_output, x, groups, weight, mean, invstd)
    return grads.input, _like(grads.weight, weight), _like(grads.bias, bias)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalisation of each channel of each image over its pixels.

    Args:
        input: (N, C, L) or (N, C, H, W), float32 or bfloat16.
        running_mean: (C,) float32, or None; updated in place with the mean over images.
        running_var: (C,) float32, or None; likewise, with unbiased variances.
        weight: (C,), or None for ones.
        bias: (C,), or None for zeros.
        use_input_stats: False normalises with the running statistics.
        momentum: share of the new statistics in the running ones.
        eps: added to the variance.

    Returns:
        A tensor of the input's shape and dtype.

    Raises:
        ValueError: one pixel per channel, or no running statistics when they are asked for.

    References:
        Ulyanov, Vedaldi, Lempitsky, "Instance normalization", 2016.
    """
    if input.ndim not in (3, 4):
        raise ValueError(
            f"instance_norm: input expects shape (N, C, L) or (N, C, H, W), got {input.shape}"
        )
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    pixels = input.numel() // max(input.shape[0] * input.shape[1], 1)
    if pixels == 1:
        raise ValueError(
            "instance_norm: expected more than 1 pixel per channel when using input statistics, "
            f"got input of shape {input.shape}"
        )
    if input.ndim == 3:
        wide = unsqueeze(input, 2)
        return squeeze(
            instance_norm(wide, running_mean, running_var, weight, bias, True, momentum, eps), 2
        )
    out, moments = _grouped(input, input.shape[1], weight, bias, eps)
    if running_mean is not None and running_var is not None and input.numel():
        with no_grad():
            from fastnn.functional.reduce import mean

            spread = Tensor._wrap(moments.invstd) ** -2 - eps
            for running, now in (
                (running_mean, mean(Tensor._wrap(moments.mean), 0)),
                (running_var, mean(spread, 0) * (pixels / (pixels - 1))),
            ):
                running.copy_(running * (1 - momentum) + now * momentum)
    return out


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalisation over the last dimensions.

    Args:
        input: (..., *normalized_shape), float32 or bfloat16.
        normalized_shape: the trailing sizes to normalise over.
        weight: of ``normalized_shape``, or None for ones.
        bias: of ``normalized_shape``, or None for zeros.
        eps: added to the variance.

    Returns:
        A tensor of the input's shape and dtype.

    Raises:
        ValueError: the input's trailing sizes differ from ``normalized_shape``.

    References:
        Ba, Kiros, Hinton, "Layer normalization", 2016.
    """
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not shape or input.shape[-len(shape) :] != shape:
        raise ValueError(
            f"layer_norm: input expects trailing sizes {shape}, got shape {input.shape}"
        )
    for argument, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.shape != shape:
            raise ValueError(f"layer_norm: {argument} expects shape {shape}, got {value.shape}")
    result = _core.layer_norm(input._array, len(shape), array_of(weight), array_of(bias), eps)
    saved = (
        input._array, len(shape), array_of(weight), array_of(bias), result.mean, result.invstd,
    )  # fmt: skip
    return record("layer_norm", result.y, (input, weight, bias), saved, _layer_backward)


def _layer_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    x, dims, weight, bias, mean, invstd = saved
    grads = _core.layer_norm_backward(grad_output, x, dims, weight, mean, invstd)
    return grads.input, _like(grads.weight, weight), _like(grads.bias, bias)


def local_response_norm(
    input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """Division by the activity of neighbouring channels.

    ``y[c] = x[c] * (k + alpha / size * sum of x[c']^2 for c' in a window of size around c)^-beta``

    Args:
        input: (N, C, H, W), float32 or bfloat16.
        size: channels in the window: ``size // 2`` before and ``(size - 1) // 2`` after.
        alpha, beta, k: constants of the formula.

    Returns:
        A tensor of the input's shape and dtype.

    Raises:
        ValueError: the input is not rank 4, or ``size`` is not positive.

    References:
        Krizhevsky, Sutskever, Hinton, "ImageNet classification with deep CNNs", 2012, section 3.3.
    """
    settings = (size, alpha, beta, k)
    output = _core.local_response_norm(input._array, *settings)
    return record(
        "local_response_norm", output, (input,), (input._array, settings), _response_backward
    )


def _response_backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> Any:
    x, settings = saved
    return _core.local_response_norm_backward(grad_output, x, *settings)


TENSOR_METHODS: dict[str, Any] = {}
