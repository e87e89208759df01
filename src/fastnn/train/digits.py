"""``fastnn train digits``: a network on the 1,797 real digits that ship inside scikit-learn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

import fastnn
from fastnn.data import CLASSES, digits, random_affine
from fastnn.data.digits import MEAN, STD
from fastnn.train.checkpoint import load_checkpoint
from fastnn.train.config import TrainConfig
from fastnn.train.loop import evaluate, fit

#: 32 x 32 images leave VGG's convolutions as one pixel; its head for 7 x 7 would repeat that pixel
#: 49 times and spend 120 of its 129 million parameters on it.
VGG_HEAD = {"pool": 1, "hidden": 512}
#: What differs from (32 pixels, 3 channels, 10 epochs): size, channels and options per model.
#: CIFAR ResNets take the 8 x 8 images as they are: the last stage then sees 2 x 2.
RECIPES: dict[str, dict[str, Any]] = {
    "lenet5": {"size": 32, "channels": 1, "epochs": 20, "optimizer": "adam"},
    **{f"efficientnet_b{i}": {"size": 64, "lr": 0.01, "epochs": 12} for i in range(5)},
    "alexnet": {"size": 64, "optimizer": "adam", "lr": 3e-4, "epochs": 10},
    **{f"resnet{depth}": {"size": 8, "channels": 1, "epochs": 30, "lr": 0.05}
       for depth in (20, 32, 44, 56, 110)},
    **{f"vgg{depth}": {"optimizer": "adam", "lr": 3e-4, "epochs": 10, "model_config": VGG_HEAD}
       for depth in (11, 13, 16, 19)},
    **{f"vgg{depth}_bn": {"lr": 0.03, "epochs": 8, "model_config": VGG_HEAD}
       for depth in (11, 13, 16, 19)},
}  # fmt: skip


def augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turns up to 10 degrees, moves and zooms up to 10%; outside there is no ink."""
    return random_affine(images, rng, degrees=10, shift=0.1, zoom=0.1, fill=-MEAN / STD)


def input_size(model: str) -> int:
    """Height and width that a model gets the digits in."""
    return RECIPES.get(model, {}).get("size", 32)


def digits_config(model: str = "resnet20", **options: Any) -> TrainConfig:
    """The tried configuration for a model, with options of :class:`TrainConfig` changed.

    An optimizer other than the recipe's starts from its own usual learning rate.

    Raises
    ------
    ValueError
        An option is out of range, or there is no such model.
    """
    known = fastnn.models.list_models()
    if model not in known:
        raise ValueError(f"train: model expects one of {', '.join(known)}, got {model!r}")
    recipe = {"epochs": 10, **RECIPES.get(model, {})}
    channels = recipe.pop("channels", 3)
    recipe.pop("size", None)
    if options.get("optimizer") not in (None, recipe.get("optimizer", "sgd")):
        recipe.pop("lr", None)
    options = {key: value for key, value in options.items() if value is not None}
    model_config = {
        "num_classes": len(CLASSES),
        "in_channels": channels,
        **recipe.pop("model_config", {}),
    }
    return TrainConfig(model, model_config, **{**recipe, **options})


def train_digits(
    config: TrainConfig,
    out: str | os.PathLike[str] = "runs/digits",
    *,
    resume: bool = False,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Trains, and writes the model, metrics and pictures of the run.

    Parameters
    ----------
    config : TrainConfig
        Of :func:`digits_config`.
    out : path
        Gets ``model.safetensors``, ``checkpoint.safetensors``, ``metrics.jsonl``, ``curves.png``
        and ``confusion.png``.
    resume : bool
        Continue from ``out``'s checkpoint, with the configuration it was made with, but on
        ``config``'s device.
    progress : bool

    Returns
    -------
    list of dict
        The metrics, see :func:`fastnn.train.fit`.

    Raises
    ------
    Interrupted
        Ctrl-C was pressed.
    ModuleNotFoundError
        scikit-learn or matplotlib is not installed.
    """
    from fastnn.viz import confusion, curves, require_matplotlib

    require_matplotlib()  # before the training, not after it
    if resume:
        kept = load_checkpoint(Path(out) / "checkpoint.safetensors")["config"]
        config = TrainConfig.from_dict(kept | {"device": config.device})
    channels = config.model_config["in_channels"]
    size = input_size(config.model)
    train, test = digits(size, channels)
    fastnn.manual_seed(config.seed)
    model = fastnn.models.create_model(config.model, **config.model_config)
    extra = {
        "classes": list(CLASSES), "channels": channels, "size": size, "pixels": 8,
        "mean": MEAN, "std": STD,
    }  # fmt: skip
    history = fit(model, train, test, config, out, transform=augment, extra=extra, resume=resume,
                  progress=progress)  # fmt: skip
    predicted = evaluate(model, test, config)[2]
    curves(history, Path(out) / "curves.png")
    confusion(test.labels, predicted, CLASSES, Path(out) / "confusion.png")
    return history
