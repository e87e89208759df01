"""What defines a training run: the same configuration gives the same bits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

#: Learning rates to start from, per optimizer.
LEARNING_RATES = {
    "sgd": 0.05, "adam": 2e-3, "adamw": 2e-3, "adagrad": 0.02, "rmsprop": 1e-3, "adadelta": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """Options of a training run.

    Parameters
    ----------
    model : str
        Name of a model, kept in the files of the run.
    model_config : dict
        Keyword arguments the model was made with.
    epochs, batch_size : int
        At least 1.
    lr : float, optional
        Highest learning rate, above 0; a usual one for the optimizer if left out.
    optimizer : str
        One of ``fastnn.optim.OPTIMIZERS``. SGD has Nesterov momentum 0.9.
    weight_decay : float
    label_smoothing : float
    warmup : float
        Share of all steps in which the learning rate rises; afterwards it falls as a cosine.
    seed : int
        Of the order of the images, the augmentation and dropout.
    dtype : str
        ``"float32"``, or ``"bfloat16"`` for autocast.
    device : str
        Where it is trained; a run may be resumed on another.

    Raises
    ------
    RuntimeError
        The device is not available.
    ValueError
        A value is out of range.
    """

    model: str
    model_config: dict[str, Any] = field(default_factory=dict)
    epochs: int = 20
    batch_size: int = 64
    lr: float | None = None
    optimizer: str = "sgd"
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    warmup: float = 0.15
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        from fastnn.device import index_of

        _among("optimizer", self.optimizer, LEARNING_RATES)
        _among("dtype", self.dtype, ("float32", "bfloat16"))
        index_of(self.device)
        if self.lr is None:
            object.__setattr__(self, "lr", LEARNING_RATES[self.optimizer])
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0), ("weight_decay", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(
                    f"train: {name} expects a value >= {least}, got {getattr(self, name)}"
                )
        if not (self.lr is not None and 0 < self.lr < math.inf):
            raise ValueError(f"train: lr expects a value above 0, got {self.lr}")
        for name in ("label_smoothing", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"train: {name} expects a value in [0, 1), got {getattr(self, name)}"
                )

    def as_dict(self) -> dict[str, Any]:
        """All options, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The configuration of :meth:`as_dict`; options it does not know are left out."""
        names = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in names})


def _among(name: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(f"train: {name} expects one of {', '.join(known)}, got {value!r}")
