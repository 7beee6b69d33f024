"""What goes on around an epoch: its seed before, its line in the run's folder after."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, TQDMProgressBar, WeightAveraging
from torch import Tensor

from cifarlab import hardware, signals
from cifarlab.data.module import epoch_seed
from cifarlab.models.classifier import Classifier
from cifarlab.runs import record as records
from cifarlab.runs.checkpoints import RunCheckpoint
from cifarlab.runs.curves import COLUMNS, Row, draw_curves, write_metrics

log = logging.getLogger(__name__)


class EpochSeed(pl.Callback):
    """Dropout and augmentation of epoch e follow from (seed, e, process), so a resumed run repeats them."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.manual_seed(epoch_seed(self.seed, trainer.current_epoch, trainer.global_rank))


class Bar(TQDMProgressBar):
    """Lightning's bar with the epoch's loss and accuracy so far, read only when the bar is drawn."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        shown = {
            name: value for name, value in super().get_metrics(trainer, pl_module).items() if "val" in name
        }
        if isinstance(pl_module, Classifier) and pl_module.train_tally.images:
            loss, correct, images = pl_module.train_tally.sums(pl_module.device).tolist()
            shown |= {"loss": f"{loss / images:.3f}", "accuracy": f"{correct / images:.1%}"}
        return shown


class RunRecord(pl.Callback):
    """Keeps `record.json`, `metrics.csv` and `curves.png` up to date, and says a line per epoch.

    The history travels inside the checkpoint: a resumed run goes on from the epochs that checkpoint had seen,
    whatever the files had come to hold by then.
    """

    def __init__(self, folder: Path, record: dict[str, Any], validates_on_test: bool) -> None:
        self.folder, self.record, self.validates_on_test = folder, record, validates_on_test
        self.history: list[Row] = []
        self.best: dict[str, Any] = record["best_val"]
        self.train_images = 0
        self.began = False  # whether it has trained
        self.whole_epoch = True  # false in a checkpoint from the middle of an epoch, where max_steps ended it
        self.saved = self.state_dict()  # what the last checkpoint has of this

    def state_dict(self) -> dict[str, Any]:
        kept = {name: getattr(self, name) for name in ("best", "train_images", "whole_epoch")}
        return {"history": list(self.history), **kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.best = list(state_dict["history"]), dict(state_dict["best"])
        rows: dict[str, Any] = dict.fromkeys(COLUMNS, float | int)
        rows |= dict.fromkeys(("val/loss", "val/accuracy"), float | int | None)
        best = dict.fromkeys(records.EMPTY["best_val"], float | int | None)
        known = all(fits(row, rows) for row in self.history) and fits(self.best, best)
        if not (known and isinstance(state_dict["train_images"], int)):
            raise ValueError("what a checkpoint tells of its epochs are no figures")
        self.train_images = state_dict["train_images"]
        self.saved = self.state_dict()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signals.take_back()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signals.take_back()
        hardware.return_memory()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        signals.check()
        if batch_idx % 50 == 49:  # the gaps that grow between what a step allocates in many sizes
            hardware.return_memory()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.began, self.lr = True, trainer.optimizers[0].param_groups[0]["lr"]
        self.val: dict[str, float] = {}
        self.seconds, self.started = 0.0, time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # the clock of training stands while validation runs
        self.seconds += time.perf_counter() - self.started
        hardware.return_memory()  # of training's batches, which validation's larger ones do not fit into

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # the gaps between training's batches, which these, of another size, do not fill
        if batch_idx % 10 == 9:
            hardware.return_memory()

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self.val = pl_module.scores
        if self.best["accuracy"] is None or self.val["accuracy"] > self.best["accuracy"]:
            self.best = {
                "accuracy": self.val["accuracy"],
                "loss": self.val["loss"],
                "epoch": trainer.current_epoch + 1,
            }
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self.seconds += time.perf_counter() - self.started
        train = pl_module.log_tally("train", pl_module.train_tally)
        self.train_images += int(train["images"])
        self.whole_epoch = trainer.is_last_batch
        row: Row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "lr": self.lr}
        row |= {f"train/{name}": train[name] for name in ("loss", "accuracy")}
        row |= {f"val/{name}": self.val.get(name) for name in ("loss", "accuracy")}
        row["seconds"] = self.seconds
        self.history.append(row)
        if trainer.logger is not None:
            figures = {"train/lr": self.lr, "train/seconds": self.seconds}
            trainer.logger.log_metrics(figures, step=trainer.global_step)

    def publish(self, trainer: pl.Trainer) -> None:
        """Bring the folder's files up to the history, all of it saved by now, and say the epoch's line."""
        self.saved = self.state_dict()
        if trainer.is_global_zero:
            self.update()
            log.info(epoch_line(self.history[-1], trainer.max_epochs, self.validates_on_test))

    def update(self) -> None:
        last, seconds = self.history[-1], sum(row["seconds"] for row in self.history)
        self.record |= {
            "epochs": last["epoch"],
            "steps": last["step"],
            "train_seconds": seconds,
            "images_per_second": self.train_images / seconds,
            "val": {"accuracy": last["val/accuracy"], "loss": last["val/loss"]},
            "best_val": self.best,
        }
        write_metrics(self.folder / "metrics.csv", self.history)
        records.write(self.folder, self.record)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.began = True  # or had no epoch left
        self.finish(trainer)

    def finish(self, trainer: pl.Trainer, draws: bool = True) -> None:
        if trainer.is_global_zero and self.history:
            self.update()
            if draws:
                draw_curves(self.folder / "curves.png", self.history, self.validates_on_test)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        # what stopped the run may have come between an epoch and its checkpoint
        for name, value in self.saved.items():
            setattr(self, name, value)
        with suppress(OSError):  # which may be why it ends
            # who sent a signal may not wait for a picture, which the resumed run draws
            self.finish(trainer, draws=signals.heard is None)


def fits(row: Any, kinds: dict[str, Any]) -> bool:
    """Whether it has these keys with values of these kinds, and no others."""
    whole = isinstance(row, dict) and row.keys() == kinds.keys()
    return whole and all(isinstance(row[name], kind) for name, kind in kinds.items())


class LastCheckpoint(RunCheckpoint):
    """Saves the end of each epoch, and only then lets the record speak of it: what it says can be resumed."""

    def __init__(self, recorder: RunRecord, folder: Path) -> None:
        super().__init__(folder, filename="last", save_on_train_epoch_end=True)
        self.recorder = recorder

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with signals.held():
            super().on_train_epoch_end(trainer, pl_module)
            self.recorder.publish(trainer)
        hardware.return_memory()


def epoch_line(row: Row, epochs: int | None, validates_on_test: bool = False) -> str:
    """An epoch in one line of the log."""
    text = f"epoch {row['epoch']}/{epochs if epochs and epochs > 0 else '?'}"
    text += f"  train loss {row['train/loss']:.4f} acc {row['train/accuracy']:.2%}"
    if row["val/loss"] is not None:
        name = "val (test images)" if validates_on_test else "val"
        text += f"  {name} loss {row['val/loss']:.4f} acc {row['val/accuracy']:.2%}"
    return text + f"  lr {row['lr']:.3g}  {row['seconds']:.1f} s"


class AveragedWeights(WeightAveraging):
    """Lightning's, for `reg=weight_averaging`: it puts the average in the weights' place around validation
    and at the end, and keeps both in a checkpoint."""

    def __init__(self, share: Callable[[int], float]) -> None:
        super().__init__(multi_avg_fn=self.move)
        self.share, self.step = share, 0

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        if step_idx is None:
            return False
        self.step = step_idx
        return True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_train_end(trainer, pl_module)  # which Lightning leaves out when no epoch was left to do

    @torch.no_grad()
    def move(self, average: Sequence[Tensor], weights: Sequence[Tensor], count: Any) -> None:
        """Tensors of one dtype; of counters and labels no average can be taken."""
        if average[0].is_floating_point():
            torch._foreach_lerp_(list(average), list(weights), self.share(self.step))
        else:
            torch._foreach_copy_(list(average), list(weights))


class Stopping(EarlyStopping):
    """Lightning's, which a resumed run that it had ended does not set going again."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        kinds = {"wait_count": int, "stopped_epoch": int, "best_score": Tensor, "patience": int}
        known = fits({name: state_dict.get(name) for name in kinds}, kinds)
        if not known or state_dict["best_score"].numel() != 1:
            raise ValueError("no state of early stopping")
        super().load_state_dict(state_dict)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process held: the device's on a GPU, else the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # not Linux's maxrss, which counts what the process was before its program began
    with suppress(OSError, StopIteration), open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
