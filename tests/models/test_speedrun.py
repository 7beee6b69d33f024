"""The speed records' network: what its whitening does, how it starts, and its parameters by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from cifarlab.data.scaling import make_scaling
from cifarlab.models.speedrun import PATCH, Speedrun
from cifarlab.regularizers import Dropout, Regularization
from cifarlab.training import train

CONF = Path(__file__).parents[2] / "conf"

IMAGES = torch.randint(256, (600, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
IMAGES = nn.functional.interpolate(IMAGES.float(), size=32, mode="bilinear").byte()  # neighbours alike


def network(**options: object) -> Speedrun:
    torch.manual_seed(0)
    scaling = make_scaling("standardize", IMAGES)
    return Speedrun(**{"num_classes": 10, "scaling": scaling, **options})


def train_on_digits(folder: Path, *typed: str) -> None:
    overrides = ["data=digits", "data.validation=none", "model=speedrun", "model.widths=[4]"]
    overrides += ["optimizer=muon", "trainer=cpu", "export=none", "test=false", "logger=none", *typed]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("train", overrides), resolve=True)
    train(config, folder, overrides, {"model": "speedrun", "reg": [], "data": "digits"})


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


def test_the_bias_learns_for_so_many_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    end = Speedrun.on_train_epoch_end

    def watch(self: Speedrun) -> None:
        whitening, first = self.net[0], self.net[2]
        seen.append((first.weight.clone(), whitening.bias.clone(), whitening.bias.requires_grad))
        end(self)

    monkeypatch.setattr(Speedrun, "on_train_epoch_end", watch)
    train_on_digits(tmp_path, "model.bias_epochs=1", "trainer.max_epochs=3", "trainer.limit_train_batches=2")
    kernels, biases, learns = zip(*seen, strict=True)
    assert learns == (True, False, False)
    assert biases[0].abs().min() > 0
    assert torch.equal(biases[0], biases[2])
    assert not torch.equal(kernels[1], kernels[2])


def test_a_bias_that_learns_no_more_takes_no_step_in_several_processes_either() -> None:
    model = network(widths=[4], bias_epochs=0)
    model(IMAGES[:2]).sum().backward()
    assert model.net[0].bias.grad is not None
    model.on_before_optimizer_step(torch.optim.SGD(model.parameters(), lr=1))
    assert model.net[0].bias.grad is None


def test_a_short_last_batch_moves_the_averages_by_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, float]] = []
    end = Speedrun.on_train_batch_end

    def watch(self: Speedrun, outputs: Any, batch: Any, batch_idx: int) -> None:
        seen.append((len(batch[0]), self.net[4].momentum))
        end(self, outputs, batch, batch_idx)

    monkeypatch.setattr(Speedrun, "on_train_batch_end", watch)
    train_on_digits(tmp_path, "data.batch_size=500", "trainer.max_epochs=1")
    *whole, (left, momentum) = seen
    assert set(whole) == {(500, 0.4)}
    assert 1 < left < 500
    assert momentum == pytest.approx(1 - 0.6 ** (left / 500))
