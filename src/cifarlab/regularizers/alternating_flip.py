"""Flips that alternate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cifarlab.regularizers.base import EpochTransform


@dataclass(frozen=True)
class AlternatingFlip(EpochTransform):
    """Mirrors half of the images from left to right in one epoch and the other half in the next, so that two
    epochs show each image both ways (Jordan, 2024). Which half an image is in follows from its number.

    The epochs alternate, not an image's turns: with `hard_examples`, which leaves images out of some epochs,
    one may be shown the same way twice in a row.
    """

    order = 4

    def __call__(self, images: Tensor, index: Tensor, epoch: int, epochs: int) -> Tensor:
        mixed = index * 0x9E3779B9  # two multiplications and a fold: a hash without a pattern in its bits
        half = ((mixed ^ (mixed >> 15)) * 0x85EBCA6B >> 20) % 2
        mirrored = (half + epoch) % 2 == 1
        return torch.where(mirrored[:, None, None, None], images.flip(-1), images)
