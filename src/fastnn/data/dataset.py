"""A data set held in memory, and seeded batches of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ArrayDataset:
    """Images and their labels.

    Parameters
    ----------
    images : ndarray
        float32, shape (N, C, H, W).
    labels : ndarray
        Whole numbers >= 0, shape (N,); kept as int64.

    Raises
    ------
    TypeError
        Labels are not whole numbers.
    ValueError
        Images are not of rank 4, or there are more or fewer of them than labels.

    Examples
    --------
    >>> data = ArrayDataset(np.zeros((6, 1, 8, 8), np.float32), np.arange(6))
    >>> len(data), [len(labels) for _, labels in batches(data, 4)]
    (6, [4, 2])
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        if images.ndim != 4:
            raise ValueError(f"ArrayDataset: images expect shape (N, C, H, W), got {images.shape}")
        if labels.dtype.kind not in "iu":
            raise TypeError(f"ArrayDataset: labels expect whole numbers, got {labels.dtype}")
        if labels.shape != images.shape[:1]:
            raise ValueError(
                f"ArrayDataset: labels expect shape {images.shape[:1]}, got {labels.shape}"
            )
        if labels.size and labels.min() < 0:
            raise ValueError(f"ArrayDataset: labels expect values >= 0, got {labels.min()}")
        object.__setattr__(self, "images", np.ascontiguousarray(images, dtype=np.float32))
        object.__setattr__(self, "labels", labels.astype(np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.images[index], self.labels[index]


def batches(
    dataset: ArrayDataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    epoch: int = 0,
    drop_last: bool = False,
    transform: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of one pass over a data set.

    Order and augmentation depend on ``(seed, epoch)`` alone, so that any epoch can be repeated, and
    training that is interrupted continues as if it had not been.

    Parameters
    ----------
    dataset : ArrayDataset
    batch_size : int
        Images per batch, at least 1; the last batch may be smaller.
    shuffle : bool
        Whether to permute the images.
    seed, epoch : int
        What the permutation and the transform are drawn from; both >= 0.
    drop_last : bool
        Whether to leave out a last batch that is smaller.
    transform : callable, optional
        ``transform(images, generator) -> images``, called on every batch.

    Yields
    ------
    images : ndarray
        float32, (batch, C, H, W).
    labels : ndarray
        int64, (batch,).

    Raises
    ------
    ValueError
        ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batches: batch_size expects a value >= 1, got {batch_size}")
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(dataset)) if shuffle else np.arange(len(dataset))
    end = len(order) - len(order) % batch_size if drop_last else len(order)
    for start in range(0, end, batch_size):
        images, labels = dataset[order[start : min(start + batch_size, end)]]
        yield (images if transform is None else transform(images, rng)), labels
