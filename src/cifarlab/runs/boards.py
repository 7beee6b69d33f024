"""What TensorBoard shows of a run besides its curves: pictures, histograms and the HPARAMS page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from cifarlab.config import show
from cifarlab.data.files import DataSet
from cifarlab.data.module import ImageData
from cifarlab.data.scaling import Whitening
from cifarlab.models.classifier import Batch, Classifier
from cifarlab.pictures.filters import as_images, first_filters
from cifarlab.pictures.grid import grid
from cifarlab.pictures.scores import confusion_figure, mistakes_figure
from cifarlab.runs.loggers import RunLogger
from cifarlab.scores import confident_mistakes, confusion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES, FILTERS, MISTAKES = 32, 64, 25  # at most so many in a picture
LAYOUT = {
    "training and validation": {
        "cross-entropy (nats)": ["Multiline", ["^train/loss$", "^val/loss$"]],
        "accuracy": ["Multiline", ["^train/accuracy$", "^val/accuracy$"]],
        "learning rate": ["Multiline", ["^train/lr$"]],
    }
}
# the HPARAMS page has no column for keys that change no figure, and of the Trainer's many only for these
NO_COLUMN = ("_target_", "root", "mirrors", "eval_batch_size")
TRAINER_COLUMNS = ("max_epochs", "accumulate_grad_batches", "gradient_clip_val", "limit_train_batches")


class Board(pl.Callback):
    """Pictures and histograms, drawn outside of training's clock from what training has at hand.

    No random number is drawn and nothing is changed: with it and without it a run ends with the same bits.
    The pictures' tags begin with "visual", which stands behind "val": TensorBoard shows the curves first.
    """

    def __init__(self, logger: RunLogger) -> None:
        self.logger = logger
        self.first_batch: tuple[Tensor, Tensor] | None = None
        self.filters_at: int | None = None  # the step of their last picture

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self.logger.experiment.add_custom_scalars(LAYOUT)
        self.logger.log_graph(pl_module)
        self.filters_at = trainer.global_step
        if trainer.global_step == 0:
            self.draw_filters(pl_module, 0, "before the first step")

    @rank_zero_only
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if batch_idx == trainer.current_epoch == 0:
            images, targets, _ = batch
            self.first_batch = images[:IMAGES].clone(), targets[:IMAGES].clone()

    @rank_zero_only
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        epoch, step = trainer.current_epoch + 1, trainer.global_step
        if self.first_batch is not None:
            self.draw_batch(pl_module, *self.first_batch)
            self.first_batch = None
        if epoch.bit_count() == 1:  # 1, 2, 4, 8 ...: filters change the less the longer they are trained
            self.draw_filters(pl_module, step, f"after epoch {epoch}")
        if self.logger.histograms:
            self.add_histograms(pl_module, step)

    @rank_zero_only
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        if self.filters_at is not None and self.filters_at < trainer.global_step:
            self.draw_filters(pl_module, trainer.global_step, f"after epoch {trainer.current_epoch}")

    @rank_zero_only
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ImageData)
        assert data.set is not None
        if trainer.world_size == 1:  # of several processes each has seen only its share of the images
            self.draw_test(pl_module, trainer.global_step, data.set)

    def draw_batch(self, model: Classifier, images: Tensor, targets: Tensor) -> None:
        """The first batch of the run, augmented and mixed, each image with its class or its two shares."""
        figure = grid(
            visible(model.scaling, images),
            columns=8,
            captions=[caption(target, model.classes) for target in targets],
            title=f"{len(images)} images of the first training batch, as the network saw them",
        )
        self.add("visual/first_training_batch", figure, step=0)

    def draw_filters(self, model: Classifier, step: int, when: str) -> None:
        self.filters_at = step
        weights = first_filters(model.net)
        if weights is not None:
            title = f"Filters of the first layer {when} (grey: zero)"
            self.add("visual/first_layer_filters", grid(as_images(weights[:FILTERS]), 8, title=title), step)

    def add_histograms(self, model: Classifier, step: int) -> None:
        for name, weights in model.net.named_parameters():
            sound = weights.detach()[weights.abs() < 1e20]  # no bucket is for more, and none for NaN
            if len(sound):  # else the run is about to fail, and says so itself
                self.logger.experiment.add_histogram(f"weights/{name}", sound, step)

    def draw_test(self, model: Classifier, step: int, data: DataSet) -> None:
        """What the scored weights confuse, and where they err most surely."""
        log_p = torch.cat(model.test_logits).float().log_softmax(1).cpu()
        labels = data.test_labels[: len(log_p)].cpu()  # trainer.limit_test_batches may leave some out
        top, groups = log_p.max(1), None
        if model.superclass_of is not None and data.superclasses is not None:
            groups = [data.superclasses[number] for number in model.superclass_of.tolist()]
        matrix = confusion(log_p, labels)
        title = f"{len(labels):,} test images, {matrix.trace() / len(labels):.2%} of them right"
        self.add("visual/confusion_matrix", confusion_figure(matrix, data.classes, title, groups), step)
        wrong = confident_mistakes(log_p, labels, MISTAKES)
        if len(wrong):
            images = data.test_images[wrong.to(data.test_images.device)]
            names = [[data.classes[n] for n in some[wrong].tolist()] for some in (top.indices, labels)]
            rows = zip(names[0], top.values[wrong].exp().tolist(), names[1], strict=True)
            figure = mistakes_figure(images, rows, f"{len(labels):,} test images")
            self.add("visual/most_confident_mistakes", figure, step)

    def add(self, tag: str, figure: Figure, step: int) -> None:
        self.logger.experiment.add_image(tag, pixels(figure), step, dataformats="HWC")


def visible(scaling: nn.Module, images: Tensor) -> Tensor:
    """Pixels (N, 3, H, W), 0 to 255, as uint8 images on which one recognizes what the network sees.

    Scaling by channel only shifts and stretches; undone, it gives the pixels themselves. Whitened images are
    shown as such, three standard deviations to either side of grey.
    """
    images = images.float()
    if isinstance(scaling, Whitening):
        white = scaling(images)
        images = 127.5 * (1 + white / (3 * white.std()))
    return images.round().clamp(0, 255).to(torch.uint8)


def caption(target: Tensor, classes: list[str]) -> str:
    """A label's class, int64 (), or each class of a mixed image with its share, float32 (classes,)."""
    if not target.is_floating_point():
        return classes[int(target)]
    shares = target.sort(descending=True)
    pairs = zip(shares.indices.tolist(), shares.values.tolist(), strict=True)
    return "\n".join(f"{classes[label]} {share:.0%}" for label, share in pairs if share > 0)


