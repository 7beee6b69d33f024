"""The speed records' network: what its whitening does, how it starts, and its parameters by hand."""

import torch
from torch import nn

from cifarlab.data.scaling import make_scaling
from cifarlab.models.speedrun import PATCH, Speedrun
from cifarlab.regularizers import Dropout, Regularization

IMAGES = torch.randint(256, (600, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
IMAGES = nn.functional.interpolate(IMAGES.float(), size=32, mode="bilinear").byte()  # neighbours alike


def network(**options: object) -> Speedrun:
    torch.manual_seed(0)
    scaling = make_scaling("standardize", IMAGES)
    return Speedrun(**{"num_classes": 10, "scaling": scaling, **options})


def test_the_filters_whiten_patches() -> None:
    model = network(eps=1e-9)
    model.initialize(IMAGES)
    responses = model.net[0](model.scaling(IMAGES.float())).permute(0, 2, 3, 1).reshape(-1, 24)
    moments = responses.T @ responses / len(responses)
    assert torch.allclose(moments[:12, :12], torch.eye(12), atol=1e-3)
    assert torch.allclose(responses[:, 12:], -responses[:, :12], atol=1e-4)


def test_eps_bounds_the_gain() -> None:
    model = network(eps=1.0)
    model.initialize(IMAGES)
    assert model.net[0].weight.flatten(1).norm(dim=1).max() <= 1  # 1 / sqrt(eigenvalue + 1)


def test_convolutions_begin_as_identities() -> None:
    model = network(widths=[32])
    first = next(layer for layer in model.net[1:] if isinstance(layer, nn.Conv2d))
    x = torch.randn(2, 24, 8, 8)
    assert torch.allclose(first(x)[:, :24], x, atol=1e-6)


def test_parameters_and_shapes() -> None:
    model = network()
    convolutions = 24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256
    trained = (
        24 + 9 * convolutions + 2 * (64 + 256 + 256) + 2560
    )  # bias, kernels, batch norms' shifts, linear
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained
    fixed = 24 * 3 * PATCH**2 + 2 * (64 + 256 + 256)
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == fixed
    assert model(IMAGES[:2]).shape == (2, 10)


def test_dropout_has_a_place_after_each_group() -> None:
    model = network(regularization=Regularization([Dropout(0.3)]))
    assert [layer.p for layer in model.net if isinstance(layer, nn.Dropout)] == [0.3] * 3
