"""Class probabilities for an image file, prepared as the model's training images were."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

import fastnn
from fastnn.data import resize
from fastnn.io import load_model


def read_image(
    path: str | os.PathLike[str], extra: dict[str, Any], invert: bool | None = None
) -> np.ndarray:
    """An image file as a model's input.

    It becomes gray, ink becomes 1 and paper 0, it is padded to a square with paper, reduced to the
    pixels of the training images by averaging, and resized and normalized as they were.

    Parameters
    ----------
    path : path
        Of an image that Pillow can read; transparency is laid over white.
    extra : dict
        What ``fastnn train`` kept with the model: size, channels, pixels, mean, std.
    invert : bool, optional
        Whether the ink is darker than the paper. If left out, it is when the median of the image's
        border is above one half: the border of a digit's picture is paper.

    Returns
    -------
    ndarray
        float32, (1, channels, size, size).

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ModuleNotFoundError
        Pillow is not installed.
    ValueError
        It is no image.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "predict: images need Pillow, which is not installed; "
            'pip install ".[demo]" in the clone'
        ) from error
    try:
        with Image.open(path) as image:
            colors = image.convert("RGBA")
    except UnidentifiedImageError as error:
        raise ValueError(
            f"predict: {os.fspath(path)!r} is no image that Pillow can read"
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"predict: there is no file {os.fspath(path)!r}") from error
    white = Image.new("RGBA", colors.size, "white")
    gray = np.asarray(Image.alpha_composite(white, colors).convert("L"), np.float32) / 255
    if invert is None:
        border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
        invert = bool(np.median(border) > 0.5)
    ink = 1 - gray if invert else gray
    side = max(ink.shape)
    top, left = (side - ink.shape[0]) // 2, (side - ink.shape[1]) // 2
    square = np.zeros((side, side), np.float32)
    square[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    pixels = int(extra["pixels"])
    small = Image.fromarray(square).resize((pixels, pixels), Image.Resampling.BOX)
    images = resize(np.asarray(small, np.float32)[None, None], int(extra["size"]))
    images = (images - extra["mean"]) / extra["std"]
    return np.repeat(images, int(extra["channels"]), axis=1).astype(np.float32)


def predict(
    model_path: str | os.PathLike[str],
    image_path: str | os.PathLike[str],
    invert: bool | None = None,
    device: str = "cpu",
) -> dict[str, float]:
    """Probability of each class for an image, by the model of a file of ``fastnn train``.

    Parameters
    ----------
    model_path, image_path : path
    invert : bool, optional
        As of :func:`read_image`.
    device : str
        Where the model runs.

    Returns
    -------
    dict
        Class name to probability, in the order of the classes.

    Raises
    ------
    FileNotFoundError, ModuleNotFoundError
        As :func:`read_image` and :func:`fastnn.io.load_model`.
    RuntimeError
        The device is not available.
    ValueError
        A file is corrupt, or the model's file does not say how its images were prepared.
    """
    model, about = load_model(model_path, device)
    extra = about["extra"]
    missing = {"classes", "channels", "size", "pixels", "mean", "std"} - set(extra)
    if missing:
        raise ValueError(
            f"predict: {os.fspath(model_path)!r} does not say how its images were prepared: "
            f"{', '.join(sorted(missing))} missing"
        )
    images = read_image(image_path, extra, invert)
    with fastnn.no_grad():
        logits = model(fastnn.from_numpy(images).to(device))
        shares = fastnn.nn.functional.softmax(logits, 1).cpu().numpy()[0]
    return {name: float(p) for name, p in zip(extra["classes"], shares, strict=True)}
