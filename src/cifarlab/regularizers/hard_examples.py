"""Training on what is not known yet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cifarlab.regularizers.base import Selection
from cifarlab.types import OpenFraction


@dataclass(frozen=True)
class HardExamples(Selection):
    """Each epoch trains on the `share` of the images whose loss was largest when they were last trained on;
    what was never trained on comes first (after selective backprop, Jiang et al., 2019).

    Remembered losses cost no forward pass, and correct themselves: as the network learns, the hard images'
    losses fall below what is remembered of the easy ones, which then return.
    """

    share: OpenFraction = 0.6

    def count(self, images: int) -> int:
        return max(1, round(self.share * images))

    def choose(self, losses: Tensor, generator: torch.Generator) -> Tensor:
        # drawn first, so that chance decides between equals, and shuffled after
        order = torch.randperm(len(losses), generator=generator)
        ranks = losses[order].argsort(descending=True, stable=True)
        hardest = order[ranks[: self.count(len(losses))]]
        return hardest[torch.randperm(len(hardest), generator=generator)]
