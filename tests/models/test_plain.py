"""The posts' networks: parameters counted by hand, Keras's initial ranges, dropout and norm in place."""

import copy
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from cifarlab.errors import UserError
from cifarlab.models.classifier import Classifier
from cifarlab.models.plain import VGG, ConvNet
from cifarlab.regularizers import BatchNorm, Dropout, DropoutIncreasing, Regularization

CONF = Path(__file__).parents[2] / "conf"


def build(name: str, classes: int = 10, *regularizers: object, **keys: object) -> Classifier:
    node = OmegaConf.merge(OmegaConf.load(CONF / "model" / f"{name}.yaml"), keys)
    return instantiate(
        node, num_classes=classes, regularization=Regularization(regularizers), _convert_="all"
    )


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def conv(inputs: int, outputs: int) -> int:
    return (9 * inputs + 1) * outputs


def dense(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


BLOCK = {w: conv(w // 2 if w > 32 else 3, w) + conv(w, w) for w in (32, 64, 128, 256, 512)}
COUNTS = {
    # a block halves the image: 32 channels at 16 x 16, 64 at 8 x 8, 128 at 4 x 4, 256 at 2 x 2, 512 at 1 x 1
    "vgg1": BLOCK[32] + dense(32 * 16 * 16, 128) + dense(128, 10),
    "vgg2": BLOCK[32] + BLOCK[64] + dense(64 * 8 * 8, 128) + dense(128, 10),
    "vgg3": BLOCK[32] + BLOCK[64] + BLOCK[128] + dense(128 * 4 * 4, 128) + dense(128, 10),
    "vgg4": sum(BLOCK[w] for w in (32, 64, 128, 256)) + dense(256 * 2 * 2, 128) + dense(128, 10),
    "vgg5": sum(BLOCK.values()) + dense(512, 128) + dense(128, 10),
    # valid convolutions: 32 - 2 = 30, 15 - 2 = 13, 6 - 2 = 4, pooled to 2 x 2
    "convnet": conv(3, 32)
    + conv(32, 64)
    + conv(64, 128)
    + dense(512, 256)
    + dense(256, 128)
    + dense(128, 10),
    "lab3": conv(3, 32) + conv(32, 64) + conv(64, 128) + dense(128 * 4 * 4, 80) + dense(80, 10),
    # same then valid: 32, 30 pooled to 15; 15, 13 pooled to 6
    "conv4": conv(3, 32)
    + conv(32, 32)
    + conv(32, 64)
    + conv(64, 64)
    + dense(64 * 6 * 6, 512)
    + dense(512, 10),
    "conv1": conv(3, 32) + dense(32 * 16 * 16, 512) + dense(512, 10),
}
PUBLISHED = {
    "vgg1": 1_060_138,
    "vgg2": 591_274,
    "vgg3": 550_570,
    "vgg4": 1_304_746,
    "vgg5": 4_779_178,
    "convnet": 258_762,
    "lab3": 257_978,
    "conv4": 1_250_858,
    "conv1": 4_200_842,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_as_worked_out_and_as_published(name: str) -> None:
    assert COUNTS[name] == PUBLISHED[name]
    assert parameters(build(name)) == PUBLISHED[name]


@pytest.mark.parametrize("name, count", [("convnet", 270_372), ("conv1", 4_247_012)])
def test_parameters_with_100_classes(name: str, count: int) -> None:
    assert parameters(build(name, 100)) == count


def test_batch_norm_adds_a_scale_and_a_shift_for_each_feature() -> None:
    assert parameters(build("vgg3", 10, BatchNorm())) == 550_570 + 2 * (2 * (32 + 64 + 128) + 128) == 551_722


@pytest.mark.parametrize("name", [*COUNTS])
def test_uint8_images_become_logits(name: str) -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert build(name, 7)(images).shape == (2, 7)


@pytest.mark.parametrize(
    "name, limit", [("vgg3", lambda i, o: sqrt(6 / i)), ("lab3", lambda i, o: sqrt(6 / (i + o)))]
)
def test_initial_weights_fill_kerass_uniform_range(name: str, limit) -> None:
    torch.manual_seed(0)
    layers = [m for m in build(name).net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer in layers[:-1]:
        fan_in = layer.weight[0].numel()
        fan_out = layer.weight.shape[0] * (9 if layer.weight.ndim == 4 else 1)
        bound = limit(fan_in, fan_out)
        assert 0.98 * bound < layer.weight.detach().abs().max() <= bound
        assert layer.weight.detach().std() == pytest.approx(
            bound / sqrt(3), rel=0.06
        )  # a uniform's standard deviation
        assert not layer.bias.any()
    last = layers[-1]
    bound = sqrt(6 / (last.in_features + 10))
    assert 0.98 * bound < last.weight.detach().abs().max() <= bound
    assert not last.bias.any()


def kinds(model: Classifier) -> list[str]:
    return [type(layer).__name__ for layer in model.net]


def test_the_order_of_a9() -> None:
    block = ["Conv2d", "ReLU", "BatchNorm2d"] * 2 + ["MaxPool2d", "Dropout"]
    head = ["Flatten", "Linear", "ReLU", "BatchNorm1d", "Dropout", "Linear"]
    model = build("vgg3", 10, BatchNorm(), DropoutIncreasing())
    assert kinds(model) == block * 3 + head
    assert [m.p for m in model.net if isinstance(m, nn.Dropout)] == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert {(m.momentum, m.eps) for m in model.net if isinstance(m, nn.BatchNorm2d)} == {(0.01, 0.001)}


def test_batch_norm_before_the_activation() -> None:
    assert kinds(build("vgg1", 10, BatchNorm(before_activation=True)))[:3] == [
        "Conv2d",
        "BatchNorm2d",
        "ReLU",
    ]


def test_dropout_before_the_pool_in_conv1() -> None:
    model = build("conv1")
    assert kinds(model)[:4] == ["Conv2d", "ReLU", "Dropout", "MaxPool2d"]
    assert [m.p for m in model.net if isinstance(m, nn.Dropout)] == [0.2, 0.5]


@pytest.mark.parametrize(
    "name, rates", [("lab3", [0.3, 0.3, 0.4, 0.3]), ("conv4", [0.25, 0.25, 0.5]), ("vgg3", [])]
)
def test_a_networks_own_dropout(name: str, rates: list[float]) -> None:
    assert [m.p for m in build(name).net if isinstance(m, nn.Dropout)] == rates


def test_chosen_dropout_replaces_the_networks_own() -> None:
    assert [m.p for m in build("lab3", 10, Dropout(0.1)).net if isinstance(m, nn.Dropout)] == [0.1] * 4


def test_activation_is_everywhere() -> None:
    assert [k for k in kinds(build("vgg2", activation="silu")) if k in ("SiLU", "ReLU")] == ["SiLU"] * 5


def test_the_penalised_kernels_are_all_but_the_last_layers() -> None:
    shapes = [tuple(k.shape) for k in VGG(blocks=1, num_classes=10).kernels()]
    assert shapes == [(32, 3, 3, 3), (32, 32, 3, 3), (128, 32 * 16 * 16)]


@pytest.mark.parametrize("key, keys", [("dropout", {"dropout": [0.1]}), ("blocks", {"blocks": [[8]] * 6})])
def test_a_stack_that_cannot_be_is_refused(key: str, keys: dict) -> None:
    good: dict = {"blocks": [[8]], "padding": ["same"], "dense": [8]}
    with pytest.raises(UserError, match=rf"^model\.{key}"):
        ConvNet(**good | keys, num_classes=10)


@pytest.mark.parametrize("options", [{}, {"activation": "elu"}], ids=["relu", "elu"])
def test_the_pool_before_relu_changes_no_bit(options: dict[str, Any]) -> None:
    """Neither of the logits nor of any gradient; an activation that need not commute stays in front."""
    torch.manual_seed(0)
    model = VGG(blocks=2, width=4, dense=8, num_classes=3, **options)
    layers = list(model.net)
    pools = [place for place, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    assert [isinstance(layers[place + 1], nn.ReLU) for place in pools] == [not options] * 2
    plain = copy.deepcopy(layers)
    for place in pools:
        if not options:
            plain[place], plain[place + 1] = nn.ReLU(), plain[place]
    plain = nn.Sequential(*plain)
    images = torch.randn(5, 3, 32, 32)
    for net in (model.net, plain):
        net(images.clone()).logsumexp(1).sum().backward()
    assert torch.equal(model.net(images.clone()), plain(images.clone()))
    ours, theirs = ([p.grad for p in net.parameters()] for net in (model.net, plain))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