def pixels(figure: Figure) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A drawn figure, uint8 (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def log_hyperparameters(logger: Logger | None, config: dict[str, Any], record: dict[str, Any]) -> None:
    """TensorBoard's HPARAMS page: the chosen options and their keys beside the last figure of each curve.

    Called once, when the record is complete; it closes the file. Of a run that was resumed after its end
    TensorBoard keeps the keys that it was first trained with, but shows the new figures.
    """
    if isinstance(logger, RunLogger):
        best = record["best_val"]["accuracy"]
        metrics = {} if best is None else {"val/best_accuracy": best}
        logger.log_hyperparams(columns(config, record["choices"]), metrics, record["steps"])
        logger.experiment.close()


def columns(config: dict[str, Any], choices: dict[str, Any]) -> dict[str, float | str]:
    """The chosen options and the keys of a configuration, named as on the command line; null is left out.

    Numbers can be filtered by range and all else, which becomes text, by value; so can the seed, a mere name.
    """
    kept = {group: config[group] for group in ("model", "reg", "data", "optimizer", "scheduler")}
    kept["trainer"] = {key: config["trainer"].get(key) for key in TRAINER_COLUMNS}
    chosen = {name: " + ".join(v) if isinstance(v, list) else v for name, v in choices.items()}
    return {
        key: value if isinstance(value, (int, float)) and not isinstance(value, bool) else show(value)
        for key, value in {**chosen, "seed": str(config["seed"]), **flat(kept)}.items()
        if value is not None and key.rpartition(".")[2] not in NO_COLUMN
    }


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, its keys dotted."""
    if not isinstance(node, dict):
        return {prefix: node}
    parts = (flat(value, f"{prefix}.{key}".lstrip(".")) for key, value in node.items())
    return {key: value for part in parts for key, value in part.items()}
