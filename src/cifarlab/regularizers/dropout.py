"""Dropout (Srivastava et al., 2014): how the rates run through a network."""

from __future__ import annotations

from dataclasses import dataclass

from cifarlab.regularizers.base import DropoutRates
from cifarlab.types import Rate


@dataclass(frozen=True)
class Dropout(DropoutRates):
    """The same rate at every place."""

    rate: Rate = 0.2

    def rates(self, places: int) -> list[float]:
        return [self.rate] * places


@dataclass(frozen=True)
class DropoutIncreasing(DropoutRates):
    """Rates that grow evenly from `first` to `last`: 0.2, 0.3, 0.4, 0.5 at VGG-3's four places."""

    first: Rate = 0.2
    last: Rate = 0.5

    def rates(self, places: int) -> list[float]:
        step = (self.last - self.first) / max(places - 1, 1)
        return [self.first + step * place for place in range(places)]
