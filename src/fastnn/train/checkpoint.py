"""Everything a training run needs to continue as if it had never stopped."""

from __future__ import annotations

import os
from typing import Any

import fastnn
from fastnn.io import load_nested, save_nested
from fastnn.train.config import TrainConfig


def save_checkpoint(
    path: str | os.PathLike[str],
    model: Any,
    optimizer: Any,
    config: TrainConfig,
    epoch: int,
    history: list[dict[str, float]],
) -> None:
    """Writes the state between two epochs, atomically.

    Parameters
    ----------
    path : path
    model : fastnn.nn.Module
    optimizer : fastnn.optim.Optimizer
    config : TrainConfig
    epoch : int
        Epochs that are done.
    history : list of dict
        The metrics of each of them.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    save_nested(
        path,
        {
            "version": 1,
            "epoch": epoch,
            "history": history,
            "config": config.as_dict(),
            "random": fastnn.get_rng_state(),
            "model": dict(model.state_dict()),
            "optimizer": optimizer.state_dict(),
        },
    )


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint as a dict with the names of :func:`save_checkpoint`'s parts.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is corrupt, no checkpoint, or of another version.
    """
    state = load_nested(path)
    parts = {"epoch", "history", "config", "random", "model", "optimizer"}
    if not isinstance(state, dict) or not parts <= set(state):
        raise ValueError(f"load_checkpoint: {os.fspath(path)!r} is no checkpoint of a training")
    if state.get("version") != 1:
        raise ValueError(
            f"load_checkpoint: {os.fspath(path)!r} has version {state.get('version')}, expected 1"
        )
    return state


def restore(state: dict[str, Any], model: Any, optimizer: Any) -> None:
    """Puts a loaded checkpoint into a model and an optimizer, and the generator where it was."""
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    fastnn.set_rng_state(tuple(state["random"]))  # type: ignore[arg-type]
