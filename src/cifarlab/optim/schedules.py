"""The learning-rate schedules that `scheduler=` names.

Each is a function of t, the steps or epochs (`interval`) that are done, by which the optimizer's `lr` is
multiplied. The run says how long it is: `steps` and `epochs` in all, infinite or negative where nobody knows.
What comes back is what Lightning's `configure_optimizers` returns under "lr_scheduler".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.optim.optimizer import Optimizer

from cifarlab.errors import UserError
from cifarlab.signatures import conforms
from cifarlab.types import Count, Fraction, Interval, Natural, NonNegative, Positive, Rate


def constant(*, optimizer: Optimizer, steps: float, epochs: float) -> dict[str, Any]:
    """The optimizer's rate throughout."""
    return _scheduled(optimizer, "epoch", lambda t: 1.0)


def step(
    every: Count = 50,
    gamma: Fraction = 0.1,
    interval: Interval = "epoch",
    *,
    optimizer: Optimizer,
    steps: float,
    epochs: float,
) -> dict[str, Any]:
    """gamma ^ floor(t / every): the rate falls to `gamma` of itself after every so many."""
    return _scheduled(optimizer, interval, lambda t: gamma ** (t // every))


def exponential(
    gamma: Fraction = 0.98,
    interval: Interval = "epoch",
    *,
    optimizer: Optimizer,
    steps: float,
    epochs: float,
) -> dict[str, Any]:
    """gamma ^ t."""
    return _scheduled(optimizer, interval, lambda t: gamma**t)


def inverse_time(
    decay: NonNegative = 1e-6,
    interval: Interval = "step",
    *,
    optimizer: Optimizer,
    steps: float,
    epochs: float,
) -> dict[str, Any]:
    """1 / (1 + decay t): the `decay` argument of Keras's optimizers up to 2.10."""
    return _scheduled(optimizer, interval, lambda t: 1 / (1 + decay * t))


def cosine(
    interval: Interval = "step",
    warmup: Fraction = 0.0,
    final: Fraction = 0.0,
    *,
    optimizer: Optimizer,
    steps: float,
    epochs: float,
) -> dict[str, Any]:
    """Linear warm-up, then half a cosine from 1 to `final` at the run's end (Loshchilov and Hutter, 2017).

    The warm-up takes the fraction `warmup` of the run, n steps or epochs: (t + 1) / (n + 1), so that no step
    has the rate 0. Raises UserError if the run's length is unknown.
    """
    total = _length("cosine", interval, steps, epochs)
    fall = partial(_anneal, 1.0, final)
    return _scheduled(optimizer, interval, _warmed_up(warmup, total, fall))


def linear(
    interval: Interval = "step",
    warmup: Fraction = 0.0,
    final: Fraction = 0.0,
    *,
    optimizer: Optimizer,
    steps: float,
    epochs: float,
) -> dict[str, Any]:
    """Linear warm-up as `cosine`'s, then a straight line from 1 to `final` at the run's end.

    Raises UserError if the run's length is unknown.
    """
    total = _length("linear", interval, steps, epochs)

    def fall(t: int, length: int) -> float:
        return 1 - (1 - final) * min(1.0, t / max(1, length))

    return _scheduled(optimizer, interval, _warmed_up(warmup, total, fall))


def one_cycle(
    interval: Interval = "step",
    pct_start: Fraction = 0.3,
    div_factor: Positive = 25.0,
    final_div_factor: Positive = 10000.0,
    *,
    optimizer: Optimizer,
    steps: float,
    epochs: float,
) -> dict[str, Any]:
    """From 1 / div_factor up to 1 in the fraction `pct_start` of the run, then down to almost 0.

    Each way is half a cosine, as in torch's OneCycleLR (Smith and Topin, 2018) with the momentum left alone;
    the end is 1 / (div_factor final_div_factor). Raises UserError if the run's length is unknown.
    """
    total = _length("one_cycle", interval, steps, epochs)
    peak, last = pct_start * total - 1, total - 1
    start = 1 / div_factor

    def factor(t: int) -> float:
        if t < peak:
            return _anneal(start, 1.0, t, peak)
        return _anneal(1.0, start / final_div_factor, t - peak, last - peak)

    return _scheduled(optimizer, interval, factor)


def plateau(
    monitor: Literal["val/loss", "val/accuracy"] = "val/loss",
    factor: Rate = 0.1,
    patience: Natural = 5,
    min_lr: NonNegative = 0.0,
    *,
    optimizer: Optimizer,
    steps: float,
    epochs: float,
) -> dict[str, Any]:
    """The rate times `factor`, down to `min_lr`, whenever `monitor` has stalled for over `patience` epochs.

    It stalls unless it betters its best by 0.01 % of that, torch's default.
    """
    mode: Literal["min", "max"] = "min" if monitor == "val/loss" else "max"
    scheduler = Plateau(optimizer, mode, factor=factor, patience=patience, min_lr=min_lr)
    return {"scheduler": scheduler, "interval": "epoch", "monitor": monitor}


class Schedule(LambdaLR):
    """A schedule whose only state is t, so that a resumed run follows the configuration that it is given.

    torch's own also saves the base rates, and leaves the first rate after a resume as the old, shorter run
    had it: 0, where a cosine had come to its end.
    """

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        t = state_dict["last_epoch"]
        if not conforms(t, Natural):  # the checkpoint may be anybody's
            raise ValueError("no count of steps or epochs")
        self.seek(t)

    def seek(self, t: int) -> None:
        """Set t, and with it the optimizer's rates."""
        self.last_epoch = t
        self._last_lr = [
            rate * factor(t) for rate, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


class Plateau(ReduceLROnPlateau):
    """torch's, whose state is what it has seen and not how it was configured."""

    STATE: ClassVar[dict[str, Any]] = {
        "last_epoch": int,
        "mode": str,
        "best": float | int,
        "num_bad_epochs": int,
    }

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if (
            state_dict.get("mode") == self.mode
        ):  # else the run had another schedule, or watched another metric
            if state_dict.keys() != self.STATE.keys() or not all(
                isinstance(state_dict[name], kind) for name, kind in self.STATE.items()
            ):
                raise ValueError("other state than a plateau's")
            super().load_state_dict(state_dict)


def _scheduled(optimizer: Optimizer, interval: Interval, factor: Callable[[int], float]) -> dict[str, Any]:
    return {"scheduler": Schedule(optimizer, factor), "interval": interval}


def _length(name: str, interval: Interval, steps: float, epochs: float) -> int:
    total = steps if interval == "step" else epochs
    if not 0 <= total < math.inf:
        raise UserError(
            f"scheduler={name} needs to know the length of the run: set trainer.max_epochs to 1 or more"
            " (trainer.max_steps does if scheduler.interval=step)."
        )
    return int(total)


def _warmed_up(warmup: float, total: int, fall: Callable[[int, int], float]) -> Callable[[int], float]:
    """A straight rise over the fraction `warmup` of the run, then `fall(t since, their total)`."""
    rise = round(warmup * total)
    return lambda t: (t + 1) / (rise + 1) if t < rise else fall(t - rise, total - rise)


def _anneal(start: float, end: float, t: float, length: float) -> float:
    """From `start` at t = 0 to `end` at t >= length, along half a cosine."""
    if t >= length:
        return end
    return end + (start - end) * (1 + math.cos(math.pi * t / length)) / 2
