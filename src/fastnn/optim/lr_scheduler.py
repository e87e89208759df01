"""Learning rate schedules: call ``step()`` once per epoch (or per batch, as you count)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from fastnn.optim.optimizer import Optimizer


class LambdaLR:
    """``lr = initial lr * factor(steps so far)``; the others are this with a named factor.

    Args:
        optimizer: whose ``param_groups`` are set.
        lr_lambda: the factor as a function of the number of steps.
    """

    def __init__(self, optimizer: Optimizer, lr_lambda: Callable[[int], float]) -> None:
        self.optimizer, self.factor = optimizer, lr_lambda
        self.base_lrs = [
            group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups
        ]
        self.last_epoch = 0
        self._set()

    def _set(self) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * self.factor(self.last_epoch)

    def step(self) -> None:
        """Goes on by one."""
        self.last_epoch += 1
        self._set()

    def get_last_lr(self) -> list[float]:
        """The rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Number of steps and the initial rates."""
        return {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state of :meth:`state_dict`."""
        self.last_epoch, self.base_lrs = int(state["last_epoch"]), list(state["base_lrs"])
        self._set()


class StepLR(LambdaLR):
    """Times ``gamma`` every ``step_size`` steps."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        super().__init__(optimizer, lambda n: gamma ** (n // step_size))


class MultiStepLR(LambdaLR):
    """Times ``gamma`` at each milestone."""

    def __init__(self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1) -> None:
        marks = sorted(milestones)
        super().__init__(optimizer, lambda n: gamma ** bisect_right(marks, n))


class ExponentialLR(LambdaLR):
    """Times ``gamma`` every step."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        super().__init__(optimizer, lambda n: gamma**n)


class LinearLR(LambdaLR):
    """From ``start_factor`` to ``end_factor`` in ``total_iters`` steps: warm-up."""

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1.0 / 3, end_factor: float = 1.0,
        total_iters: int = 5,
    ) -> None:  # fmt: skip
        span = end_factor - start_factor
        super().__init__(optimizer, lambda n: start_factor + span * min(1.0, n / total_iters))


class CosineAnnealingLR(LambdaLR):
    """Half a cosine from the initial rate to ``eta_min`` in ``T_max`` steps (Loshchilov, Hutter 2016)."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        base = optimizer.param_groups[0].get("initial_lr", optimizer.param_groups[0]["lr"])
        low = eta_min / base if base else 0.0
        super().__init__(
            optimizer, lambda n: low + (1 - low) * (1 + math.cos(math.pi * n / T_max)) / 2
        )


class OneCycleLR(LambdaLR):
    """Cosine up to ``max_lr`` for ``pct_start`` of the steps, then down (Smith and Topin, 2017)."""

    def __init__(
        self, optimizer: Optimizer, max_lr: float, total_steps: int, pct_start: float = 0.3,
        div_factor: float = 25.0, final_div_factor: float = 1e4,
    ) -> None:  # fmt: skip
        first, last = max_lr / div_factor, max_lr / div_factor / final_div_factor
        peak = max(1.0, pct_start * total_steps - 1)

        def rate(n: int) -> float:
            if n <= peak:
                a, b, share = first, max_lr, n / peak
            else:
                a, b = max_lr, last
                share = min(1.0, (n - peak) / max(1.0, total_steps - 1 - peak))
            return b + (a - b) * (1 + math.cos(math.pi * share)) / 2

        for group in optimizer.param_groups:
            group["initial_lr"] = 1.0
        super().__init__(optimizer, rate)
