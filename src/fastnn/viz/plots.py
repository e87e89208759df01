"""Curves of loss and accuracy, and the confusion matrix, as PNG files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np


def require_matplotlib() -> None:
    """Raises ModuleNotFoundError with the cure unless matplotlib is installed."""
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            "viz: pictures need matplotlib, which is not installed; "
            'pip install ".[demo]" in the clone'
        )


def _figure(width: float, height: float) -> Any:
    require_matplotlib()
    # Not pyplot: it costs a second to import, picks a window system, and keeps every figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def curves(history: Sequence[dict[str, float]], path: str | os.PathLike[str]) -> None:
    """Loss and accuracy over the epochs.

    Parameters
    ----------
    history : sequence of dict
        Metrics of :func:`fastnn.train.fit`.
    path : path
        Of the PNG file.

    Raises
    ------
    ValueError
        There is no epoch.
    """
    if not history:
        raise ValueError("curves: expected at least one epoch, got none")
    figure = _figure(9, 3.6)
    epochs = [row["epoch"] for row in history]
    for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for name, label in ((key, "training"), (f"test_{key}", "hold-out")):
            axes.plot(epochs, [row[name] for row in history], marker=".", label=label)
        axes.set(xlabel="epoch", ylabel=key)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, format="png", dpi=120)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts, int64 (classes, classes): a row per true class, a column per predicted one.

    Examples
    --------
    >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 1, 0]), 2).tolist()
    [[1, 0], [1, 1]]
    """
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def confusion(
    labels: np.ndarray,
    predicted: np.ndarray,
    classes: Sequence[str],
    path: str | os.PathLike[str],
) -> None:
    """The confusion matrix with its counts.

    Parameters
    ----------
    labels, predicted : ndarray
        Class indices, (N,).
    classes : sequence of str
        Their names.
    path : path
        Of the PNG file.
    """
    counts = confusion_matrix(labels, predicted, len(classes))
    figure = _figure(1.5 + 0.45 * len(classes), 1.2 + 0.45 * len(classes))
    axes = figure.subplots()
    # A square root keeps a single mistake visible beside dozens of right answers.
    axes.imshow(np.sqrt(counts), cmap="Blues")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            dark = count > counts.max() / 3
            axes.text(column, row, str(count), ha="center", va="center",
                      color="white" if dark else "black")  # fmt: skip
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes)
    axes.set_yticks(ticks, classes)
    right = np.trace(counts) / max(1, counts.sum())
    axes.set(xlabel="predicted", ylabel="true", title=f"hold-out: {right:.2%} right")
    figure.savefig(path, format="png", dpi=120)
