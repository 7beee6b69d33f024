"""The first layer's filters as small colour images."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def first_filters(network: nn.Module) -> Tensor | None:
    """The weights of the first convolution, (N, 3, h, w); None where there is none on RGB images."""
    first = next((layer for layer in network.modules() if isinstance(layer, nn.Conv2d)), None)
    return None if first is None or first.weight.shape[1] != 3 else first.weight.detach()


def as_images(weights: Tensor) -> Tensor:
    """Filters (N, 3, h, w) as uint8 images of that shape.

    Each is divided by its own largest absolute weight, for filters differ in size: that one becomes 0 or 255,
    and a weight of zero grey, 128. A filter of zeros is all grey.
    """
    largest = weights.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    return (127.5 * (1 + weights / largest)).nan_to_num(127.5).round().to(torch.uint8)
