"""Named tensors in a safetensors file, with text beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import fastnn
from fastnn.io.atomic import atomic_write


def save_state(
    path: str | os.PathLike[str],
    state: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes tensors by name, atomically; any program that reads safetensors can read the file.

    Parameters
    ----------
    path : path
        Of the file; its directory must exist.
    state : mapping of str to Tensor or ndarray
        Such as ``model.state_dict()``; dtypes are kept, bfloat16 too.
    metadata : mapping of str to str, optional
        Kept in the file's header.

    Raises
    ------
    TypeError
        A value is neither a tensor nor an array.
    OSError
        The file cannot be written.

    Examples
    --------
    >>> save_state("net.safetensors", model.state_dict(), {"epoch": "3"})  # doctest: +SKIP
    """
    import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy
    from safetensors.numpy import save

    arrays = {}
    for name, value in state.items():
        if isinstance(value, fastnn.Tensor):
            value = value.detach().cpu().numpy()
        if not isinstance(value, np.ndarray):
            raise TypeError(
                f"save_state: {name} expects a Tensor or an ndarray, got {type(value).__name__}"
            )
        # Weights are stored OHWI in memory; the file has every tensor row-major.
        arrays[name] = np.asarray(value, order="C")
    atomic_write(path, save(arrays, dict(metadata) if metadata else None))


def load_state(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays by name and the metadata of a safetensors file.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is truncated, corrupt or of another kind.
    """
    import ml_dtypes  # noqa: F401
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"load_state: there is no file {str(path)!r}")
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"load_state: {str(path)!r} is truncated or no safetensors file ({error})"
        ) from error
    return arrays, metadata
