"""Averaging of weights."""

from __future__ import annotations

from dataclasses import dataclass

from cifarlab.regularizers.base import Averaging
from cifarlab.types import Rate


@dataclass(frozen=True)
class WeightAveraging(Averaging):
    """A moving average of the weights, validated and scored in their place (Polyak and Juditsky, 1992).

    It begins as the weights behind step 0. Step t moves it by 1 - d towards the weights, where d =
    min(decay, (1 + t) / (10 + t)): while it is young it follows faster, so that what the weights were before
    training does not linger.
    """

    decay: Rate = 0.999

    def share(self, step: int) -> float:
        return 1 - min(self.decay, (1 + step) / (10 + step))
