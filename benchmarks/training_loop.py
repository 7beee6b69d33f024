"""The whole training loop against a bare PyTorch loop with the same layers, precision and memory format.

    python benchmarks/training_loop.py [steps=60] [rounds=5] [key=value ...]

Trains `experiment=posts/a3_baseline` (or another; overrides on top) for one warm-up epoch and `rounds` epochs
of `steps` batches, and after each runs as many steps of a bare loop on one fixed batch: forward, loss,
backward, optimizer, nothing else. The two alternate in one process, so a machine that drifts slows both.
Prints images per second of each, their ratio, and the medians over the rounds.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import machine
import pytorch_lightning as pl
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cifarlab import training
from cifarlab.config import check
from cifarlab.errors import UserError
from cifarlab.models.classifier import Classifier
from cifarlab.runs.callbacks import RunRecord

ROOT = Path(__file__).parents[1]


class BareLoop(pl.Callback):
    """Times so many steps of a bare loop after each epoch, on a copy of the network; by default with the
    run's batch size."""

    def __init__(self, steps: int, batch_size: int | None) -> None:
        self.steps, self.batch_size = steps, batch_size
        self.rates: list[float] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Classifier)
        assert module.make_optimizer is not None
        net = copy.deepcopy(module.net)
        optimizer = module.make_optimizer(params=[p for p in net.parameters() if p.requires_grad])
        batch_size = self.batch_size or trainer.datamodule.batch_size
        bf16 = trainer.precision == "bf16-mixed"
        bare = machine.BareSteps(net, batch_size, optimizer, module.num_classes, bf16)
        bare.rate(3)
        self.rates.append(bare.rate(self.steps))


class Batches(pl.Callback):
    """Counts an epoch's batches, however few of them are trained on."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.count = len(trainer.datamodule.train_dataloader())


def composed(overrides: list[str]) -> Any:
    """The configuration, checked, with the data of this checkout.

    Raises:
        UserError: what is wrong with it.
    """
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("train", overrides), resolve=True)
    check(config)
    if config["data"].get("root") == "data":  # wherever this is started
        config["data"]["root"] = str(ROOT / "data")
    return config


def trained(overrides: list[str], callback: pl.Callback, first: bool = False) -> RunRecord:
    """What a run has told of itself that had that callback, called behind the record's clock or, as the
    `first`, in front of all others."""
    recorders: list[RunRecord] = []
    make_trainer = training.make_trainer

    def with_callback(*arguments: Any, **options: Any) -> pl.Trainer:
        trainer = make_trainer(*arguments, **options)
        recorders.extend(c for c in trainer.callbacks if isinstance(c, RunRecord))
        trainer.callbacks.insert(0 if first else len(trainer.callbacks), callback)
        return trainer

    training.make_trainer = with_callback
    try:
        with tempfile.TemporaryDirectory() as folder:
            training.train(composed(overrides), Path(folder), overrides, {})
    finally:
        training.make_trainer = make_trainer
    return recorders[0]


def training_seconds(overrides: list[str], steps: int) -> float:
    """Of a whole training, from `steps` batches of each of its epochs: no less than it takes, because what an
    epoch costs once counts as often as it has fewer. Validation, test and files are left out."""
    batches = Batches()
    overrides = [*overrides, f"trainer.limit_train_batches={steps}", "data.validation=none", "test=false"]
    history = trained(overrides, batches).history
    return batches.count / steps * sum(row["seconds"] for row in history)


def compare(
    overrides: list[str],
    steps: int,
    rounds: int,
    bare_batch_size: int | None = None,
    bare_steps: int | None = None,
) -> list[tuple[float, float]]:
    """Images per second of the whole loop and of the bare one, round by round.

    The bare loop's batches may have a size of their own, and be others in number. It runs before and behind
    each round, which is held against the mean of both.
    """
    overrides = [
        *overrides,
        f"trainer.limit_train_batches={steps}",
        f"trainer.max_epochs={rounds + 1}",
        "trainer.limit_val_batches=1",
        "test=false",
    ]
    bare = BareLoop(bare_steps or steps, bare_batch_size)
    run = trained(overrides, bare)
    images = run.train_images / len(run.history)  # of each epoch, which may have fewer batches than `steps`
    ours = [images / row["seconds"] for row in run.history]
    others = [(before + behind) / 2 for before, behind in pairwise(bare.rates)]
    return list(zip(ours[1:], others, strict=True))


def main() -> None:
    own = {"steps": 60, "rounds": 5}
    overrides: list[str] = []
    for argument in sys.argv[1:]:
        key, _, value = argument.partition("=")
        if key not in own:
            overrides.append(argument)
        elif value.isdecimal() and int(value):
            own[key] = int(value)
        else:
            raise SystemExit(f"{argument}: expected a whole number of 1 or more.")
    if not any(o.startswith("experiment=") for o in overrides):
        overrides.insert(0, "experiment=posts/a3_baseline")
    try:
        rounds = compare(overrides, **own)
    except UserError as error:
        raise SystemExit(str(error)) from error
    print(f"{'whole loop':>12} {'bare loop':>12} {'ratio':>8}   images/s, {' '.join(overrides)}")
    for ours, bare in rounds:
        print(f"{ours:12,.0f} {bare:12,.0f} {ours / bare:8.3f}")
    ratio = median(ours / bare for ours, bare in rounds)
    ours, bare = (median(side) for side in zip(*rounds, strict=True))
    print(f"{ours:12,.0f} {bare:12,.0f} {ratio:8.3f}   medians")
    at = machine.describe()
    rate = f"{at['matrix_gflops']:,.0f} GFLOP/s of a {at['dtype']} product"
    print(
        f"{at['device']}, {at['threads']} threads, torch {at['torch']}, {rate}, E = {at['e_seconds']:.1f} s"
    )


if __name__ == "__main__":
    main()
