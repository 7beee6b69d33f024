"""The network of the CIFAR-10 speed records: `speedrun`.

Page's and Jordan's line of networks (Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024): fixed
filters that whiten small patches, three groups of two convolutions that begin as identities, no scales in
batch norm, small logits. It reaches in a few epochs what others need a hundred for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cifarlab.models.classifier import Batch, Classifier
from cifarlab.models.layers import Dropout, Scale, make_activation
from cifarlab.models.winograd import Conv2d
from cifarlab.types import Activation, Natural, Positive, Widths

PATCH = 2  # pixels wide and high, of what is whitened
MOMENTUM = 0.4  # what a whole batch moves batch norm's averages by: they follow within a few steps


class Speedrun(Classifier):
    """Whitening, groups that halve the image, the maximum over all pixels, one linear layer.

    The whitening filters are computed from the training images (`initialize`) and stay as they are; expects
    pixels around zero, `data.scaling=standardize`. Batch norm belongs to the architecture: `reg=batch_norm`
    adds nothing. Dropout has a place after each group.

    Args:
        widths: each group's channels.
        eps: added to the variances that whitening divides by.
        scale: of the logits.
        bias_epochs: how long the whitening's bias learns, null for the whole training. Behind that nothing
            needs the gradient of the whitened pixels, which makes steps cheaper (Jordan stops after 3).
        activation: after the whitening and after each batch norm.
    """

    def __init__(
        self,
        widths: Widths = [64, 256, 256],  # noqa: B006 (read only)
        eps: Positive = 5e-4,
        scale: Positive = 1 / 9,
        bias_epochs: Natural | None = None,
        activation: Activation = "gelu",
        **run: Any,
    ) -> None:
        super().__init__(**run)
        self.eps, self.bias_epochs = eps, bias_epochs
        channels = 2 * 3 * PATCH**2
        whitening = nn.Conv2d(3, channels, PATCH)
        whitening.weight.requires_grad_(False)
        rates = self.regularization.dropout_rates(len(widths)) or [0.0] * len(widths)
        layers: list[nn.Module] = [whitening, make_activation(activation)]
        for width, rate in zip(widths, rates, strict=True):
            layers += [
                identity_conv(channels, width),
                nn.MaxPool2d(2),
                norm(width),
                make_activation(activation),
            ]
            layers += [identity_conv(width, width), norm(width), make_activation(activation)]
            layers += [Dropout(rate)] if rate else []
            channels = width
        linear = nn.Linear(channels, self.num_classes, bias=False)
        self.net = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), linear, Scale(scale))

    @torch.no_grad()
    def initialize(self, images: Tensor) -> None:
        """Set the filters from the scaled images: eigenvectors of their patches' second moments, each divided
        by the root of its eigenvalue, and their negatives."""
        moments = torch.zeros(3 * PATCH**2, 3 * PATCH**2, dtype=torch.float64)
        patches = 0
        for part in images.split(500):
            windows = self.scaling(part.float()).unfold(2, PATCH, 1).unfold(3, PATCH, 1)
            rows = windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, len(moments))
            moments += (rows.T @ rows).double()
            patches += len(rows)
        values, vectors = torch.linalg.eigh(moments / patches)
        filters = (vectors / (values + self.eps).sqrt()).T.reshape(-1, 3, PATCH, PATCH)
        self.net[0].weight.copy_(torch.cat([filters, -filters]))  # type: ignore[index]
        self.net[0].bias.zero_()  # type: ignore[index]

    @property
    def learns_bias(self) -> bool:
        return self.bias_epochs is None or self.current_epoch < self.bias_epochs

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # a short last batch would else be 40 % of the statistics that the images are scored with
        share = len(batch[0]) / self.trainer.datamodule.batch_size  # type: ignore[attr-defined]
        for layer in self.net:  # type: ignore[attr-defined]
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1 - (1 - MOMENTUM) ** share

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.trainer.world_size == 1:  # several processes wait for each gradient that there was at first
            self.net[0].bias.requires_grad_(self.learns_bias)  # type: ignore[index]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if not self.learns_bias:
            self.net[0].bias.grad = None  # type: ignore[index]


def identity_conv(channels: int, width: int) -> nn.Conv2d:
    """A 3 x 3 convolution without bias whose first outputs are its inputs (Dirac initialisation; Zagoruyko
    and Komodakis, 2017), the others as torch draws them."""
    layer = Conv2d(channels, width, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(layer.weight[:channels])
    return layer


def norm(width: int) -> nn.BatchNorm2d:
    """Batch norm without a scale."""
    layer = nn.BatchNorm2d(width, momentum=MOMENTUM, eps=1e-12)
    layer.weight.requires_grad_(False)
    return layer
