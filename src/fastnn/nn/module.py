"""Module: what layers and networks have in common."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

import fastnn._core as _core
from fastnn.autograd import forget_gradients, no_grad
from fastnn.device import gpu_index_of
from fastnn.dtypes import float32
from fastnn.functional.view import to
from fastnn.hooks import RemovableHandle
from fastnn.tensor import Tensor, settle, tensor

M = TypeVar("M", bound="Module")


class Parameter(Tensor):
    """A tensor that a module learns: assigned to a module's attribute it becomes a parameter.

    Args:
        data: the initial values; the memory is shared.
        requires_grad: whether it is learned.

    Raises:
        TypeError: an integer tensor is to be learned.
    """

    __slots__ = ()

    def __new__(cls, data: Tensor, requires_grad: bool = True) -> Parameter:
        values = data if isinstance(data, Tensor) else tensor(data)
        if requires_grad and not values.dtype.is_floating_point:
            raise TypeError(
                f"Parameter: expected dtype float32 or bfloat16, got {values.dtype.name}; "
                "pass requires_grad=False"
            )
        return cls._wrap(values._array).requires_grad_(requires_grad)  # type: ignore[return-value]

    def __init__(self, data: Tensor, requires_grad: bool = True) -> None:
        pass

    def __deepcopy__(self, memo: dict[int, Any]) -> Parameter:
        """As pickled: without ``.grad``, as PyTorch's."""
        rebuilt, values = self.__reduce__()
        return rebuilt(*values)

    def __repr__(self) -> str:
        return "Parameter containing:\n" + super().__repr__()


