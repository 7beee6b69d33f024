"""One run, top to bottom: data, network, trainer, fit, test, record."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from cifarlab import hardware, signals
from cifarlab.atomic import remove_torn
from cifarlab.data.module import ImageData
from cifarlab.errors import RunFailed, UserError
from cifarlab.mistakes import refusal, shown
from cifarlab.models.classifier import Classifier
from cifarlab.regularizers import Regularization
from cifarlab.runs import export
from cifarlab.runs import record as records
from cifarlab.runs.boards import Board, log_hyperparameters
from cifarlab.runs.callbacks import (
    AveragedWeights,
    Bar,
    EpochSeed,
    LastCheckpoint,
    RunRecord,
    Stopping,
    peak_memory_bytes,
)
from cifarlab.runs.checkpoints import (
    AtomicCheckpointIO,
    RunCheckpoint,
    load_weights,
    read_checkpoint,
    refuse_larger,
    save_weights,
)

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
        RunFailed: the loss became NaN or infinite, or a file cannot be written.
        Stop: by a signal, with the last finished epoch saved.
    """
    signals.check()  # it may have been lost while all was imported
    quiet()
    export.require(config["export"])
    regularization = Regularization([instantiate(part) for part in config["reg"].values()])
    data: ImageData = instantiate(config["data"], seed=config["seed"], regularization=regularization)
    data.setup()
    hardware.keep_memory()  # behind the data, whose preparation would else be kept as well
    model = make_model(config, data, regularization)
    record = records.new(config, choices) if config["resume"] is None else records.read(folder)
    checkpoint = starting_point(config, folder, record, model, data)
    recorder = RunRecord(folder, record, validates_on_test=data.validation == "test")
    trainer = make_trainer(config, folder, regularization, recorder, validates=data.counts["val"] > 0)
    began = None if checkpoint is None else record["environment"].get("convolution") or "direct"
    model.convolution = hardware.convolution(config["trainer"], model.net, trainer, began)
    record |= describe(config, overrides, data, model, trainer)
    record["choices"] |= choices

    if trainer.is_global_zero:
        remove_torn(folder, folder / "checkpoints")
        # before the record: where that is, all is there to resume
        records.write_config(folder, {**config, "resume": None})
    with recorded(record, trainer, folder):
        if trainer.is_global_zero:
            export.remove(folder)  # of an earlier part of the run
            log.info(layers(model))
        with going_on_from(checkpoint, recorder):
            trainer.fit(model, data, ckpt_path=checkpoint)
        if config["test"]:
            record["test"] = score_test_images(trainer, model, data, folder, config["test_weights"])
        if trainer.is_global_zero:
            save_weights(model, folder / "weights.safetensors")
            record["model"]["export_difference"] = export.write(folder, model, data, config, record)
            log_hyperparameters(trainer.logger, config, record)

    if trainer.is_global_zero:
        log.info(summary(record, folder))
    return record


def starting_point(
    config: Config, folder: Path, record: dict[str, Any], model: Classifier, data: ImageData
) -> Path | None:
    """The checkpoint that a resumed run goes on from; for `start_from` the model gets that run's weights.

    Raises:
        UserError: the checkpoint is missing or damaged, or the run cannot be resumed.
    """
    last = folder / "checkpoints" / "last.ckpt"
    # without one a run that was stopped in its first epoch begins again
    if config["resume"] is not None and (last.is_file() or record["epochs"]):
        limit = config["trainer"]["max_epochs"]
        if 0 < limit < record["epochs"]:
            raise UserError(
                f"resume={folder}: that run has {record['epochs']} epochs behind it; expected "
                f"trainer.max_epochs of no less, not {limit}."
            )
        callbacks = read_checkpoint(last)["callbacks"]
        if not (isinstance(callbacks, dict) and isinstance(callbacks.get("RunRecord"), dict)):
            raise UserError(f"{last} is no checkpoint that a run can go on from.")
        if not callbacks["RunRecord"].get("whole_epoch", True):
            raise UserError(
                f"resume={folder}: that run ended in the middle of an epoch, from where none can be resumed; "
                f"start a new one from its weights with start_from={folder}."
            )
        return last
    if config["start_from"] is not None:
        weights = Path(config["start_from"]) / "checkpoints" / "last.ckpt"
        load_weights(model, weights, scaling=False)
    else:
        model.initialize(data.sample())
    return None


@contextmanager
def going_on_from(checkpoint: Path | None, recorder: RunRecord) -> Iterator[None]:
    """Say in a sentence that a checkpoint, which may be anybody's, is not one of this run.

    Raises:
        UserError: for whatever went wrong before the first epoch.
    """
    try:
        yield
    except (UserError, RunFailed, MisconfigurationException, OSError, MemoryError):
        raise
    except Exception as error:
        if checkpoint is None or recorder.began:
            raise
        raise UserError(f"{checkpoint} is no checkpoint of this run's ({type(error).__name__}).") from error


