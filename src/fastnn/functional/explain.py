"""Says what is wrong with a call whose arguments are of unsuitable types.

The check runs only after the call has failed, so that a good call pays nothing for it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from fastnn.tensor import Tensor


def explained(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, whose failures over types name the argument, what it expects and what came."""
    signature = inspect.signature(function)
    expects = {
        name: "None" in str(parameter.annotation)
        for name, parameter in signature.parameters.items()
        if str(parameter.annotation) in ("Tensor", "Tensor | None")
    }

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (AttributeError, TypeError) as error:
            problem = _problem(function.__name__, signature, expects, args, kwargs, error)
            if problem is None:
                raise
            raise TypeError(problem) from None

    return call


def _problem(
    name: str,
    signature: inspect.Signature,
    expects: dict[str, bool],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    error: Exception,
) -> str | None:
    message = str(error)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError as mismatch:
        return f"{name}: {mismatch}; the arguments are {signature}"
    for argument, optional in expects.items():
        value = given.get(argument)
        if isinstance(value, Tensor) or (argument not in given) or (optional and value is None):
            continue
        return (
            f"{name}: {argument} expects a fastnn.Tensor{' or None' if optional else ''}, "
            f"got {type(value).__name__}; fastnn.tensor(...) makes one"
        )
    if "incompatible function arguments" in message:  # the extension module's own words
        other = {k: type(v).__name__ for k, v in given.items() if k not in expects}
        listed = ", ".join(f"{k}: {kind}" for k, kind in other.items())
        return f"{name}: an argument has an unsuitable type, got {listed}; see help({name})"
    if isinstance(error, TypeError) and name not in message:
        return f"{name}: {message}"
    return None
