"""Modules that hold modules."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fastnn.nn.module import Module


class ModuleList(Module):
    """A list of modules whose parameters are found; without a forward of its own.

    Args:
        modules: the initial contents.
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self.extend(modules)

    def _items(self) -> list[Module]:
        return list(self.children())

    def append(self, module: Module) -> ModuleList:
        """Adds a module at the end."""
        if not isinstance(module, Module):
            raise TypeError(
                f"{type(self).__name__}: expected a Module, got {type(module).__name__}"
            )
        self.add_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> ModuleList:
        """Adds modules at the end."""
        for module in modules:
            self.append(module)
        return self

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice):
            return self._items()[index]
        if isinstance(self, Sequential):
            return Sequential(dict(list(self.named_children())[index]))
        return ModuleList(self._items()[index])

    def __setitem__(self, index: int, module: Module) -> None:
        """Puts another module in the place, and under the name, of one."""
        self.add_module(list(dict(self.named_children()))[index], module)


@functools.cache
def _fusing() -> tuple[frozenset[type], dict[type, str]]:
    """Layers that can apply an activation before they write their result, and those activations."""
    from fastnn.nn.activation import ReLU, ReLU6
    from fastnn.nn.conv import Conv2d
    from fastnn.nn.norm import BatchNorm1d, BatchNorm2d

    return frozenset((Conv2d, BatchNorm1d, BatchNorm2d)), {ReLU: "relu", ReLU6: "relu6"}


class Sequential(ModuleList):
    """Modules called one after the other.

    A :class:`ReLU` or :class:`ReLU6` right after a :class:`Conv2d` or a batch norm is applied by that
    layer while its result is still in registers: one pass over memory less in each direction, the same
    numbers. Subclasses of these layers and layers with forward hooks are called one by one.

    Args:
        *modules: the modules, or one mapping of names to modules.

    Attributes:
        fuse: set it to False, on the class or on one object, to call every module by itself. A
            convolution or batch norm that is recorded waits for a ReLU all the same
            (:func:`fastnn.nn.functional.conv2d`).

    Example:
        >>> from fastnn import nn
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    """

    fuse = True

    def __init__(self, *modules: Any) -> None:
        Module.__init__(self)
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            for name, module in modules[0].items():
                self.add_module(name, module)
        else:
            self.extend(modules)

    def forward(self, input: Any) -> Any:
        layers, activations = _fusing()
        modules = self._items()
        i = 0
        while i < len(modules):
            module, after = modules[i], modules[i + 1] if i + 1 < len(modules) else None
            joins = self.fuse and type(module) in layers
            activation = activations.get(type(after)) if joins else None
            if activation and not any(m.has_hooks() for m in modules[i : i + 2]):
                input = module(input, activation=activation)
                i += 2
            else:
                input = module(input)
                i += 1
        return input


class ModuleDict(Module):
    """Modules by name whose parameters are found; without a forward of its own.

    Args:
        modules: the initial contents.
    """

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        super().__init__()
        for name, module in (modules or {}).items():
            self[name] = module

    def __setitem__(self, name: str, module: Module) -> None:
        self.add_module(name, module)

    def __getitem__(self, name: str) -> Module:
        return dict(self.named_children())[name]

    def __contains__(self, name: object) -> bool:
        return name in dict(self.named_children())

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.named_children())

    def items(self) -> Iterator[tuple[str, Module]]:
        """Names and modules."""
        return self.named_children()
