"""A run that stops anywhere and is resumed has the bits of one that never stopped, whatever it is made of."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import QUICK
from folders import check_same
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cifarlab.models.classifier import Classifier
from cifarlab.training import train

CONF = Path(__file__).parents[2] / "conf"
EPOCHS, STEPS = 3, 6
SCHEDULERS = ["constant", "cosine", "exponential", "inverse_time", "linear", "one_cycle", "plateau", "step"]
OPTIMIZERS = ["adam", "adamw", "muon", "nesterov", "rmsprop", "sgd"]
REGULARIZERS = sorted({path.stem for path in (CONF / "reg").glob("*.yaml")} - {"dropout_increasing"})
ALL_AT_ONCE = "reg=[augment,batch_norm,cutout,dropout,early_stopping,label_smoothing,mixup,weight_averaging]"
RECIPES = [
    *([ALL_AT_ONCE, f"scheduler={scheduler}"] for scheduler in SCHEDULERS),
    *([ALL_AT_ONCE, f"optimizer={optimizer}", "scheduler=cosine"] for optimizer in OPTIMIZERS),
    *([f"reg={option}"] for option in REGULARIZERS if option != "progressive_resizing"),
    ["scheduler=cosine", "scheduler.interval=step", "trainer.accumulate_grad_batches=4"],
    ["model=resnet20", "model.widths=[4,4,4]", "reg=weight_averaging", "test=false"],
    [
        *("model=speedrun", "model.widths=[8,8]", "model.bias_epochs=1"),
        *("optimizer=muon", "scheduler=linear"),
        "reg=[alternating_flip,progressive_resizing,hard_examples]",
    ],
]


class Crash(Exception):
    """What stops a run here."""


def run(folder: Path, typed: list[str]) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", typed), resolve=True)
    folder.mkdir(exist_ok=True)
    return train(config, folder, typed, {"model": "vgg1", "reg": ["none"], "data": "digits"})


@pytest.mark.parametrize("number", range(len(RECIPES)))
def test_a_stopped_run_ends_with_the_same_bits(
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tries: Callable[[int, int], int],
    survived: Callable[[str, int], None],
) -> None:
    if number % tries(8, 1):
        pytest.skip("tried by `make chaos`")
    typed = [*QUICK, *RECIPES[number], f"trainer.max_epochs={EPOCHS}"]
    if RECIPES[number][0].startswith("model="):
        typed = [key for key in typed if key not in ("model=vgg1", "model.width=4", "model.dense=16")]
    run(tmp_path / "whole", typed)
    stops = sorted(random.Random(number).sample(range(1, EPOCHS * STEPS + 1), 2))
    after_batch = Classifier.on_train_batch_end

    def stop(self: Classifier, *batch: Any) -> None:
        after_batch(self, *batch)
        done = self.current_epoch * STEPS + batch[-1] + 1
        if stops and done == stops[0]:
            stops.pop(0)
            raise Crash

    monkeypatch.setattr(Classifier, "on_train_batch_end", stop)
    with pytest.raises(Crash):
        run(tmp_path / "stopped", typed)
    again = [*typed, f"resume={tmp_path}/stopped"]
    with pytest.raises(Crash):
        run(tmp_path / "stopped", again)
    run(tmp_path / "stopped", again)
    check_same(tmp_path / "stopped", tmp_path / "whole")
    survived("stops in the middle of an epoch, each resumed to the same bits", 2)


def test_a_run_that_stops_early_is_stopped_before_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its count of epochs without improvement goes on, and once it has ended no epoch is trained."""
    typed = [*QUICK, "reg=early_stopping", "reg.early_stopping.patience=1", "optimizer.lr=1e-30"]
    typed.append("trainer.max_epochs=9")
    assert run(tmp_path / "whole", typed)["epochs"] == 2
    again = [*typed, f"resume={tmp_path}/stopped"]

    def crash(self: Classifier) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        start = Classifier.on_train_epoch_start
        patch.setattr(
            Classifier, "on_train_epoch_start", lambda self: (crash if self.current_epoch else start)(self)
        )
        with pytest.raises(Crash):
            run(tmp_path / "stopped", typed)
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_test_start", crash)
        with pytest.raises(Crash):
            run(tmp_path / "stopped", again)
    run(tmp_path / "stopped", again)
    check_same(tmp_path / "stopped", tmp_path / "whole")


def test_a_different_seed_differs_in_all_that_is_random(tmp_path: Path) -> None:
    """Order, first weights, dropout and augmentation each; equal seeds are equal in each."""
    seen: dict[tuple[str, int, int], Any] = {}
    for seed, copy in ((0, 0), (0, 1), (1, 0)):

        def note(what: str, value: Any, seed: int = seed, copy: int = copy) -> None:
            seen.setdefault((what, seed, copy), value)

        watch(note, tmp_path / f"{seed}{copy}", seed)
    for what in ("order", "weights", "dropout", "augmentation"):
        assert torch.equal(seen[what, 0, 0], seen[what, 0, 1]), what
        assert not torch.equal(seen[what, 0, 0], seen[what, 1, 0]), what


def watch(note: Callable[[str, torch.Tensor], None], folder: Path, seed: int) -> None:
    """One short run, of which is noted what the seed decides."""
    from cifarlab.data.module import Indexed
    from cifarlab.regularizers import Regularization

    with pytest.MonkeyPatch.context() as patch:
        fetch, augment, start = Indexed.__getitem__, Regularization.augment, Classifier.on_train_start

        def fetched(self: Indexed, positions: torch.Tensor) -> Any:
            note("order", positions)
            return fetch(self, positions)

        def augmented(self: Regularization, images: torch.Tensor, *which: Any) -> torch.Tensor:
            changed = augment(self, torch.arange(images.numel()).float().reshape(images.shape), *which)
            note("augmentation", changed)
            return augment(self, images, *which)

        def started(self: Classifier) -> None:
            note("weights", self.net[0].weight.detach().clone())
            dropout = next(layer for layer in self.net if isinstance(layer, torch.nn.Dropout))
            dropout.register_forward_hook(lambda layer, inputs, output: dropped(layer, inputs[0], output))
            start(self)

        def dropped(layer: torch.nn.Module, inputs: torch.Tensor, output: torch.Tensor) -> None:
            if layer.training:
                note("dropout", (output == 0) & (inputs != 0))

        patch.setattr(Indexed, "__getitem__", fetched)
        patch.setattr(Regularization, "augment", augmented)
        patch.setattr(Classifier, "on_train_start", started)
        run(folder, [*QUICK, "reg=[dropout,augment]", f"seed={seed}", "trainer.max_epochs=1"])
