"""One run, top to bottom: data, network, trainer, fit, test, record."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import get_method, instantiate
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.model_summary import ModelSummary

from cifarlab import hardware
from cifarlab.data.module import ImageData
from cifarlab.errors import RunFailed, UserError
from cifarlab.models.classifier import Classifier
from cifarlab.regularizers import Regularization
from cifarlab.runs import record as records
from cifarlab.runs.callbacks import Bar, EpochSeed, RunRecord, peak_memory_bytes
from cifarlab.runs.checkpoints import AtomicCheckpointIO, load_weights, save_weights

log = logging.getLogger(__name__)

Config = dict[str, Any]


def train(config: Config, folder: Path, overrides: list[str], choices: dict[str, Any]) -> dict[str, Any]:
    """Fit, score the test images once, and leave everything in `folder`; returns the record.

    Args:
        config: the resolved configuration, checked (`cifarlab.config.check`).
        folder: the run's own folder; with `config["resume"]` the one it goes on in.
        overrides, choices: what was typed, and the option chosen in each group, for the record.

    Raises:
        UserError: the data, the folder or the configuration is wrong.
        RunFailed: the loss became NaN or infinite.
        KeyboardInterrupt: stopped by Ctrl-C, with the last finished epoch saved.
        SystemExit: with code 143, stopped by SIGTERM, likewise.
    """
    started = time.perf_counter()
    quiet()
    trainer_options = hardware.settle_precision(config["trainer"])
    regularization = Regularization([instantiate(part) for part in config["reg"].values()])
    data: ImageData = instantiate(config["data"], seed=config["seed"], regularization=regularization)
    data.setup()
    hardware.keep_memory()  # behind the data, whose preparation would otherwise be kept as well
    model = make_model(config, data, regularization)

    resuming = config["resume"] is not None
    record = records.read(folder) if resuming else records.new(config, overrides, choices)
    if resuming and 0 < config["trainer"]["max_epochs"] < record["epochs"]:
        raise UserError(
            f"resume={folder}: that run has {record['epochs']} epochs behind it; trainer.max_epochs="
            f"{config['trainer']['max_epochs']} must be no less."
        )
    record |= {"status": "running", "error": None, "finished": None, "overrides": overrides}
    record |= {"config_hash": records.config_hash(config)}
    record["data"] |= describe_data(data)
    record["model"]["parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    recorder = RunRecord(folder, record, validates_on_test=data.validation == "test")
    trainer = make_trainer(
        config, trainer_options, folder, regularization, recorder, validates=data.counts["val"] > 0
    )
    device = trainer.strategy.root_device
    record["environment"] |= records.environment() | {
        "device": hardware.describe(device),
        "precision": trainer.precision,
        "threads": torch.get_num_threads(),
    }
    if trainer.is_global_zero:
        records.write_config(folder, {**config, "resume": None})
        records.write(folder, record)
        log.info(str(layers(model)))

    outcome = {"status": "failed"}
    try:
        last = folder / "checkpoints" / "last.ckpt"
        if config["start_from"] is not None and not resuming:
            load_weights(model, Path(config["start_from"]), "last")
        trainer.fit(model, data, ckpt_path=last if resuming and last.is_file() else None)
        if config["test"]:
            record["test"] = score_test_images(trainer, model, data, folder, config["test_weights"])
        if trainer.is_global_zero:
            save_weights(model, folder / "weights.safetensors")
        outcome = {"status": "done"}
    except (UserError, RunFailed) as error:
        outcome["error"] = str(error)
        raise
    except (KeyboardInterrupt, SystemExit):
        # Lightning has made one SystemExit of both signals
        ctrl_c = isinstance(recorder.stopped_by, KeyboardInterrupt)
        outcome = {"status": "interrupted", "error": "stopped by Ctrl-C" if ctrl_c else "stopped by SIGTERM"}
        raise (KeyboardInterrupt if ctrl_c else SystemExit(143)) from None
    except BaseException as error:
        outcome["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        record |= outcome | {"finished": records.now(), "peak_memory_bytes": peak_memory_bytes(device)}
        record["wall_seconds"] = (record["wall_seconds"] or 0) + time.perf_counter() - started
        if trainer.is_global_zero:
            records.write(folder, record)
    if trainer.is_global_zero:
        log_hyperparameters(trainer.logger, config, record)
        log.info(summary(record, folder))
    return record


def make_model(config: Config, data: ImageData, regularization: Regularization) -> Classifier:
    """The network, its initial weights drawn from the seed."""
    pl.seed_everything(config["seed"], verbose=False)
    optimizer, scheduler = ({**config[group]} for group in ("optimizer", "scheduler"))
    assert data.set is not None
    model: Classifier = instantiate(
        config["model"],
        num_classes=len(data.set.classes),
        regularization=regularization,
        scaling=data.make_scaling(),
        _convert_="all",
    )
    model.make_optimizer = partial(get_method(optimizer.pop("_target_")), **optimizer)
    model.make_scheduler = partial(get_method(scheduler.pop("_target_")), **scheduler)
    model.superclass_of = data.superclass_of
    return model.to(memory_format=model.memory_format)  # as the images: else each step reorders the weights


def make_trainer(
    config: Config,
    options: Config,
    folder: Path,
    regularization: Regularization,
    recorder: RunRecord,
    validates: bool,
) -> pl.Trainer:
    """Lightning's Trainer with the checkpoints, the record and the logger of a run."""
    checkpoints = partial(ModelCheckpoint, folder / "checkpoints", enable_version_counter=False)
    callbacks: list[Callback] = [EpochSeed(config["seed"]), recorder]
    callbacks += [
        EarlyStopping(
            rule.monitor, patience=rule.patience, mode="min" if rule.monitor == "val/loss" else "max"
        )
        for rule in regularization.stopping
    ]
    if validates:
        callbacks.append(checkpoints(filename="best", monitor="val/accuracy", mode="max"))
    # behind the best one, whose score it saves; ModelCheckpoint(save_last=True) would move only with the best
    callbacks.append(checkpoints(filename="last", save_on_train_epoch_end=True))
    if options["enable_progress_bar"] == "auto":
        options = {**options, "enable_progress_bar": sys.stderr.isatty()}
    if options["enable_progress_bar"]:
        callbacks.append(Bar(refresh_rate=20))
    logger: Logger | bool = False
    if config["logger"]:
        logger = instantiate(config["logger"], folder=folder)
    io = AtomicCheckpointIO()
    try:
        return pl.Trainer(**options, default_root_dir=folder, callbacks=callbacks, logger=logger, plugins=io)
    except (MisconfigurationException, ValueError, TypeError) as error:  # what it says of its own arguments
        raise UserError(f"trainer: {error}") from error


