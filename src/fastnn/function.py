"""Operators of a user's own: a forward and a backward, written with tensors."""

from __future__ import annotations

from typing import Any

import fastnn._core as _core
from fastnn.autograd import is_grad_enabled, is_recorded, no_grad, record_many
from fastnn.tensor import Tensor


class Context:
    """What a :class:`Function`'s forward leaves for its backward; may have any attributes.

    Attributes:
        needs_input_grad: per argument of ``forward``, whether a gradient is asked for.
    """

    def __init__(self, needs: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs
        self._saved: tuple[Tensor | None, ...] = ()
        self._constant: set[int] = set()

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keeps tensors; that one was changed in place since is noticed by the backward."""
        for tensor in tensors:
            if tensor is not None and not isinstance(tensor, Tensor):
                raise TypeError(
                    f"save_for_backward: expected tensors or None, got {type(tensor).__name__}; "
                    "keep other values as attributes of ctx"
                )
        self._saved = tuple(t if t is None else Tensor._wrap(t._array) for t in tensors)

    @property
    def saved_tensors(self) -> tuple[Tensor | None, ...]:
        """What :meth:`save_for_backward` was given, in order."""
        return self._saved

    def mark_non_differentiable(self, *outputs: Tensor) -> None:
        """Says of outputs of the forward that they take no part in gradients."""
        self._constant |= {id(output) for output in outputs}


class Function:
    """An operator with a backward of its own, as PyTorch's ``torch.autograd.Function``.

    Subclasses write two static methods; :meth:`apply` calls them. Neither is recorded: they may use
    any operator, and NumPy. Double backward is not supported.

    Example:
        >>> import fastnn
        >>> class Cube(fastnn.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         ctx.save_for_backward(x)
        ...         return x * x * x
        ...
        ...     @staticmethod
        ...     def backward(ctx, grad_output):
        ...         (x,) = ctx.saved_tensors
        ...         return 3 * x * x * grad_output
        >>> x = fastnn.tensor([2.0], requires_grad=True)
        >>> Cube.apply(x).backward()
        >>> x.grad
        tensor([12.])
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        """The outputs, a tensor or a tuple of them, for arguments of any kind."""
        raise NotImplementedError("Function: write forward(ctx, *args) as a static method")

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """A gradient (or None) per argument of ``forward``, for one per output: zeros for an output
        that was not used."""
        raise NotImplementedError("Function: write backward(ctx, *grad_outputs) as a static method")

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Runs the forward, and records the operator if an argument wants a gradient.

        Raises:
            TypeError: the forward gave something else than tensors.
        """
        inputs = [a if isinstance(a, Tensor) else None for a in args]
        recording = is_grad_enabled()
        ctx = Context(tuple(t is not None and recording and t.requires_grad for t in inputs))
        with no_grad():
            found = cls.forward(ctx, *args)
        outputs = (found,) if isinstance(found, Tensor) else found
        if not isinstance(outputs, tuple) or not all(isinstance(o, Tensor) for o in outputs):
            raise TypeError(
                f"{cls.__name__}: forward expects to give a tensor or a tuple of tensors, got "
                f"{type(found).__name__}"
            )
        if not is_recorded(inputs):
            return found
        arrays = [o._array for o in outputs]
        given = [None if t is None else (t.shape, t.dtype.name, t.device) for t in inputs]
        made = [(o.shape, o.dtype.name) for o in outputs]
        saved = (cls, ctx, given, made, *(t._array for t in ctx._saved if t is not None))
        wrapped = record_many(cls.__name__, arrays, inputs, saved, _backward)
        for output, before in zip(wrapped, outputs, strict=True):
            if id(before) in ctx._constant:
                output._node, output._requires_grad = None, False
        return wrapped[0] if isinstance(found, Tensor) else wrapped


def _backward(saved: Any, grad_output: Any, needs: tuple[bool, ...]) -> tuple[Any, ...]:
    cls, ctx, given, made = saved[:4]
    grads = (grad_output,) if len(made) == 1 else grad_output
    like = next(g for g in grads if g is not None)
    with no_grad():
        found = cls.backward(
            ctx,
            *(
                Tensor._wrap(_core.new_full(like, shape, 0.0, dtype) if g is None else g)
                for g, (shape, dtype) in zip(grads, made, strict=True)
            ),
        )
    found = found if isinstance(found, tuple) else (found,)
    if len(found) != len(needs):
        raise RuntimeError(
            f"{cls.__name__}: backward expects to give a gradient or None for each of forward's "
            f"{len(needs)} arguments, got {len(found)}"
        )
    return tuple(
        None if gradient is None else _checked(f"{cls.__name__}: backward", i, gradient, given[i])
        for i, gradient in enumerate(found)
    )


def _checked(name: str, place: int, gradient: Any, argument: Any) -> Any:
    """The array of an argument's gradient, of its dtype."""
    if argument is None or not isinstance(gradient, Tensor):
        wanted = "None" if argument is None else "a tensor or None"
        got = type(gradient).__name__
        raise TypeError(f"{name} expects to give {wanted} for argument {place}, got {got}")
    shape, dtype, device = argument
    if (gradient.shape, gradient.device) != (shape, device):
        raise RuntimeError(
            f"{name} expects to give shape {shape} on {device} for argument {place}, got "
            f"{gradient.shape} on {gradient.device}"
        )
    return _core.astype(gradient._array, dtype)
