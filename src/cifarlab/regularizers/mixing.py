"""Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019).

As in the papers' own code, one share is drawn for a whole batch, which is mixed with a permutation of itself.
A share here is the partner's, 1 - lambda; Beta(alpha, alpha) makes both equally distributed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Beta

from cifarlab.regularizers.base import Mix
from cifarlab.regularizers.cutout import boxes
from cifarlab.types import Positive


def _draw(images: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """The partner of each image, (N,), and the partners' share, a scalar from Beta(alpha, alpha)."""
    partners = torch.randperm(len(images), device=images.device)
    concentration = torch.full((), alpha, device=images.device)
    # Checking the arguments would make the host wait for the GPU.
    return partners, Beta(concentration, concentration, validate_args=False).sample()


@dataclass(frozen=True)
class Mixup(Mix):
    """Every pixel and every label blended with the partner's."""

    alpha: Positive = 1.0

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        partners, share = _draw(images, self.alpha)
        return images.lerp(images[partners], share), targets.lerp(targets[partners], share)


@dataclass(frozen=True)
class CutMix(Mix):
    """One box, the same for the whole batch, taken from the partner; the labels are blended by the area that
    is left of it after clipping at the border."""

    alpha: Positive = 1.0

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        partners, share = _draw(images, self.alpha)
        height, width = ((side * share.sqrt()).round().long() for side in images.shape[-2:])
        box = boxes(images, 1, height, width)
        area = box.float().mean()
        return torch.where(box, images[partners], images), targets.lerp(targets[partners], area)
