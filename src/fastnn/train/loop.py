"""The training loop.

Order, augmentation and dropout depend on the seed and the epoch alone, and the learning rate on the
step, so a run that continues from a checkpoint gives the same bits as one that was not interrupted.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastnn
from fastnn.data import ArrayDataset, batches
from fastnn.io import atomic_write, save_model
from fastnn.train.checkpoint import load_checkpoint, restore, save_checkpoint
from fastnn.train.config import TrainConfig

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class Interrupted(Exception):
    """Training was stopped by Ctrl-C; the checkpoint of the last whole epoch is there.

    Attributes
    ----------
    checkpoint : Path
    epoch : int
        Epochs that are done.
    """

    def __init__(self, checkpoint: Path, epoch: int, epochs: int) -> None:
        self.checkpoint, self.epoch = checkpoint, epoch
        super().__init__(f"stopped after {epoch} of {epochs} epochs; checkpoint: {checkpoint}")


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """A line up to ``config.lr`` in the first ``config.warmup`` of ``steps``, then half a cosine.

    References
    ----------
    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017.
    """
    assert config.lr is not None
    rising = config.warmup * steps
    if step < rising:
        return config.lr * min(1.0, (step + 1) / rising)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def make_optimizer(model: Any, config: TrainConfig) -> Any:
    """The optimizer of a configuration over all parameters of a model."""
    from fastnn.optim import OPTIMIZERS

    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        options.update(momentum=0.9, nesterov=True)
    return OPTIMIZERS[config.optimizer](model.parameters(), **options)


def _precision(config: TrainConfig) -> Any:
    return fastnn.autocast() if config.dtype == "bfloat16" else contextlib.nullcontext()


def train_epoch(
    model: Any,
    optimizer: Any,
    data: ArrayDataset,
    config: TrainConfig,
    epoch: int,
    *,
    transform: Transform | None = None,
    on_batch: Callable[[int, float, float], None] | None = None,
) -> tuple[float, float]:
    """One pass over the data.

    Parameters
    ----------
    model, optimizer
    data : ArrayDataset
    config : TrainConfig
    epoch : int
        From 0; gives the order of the images and the learning rate.
    transform : callable, optional
        Augmentation, see :func:`fastnn.data.batches`.
    on_batch : callable, optional
        ``on_batch(images, loss, accuracy)`` after each batch, with the means so far.

    Returns
    -------
    loss, accuracy : float
        Means over the images, as the model was when it saw them.

    Raises
    ------
    FloatingPointError
        The loss is infinite or not a number; the parameters are as they were before it.
    """
    import fastnn.nn.functional as F

    model.train()
    per_epoch = math.ceil(len(data) / config.batch_size)
    seen, loss_sum, right = 0, 0.0, 0
    stream = batches(data, config.batch_size, shuffle=True, seed=config.seed, epoch=epoch,
                     transform=transform)  # fmt: skip
    for i, (images, labels) in enumerate(stream):
        rate = learning_rate(epoch * per_epoch + i, config.epochs * per_epoch, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        with _precision(config):
            logits = model(fastnn.from_numpy(images).to(config.device))
        target = fastnn.from_numpy(labels).to(config.device)
        loss = F.cross_entropy(logits, target, label_smoothing=config.label_smoothing)
        loss.backward()
        value = float(loss.item())  # waits for a GPU: only now, when all but one launch is queued
        if not math.isfinite(value):
            raise FloatingPointError(
                f"train: the loss became {value} in epoch {epoch + 1}; try a lower learning rate "
                f"than {config.lr}"
            )
        optimizer.step()
        seen += len(labels)
        loss_sum += value * len(labels)
        right += int((np.asarray(logits.detach()).argmax(1) == labels).sum())
        if on_batch is not None:
            on_batch(len(labels), loss_sum / seen, right / seen)
    return loss_sum / seen, right / seen


def evaluate(
    model: Any, data: ArrayDataset, config: TrainConfig, batch_size: int = 256
) -> tuple[float, float, np.ndarray]:
    """Loss, accuracy and predicted classes, without gradients and in evaluation mode.

    Returns
    -------
    loss, accuracy : float
    predicted : ndarray
        int64, (N,).
    """
    import fastnn.nn.functional as F

    model.eval()
    loss_sum, predicted = 0.0, []
    with fastnn.no_grad():
        for images, labels in batches(data, batch_size):
            with _precision(config):
                logits = model(fastnn.from_numpy(images).to(config.device))
            target = fastnn.from_numpy(labels).to(config.device)
            loss_sum += float(F.cross_entropy(logits, target).item()) * len(labels)
            predicted.append(np.asarray(logits).argmax(1))
    classes = np.concatenate(predicted)
    return loss_sum / len(data), float((classes == data.labels).mean()), classes


def fit(
    model: Any,
    train: ArrayDataset,
    test: ArrayDataset,
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    transform: Transform | None = None,
    extra: dict[str, Any] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Trains a classifier and leaves its files in a directory.

    ``checkpoint.safetensors`` (written before the first epoch and after every one, atomically),
    ``metrics.jsonl`` (a line per epoch) and, at the end, ``model.safetensors``.

    Parameters
    ----------
    model : fastnn.nn.Module
    train, test : ArrayDataset
    config : TrainConfig
    out : path
        Made if it does not exist; files of an earlier run are replaced.
    transform : callable, optional
        Augmentation of the training batches.
    extra : dict, optional
        Kept in ``model.safetensors``.
    resume : bool
        Continue from the checkpoint in ``out``; ``config`` must be the one it was made with, but
        for the device.
    progress : bool
        Show a bar per epoch on standard error.

    Returns
    -------
    list of dict
        Per epoch: epoch, lr, loss, accuracy, test_loss, test_accuracy, seconds, images_per_second.

    Raises
    ------
    Interrupted
        Ctrl-C was pressed; the checkpoint is valid.
    FileNotFoundError, ValueError
        Resuming without a (sound) checkpoint, or with another configuration.
    """
    out = Path(out)
    path = out / "checkpoint.safetensors"
    model.to(config.device)
    optimizer = make_optimizer(model, config)
    history: list[dict[str, float]] = []
    if resume:
        state = load_checkpoint(path)
        if TrainConfig.from_dict(state["config"] | {"device": config.device}) != config:
            raise ValueError(f"fit: the checkpoint {str(path)!r} has another configuration")
        restore(state, model, optimizer)
        history = state["history"]
    else:
        out.mkdir(parents=True, exist_ok=True)
        fastnn.manual_seed(config.seed)
        save_checkpoint(path, model, optimizer, config, 0, [])
    _write_metrics(out, history)
    try:
        for epoch in range(len(history), config.epochs):
            history.append(
                _one_epoch(model, optimizer, train, test, config, epoch, transform, progress)
            )
            save_checkpoint(path, model, optimizer, config, epoch + 1, history)
            _write_metrics(out, history)
    except KeyboardInterrupt:
        done = load_checkpoint(path)["epoch"]
        raise Interrupted(path, done, config.epochs) from None
    save_model(out / "model.safetensors", model, config.model, config.model_config, extra)
    return history


