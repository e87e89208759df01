"""Training of classifiers: the loop, its checkpoints and metrics, and the recipe for the digits."""

from fastnn.train.checkpoint import load_checkpoint, save_checkpoint
from fastnn.train.config import TrainConfig
from fastnn.train.digits import digits_config, train_digits
from fastnn.train.loop import Interrupted, evaluate, fit, learning_rate, make_optimizer, train_epoch

__all__ = [
    "Interrupted", "TrainConfig", "digits_config", "evaluate", "fit", "learning_rate",
    "load_checkpoint", "make_optimizer", "save_checkpoint", "train_digits", "train_epoch",
]  # fmt: skip