@contextmanager
def recorded(record: dict[str, Any], trainer: pl.Trainer, folder: Path) -> Iterator[None]:
    """Writes the record when the run starts and when it ends, with how it ended.

    Raises:
        UserError: for what Lightning says of a configuration when the fit begins.
        RunFailed: for a file that the system does not let us write.
        Stop: by a signal.
    """
    started, device = time.perf_counter(), trainer.strategy.root_device
    before = record["wall_seconds"] or 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def close(status: str, error: str | None = None) -> None:
        figures = {"finished": records.now(), "peak_memory_bytes": peak_memory_bytes(device)}
        seconds = before + time.perf_counter() - started
        record.update(status=status, error=error, wall_seconds=seconds, **figures)
        if trainer.is_global_zero:
            records.write(folder, record)

    try:
        try:
            if trainer.is_global_zero:
                records.write(folder, record)
            yield
            signals.check()
        finally:
            signals.too_late()  # what the record says next is how it ended
        close("done")
    except BaseException as error:
        status, end, text = ending(error, folder)
        with suppress(OSError):  # of which the end speaks already
            close(status, text)
        if isinstance(end, signals.Stop) and trainer.is_global_zero:
            end.told = True
            log.info(f"{text}; to go on: python train.py 'resume={shown(folder)}'")
            if trainer.strategy.launcher is not None:  # its other processes
                trainer.strategy.launcher.kill(signal.SIGKILL)
        raise end from (None if end is error else error)


def ending(error: BaseException, folder: Path) -> tuple[str, BaseException, str]:
    """The status that an error makes, what to raise for it, and how to say it."""
    if signals.heard is not None:  # whatever it was taken for on its way here
        error = signals.heard
    elif isinstance(error, KeyboardInterrupt | SystemExit):  # train() in a program of somebody else's
        error = signals.Stop(signal.SIGINT)
    if isinstance(error, signals.Stop):
        return "interrupted", error, error.reason
    if isinstance(error, MisconfigurationException):
        error = UserError(f"trainer: {error}")
    elif (why := refusal(error, folder)) and (folder / "record.json").exists():
        go_on = f"python train.py 'resume={shown(folder)}'"
        error = RunFailed(f"{why}; once that is mended, go on with: {go_on}")
    text = str(error) if isinstance(error, UserError | RunFailed) else f"{type(error).__name__}: {error}"
    return "failed", error, text


def make_model(config: Config, data: ImageData, regularization: Regularization) -> Classifier:
    """The network, its initial weights drawn from the seed."""
    assert data.set is not None
    make = partial(
        instantiate,
        config["model"],
        num_classes=len(data.set.classes),
        regularization=regularization,
        _convert_="all",
    )
    if config["resume"] is not None:
        try:
            refuse_larger(make, Path(config["resume"]) / "checkpoints" / "last.ckpt")
        except InstantiationException as error:
            raise UserError(f"{config['resume']}/config.yaml: {error.__cause__ or error}.") from error
    pl.seed_everything(config["seed"], verbose=False)
    model: Classifier = make(
        scaling=data.make_scaling(),
        optimizer=instantiate(config["optimizer"], _partial_=True, _convert_="all"),
        scheduler=instantiate(config["scheduler"], _partial_=True, _convert_="all"),
    )
    model.capture = config["trainer"].get("capture", "none")
    model.superclass_of = data.superclass_of
    model.classes = data.set.classes
    for size in regularization.sizes:
        refuse_size(model, size)
    return model.to(memory_format=model.memory_format)  # as the images: else each step reorders the weights


def refuse_size(model: Classifier, size: int) -> None:
    """Try the network on an image of another size than the data's.

    Raises:
        UserError: when it takes only theirs.
    """
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, size, size))
    except RuntimeError as error:
        raise UserError(
            f"reg holds images of {size} x {size} pixels, which this network cannot take: choose one that "
            "ends in global pooling, such as model=speedrun or resnet18, or larger sizes."
        ) from error
    finally:
        model.train()