def _write_metrics(out: Path, history: list[dict[str, float]]) -> None:
    # Whole and at once: it never has an epoch that the checkpoint has not, nor half a line.
    text = "".join(json.dumps(row) + "\n" for row in history)
    atomic_write(out / "metrics.jsonl", text.encode())


def _one_epoch(
    model: Any,
    optimizer: Any,
    train: ArrayDataset,
    test: ArrayDataset,
    config: TrainConfig,
    epoch: int,
    transform: Transform | None,
    progress: bool,
) -> dict[str, float]:
    from tqdm import tqdm

    start = time.perf_counter()
    bar = tqdm(
        total=len(train), unit="img", disable=not progress, dynamic_ncols=True,
        desc=f"epoch {epoch + 1:>{len(str(config.epochs))}}/{config.epochs}",
    )  # fmt: skip
    with bar:

        def show(count: int, loss: float, accuracy: float) -> None:
            bar.set_postfix_str(f"loss {loss:.3f}, accuracy {accuracy:.2%}", refresh=False)
            bar.update(count)

        loss, accuracy = train_epoch(model, optimizer, train, config, epoch, transform=transform,
                                     on_batch=show)  # fmt: skip
        seconds = time.perf_counter() - start
        test_loss, test_accuracy, _ = evaluate(model, test, config)
        bar.set_postfix_str(f"loss {loss:.3f}, accuracy {accuracy:.2%}, test {test_accuracy:.2%}")
    return {
        "epoch": epoch + 1, "lr": optimizer.param_groups[0]["lr"], "loss": loss,
        "accuracy": accuracy, "test_loss": test_loss, "test_accuracy": test_accuracy,
        "seconds": seconds, "images_per_second": len(train) / seconds,
    }  # fmt: skip
