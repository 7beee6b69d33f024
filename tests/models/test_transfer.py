"""Torchvision's networks: what is loaded, frozen and trained; sizes worked out by hand; bad weights files."""

from __future__ import annotations

import hashlib
import pickle
import re
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, VGG16_Weights, resnet18, vgg16, vgg16_bn
from torchvision.transforms._presets import ImageClassification

from cifarlab.data.scaling import ChannelScaling
from cifarlab.errors import UserError
from cifarlab.models import transfer
from cifarlab.models.transfer import IMAGENET_MEAN, IMAGENET_STD, Transfer, download
from cifarlab.optim.optimizers import sgd
from cifarlab.optim.schedules import constant
from cifarlab.regularizers import BatchNorm, DropoutIncreasing, Regularization

CONVOLUTIONS = 14_714_688  # VGG-16: 9 a b + b for 3-64-64, -128-128, -256-256-256, twice -512-512-512
DENSE = 25_088 * 4096 + 4096 + 4096 * 4096 + 4096  # the first from 512 channels of 7 x 7 pixels
IMAGES = torch.randint(256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def network(weights: object = None, **options: Any) -> Transfer:
    torch.manual_seed(1)
    unit = ChannelScaling(torch.zeros(3), torch.ones(3))
    given = None if weights is None else str(weights)
    return Transfer("resnet18", given, **{"size": 32, "num_classes": 10, "scaling": unit, **options})


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def differing(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.fixture(scope="module")
def published() -> nn.Module:
    """Stands for torchvision's pretrained ResNet-18, with statistics that are not those of a fresh one."""
    torch.manual_seed(0)
    net = resnet18().eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    return net


@pytest.fixture(scope="module")
def files(published: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("weights")
    paths = {"pth": home / "resnet18.pth", "safetensors": home / "resnet18.safetensors"}
    torch.save(published.state_dict(), paths["pth"])
    save_file(published.state_dict(), paths["safetensors"])
    return paths


def sizes(architecture: Any, **options: Any) -> tuple[int, int]:
    """The parameters of all layers, and of those that train, without making them."""
    with torch.device("meta"):
        model = Transfer(architecture, **{"num_classes": 10, **options})
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in counts), sum(n for n, trains in counts if trains)


def test_parameters() -> None:
    # stem 7 * 7 * 3 * 64 + 2 * 64; the stages as in test_resnet.py
    features = 9_536 + 147_968 + 525_568 + 2_099_712 + 8_393_728
    assert features == 11_176_512
    assert sizes("resnet18") == (features + 5_130, 5_130)
    assert sizes("resnet18", num_classes=100) == (features + 51_300, 51_300)
    assert sizes("resnet18", frozen=False) == (features + 5_130, features + 5_130)
    assert sizes("vgg16") == (CONVOLUTIONS + DENSE + 40_970, 40_970)
    assert sizes("vgg16", frozen=False, num_classes=100)[1] == CONVOLUTIONS + DENSE + 409_700
    # scale and shift of 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512 channels
    with_norm = Regularization([BatchNorm()])
    assert sizes("vgg16", regularization=with_norm)[0] == CONVOLUTIONS + DENSE + 40_970 + 2 * 4_224
    assert sizes("resnet18", regularization=with_norm) == sizes("resnet18")


@pytest.mark.parametrize("make, reg", [(vgg16, []), (vgg16_bn, [BatchNorm()])])
def test_vgg16_takes_all_of_torchvisions_weights_but_the_last_layers(make: Any, reg: list[Any]) -> None:
    with torch.device("meta"):
        theirs = make().state_dict()
        ours = Transfer("vgg16", regularization=Regularization(reg), num_classes=10).net.features.state_dict()
    assert {n: v.shape for n, v in ours.items()} | {
        "classifier.6.weight": (1000, 4096),
        "classifier.6.bias": (1000,),
    } == {n: v.shape for n, v in theirs.items()}


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_same_outputs_as_torchvisions_preprocessing_and_network(
    kind: str, files: dict[str, Path], published: nn.Module
) -> None:
    model = network(files[kind], size=64, num_classes=1000)
    model.initialize(IMAGES)
    model.net.linear.load_state_dict(published.fc.state_dict())
    with torch.no_grad():
        expected = published(ImageClassification(crop_size=64, resize_size=64)(IMAGES.float() / 255))
        torch.testing.assert_close(model.eval()(IMAGES), expected, atol=1e-5, rtol=0)


def test_pixels_are_normalized_as_torchvision_does() -> None:
    for weights in (ResNet18_Weights.DEFAULT, VGG16_Weights.DEFAULT):
        preset = weights.transforms()
        assert (tuple(preset.mean), tuple(preset.std)) == (IMAGENET_MEAN, IMAGENET_STD)


def test_constructing_reads_no_file() -> None:
    assert torch.equal(network("nowhere.pth").net.features.conv1.weight, network().net.features.conv1.weight)


def trained(model: Transfer) -> tuple[set[str], set[str]]:
    """The names of the features' and of the last layer's tensors that two epochs of one step each change."""
    before = state(model.net.features), state(model.net.linear)
    model.make_optimizer, model.make_scheduler = partial(sgd, lr=0.1), constant
    loader = torch.utils.data.DataLoader(
        [(image, 3, number) for number, image in enumerate(IMAGES)], batch_size=4
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader, loader)
    return differing(before[0], state(model.net.features)), differing(before[1], state(model.net.linear))


@pytest.mark.filterwarnings("ignore:.*(eval mode|does not have many workers|logging interval)")
def test_frozen_only_the_last_layer_changes(files: dict[str, Path]) -> None:
    model = network(files["pth"])
    model.initialize(IMAGES)
    assert trained(model) == (set(), {"weight", "bias"})


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|logging interval)")
def test_fine_tuning_changes_weights_and_statistics(files: dict[str, Path]) -> None:
    model = network(files["pth"], frozen=False)
    model.initialize(IMAGES)
    features, last = trained(model)
    assert features == set(model.net.features.state_dict())
    assert last == {"weight", "bias"}


def test_dropout_goes_where_torchvision_has_it() -> None:
    reg = Regularization([DropoutIncreasing(0.1, 0.3)])
    with torch.device("meta"):
        plain, chosen = (Transfer("vgg16", num_classes=10, **run) for run in ({}, {"regularization": reg}))
    rates = [
        [layer.p for layer in model.net.modules() if isinstance(layer, nn.Dropout)]
        for model in (plain, chosen, network(), network(regularization=reg))
    ]
    assert rates == [[0.5, 0.5], pytest.approx([0.1, 0.3]), [], pytest.approx([0.1])]
    # it drops although the layers around it are frozen
    assert chosen.train().net.features.classifier[2].training


def test_a_penalty_acts_on_what_trains() -> None:
    frozen, tuned = network(), network(frozen=False)
    assert [kernel is frozen.net.linear.weight for kernel in frozen.kernels()] == [True]
    assert len(tuned.kernels()) == 20  # 17 convolutions and 3 projections
    assert all(kernel is not tuned.net.linear.weight for kernel in tuned.kernels())


def test_activation_is_used_everywhere() -> None:
    kinds = [type(layer) for layer in network(activation="gelu").net.modules()]
    assert (kinds.count(nn.GELU), kinds.count(nn.ReLU)) == (9, 0)  # the stem's and one module in each block


def test_refuses_what_the_weights_do_not_allow(files: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"model\.activation=gelu: pretrained weights expect relu"):
        network("DEFAULT", activation="gelu")
    with pytest.raises(UserError, match=r"model\.size=16: expected 32"):
        network(size=16)
    for scaling in (None, ChannelScaling(torch.full((3,), 0.5), torch.ones(3))):
        with pytest.raises(UserError, match=r"type data\.scaling=unit"):
            network(files["pth"], scaling=scaling).initialize(IMAGES)


def test_says_that_random_features_stay_random(caplog: pytest.LogCaptureFixture) -> None:
    network(frozen=False).initialize(IMAGES)
    assert not caplog.records
    network().initialize(IMAGES)
    assert "type model.frozen=false" in caplog.text


class Program:
    """What a pickle may call when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a file's code was run",)


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("absent.pth", None, "there is no such file"),
        ("text.pth", b"hello", "cannot be read"),
        ("text.safetensors", b"hello", "cannot be read"),
        ("program.pth", pickle.dumps(Program(), 2), "cannot be read"),
        ("nested.pth", {"state_dict": {}, "epoch": 3}, "is no state dict"),
        ("tensor.pth", torch.zeros(3), "is no state dict"),
        (
            "other.pth",
            {"conv1.weight": torch.zeros(64, 3, 3, 3)},
            "holds no weights of torchvision's resnet18: Missing key",
        ),
    ],
    ids=lambda value: value if str(value).endswith(("pth", "safetensors")) else "",
)
def test_refuses_files_that_are_no_weights(tmp_path: Path, name: str, content: Any, says: str) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=f"{re.escape(str(path))}.*{says}") as caught:
        network(path).initialize(IMAGES)
    assert len(str(caught.value)) < 300 + len(str(path))


def test_refuses_a_torn_file(tmp_path: Path, files: dict[str, Path]) -> None:
    for kind, whole in files.items():
        torn = tmp_path / f"torn.{kind}"
        torn.write_bytes(whole.read_bytes()[:10_000])
        with pytest.raises(UserError, match="cannot be read"):
            network(torn).initialize(IMAGES)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def test_default_weights_are_downloaded_once(
    files: dict[str, Path], cache: Path, published: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(files["pth"].read_bytes()).hexdigest()
    there = files["pth"].with_name(f"resnet18-{digest[:8]}.pth")
    there.hardlink_to(files["pth"])
    monkeypatch.setattr(ResNet18_Weights.DEFAULT.value, "url", there.as_uri())
    for _ in range(2):  # the second time from the cache
        model = network("DEFAULT")
        model.initialize(IMAGES)
        assert torch.equal(model.net.features.conv1.weight, published.conv1.weight)
        there.unlink(missing_ok=True)
    assert [path.name for path in cache.iterdir()] == [there.name]


def test_a_download_that_fails_says_what_to_put_where(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "net-00000000.pth"
    wrong.write_bytes(b"other bytes")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setattr(transfer, "STALL_SECONDS", 0.2)
        for url, reason in (
            (wrong.as_uri(), "invalid hash value"),
            (f"{tmp_path.as_uri()}/net-11111111.pth", "No such file"),
            (f"http://127.0.0.1:{port}/net-22222222.pth", "timed out"),
        ):
            name = url.rpartition("/")[2]
            with pytest.raises(UserError) as caught:
                download(url)
            message = str(caught.value)
            assert f"put {name} into {cache}, or name it with model.weights=FILE" in message
            assert reason in message
    assert not list(cache.iterdir())
    assert socket.getdefaulttimeout() is None