def score_test_images(
    trainer: pl.Trainer, model: Classifier, data: ImageData, folder: Path, weights: str
) -> dict[str, Any]:
    """The record's `test`: accuracy and loss on the test images with the `last` or `best` weights."""
    if weights == "best":
        load_weights(model, folder, "best")
    scores = trainer.test(model, data, verbose=False)[0]
    return {
        "accuracy": scores["test/accuracy"],
        "superclass_accuracy": scores.get("test/superclass_accuracy"),
        "loss": scores["test/loss"],
        "images": model.scored_images,
        "weights": weights,
    }


def describe_data(data: ImageData) -> dict[str, Any]:
    assert data.set is not None
    counts = data.counts
    return {
        "name": data.name,
        "num_classes": len(data.set.classes),
        "train_images": counts["train"],
        "val_images": counts["val"],
        "test_images": counts["test"],
        "validation": data.validation,
        "fingerprint": data.fingerprint,
    }


def layers(model: Classifier) -> ModelSummary:
    """The table of layers with their shapes and parameters."""
    model.example_input_array = torch.zeros(1, 3, 32, 32)
    return ModelSummary(model, max_depth=2)


def log_hyperparameters(logger: Logger | None, config: Config, record: dict[str, Any]) -> None:
    """TensorBoard's HPARAMS page: the choices and the scalar keys beside the final figures."""
    if not isinstance(logger, TensorBoardLogger):
        return
    choices = {name: "+".join(v) if isinstance(v, list) else str(v) for name, v in record["choices"].items()}
    scalars = {
        f"{group}.{key}": value
        for group in ("model", "optimizer", "scheduler", "data")
        for key, value in config[group].items()
        if isinstance(value, (int, float, str)) and key not in ("_target_", "root")
    }
    figures = {
        "final/test_accuracy": record["test"]["accuracy"],
        "final/test_loss": record["test"]["loss"],
        "final/val_accuracy": record["val"]["accuracy"],
        "final/best_val_accuracy": record["best_val"]["accuracy"],
    }
    metrics = {name: value for name, value in figures.items() if value is not None}
    logger.log_hyperparams({"seed": config["seed"], **choices, **scalars}, metrics)
    logger.finalize("success")


def summary(record: dict[str, Any], folder: Path) -> str:
    """The last lines of a run: the test accuracy and where everything is."""
    test, lines = record["test"], []
    if test["accuracy"] is not None:
        lines.append(
            f"Test accuracy {test['accuracy']:.2%}, loss {test['loss']:.4f} on {test['images']:,} images "
            f"({test['weights']} weights)."
        )
    if test["superclass_accuracy"] is not None:
        lines.append(f"Superclass accuracy {test['superclass_accuracy']:.2%}.")
    if record["data"]["validation"] == "test":
        lines.append("This run validated on the test images, so its choices may have seen them.")
    epochs, speed = record["epochs"], record["images_per_second"]
    if speed:
        span = f"{epochs} epoch{'s' * (epochs != 1)}, {record['train_seconds']:.0f} s of training"
        lines.append(f"{span}, {speed:,.0f} images/s.")
    return "\n".join([*lines, f"Run folder: {folder}"])


def quiet() -> None:
    """Leave out what Lightning says of every run and nobody can act on."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    if os.environ.get("LOCAL_RANK", "0") != "0":  # one process speaks for all
        logging.getLogger("cifarlab").setLevel(logging.WARNING)
    for useless in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*The number of training batches .* is smaller than the logging interval.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*Total length of `list` across ranks is zero.*",
        ".*isinstance.treespec, LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message=useless)
