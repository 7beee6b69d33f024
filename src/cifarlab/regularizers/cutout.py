"""Cutout (DeVries and Taylor, 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cifarlab.regularizers.base import Transform
from cifarlab.types import Count


def boxes(images: Tensor, count: int, height: int | Tensor, width: int | Tensor) -> Tensor:
    """Masks (count, H, W), true in one box each; its centre is uniform over the pixels of the images
    (N, C, H, W), and what lies beyond the border is lost."""

    def spans(length: int, size: int | Tensor) -> Tensor:
        start = torch.randint(length, (count, 1), device=images.device) - size // 2
        place = torch.arange(length, device=images.device)
        return (place >= start) & (place < start + size)

    return spans(images.shape[-2], height)[:, :, None] & spans(images.shape[-1], width)[:, None, :]


@dataclass(frozen=True)
class Cutout(Transform):
    """One square of `size` pixels per image painted over, clipped at the border as in the paper.

    The paper paints the mean of its standardised images; mid-grey is close to that for any data set.
    """

    size: Count = 8
    fill: float = 127.5

    order = 6

    def __call__(self, images: Tensor) -> Tensor:
        return images.masked_fill(boxes(images, len(images), self.size, self.size)[:, None], self.fill)
