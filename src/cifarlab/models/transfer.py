"""Networks that torchvision has pretrained on ImageNet: `vgg16_transfer` and `resnet18_transfer`.

A network is normalization, resize, torchvision's layers but the last, and a new last layer for the data's
classes. Its constructor draws random weights and reads no file; `initialize` loads the pretrained ones, and
only a new run calls it: a run that is opened again has its weights in its folder.
"""

from __future__ import annotations

import logging
import socket
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, Self
from urllib.parse import urlparse
from zipfile import is_zipfile

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import get_model, get_model_weights

from cifarlab.errors import UserError
from cifarlab.models.classifier import Classifier
from cifarlab.models.layers import Dropout, make_activation
from cifarlab.types import Activation, Count
from cifarlab.untrusted import Refused, check_archive

log = logging.getLogger(__name__)

Architecture = Literal["vgg16", "resnet18"]

# of ImageNet's training images, by channel, pixels from 0 to 1: what torchvision's weights were trained with
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STALL_SECONDS = 20.0  # torch.hub sets no time limit: a server that goes silent would hold the run for ever


class Transfer(Classifier):
    """A torchvision network whose last linear layer is replaced.

    `reg=dropout` sets the rates of the network's own dropout layers (VGG-16 has one behind each hidden dense
    layer, at 0.5); ResNet-18 has none and gets a place before its last layer. `reg=batch_norm` makes VGG-16
    torchvision's `vgg16_bn` and adds nothing to ResNet-18; the layers keep torchvision's constants.

    Args:
        architecture: torchvision's name.
        weights: `DEFAULT` for torchvision's own, downloaded once to torch.hub's cache; None for random ones;
            else a file with that architecture's state dict, .safetensors or what `torch.save` writes, whose
            last layer is left out.
        frozen: train the last layer alone. Batch norm then keeps its running statistics, and penalties act
            on that layer.
        size: side in pixels to which images are resized.
        activation: replaces torchvision's ReLUs; only without `weights`, which were trained with ReLU.

    Raises:
        UserError: for a `size` too small, or an activation that the weights do not allow.
    """

    def __init__(
        self,
        architecture: Architecture = "resnet18",
        weights: str | None = "DEFAULT",
        frozen: bool = True,
        size: Count = 224,
        activation: Activation = "relu",
        **run: Any,
    ) -> None:
        super().__init__(**run)
        if size < 32:  # VGG-16 halves it five times
            raise UserError(f"model.size={size}: expected 32 pixels or more.")
        if weights is not None and activation != "relu":
            raise UserError(
                f"model.activation={activation}: pretrained weights expect relu; type model.weights=null "
                "for another."
            )
        self.weights, self.frozen = weights, frozen
        normalized = self.regularization.normalization is not None
        self.torchvision_name = "vgg16_bn" if architecture == "vgg16" and normalized else architecture
        features = get_model(self.torchvision_name)
        self.replaced, last = [(n, m) for n, m in features.named_modules() if isinstance(m, nn.Linear)][-1]
        features.set_submodule(self.replaced, nn.Identity())
        if activation != "relu":
            for name in [n for n, m in features.named_modules() if isinstance(m, nn.ReLU)]:
                features.set_submodule(name, make_activation(activation))
        features.requires_grad_(not frozen)
        layers = OrderedDict(normalize=Normalize(), resize=Resize(size), features=features)
        dropouts = [m for m in features.modules() if isinstance(m, nn.Dropout)]
        rates = self.regularization.dropout_rates(len(dropouts) or 1)
        if rates and not dropouts:
            dropouts = [Dropout()]
            layers["dropout"] = dropouts[0]
        for dropout, rate in zip(dropouts, rates or [], strict=False):
            dropout.p = rate
        layers["linear"] = nn.Linear(last.in_features, self.num_classes)
        self.net = nn.Sequential(layers)
        self.train()  # Lightning's fit leaves each layer's mode as it finds it

    def initialize(self, images: Tensor) -> None:
        """Load the pretrained weights, those of the last layer excepted.

        Raises:
            UserError: they cannot be downloaded or read, are another network's, or `data.scaling` does not
                give them the pixels that they expect.
        """
        if self.weights is None:
            if self.frozen:
                log.warning(
                    "model.weights=null with model.frozen=true trains the last layer alone, on random "
                    "features; type model.frozen=false to train all."
                )
            return
        white = torch.full((1, 3, 32, 32), 255.0)
        if not torch.equal(self.scaling(white), torch.ones_like(white)):
            raise UserError(
                "data.scaling: pretrained weights expect pixels from 0 to 1; type data.scaling=unit."
            )
        if self.weights == "DEFAULT":
            path = download(get_model_weights(self.torchvision_name)["DEFAULT"].url)
        else:
            path = Path(self.weights)
        state = read_state_dict(path)
        kept = {name: value for name, value in state.items() if not name.startswith(f"{self.replaced}.")}
        try:
            self.net.get_submodule("features").load_state_dict(kept)
        except RuntimeError as error:
            difference = shorten(str(error).partition("\n")[2], 150, placeholder=" ...")
            raise UserError(
                f"{path} holds no weights of torchvision's {self.torchvision_name}: {difference}"
            ) from None

    def train(self, mode: bool = True) -> Self:
        """As every module's, but frozen batch norm stays in eval mode: its statistics are ImageNet's."""
        super().train(mode)
        if self.frozen:
            for layer in self.net.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.eval()
        return self

    def kernels(self) -> list[Tensor]:
        """What a penalty acts on: as everywhere, or of a frozen network the one layer that trains."""
        if not self.frozen:
            return super().kernels()
        return [p for p in self.net.parameters() if p.requires_grad and p.ndim > 1]


