"""Images that are small while the network knows little."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn.functional import interpolate

from cifarlab.regularizers.base import EpochTransform
from cifarlab.types import OpenFraction, SmallSize


@dataclass(frozen=True)
class ProgressiveResizing(EpochTransform):
    """Trains on images shrunk by area averaging to `sizes[0]` pixels until `until[0]` of the epochs are done,
    to `sizes[1]` until `until[1]` ..., then on whole ones (Howard's progressive resizing, fastai, 2018).

    The arithmetic of a convolution falls with the square of the size: half of the epochs at 24 of 32 pixels
    save a fifth of it. Validation and test images stay whole. A run that is resumed for more epochs than it
    was begun with shares them all out anew.
    """

    order = 90  # behind crops and cutouts, which count in pixels of the whole image

    sizes: list[SmallSize] = field(default_factory=lambda: [24])
    until: list[OpenFraction] = field(default_factory=lambda: [0.5])

    def __call__(self, images: Tensor, index: Tensor, epoch: int, epochs: int) -> Tensor:
        for size, share in zip(self.sizes, self.until, strict=True):
            if epoch < round(share * epochs, 6):  # 0.28 * 100 is above 28
                return interpolate(images, (size, size), mode="area")
        return images
