"""What goes on around an epoch: its seed before, its line in the run's folder after."""

from __future__ import annotations

import logging
import resource
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar

from cifarlab.data.module import epoch_seed
from cifarlab.models.classifier import Classifier
from cifarlab.runs import record as records
from cifarlab.runs.curves import Row, draw_curves, write_metrics

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
        self.stopped_by: BaseException | None = None  # which Lightning replaces by a plain SystemExit
        self.train_images = 0
        self.seconds: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "train_images": self.train_images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.train_images = list(state_dict["history"]), state_dict["train_images"]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]
        self.started, self.seconds = time.perf_counter(), None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop_clock()

    def stop_clock(self) -> float:
        """Seconds of training in this epoch, which end where validation begins."""
        if self.seconds is None:
            self.seconds = time.perf_counter() - self.started
        return self.seconds

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        seconds = self.stop_clock()
        if not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row: Row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "lr": self.lr}
        row |= {
            f"{part}/{m}": metrics.get(f"{part}/{m}")
            for part in ("train", "val")
            for m in ("loss", "accuracy")
        }
        row["seconds"] = seconds
        self.history.append(row)
        assert isinstance(pl_module, Classifier)
        self.train_images += sum(pl_module.train_tally.images) * trainer.world_size
        if trainer.logger is not None:
            trainer.logger.log_metrics({"lr": self.lr, "epoch_seconds": seconds}, step=trainer.global_step)
        log.info(epoch_line(row, trainer.max_epochs))
        self.update()

    def update(self) -> None:
        """Bring the folder's files up to the history."""
        record, last = self.record, self.history[-1]
        seconds = sum(row["seconds"] for row in self.history)
        record |= {"epochs": last["epoch"], "steps": last["step"], "train_seconds": seconds}
        record["images_per_second"] = self.train_images / seconds
        record |= {"val": {"accuracy": last["val/accuracy"], "loss": last["val/loss"]}}
        validated = [row for row in self.history if row["val/accuracy"] is not None]
        if validated:
            best = max(
                validated, key=lambda row: row["val/accuracy"]
            )  # the first of equals, as the checkpoint
            record["best_val"] = {
                "accuracy": best["val/accuracy"],
                "loss": best["val/loss"],
                "epoch": best["epoch"],
            }
        write_metrics(self.folder / "metrics.csv", self.history)
        records.write(self.folder, record)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and self.history:
            self.update()
            draw_curves(self.folder / "curves.png", self.history, self.validates_on_test)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.stopped_by = exception
        if trainer.is_global_zero and self.history:
            draw_curves(self.folder / "curves.png", self.history, self.validates_on_test)


def epoch_line(row: Row, epochs: int | None) -> str:
    """An epoch in one line of the log."""
    text = f"epoch {row['epoch']}/{epochs if epochs and epochs > 0 else '?'}"
    text += f"  train loss {row['train/loss']:.4f} acc {row['train/accuracy']:.2%}"
    if row["val/loss"] is not None:
        text += f"  val loss {row['val/loss']:.4f} acc {row['val/accuracy']:.2%}"
    return text + f"  lr {row['lr']:.3g}  {row['seconds']:.1f} s"


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process held: the device's on a GPU, else the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
