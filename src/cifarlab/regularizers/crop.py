"""Random crops of the padded image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from cifarlab.errors import UserError
from cifarlab.regularizers.base import Transform
from cifarlab.types import Count

MODES = {"zero": "constant", "edge": "replicate", "reflect": "reflect"}


@dataclass(frozen=True)
class Crop(Transform):
    """Pads each side by `padding` pixels and cuts the old size out again, at any of the
    (2 * padding + 1)^2 places with equal chance (He et al., 2016, pad with zeros).

    UserError for `reflect` with more pixels than an image of 32 has to mirror.
    """

    padding: Count = 4
    fill: Literal["zero", "edge", "reflect"] = "zero"

    order = 5

    def __post_init__(self) -> None:
        if self.fill == "reflect" and self.padding > 31:
            raise UserError(
                f"reg.crop: padding={self.padding} is more than an image of 32 pixels can mirror; "
                "write at most 31 or fill=edge."
            )

    def __call__(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        padded = functional.pad(images, (self.padding,) * 4, mode=MODES[self.fill])
        # A view of every possible crop, (N, C, offsets, offsets, H, W); only the chosen ones are copied.
        crops = padded.unfold(2, height, 1).unfold(3, width, 1)
        down, across = torch.randint(2 * self.padding + 1, (2, count), device=images.device)
        return crops[torch.arange(count, device=images.device), :, down, across]
