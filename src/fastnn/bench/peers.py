"""The same call in PyTorch, found by name: our operators have its names, arguments and order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastnn.bench.row import FAILURES, left_out
from fastnn.reference.case import Problem

Passes = tuple[Callable[[], Any], Callable[[], Any] | None]

#: Our operators whose PyTorch counterpart is an optimizer with a fused step.
_OPTIMIZERS = {"sgd_step": "SGD", "adam_step": "Adam", "adagrad_step": "Adagrad"}


def peers(
    op: str, problem: Problem, inputs: dict[str, Any], device: str = "cpu"
) -> dict[str, Passes]:
    """Forward and backward of one case in PyTorch, by memory layout; empty if it has no such call.

    Args:
        op: operator.
        problem: of the case.
        inputs: our tensors, whose values are copied.
        device: where.

    Returns:
        ``{label: (forward, backward or None)}``
    """
    import torch

    import fastnn

    torch.set_num_threads(fastnn.get_num_threads())
    if op in _OPTIMIZERS:
        return _optimizer(op, problem, inputs, torch, device)
    call = getattr(torch.nn.functional, op, None) or getattr(torch, op, None)
    if call is None:
        return {}
    found: dict[str, Passes] = {}
    images = any(getattr(v, "ndim", 0) == 4 for v in inputs.values())
    layouts = {"torch contiguous": torch.contiguous_format}
    if images:
        layouts["torch channels_last"] = torch.channels_last
    for label, layout in layouts.items():
        try:
            found[label] = _passes(torch, call, problem, inputs, layout)
        except (TypeError, ValueError):
            return {}  # PyTorch has no such option (a fused activation, say): no peer
        except FAILURES as error:
            left_out(f"{label} ({op})", error)
    return found


def _passes(torch: Any, call: Any, problem: Problem, inputs: dict[str, Any], layout: Any) -> Passes:
    # None is everywhere the default; leaving it out skips options that only we have.
    arguments = {
        name: _copied(torch, value, layout)
        for name, value in (inputs | problem.kwargs).items()
        if value is not None
    }
    out = call(**arguments)
    first = out[0] if isinstance(out, (tuple, list)) else out
    lists = [v if isinstance(v, list) else [v] for v in arguments.values()]
    leaves = [t for ts in lists for t in ts if getattr(t, "requires_grad", False)]
    backward = None
    if getattr(first, "requires_grad", False):
        gradient = torch.ones_like(first)

        def backward() -> Any:
            return torch.autograd.grad(first, leaves, gradient, retain_graph=True)

    def forward() -> Any:
        with torch.no_grad():
            return call(**arguments)

    return forward, backward


def _copied(torch: Any, value: Any, layout: Any) -> Any:
    if isinstance(value, list):
        return [_copied(torch, v, layout) for v in value]
    if not hasattr(value, "detach"):
        return value
    shared = torch.from_dlpack(value.detach())
    out = shared.clone(memory_format=layout) if shared.ndim == 4 else shared.clone()
    return out.requires_grad_(value.requires_grad)


def _optimizer(
    op: str, problem: Problem, inputs: dict[str, Any], torch: Any, device: str
) -> dict[str, Passes]:
    """PyTorch's fused optimizer, with the options that the case gives."""
    params, grads = (
        [torch.from_dlpack(t.detach()).float().clone() for t in inputs[name]]
        for name in ("params", "grads")
    )
    for p, g in zip(params, grads, strict=True):
        p.requires_grad_(True)
        p.grad = g
    known = {"lr", "momentum", "dampening", "weight_decay", "nesterov", "betas", "eps", "amsgrad"}
    options = {k: v for k, v in problem.kwargs.items() if k in known}
    if device != "cpu" and _OPTIMIZERS[op] == "Adam":
        options["capturable"] = True  # its step count on the GPU: else no graph can take its step
    try:
        optimizer = getattr(torch.optim, _OPTIMIZERS[op])(params, fused=True, **options)
        optimizer.step()
    except (TypeError, RuntimeError, ValueError):
        return {}
    return {"torch fused": (optimizer.step, None)}
