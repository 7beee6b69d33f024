"""Early stopping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cifarlab.regularizers.base import StoppingRule
from cifarlab.types import Count


@dataclass(frozen=True)
class EarlyStopping(StoppingRule):
    """Ends the run after `patience` epochs without a better validation loss or accuracy."""

    patience: Count = 10
    monitor: Literal["val/loss", "val/accuracy"] = "val/loss"
