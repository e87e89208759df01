"""The handwritten digits that ship inside scikit-learn: 1,797 real 8 x 8 images of 0 to 9.

References: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998 (the test part, 13 writers).
"""

from __future__ import annotations

import numpy as np

from fastnn.data.dataset import ArrayDataset
from fastnn.data.transforms import resize

CLASSES = tuple("0123456789")
#: Mean and standard deviation of all pixels, in 0 .. 1.
MEAN, STD = 0.305, 0.376
#: The hold-out is the same images in every run, whatever the seed of the training.
SPLIT_SEED = 20240229


def normalize(pixels: np.ndarray) -> np.ndarray:
    """Pixels in 0 .. 1 (ink is 1) to about zero mean and unit variance, float32."""
    return ((pixels - MEAN) / STD).astype(np.float32)


def digits(
    size: int = 8, channels: int = 1, holdout: float = 0.2
) -> tuple[ArrayDataset, ArrayDataset]:
    """Training set and hold-out of the digits, normalized.

    Every class gives the same share of its images to the hold-out, and which ones is fixed.

    Parameters
    ----------
    size : int
        Height and width; the 8 x 8 images are resized bilinearly.
    channels : int
        The gray channel is repeated this often.
    holdout : float
        Share of the images held out, above 0 and below 1.

    Returns
    -------
    train, test : ArrayDataset
        1,438 and 359 images with the default share.

    Raises
    ------
    ModuleNotFoundError
        scikit-learn is not installed.
    ValueError
        ``holdout`` is outside (0, 1).
    """
    if not 0 < holdout < 1:
        raise ValueError(f"digits: holdout expects a value above 0 and below 1, got {holdout}")
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "digits: the images ship with scikit-learn, which is not installed; "
            'pip install ".[demo]" in the clone'
        ) from error
    raw = load_digits()
    images = normalize(resize(raw.images[:, None].astype(np.float32) / 16, size))
    images = np.repeat(images, channels, axis=1)
    rng = np.random.default_rng(SPLIT_SEED)
    held = []
    for label in range(len(CLASSES)):
        members = rng.permutation(np.flatnonzero(raw.target == label))
        held.append(members[: round(holdout * len(members))])
    mask = np.zeros(len(images), bool)
    mask[np.concatenate(held)] = True
    return (
        ArrayDataset(images[~mask], raw.target[~mask]),
        ArrayDataset(images[mask], raw.target[mask]),
    )