class LoadResult(NamedTuple):
    """What a loose :meth:`Module.load_state_dict` passed over."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """Base of all layers and networks.

    Subclasses create parameters and submodules in ``__init__`` (after ``super().__init__()``) and compute
    in ``forward``. Attributes that are :class:`Parameter` or :class:`Module` are found by walking the
    attributes, in the order of assignment; other tensors become buffers by :meth:`register_buffer`.

    Attributes:
        training: what dropout and batch norm look at; set by :meth:`train` and :meth:`eval`.
        float32_state: of a class; True keeps its own parameters and buffers float32 in :meth:`to`, as
            norms do: their kernels take bfloat16 images with float32 weights and statistics.
    """

    training: bool
    float32_state: bool = False

    if TYPE_CHECKING:
        # Parameters, buffers and submodules may have any name.
        def __getattr__(self, name: str) -> Any: ...

    def __init__(self) -> None:
        self.training = True
        self._buffers: dict[str, bool] = {}  # name -> persistent
        self._forward_hooks: list[Callable[..., Any]] = []
        self._forward_pre_hooks: list[Callable[..., Any]] = []

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, (Parameter, Module)) and "_buffers" not in self.__dict__:
            raise AttributeError(
                f"{type(self).__name__}: call super().__init__() before assigning {name!r}"
            )
        held = self.__dict__.get(name)
        if isinstance(held, Parameter) and isinstance(value, Tensor):
            if not isinstance(value, Parameter):
                raise TypeError(
                    f"{type(self).__name__}.{name}: expected a Parameter or None, got a Tensor; "
                    "use .copy_() under no_grad() to change its values"
                )
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        self._buffers.pop(name, None)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: computed attributes (a normalised weight) without their tape."""
        return {
            name: value.detach() if isinstance(value, Tensor) and not value.is_leaf else value
            for name, value in self.__dict__.items()
        }

    # Calls.

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__}: forward() is not written")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for hook in self._forward_pre_hooks:
            changed = hook(self, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        result = self.forward(*args, **kwargs)
        for hook in self._forward_hooks:
            changed = hook(self, args, result)
            if changed is not None:
                result = changed
        return result

    def has_hooks(self) -> bool:
        """Whether any forward hook, before or after, is registered."""
        return bool(self._forward_hooks or self._forward_pre_hooks)

    def register_forward_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Calls ``hook(module, args, result)`` after forward; a result that is not None replaces it.

        Returns:
            A handle whose ``remove()`` takes the hook off.
        """
        self._forward_hooks.append(hook)
        return RemovableHandle(self._forward_hooks, hook)

    def register_forward_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Calls ``hook(module, args)`` before forward; a result that is not None replaces the args.

        Returns:
            A handle whose ``remove()`` takes the hook off.
        """
        self._forward_pre_hooks.append(hook)
        return RemovableHandle(self._forward_pre_hooks, hook)

    # What it holds.

    def register_buffer(self, name: str, value: Tensor | None, persistent: bool = True) -> None:
        """A tensor that is state but not learned; saved in :meth:`state_dict` if persistent."""
        self._check_name(name)
        if isinstance(value, Parameter) or isinstance(self.__dict__.get(name), Parameter):
            raise TypeError(f"register_buffer: {name!r} is a parameter of {type(self).__name__}")
        self._buffers[name] = persistent
        setattr(self, name, value)

    def register_parameter(self, name: str, value: Parameter | None) -> None:
        """The same as assigning an attribute, for names known only at run time.

        Raises:
            ValueError: the name is taken, empty or has a dot.
            TypeError: ``value`` is neither a Parameter nor None.
        """
        self._check_name(name)
        if value is not None and not isinstance(value, Parameter):
            raise TypeError(f"register_parameter: expected a Parameter, got {type(value).__name__}")
        setattr(self, name, value)

    def add_module(self, name: str, module: Module | None) -> None:
        """The same as assigning an attribute, for names known only at run time.

        Raises:
            ValueError: the name is taken, empty or has a dot.
            TypeError: ``module`` is neither a Module nor None.
        """
        self._check_name(name)
        if module is not None and not isinstance(module, Module):
            raise TypeError(
                f"{type(self).__name__}: expected a Module, got {type(module).__name__}"
            )
        setattr(self, name, module)

    def _check_name(self, name: str) -> None:
        """Names are parts of dotted paths, and must not hide methods."""
        held = (Parameter, Module, Tensor, type(None))
        if not name or "." in name or not isinstance(getattr(self, name, None), held):
            raise ValueError(
                f"{type(self).__name__}: expected a name without dots that no attribute has, "
                f"got {name!r}"
            )

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Direct submodules with their attribute names."""
        for name, value in self.__dict__.items():
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        """Direct submodules."""
        for _, child in self.named_children():
            yield child

    def named_modules(
        self, prefix: str = "", _seen: set[int] | None = None
    ) -> Iterator[tuple[str, Module]]:
        """This module and all below it, each once, with dotted names."""
        seen = set() if _seen is None else _seen
        if id(self) in seen:
            return
        seen.add(id(self))
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name, seen)

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once."""
        for _, module in self.named_modules():
            yield module

    def named_parameters(
        self, prefix: str = "", recurse: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """All parameters, each once, with dotted names; without ``recurse`` the module's own."""
        seen: set[int] = set()
        for path, module in self.named_modules(prefix) if recurse else [(prefix, self)]:
            for name, value in module.__dict__.items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield f"{path}.{name}" if path else name, value

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """All parameters, each once; without ``recurse`` the module's own."""
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    def named_buffers(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
        """All buffers with dotted names; without ``recurse`` the module's own."""
        for path, module in self.named_modules(prefix) if recurse else [(prefix, self)]:
            for name in module._buffers:
                value = getattr(module, name)
                if value is not None:
                    yield f"{path}.{name}" if path else name, value

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """All buffers; without ``recurse`` the module's own."""
        for _, buffer in self.named_buffers(recurse=recurse):
            yield buffer

    def get_submodule(self, path: str) -> Module:
        """The submodule of a dotted name.

        Raises:
            AttributeError: there is none.
        """
        module: Any = self
        for part in filter(None, path.split(".")):
            module = getattr(module, part)
        return module

    def get_parameter(self, path: str) -> Parameter:
        """The parameter of a dotted name.

        Raises:
            AttributeError: there is none.
        """
        module, _, name = path.rpartition(".")
        return getattr(self.get_submodule(module), name)

    # Changes to all of it.

    def train(self: M, mode: bool = True) -> M:
        """Training behaviour (dropout, batch statistics) on or off, here and below."""
        self.training = mode
        for child in self.children():
            child.train(mode)
        return self

    def eval(self: M) -> M:
        """The same as ``train(False)``."""
        return self.train(False)

    def apply(self: M, function: Callable[[Module], Any]) -> M:
        """Calls ``function`` on every submodule and then on this one."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        """Sets ``requires_grad`` of every parameter."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients of every parameter, or overwrites them with zeros."""
        forget_gradients(self.parameters(), set_to_none)

    def to(
        self: M, *args: Any, dtype: Any = None, device: Any = None, non_blocking: bool = False
    ) -> M:
        """Floating parameters and buffers in another dtype or on another device, in place.

        ``to(dtype)``, ``to(device)`` and ``to(device, dtype)`` as in PyTorch, ``non_blocking`` as of
        tensors; gradients go with their parameters. Norms (:attr:`float32_state`) stay float32.
        Parameters stay the same objects; buffers, which may be tensors of the caller, become others.

        Raises:
            RuntimeError: the device is not available.
        """

        def placed(value: Tensor, keeps_float32: bool) -> Tensor:
            moved = to(value.detach(), *args, dtype=dtype, device=device, non_blocking=non_blocking)
            if not value.dtype.is_floating_point:
                return to(value.detach(), device=moved.device)
            if keeps_float32 and moved.dtype is not float32:
                return to(value.detach(), "float32", device=moved.device)
            return moved

        made: dict[int, tuple[Tensor, Tensor]] = {}  # by identity: shared buffers stay shared
        with no_grad():
            for module in self.modules():
                for parameter in module.parameters(recurse=False):
                    moved = placed(parameter, module.float32_state)
                    if moved._array is not parameter._array:
                        parameter._array = moved._array
                        if (gradient := parameter.grad) is not None:
                            parameter.grad = to(gradient, moved.dtype, device=moved.device)
                for name, buffer in list(module.named_buffers(recurse=False)):
                    if id(buffer) not in made:
                        moved = placed(buffer, module.float32_state)
                        moved = buffer if moved._array is buffer._array else moved
                        made[id(buffer)] = buffer, moved.requires_grad_(buffer.requires_grad)
                    setattr(module, name, made[id(buffer)][1])
        return self

    def cuda(self: M, device: int | str | None = None) -> M:
        """:meth:`to` a GPU, the current one if left out."""
        return self.to(device=gpu_index_of(device))

    def cpu(self: M) -> M:
        """:meth:`to` the CPU."""
        return self.to(device="cpu")

    # State.

    def _state(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """As PyTorch: in each module parameters, buffers, children; what is shared, under each name."""
        for name, value in self.__dict__.items():
            if isinstance(value, Parameter):
                yield prefix + name, value
        for name, persistent in self._buffers.items():
            value = getattr(self, name)
            if persistent and value is not None:
                yield prefix + name, value
        for name, child in self.named_children():
            yield from child._state(f"{prefix}{name}.")

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and persistent buffers by dotted name, sharing their memory."""
        return OrderedDict((name, value.detach()) for name, value in self._state())

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Copies values into the parameters and buffers of the same names.

        Args:
            state: tensors or NumPy arrays by dotted name.
            strict: refuse missing and unexpected names; shapes must fit in any case.

        Returns:
            ``(missing_keys, unexpected_keys)``, both empty if ``strict``.

        Raises:
            RuntimeError: names or shapes do not fit; lists every one. Nothing is changed then.
        """
        own = dict(self._state())
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        problems = []
        if strict and missing:
            problems.append("missing: " + ", ".join(missing))
        if strict and unexpected:
            problems.append("unexpected: " + ", ".join(unexpected))
        for name in own:
            if name in state and tuple(state[name].shape) != own[name].shape:
                problems.append(
                    f"{name}: expected shape {own[name].shape}, got {tuple(state[name].shape)}"
                )
        if problems:
            raise RuntimeError(
                f"load_state_dict: the state does not fit {type(self).__name__}:\n  "
                + "\n  ".join(problems)
            )
        settle()
        for name, target in own.items():
            if name in state:
                value = state[name]
                source = value if isinstance(value, Tensor) else tensor(np.asarray(value))
                _core.copy_into(target._array, _core.to_device(source._array, target._array.device))
        return LoadResult(missing, unexpected)

    # Text.

    def extra_repr(self) -> str:
        """What stands between the parentheses of ``repr`` for a layer."""
        return ""

    def __repr__(self) -> str:
        lines = [
            f"({name}): " + repr(child).replace("\n", "\n  ")
            for name, child in self.named_children()
        ]
        head, extra = type(self).__name__, self.extra_repr()
        if not lines:
            return f"{head}({extra})"
        first = [extra] if extra else []
        return head + "(\n  " + "\n  ".join(first + lines) + "\n)"
