"""A model in one file: its weights, and what is needed to build it again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from fastnn.io.tensors import load_state, save_state


def save_model(
    path: str | os.PathLike[str],
    model: Any,
    name: str,
    config: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model's state dict with its name and configuration.

    Parameters
    ----------
    path : path
    model : fastnn.nn.Module
    name : str
        Of a model that ``fastnn.models.create_model`` knows.
    config : mapping
        Keyword arguments of that call.
    extra : mapping, optional
        Anything JSON can hold: how inputs are prepared, names of the classes.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    about = {"model": name, "config": dict(config), "extra": dict(extra or {})}
    save_state(path, model.state_dict(), {"fastnn.model": json.dumps(about)})


def load_model(path: str | os.PathLike[str], device: str = "cpu") -> tuple[Any, dict[str, Any]]:
    """The model of a file, in ``eval`` mode, and what :func:`save_model` was told about it.

    Parameters
    ----------
    path : path
        Of a model saved from any device: a file does not say from which.
    device : str
        Where the model is to be.

    Returns
    -------
    model : fastnn.nn.Module
    about : dict
        ``{"model": name, "config": {...}, "extra": {...}}``.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    RuntimeError
        The device is not available.
    ValueError
        The file is corrupt, :func:`save_model` did not write it, or its weights do not fit.
    """
    from fastnn.models import create_model
    from fastnn.tensor import tensor

    state, metadata = load_state(path)
    if "fastnn.model" not in metadata:
        raise ValueError(
            f"load_model: {str(path)!r} does not say which model it holds; expected a file of "
            "save_model or of fastnn train"
        )
    try:
        about = json.loads(metadata["fastnn.model"])
        name, config = about["model"], about["config"]
        about.setdefault("extra", {})
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"load_model: {str(path)!r} has corrupt metadata ({error!r})") from error
    try:
        model = create_model(name, **config)
        model.load_state_dict({key: tensor(value) for key, value in state.items()})
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"load_model: the weights of {str(path)!r} do not fit: {error}") from error
    model.eval()
    return model.to(device), about