def make_trainer(
    config: Config, folder: Path, regularization: Regularization, recorder: RunRecord, validates: bool
) -> pl.Trainer:
    """Lightning's Trainer with the checkpoints, the record and the logger of a run."""
    options = hardware.settle(config["trainer"])
    for ours in ("capture", "convolution"):  # the network's
        options.pop(ours, None)
    # which Lightning would say as well, and then fail to take down what it had not set up
    if str(options.get("profiler")).lower() == "xla" and find_spec("torch_xla") is None:
        raise UserError("trainer.profiler=xla needs torch_xla, which is not installed.")
    checkpoints = folder / "checkpoints"
    callbacks: list[Callback] = [EpochSeed(config["seed"]), recorder]
    if regularization.averaging:
        callbacks.append(AveragedWeights(regularization.averaging.share))
    callbacks += [
        Stopping(
            rule.monitor,
            patience=rule.patience,
            mode="min" if rule.monitor == "val/loss" else "max",
            check_finite=False,  # a loss that is not finite fails the run; this would end it as done
        )
        for rule in regularization.stopping
    ]
    if validates:
        callbacks.append(RunCheckpoint(checkpoints, filename="best", monitor="val/accuracy", mode="max"))
    # behind the best one, whose score it saves; ModelCheckpoint(save_last=True) would move only with the best
    callbacks.append(LastCheckpoint(recorder, checkpoints))
    if options["enable_progress_bar"] == "auto":
        options["enable_progress_bar"] = sys.stderr.isatty()
    if options["enable_progress_bar"]:
        callbacks.append(Bar(refresh_rate=20))
    logger: Logger | bool = False
    if config["logger"]:
        logger = board = instantiate(config["logger"], folder=folder)
        callbacks.append(Board(board))
    io = AtomicCheckpointIO()
    try:
        return pl.Trainer(**options, default_root_dir=folder, callbacks=callbacks, logger=logger, plugins=io)
    # what it says of its own arguments, and of what they need
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        raise UserError(f"trainer: {str(error).rstrip('.')}.") from error


def score_test_images(
    trainer: pl.Trainer, model: Classifier, data: ImageData, folder: Path, weights: str
) -> dict[str, Any]:
    """The record's `test`: accuracy and loss on the test images with the `last` or `best` weights."""
    if weights == "best":
        load_weights(model, folder / "checkpoints" / "best.ckpt")
    trainer.test(model, data, verbose=False)
    return {**records.EMPTY["test"], **model.scores, "weights": weights}


def describe(
    config: Config, overrides: list[str], data: ImageData, model: Classifier, trainer: pl.Trainer
) -> dict[str, Any]:
    """The record's keys that are known when a run starts; the scores of an earlier part no longer count."""
    assert data.set is not None
    counts = data.counts
    return {
        "status": "running",
        "error": None,
        "finished": None,
        "overrides": overrides,
        "config_hash": records.config_hash(config),
        "test": dict(records.EMPTY["test"]),
        "data": {
            "name": data.name,
            "num_classes": len(data.set.classes),
            "train_images": counts["train"],
            "val_images": counts["val"],
            "test_images": counts["test"],
            "validation": data.validation,
            "fingerprint": data.fingerprint,
        },
        "model": {
            "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "export_difference": None,
        },
        "environment": {
            **records.environment(),
            "device": hardware.describe(trainer.strategy.root_device),
            "precision": trainer.precision,
            "convolution": model.convolution,
            "threads": torch.get_num_threads(),
        },
    }


def layers(model: Classifier) -> str:
    """A table of the layers with the shape they put out for one image and their parameters."""
    rows: list[tuple[str, str, str, str]] = []

    def note(name: str, layer: nn.Module) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            count = sum(p.numel() for p in layer.parameters(recurse=False))
            rows.append((name, type(layer).__name__, " x ".join(map(str, output.shape[1:])), f"{count:,}"))

        return hook

    leaves = [(n, m) for n, m in model.named_modules() if n and next(m.children(), None) is None]
    handles = [layer.register_forward_hook(note(name, layer)) for name, layer in leaves]
    model.eval()
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    model.train()
    for handle in handles:
        handle.remove()
    rows.insert(0, ("layer", "kind", "output", "parameters"))
    rows.append(("", "", "total", f"{sum(p.numel() for p in model.parameters()):,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {shape:>{widths[2]}}  {count:>{widths[3]}}"
        for name, kind, shape, count in rows
    )
    return "\n".join(lines)


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
        lines.append("This run validated on the test images: its validation figures are test figures.")
    epochs, speed = record["epochs"], record["images_per_second"]
    if speed:
        span = f"{epochs} epoch{'s' * (epochs != 1)}, {record['train_seconds']:.0f} s of training"
        lines.append(f"{span}, {speed:,.0f} images/s.")
    return "\n".join([*lines, f"Run folder: {shown(folder)}"])


def quiet() -> None:
    """Leave out what Lightning says of every run and nobody can act on."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    threading.excepthook = tell_unless_told
    if os.environ.get("LOCAL_RANK", "0") != "0":  # one process speaks for all
        logging.getLogger("cifarlab").setLevel(logging.WARNING)
    for useless in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*sync_dist=True.*",
        ".*The number of training batches .* is smaller than the logging interval.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*Total length of `list` across ranks is zero.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*in eval mode at the start of training.*",  # frozen layers are meant to be
    ):
        warnings.filterwarnings("ignore", message=useless)


def tell_unless_told(failure: threading.ExceptHookArgs) -> None:
    """What the thread fails of that writes for TensorBoard is raised in this one as well."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)
