"""The LightningModule that every network inherits: loss, metrics and optimizer in one place.

A network is a subclass whose constructor calls `super().__init__(**run)` and builds `self.net`, from scaled
images (N, 3, 32, 32) to logits (N, num_classes). Its own arguments are the keys of its YAML.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from cifarlab import hardware
from cifarlab.errors import RunFailed
from cifarlab.models import winograd
from cifarlab.optim.schedules import Plateau, Schedule
from cifarlab.regularizers import Regularization

Batch = tuple[Tensor, Tensor, Tensor]  # images, targets, the images' numbers in the data set
REMEDY = "lower optimizer.lr, or set trainer.gradient_clip_val=1"


class Tally:
    """Loss and accuracy over one pass, from per-batch tensors that are read once, at its end.

    Nothing is added up while batches run: on a GPU a running sum in Python would wait for every step.
    """

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.correct: list[Tensor] = []
        self.images: list[int] = []

    def add(self, losses: Tensor, correct: Tensor) -> None:
        """Take a batch's losses (N,) in nats and its hits (N,)."""
        self.losses.append(losses.detach().sum())
        self.correct.append(correct.sum())
        self.images.append(len(losses))

    def sums(self, device: torch.device) -> Tensor:
        """Loss, hits and images, summed: float64 (3,)."""
        if not self.images:
            return torch.zeros(3, dtype=torch.float64, device=device)
        loss = torch.stack(self.losses).double().sum()
        return torch.stack(
            [loss, torch.stack(self.correct).double().sum(), loss.new_tensor(sum(self.images))]
        )

    def first_bad(self, start: int) -> int | None:
        """The first batch from `start` on whose loss is not finite, if there is one."""
        finite = torch.stack(self.losses[start:]).isfinite()
        return None if bool(finite.all()) else start + int((~finite).nonzero()[0])


