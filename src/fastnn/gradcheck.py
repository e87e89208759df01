"""Finite-difference checks of gradients, for users' own modules and losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fastnn.autograd import no_grad
from fastnn.tensor import Tensor, tensor


def gradcheck(
    function: Callable[..., Tensor],
    inputs: Tensor | Sequence[Tensor],
    eps: float = 1e-2,
    atol: float = 2e-2,
    rtol: float = 2e-2,
    samples: int = 64,
    seed: int = 0,
) -> bool:
    """Compares analytic gradients of ``sum(function(*inputs) * w)``, w random, with central ones.

    Kernels compute in float32, so a difference quotient carries an error near ``1e-7 / eps``
    relative to the sum; the defaults balance it against the quotient's own error of order eps**2.

    Args:
        function: differentiable function of the inputs giving one tensor.
        inputs: float32 tensors; those with ``requires_grad`` are checked.
        eps: step of the difference quotient.
        atol, rtol: allowed absolute and relative error.
        samples: at most this many elements of each input are checked, chosen at random.
        seed: of the weights ``w`` and the choice.

    Returns:
        True.

    Raises:
        AssertionError: a gradient is off; says which input and element, with both values.
    """
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    rng = np.random.default_rng(seed)
    values = [np.asarray(t).astype(np.float32) for t in inputs]
    live = [
        tensor(v, requires_grad=t.requires_grad, device=t.device)
        if t.dtype.is_floating_point
        else t
        for v, t in zip(values, inputs, strict=True)
    ]
    output = function(*live)
    weight = rng.standard_normal(output.shape).astype(np.float32)
    output.backward(tensor(weight, device=output.device))

    def objective(index: int, at: tuple[int, ...], step: float) -> float:
        moved = values[index].copy()
        moved[at] += np.float32(step)
        arguments = list(live)
        arguments[index] = tensor(moved, device=live[index].device)
        with no_grad():
            result = np.asarray(function(*arguments)).astype(np.float64)
        return float((result * weight).sum())

    for index, t in enumerate(live):
        if not t.requires_grad:
            continue
        analytic = np.zeros(t.shape) if t.grad is None else np.asarray(t.grad)
        for flat in rng.permutation(t.numel())[:samples]:
            at = tuple(int(i) for i in np.unravel_index(flat, t.shape))
            numeric = (objective(index, at, eps) - objective(index, at, -eps)) / (2 * eps)
            error = abs(numeric - analytic[at])
            assert error <= atol + rtol * abs(numeric), (
                f"gradcheck: input {index} at {at}: backward gives {analytic[at]:.6g}, "
                f"finite differences give {numeric:.6g}"
            )
    return True
