"""Batch normalization (Ioffe and Szegedy, 2015)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from cifarlab.regularizers.base import Normalization
from cifarlab.types import Fraction, Positive


@dataclass(frozen=True)
class BatchNorm(Normalization):
    """Batch norm with Keras's constants, whose moving-average momentum 0.99 is torch's 0.01."""

    before_activation: bool = False
    momentum: Fraction = 0.01
    eps: Positive = 0.001

    def layer(self, features: int, spatial: bool) -> nn.Module:
        kind = nn.BatchNorm2d if spatial else nn.BatchNorm1d
        return kind(features, eps=self.eps, momentum=self.momentum)
