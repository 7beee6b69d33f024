"""Annotations that say which values a configuration key may take.

A constructor writes ``rate: Rate = 0.2``; `cifarlab.config` reads that from the source and refuses 1.2
before torch is imported. Each is an ordinary type to mypy and to the reader.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal


@dataclass(frozen=True)
class Within:
    """A number between two bounds; `says` completes the sentence "expected ..."."""

    says: str
    low: float = float("-inf")
    high: float = float("inf")
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below


@dataclass(frozen=True)
class Length:
    """How many entries a list has, from `low` to `high`; `says` completes the sentence "expected ..."."""

    says: str
    low: int
    high: int

    def __contains__(self, entries: list[Any]) -> bool:
        return self.low <= len(entries) <= self.high


Rate = Annotated[float, Within("a rate of at least 0 and below 1", 0, 1, open_high=True)]
Fraction = Annotated[float, Within("a number from 0 to 1", 0, 1)]
OpenFraction = Annotated[float, Within("a fraction between 0 and 1", 0, 1, open_low=True, open_high=True)]
Positive = Annotated[float, Within("a number above 0", 0, open_low=True)]
NonNegative = Annotated[float, Within("a number of 0 or more", 0)]
Count = Annotated[int, Within("a whole number of 1 or more", 1)]
Natural = Annotated[int, Within("a whole number of 0 or more", 0)]
Shift = Annotated[int, Within("a whole number of pixels from 0 to 31", 0, 31)]
SmallSize = Annotated[int, Within("a whole number of pixels from 1 to 31", 1, 31)]
Seed = Annotated[int, Within("a whole number from 0 to 4294967295", 0, 2**32 - 1)]
Halvings = Annotated[
    int, Within("1 to 5 blocks (each halves the image, and 32 pixels can be halved 5 times)", 1, 5)
]
Widths = Annotated[
    list[Count], Length("1 to 4 whole numbers, the channels of groups that each halve the image", 1, 4)
]
Betas = Annotated[list[Rate], Length("two rates of at least 0 and below 1, such as [0.9,0.999]", 2, 2)]
Activation = Literal["relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "tanh", "sigmoid"]
Interval = Literal["step", "epoch"]
