"""Weight normalisation: a weight as a direction and a length (Salimans and Kingma, 2016)."""

from __future__ import annotations

from typing import TypeVar

from fastnn.autograd import no_grad
from fastnn.nn.module import Module, Parameter
from fastnn.tensor import Tensor

M = TypeVar("M", bound=Module)


def _length(v: Tensor, dim: int) -> Tensor:
    """Euclidean norm over every dimension but ``dim``, kept for broadcasting."""
    others = tuple(d for d in range(v.ndim) if d != dim)
    return (v * v).sum(others, keepdim=True).sqrt()


class _Compute:
    """The forward pre-hook; an object, so that copies of the module carry their own."""

    def __init__(self, name: str, dim: int) -> None:
        self.name, self.dim = name, dim

    def __call__(self, owner: Module, args: tuple) -> None:
        v, g = getattr(owner, f"{self.name}_v"), getattr(owner, f"{self.name}_g")
        object.__setattr__(owner, self.name, v * (g / _length(v, self.dim)))


def weight_norm(module: M, name: str = "weight", dim: int = 0) -> M:
    """Replaces a parameter by ``<name>_g * <name>_v / |<name>_v|``, recomputed in each forward.

    Args:
        module: has the parameter.
        name: of the parameter.
        dim: the dimension that keeps one length per index (0: per output channel).

    Raises:
        ValueError: the module has no such parameter.
    """
    weight = module.__dict__.get(name)
    if not isinstance(weight, Parameter):
        raise ValueError(f"weight_norm: {type(module).__name__} has no parameter {name!r}")
    with no_grad():
        length = _length(weight.detach(), dim)
    delattr(module, name)
    setattr(module, f"{name}_g", Parameter(length))
    setattr(module, f"{name}_v", Parameter(weight.detach().clone()))
    compute = _Compute(name, dim)
    compute(module, ())
    module.register_forward_pre_hook(compute)
    return module


def remove_weight_norm(module: M, name: str = "weight") -> M:
    """Makes the normalised weight a plain parameter again.

    Raises:
        ValueError: the parameter is not normalised.
    """
    hooks = module._forward_pre_hooks
    found = [hook for hook in hooks if isinstance(hook, _Compute) and hook.name == name]
    if not found:
        raise ValueError(f"remove_weight_norm: {name!r} of {type(module).__name__} has none")
    with no_grad():
        found[0](module, ())  # an optimizer may have stepped since the last forward
    hooks.remove(found[0])
    value = getattr(module, name).detach().clone()
    for part in (f"{name}_g", f"{name}_v", name):
        delattr(module, part)
    setattr(module, name, Parameter(value))
    return module