class Classifier(pl.LightningModule):
    """Scaling, network, loss and metrics.

    Args:
        num_classes: how many logits the network ends in.
        regularization: what `reg=` holds; the network takes dropout and normalization from it, the loss its
            penalties and label smoothing.
        scaling: maps float32 pixels 0 to 255 to what the network sees; part of the saved weights, so that a
            saved network takes plain images.
        optimizer: called with `params=`, returns the optimizer.
        scheduler: called with `optimizer=`, `steps=` and `epochs=` (the run's totals), returns Lightning's
            scheduler entry.
    """

    net: nn.Module
    superclass_of: Tensor | None

    def __init__(
        self,
        *,
        num_classes: int,
        regularization: Regularization | None = None,
        scaling: nn.Module | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.regularization = regularization or Regularization([])
        self.scaling = scaling or nn.Identity()
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        # (classes,), CIFAR-100's 20 superclasses; no part of the weights, but it lives where they do
        self.register_buffer("superclass_of", None, persistent=False)
        self.classes = [str(label) for label in range(num_classes)]  # replaced by the data set's names
        self.memory_format = torch.channels_last
        self.convolution = "direct"  # how those of 3 x 3 are computed in a fit: `hardware.convolution`
        self.capture = "none"  # `trainer.capture`
        self.captured: Callable[[Tensor], Tensor] | None = None  # what becomes of `net` in a fit by that
        self.train_tally, self.eval_tally, self.eval_super = Tally(), Tally(), Tally()
        self.scores: dict[str, float] = {}  # of the last pass over validation or test images
        self.test_logits: list[Tensor] = []  # of the last pass over the test images, by batch

    def forward(self, images: Tensor) -> Tensor:
        """Pixels 0 to 255, uint8 or float32 (N, 3, 32, 32), to logits (N, num_classes)."""
        scaled = self.scaling(images.to(torch.float32))
        net = self.captured if self.captured and self.training else self.net
        return net(scaled.to(memory_format=self.memory_format))

    def initialize(self, images: Tensor) -> None:
        """What a new run does once, and a resumed or reopened one does not: load pretrained weights, or set
        some from a sample of the training images, uint8 (N, 3, 32, 32)."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["classes"] = self.classes

    def kernels(self) -> list[Tensor]:
        """The weights of all convolutions and dense layers but the last: what a penalty acts on."""
        layers = [m for m in self.net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        return [layer.weight for layer in layers[:-1]]

    def losses(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Per image: cross-entropy in nats, the log-probabilities' mean, and whether the label was hit.

        `targets` are labels (N,) or, when images were mixed, probabilities (N, num_classes).
        """
        log_p = logits.float().log_softmax(1)
        if targets.is_floating_point():
            return -(targets * log_p).sum(1), log_p.mean(1), log_p.argmax(1) == targets.argmax(1)
        return -log_p.gather(1, targets[:, None]).squeeze(1), log_p.mean(1), log_p.argmax(1) == targets

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The objective: cross-entropy against the (smoothed) targets plus the penalties."""
        images, targets, numbers = batch
        cross_entropy, mean_log_p, correct = self.losses(self(images), targets)
        if self.regularization.selection:
            self.trainer.datamodule.remember(numbers, cross_entropy.detach())  # type: ignore[attr-defined]
        self.train_tally.add(cross_entropy, correct)
        objective = cross_entropy.mean()
        if smoothing := self.regularization.smoothing:
            objective = (1 - smoothing) * objective - smoothing * mean_log_p.mean()
        penalty = self.regularization.penalty(self.kernels())
        return objective if penalty is None else objective + penalty

    def on_fit_start(self) -> None:  # in the process that trains: what is compiled cannot be sent to one
        winograd.use(self.net, self.convolution == "winograd")
        self.captured = hardware.capture(self.net, self.capture, self.trainer)

    def on_fit_end(self) -> None:
        self.captured = None

    def on_train_epoch_start(self) -> None:
        self.train_tally, self.checked, self.first_step = Tally(), 0, self.global_step

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        # reading a loss makes a GPU wait for it, so it is looked at every hundredth step; a CPU has it anyway
        if self.trainer.is_last_batch or self.device.type == "cpu" or (batch_idx + 1) % 100 == 0:
            self.refuse_bad_batch()

    def refuse_bad_batch(self) -> None:
        """Stop the run at a training loss that is NaN or infinite.

        Raises:
            RunFailed: naming the step.
        """
        bad = self.train_tally.first_bad(self.checked)
        if bad is not None:
            step = self.first_step + bad // self.trainer.accumulate_grad_batches + 1
            raise self.bad_loss("loss", self.train_tally.losses[bad], f"at step {step} (")
        self.checked = len(self.train_tally.losses)

    def on_train_epoch_end(self) -> None:
        """Ahead of the checkpoint: the last step may have ruined the weights after a loss that was good.

        Raises:
            RunFailed: a weight is NaN or infinite.
        """
        if not torch.stack([weight.detach().isfinite().all() for weight in self.parameters()]).all():
            raise RunFailed(
                f"The weights became NaN or infinite in epoch {self.current_epoch + 1}: {REMEDY}."
            )

    def bad_loss(self, name: str, loss: Tensor, where: str = "(") -> RunFailed:
        kind = "NaN" if loss.isnan() else "infinite"
        return RunFailed(f"The {name} became {kind} {where}epoch {self.current_epoch + 1}): {REMEDY}.")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.score(batch)

    def on_test_epoch_start(self) -> None:
        self.test_logits = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.test_logits.append(self.score(batch))

    def score(self, batch: Batch) -> Tensor:
        """Count a batch; returns its logits (N, num_classes)."""
        images, labels, _ = batch
        logits = self(images)
        cross_entropy, _, correct = self.losses(logits, labels)
        self.eval_tally.add(cross_entropy, correct)
        if self.superclass_of is not None:
            hit = self.superclass_of[logits.argmax(1)] == self.superclass_of[labels]
            self.eval_super.add(cross_entropy, hit)
        return logits

    def on_validation_epoch_end(self) -> None:
        self.log_scores("val")
        self.step_plateau()

    def on_test_epoch_end(self) -> None:
        self.log_scores("test")

    def log_scores(self, split: str) -> None:
        self.scores = self.log_tally(split, self.eval_tally)
        if self.superclass_of is not None:
            _, accuracy, _ = self.read(self.eval_super)
            self.log(f"{split}/superclass_accuracy", accuracy)
            self.scores["superclass_accuracy"] = accuracy.item()
        self.eval_tally, self.eval_super = Tally(), Tally()

    def log_tally(self, split: str, tally: Tally) -> dict[str, float]:
        """Log a pass's mean loss and accuracy; returns them, and the images they are of.

        Called in every process, at the end of an epoch.

        Raises:
            RunFailed: the loss is NaN or infinite.
        """
        loss, accuracy, images = self.read(tally)
        if not loss.isfinite():
            raise self.bad_loss(f"{split} loss", loss)
        self.log_dict({f"{split}/loss": loss, f"{split}/accuracy": accuracy}, prog_bar=split == "val")
        self.log("step", float(self.global_step))  # the curves' x: Lightning's own count is one less
        return {"loss": loss.item(), "accuracy": accuracy.item(), "images": int(images)}

    def read(self, tally: Tally) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss, accuracy and images over all processes, float64 scalars."""
        loss, correct, images = self.trainer.strategy.reduce(tally.sums(self.device), reduce_op="sum")
        return loss / images, correct / images, images

    def configure_optimizers(self) -> Any:
        assert self.make_optimizer is not None
        assert self.make_scheduler is not None
        optimizer = self.make_optimizer(params=[p for p in self.parameters() if p.requires_grad])
        steps, epochs = self.trainer.estimated_stepping_batches, self.trainer.max_epochs
        scheduler = self.make_scheduler(optimizer=optimizer, steps=steps, epochs=epochs)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_train_start(self) -> None:
        # a resumed run may have been given a schedule that counts in another unit
        for entry in self.trainer.lr_scheduler_configs:
            if isinstance(entry.scheduler, Schedule):
                entry.scheduler.seek(self.global_step if entry.interval == "step" else self.current_epoch)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if not isinstance(scheduler, Plateau):
            scheduler.step()

    def step_plateau(self) -> None:
        """Step a plateau schedule here: Lightning would do so behind the checkpoint, which then lacks it."""
        for entry in self.trainer.lr_scheduler_configs:
            if isinstance(entry.scheduler, Plateau) and entry.monitor:
                entry.scheduler.step(self.trainer.callback_metrics[entry.monitor])
