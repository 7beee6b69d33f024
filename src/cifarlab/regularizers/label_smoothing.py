"""Label smoothing (Szegedy et al., 2016)."""

from __future__ import annotations

from dataclasses import dataclass

from cifarlab.regularizers.base import Smoothing
from cifarlab.types import Rate


@dataclass(frozen=True)
class LabelSmoothing(Smoothing):
    """Of every training target, `amount` is spread evenly over all classes."""

    amount: Rate = 0.1
