"""Penalties on the weights, by Keras's definitions: sums over all weights, without a factor of one half.

Layer by layer: joining all weights into one vector first takes half as long again on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cifarlab.regularizers.base import Penalty
from cifarlab.types import NonNegative


def _absolutes(kernels: Sequence[Tensor]) -> Tensor:
    return torch.stack([kernel.abs().sum() for kernel in kernels]).sum()


def _squares(kernels: Sequence[Tensor]) -> Tensor:
    return torch.stack([kernel.square().sum() for kernel in kernels]).sum()


@dataclass(frozen=True)
class L2(Penalty):
    """rate * sum(w^2), whose gradient is 2 * rate * w: twice what an optimizer's `weight_decay` adds."""

    rate: NonNegative = 0.001

    def __call__(self, kernels: Sequence[Tensor]) -> Tensor:
        return self.rate * _squares(kernels)


@dataclass(frozen=True)
class L1(Penalty):
    """rate * sum(|w|)."""

    rate: NonNegative = 0.0001

    def __call__(self, kernels: Sequence[Tensor]) -> Tensor:
        return self.rate * _absolutes(kernels)


@dataclass(frozen=True)
class ElasticNet(Penalty):
    """l1 * sum(|w|) + l2 * sum(w^2) (Zou and Hastie, 2005)."""

    l1: NonNegative = 0.0001
    l2: NonNegative = 0.001

    def __call__(self, kernels: Sequence[Tensor]) -> Tensor:
        return self.l1 * _absolutes(kernels) + self.l2 * _squares(kernels)
