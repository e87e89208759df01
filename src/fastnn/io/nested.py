"""Nested dicts and lists with tensors in them, such as an optimizer's state, in a safetensors file.

Tensors become entries of the file; everything around them becomes JSON in its metadata.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

import fastnn
from fastnn.io.tensors import load_state, save_state

_KEY = "fastnn.nested"


def save_nested(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a value of dicts, lists, tuples, numbers, strings, None, tensors and arrays.

    Raises
    ------
    TypeError
        There is something else in it.
    OSError
        The file cannot be written.
    """
    tensors: dict[str, Any] = {}
    text = json.dumps(_split(value, "", tensors))
    save_state(path, tensors, {_KEY: text})


def load_nested(path: str | os.PathLike[str]) -> Any:
    """What :func:`save_nested` wrote, with arrays in place of tensors.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is corrupt, or :func:`save_nested` did not write it.
    """
    arrays, metadata = load_state(path)
    if _KEY not in metadata:
        raise ValueError(f"load_nested: {str(path)!r} is no checkpoint: it holds weights only")
    try:
        return _join(json.loads(metadata[_KEY]), arrays)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"load_nested: {str(path)!r} is corrupt ({error!r})") from error


def _split(value: Any, path: str, tensors: dict[str, Any]) -> Any:
    """JSON for ``value``; every container says its kind, so that no key can be mistaken for one."""
    if isinstance(value, (fastnn.Tensor, np.ndarray)):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": [[key, _split(v, f"{path}.{key}", tensors)] for key, v in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_split(v, f"{path}.{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"save_nested: {path or 'value'} has type {type(value).__name__}")


def _join(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value
    (kind, inner), *more = value.items()
    if more or kind not in ("tensor", "dict", "list", "tuple"):
        raise TypeError(f"unknown entry {kind!r}")
    if kind == "tensor":
        return arrays[inner]
    if kind == "dict":
        return {key: _join(v, arrays) for key, v in inner}
    items = [_join(v, arrays) for v in inner]
    return items if kind == "list" else tuple(items)
