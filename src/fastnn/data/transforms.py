"""Resizing and random shifts, rotations and zooms of batches of images."""

from __future__ import annotations

import numpy as np


def _sample(images: np.ndarray, y: np.ndarray, x: np.ndarray, edge: bool) -> np.ndarray:
    """Bilinear samples at ``y``, ``x`` (each (N, H', W'), in pixels of ``images`` (N, C, H, W)).

    Outside the image lies its nearest pixel if ``edge``, else 0.
    """
    height, width = images.shape[2:]
    if edge:
        y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    top, left = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    down, right = (y - top).astype(np.float32), (x - left).astype(np.float32)
    image = np.arange(len(images))[:, None, None]
    out = np.zeros((*y.shape, images.shape[1]), np.float32)
    corners = (
        (top, left, (1 - down) * (1 - right)), (top, left + 1, (1 - down) * right),
        (top + 1, left, down * (1 - right)), (top + 1, left + 1, down * right),
    )  # fmt: skip
    for row, column, weight in corners:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        rows, columns = np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)
        # Advanced indices around a slice put the channels last.
        out += images[image, :, rows, columns] * (weight * inside)[..., None]
    return np.ascontiguousarray(out.transpose(0, 3, 1, 2))


def resize(images: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Bilinear resize with pixel centres at half-integers, as PyTorch's ``align_corners=False``.

    Parameters
    ----------
    images : ndarray
        Float, (N, C, H, W).
    size : int or pair of ints
        Height and width of the result.

    Returns
    -------
    ndarray
        float32, (N, C, *size).

    Raises
    ------
    ValueError
        The images are not of rank 4, or a size is below 1.
    """
    if images.ndim != 4:
        raise ValueError(f"resize: images expect shape (N, C, H, W), got {images.shape}")
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"resize: size expects values >= 1, got {(height, width)}")
    if images.shape[2:] == (height, width):
        return np.ascontiguousarray(images, dtype=np.float32)
    y = (np.arange(height) + 0.5) * (images.shape[2] / height) - 0.5
    x = (np.arange(width) + 0.5) * (images.shape[3] / width) - 0.5
    shape = (len(images), height, width)
    rows, columns = np.broadcast_to(y[:, None], shape), np.broadcast_to(x, shape)
    return _sample(images, rows, columns, edge=True)


def random_affine(
    images: np.ndarray,
    rng: np.random.Generator,
    *,
    degrees: float = 10.0,
    shift: float = 0.1,
    zoom: float = 0.1,
    fill: float = 0.0,
) -> np.ndarray:
    """Each image turned, moved and scaled by its own random amount, sampled bilinearly.

    Parameters
    ----------
    images : ndarray
        float32, (N, C, H, W).
    rng : numpy.random.Generator
        Where the amounts come from.
    degrees : float
        Largest turn either way.
    shift : float
        Largest move either way, as a share of height and width.
    zoom : float
        Largest relative change of size either way, below 1.
    fill : float
        Value outside the image.

    Returns
    -------
    ndarray
        float32, of the same shape.
    """
    count, _, height, width = images.shape
    angle = np.deg2rad(rng.uniform(-degrees, degrees, (count, 1, 1)))
    scale = 1.0 / rng.uniform(1 - zoom, 1 + zoom, (count, 1, 1))
    move_y = rng.uniform(-shift, shift, (count, 1, 1)) * height
    move_x = rng.uniform(-shift, shift, (count, 1, 1)) * width
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    y = np.arange(height)[None, :, None] - centre_y - move_y
    x = np.arange(width)[None, None, :] - centre_x - move_x
    sine, cosine = np.sin(angle) * scale, np.cos(angle) * scale
    source_y, source_x = cosine * y - sine * x + centre_y, sine * y + cosine * x + centre_x
    return _sample(images - np.float32(fill), source_y, source_x, edge=False) + np.float32(fill)