class Normalize(nn.Module):
    """Pixels 0 to 1, float32 (N, 3, H, W), to ImageNet's mean 0 and standard deviation 1 by channel."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.std


class Resize(nn.Module):
    """(N, C, H, W) to (N, C, size, size), bilinear; antialiased where it shrinks."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)


def read_state_dict(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a state-dict file by name, on the CPU; no code in the file is run.

    Raises:
        UserError: the file is missing, damaged, or no state dict.
    """
    if not path.is_file():
        raise UserError(
            f"model.weights={path}: there is no such file; expected DEFAULT, null or a file of weights."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if is_zipfile(path):  # what torch has written since 2020
            check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Refused as refusal:
        raise UserError(f"{path} cannot be read as a file of weights: {refusal}.") from None
    except Exception as error:  # a damaged file can fail in any way
        raise UserError(
            f"{path} cannot be read as a file of weights ({type(error).__name__}); replace it by a whole one."
        ) from None
    if not (isinstance(state, Mapping) and all(isinstance(value, Tensor) for value in state.values())):
        raise UserError(f"{path} is no state dict: expected tensors by name and nothing else.")
    return state


def download(url: str) -> Path:
    """The file of that URL in torch.hub's cache: there, or fetched and checked by the hash in its name.

    Raises:
        UserError: it could not be fetched; says which file to put where.
    """
    name = Path(urlparse(url).path).name
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if path.is_file():
        return path
    log.info(f"Downloading {url} to {path.parent}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sha256 = name.partition("-")[2].partition(".")[0]  # its first digits: torchvision's naming convention
        with silence_ends_after(STALL_SECONDS):
            torch.hub.download_url_to_file(url, str(path), sha256, progress=sys.stderr.isatty())
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: the hash is another
        reason = getattr(error, "reason", error)
        raise UserError(
            f"{url} could not be downloaded ({reason}): put {name} into {path.parent}, or name it with "
            "model.weights=FILE."
        ) from None
    return path


@contextmanager
def silence_ends_after(seconds: float) -> Iterator[None]:
    """Let sockets that are opened meanwhile fail once nothing has come for so long."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
