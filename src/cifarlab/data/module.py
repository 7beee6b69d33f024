"""From a data set in memory to batches on the device.

The images stay one uint8 tensor, a batch is one index into it, and scaling and augmentation act on the whole
batch where the network is. A data set is a subclass of `ImageData` with a `load` method.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset, Sampler

from cifarlab.data.files import DataSet
from cifarlab.data.scaling import Scaling, make_scaling
from cifarlab.data.splits import hold_out
from cifarlab.errors import UserError
from cifarlab.regularizers import Regularization
from cifarlab.types import Count, Natural, OpenFraction

log = logging.getLogger(__name__)


class Indexed(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Images (M, 3, 32, 32), labels (M,) and which of them belong here; asked with a tensor of positions on
    their device, it gives images, labels and their numbers among the M."""

    def __init__(self, images: Tensor, labels: Tensor, index: Tensor) -> None:
        self.images, self.labels, self.index = images, labels, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        chosen = self.index[positions]
        return self.images[chosen], self.labels[chosen], chosen


class Batches(Sampler[Tensor]):
    """Positions of each batch, int64 (batch,), the order of epoch e a function of (seed, e) alone.

    Those of an epoch go to `device` at once.

    `draw(generator=)` makes the order of an epoch's `images` in place of a permutation of all.
    With several processes each takes every `world`-th image of a batch `world` times as large, so that the
    processes make equally many steps and no image counts twice.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        seed: int | None = None,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
        draw: Callable[..., Tensor] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.images, self.batch_size, self.seed, self.drop_last = images, batch_size * world, seed, drop_last
        self.rank, self.world, self.draw, self.device, self.epoch = rank, world, draw, device, 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning's hook, called before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.images // self.batch_size if self.drop_last else -(-self.images // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.arange(self.images)
        if self.seed is not None:
            generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
            draw = self.draw or partial(torch.randperm, self.images)
            order = draw(generator=generator)
        for batch in order.to(self.device).split(self.batch_size)[: len(self)]:
            yield batch[self.rank :: self.world]


def epoch_seed(seed: int, epoch: int, rank: int | None = None) -> int:
    """A 64-bit seed for all that is random in an epoch; with a rank, for what differs between processes."""
    # SeedSequence takes [0, 1] and [0, 1, 0] for the same
    entropy = [seed, epoch, 0 if rank is None else rank + 1]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


class ImageData(pl.LightningDataModule, ABC):
    """A data set, split, in batches.

    Args:
        batch_size: images per step and device.
        eval_batch_size: images per step of validation and test; changes no figure but the time.
        validation: `split` (a fixed, stratified tenth of the training images), a fraction or count of them,
            `fold`, `test` (the test images: a run so marked wherever its figure appears) or `none`.
        split: whether a fraction or count is `stratified` or the `last` images of the file.
        folds, fold: with `validation=fold`, which of how many stratified parts validates.
        scaling: of the pixels, see `cifarlab.data.scaling`.
        drop_last: whether an epoch leaves out the partial batch at its end.
    """

    name: str

    def __init__(
        self,
        batch_size: Count = 64,
        eval_batch_size: Count = 125,
        validation: Literal["split", "fold", "test", "none"] | OpenFraction | Count = "split",
        split: Literal["stratified", "last"] = "stratified",
        folds: Count = 5,
        fold: Natural = 0,
        scaling: Scaling = "unit",
        drop_last: bool = False,
        *,
        seed: int,
        regularization: Regularization,
    ) -> None:
        super().__init__()
        self.batch_size, self.eval_batch_size, self.drop_last = batch_size, eval_batch_size, drop_last
        self.validation, self.split, self.folds, self.fold = validation, split, folds, fold
        self.scaling, self.seed, self.regularization = scaling, seed, regularization
        self.set: DataSet | None = None

    @abstractmethod
    def load(self) -> DataSet:
        """The images and labels, verified.

        Raises:
            UserError: when they can be had from nowhere.
        """

    def setup(self, stage: str | None = None) -> None:
        """Load and split, once."""
        if self.set is not None:
            return
        try:
            self.set = self.load()
        except OSError as error:
            raise UserError(f"data={self.name} cannot be loaded: {error}.") from error
        self.check_set(self.set)
        labels = self.set.train_labels.numpy()
        train, val = np.arange(len(labels)), np.empty(0, dtype=np.int64)
        if self.validation not in ("test", "none"):
            train, val = hold_out(labels, self.validation, self.split, self.folds, self.fold)  # type: ignore[arg-type]
        self.train_index, self.val_index = torch.from_numpy(train), torch.from_numpy(val)
        # of each image of the data set when it last trained, in nats, for a selection
        self.remembered = torch.full((len(labels),), torch.inf)
        self.warn_of_empty_classes()
        digest = hashlib.sha256(self.set.fingerprint.encode() + train.tobytes() + val.tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def check_set(self, loaded: DataSet) -> None:
        """Refuse images that the networks do not take, and labels without a class."""
        for part in ("train", "test"):
            images, labels = getattr(loaded, f"{part}_images"), getattr(loaded, f"{part}_labels")
            if images.dtype != torch.uint8 or images.shape[1:] != (3, 32, 32) or len(images) != len(labels):
                raise UserError(
                    f"data={self.name}: expected as many labels as {part} images, uint8 (N, 3, 32, 32); "
                    f"there are {len(labels)} labels, and images {images.dtype} {tuple(images.shape)}."
                )
            if not len(labels):
                raise UserError(f"data={self.name}: there are no {part} images.")
            if not 0 <= int(labels.min()) <= int(labels.max()) < len(loaded.classes):
                raise UserError(
                    f"data={self.name}: expected {part} labels from 0 to {len(loaded.classes) - 1}, one a "
                    f"class; they go from {int(labels.min())} to {int(labels.max())}."
                )

    def warn_of_empty_classes(self) -> None:
        """Name the classes of which no image trains: no network can learn them."""
        assert self.set is not None
        trained = torch.bincount(self.set.train_labels[self.train_index], minlength=len(self.set.classes))
        if empty := [name for name, images in zip(self.set.classes, trained, strict=True) if not images]:
            more = f" and {len(empty) - 5} more" * (len(empty) > 5)
            log.warning(f"data={self.name}: no image trains of the classes {', '.join(empty[:5])}{more}.")

    @property
    def counts(self) -> dict[str, int]:
        """Images that train, validate and test."""
        assert self.set is not None
        tests = len(self.set.test_labels)
        val = tests if self.validation == "test" else len(self.val_index)
        return {"train": len(self.train_index), "val": val, "test": tests}

    @property
    def superclass_of(self) -> Tensor | None:
        """Each class's superclass, int64 (classes,); None where the data set has none."""
        assert self.set is not None
        if self.set.train_coarse is None:
            return None
        table = torch.zeros(len(self.set.classes), dtype=torch.int64)
        table[self.set.train_labels] = self.set.train_coarse
        return table

    def make_scaling(self) -> nn.Module:
        """The scaling layer, its statistics from the images that train."""
        assert self.set is not None
        images = self.set.train_images
        chosen = images if self.scaling in ("unit", "raw") else images[self.train_index]
        return make_scaling(self.scaling, chosen)

    def sample(self, images: int = 5000) -> Tensor:
        """The first training images: uint8 (images, 3, 32, 32), fewer where there are fewer."""
        assert self.set is not None
        return self.set.train_images[self.train_index[:images]]

    def batches(self, part: Literal["train", "test"], index: Tensor, training: bool = False) -> DataLoader:
        assert self.set is not None
        device, rank, world = torch.device("cpu"), 0, 1
        if self.trainer is not None:
            device = self.trainer.strategy.root_device
            rank, world = self.trainer.global_rank, self.trainer.world_size
        for name, tensor in self.set.tensors().items():
            setattr(self.set, name, tensor.to(device))  # on a GPU the set lives there: no copy while training
        images, labels = (getattr(self.set, f"{part}_{kind}") for kind in ("images", "labels"))
        indexed = Indexed(images, labels, index.to(device))
        if training:
            count, draw = len(index), None
            if selection := self.regularization.selection:
                count, draw = selection.count(count), self.draw_selected
                self.remembered = self.remembered.to(device)
            self.check_last_batch(count, world)
            sampler = Batches(count, self.batch_size, self.seed, self.drop_last, rank, world, draw, device)
        else:
            sampler = Batches(len(index), self.eval_batch_size, rank=rank, world=world, device=device)
        # a generator of its own: the loader draws a number for each pass, and Lightning starts the first pass
        # of a resumed run behind the epoch's seed, all others before it
        return DataLoader(indexed, sampler=sampler, batch_size=None, generator=torch.Generator())

    def draw_selected(self, generator: torch.Generator) -> Tensor:
        """The positions among the training images that an epoch trains on, int64."""
        assert self.regularization.selection is not None
        return self.regularization.selection.choose(self.remembered.cpu()[self.train_index], generator)

    def remember(self, numbers: Tensor, losses: Tensor) -> None:
        """Remember the losses, float32 (N,), of the images of these numbers for the epochs to come."""
        self.remembered[numbers] = losses

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.remembered.cpu()} if self.regularization.selection else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        losses = state_dict["losses"]
        if losses.shape != self.remembered.shape or losses.dtype != self.remembered.dtype:
            raise ValueError("what a checkpoint tells of the images' losses is not of this data set")
        self.remembered = losses

    def check_last_batch(self, images: int, world: int) -> None:
        """Refuse batch sizes that leave a process without images, or batch norm with a single one."""
        batch = self.batch_size * world
        left = images % batch
        network = self.trainer.lightning_module.modules() if self.trainer is not None else []
        normalized = self.regularization.normalization or any(isinstance(m, _BatchNorm) for m in network)
        needed = world * (2 if normalized else 1)
        if self.drop_last and images < batch:
            raise UserError(
                f"data.batch_size={self.batch_size} with data.drop_last=true leaves no batch of an epoch's "
                f"{images} training images; take a smaller batch."
            )
        if not self.drop_last and 0 < left < needed:
            raise UserError(
                f"data.batch_size={self.batch_size} leaves a last batch of {left} of an epoch's {images} "
                f"training images, where {needed} are needed; set data.drop_last=true or another batch size."
            )

    def train_dataloader(self) -> DataLoader:
        return self.batches("train", self.train_index, training=True)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        if self.validation == "none":
            return []
        return self.test_dataloader() if self.validation == "test" else self.batches("train", self.val_index)

    def test_dataloader(self) -> DataLoader:
        return self.batches("test", torch.arange(self.counts["test"]))

    def on_after_batch_transfer(
        self, batch: tuple[Tensor, Tensor, Tensor], dataloader_idx: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images, targets and numbers of a batch. Those that train are augmented: float32 pixels, 0 to 255,
        and class probabilities if they are mixed."""
        assert self.trainer is not None
        assert self.set is not None
        images, targets, index = batch
        if not self.trainer.training:
            return batch
        if self.regularization.transforms_images:
            epoch, epochs = self.trainer.current_epoch, self.trainer.max_epochs or -1
            images = self.regularization.augment(images.float(), index, epoch, epochs)
        if self.regularization.mixes_images:
            probabilities = one_hot(targets, len(self.set.classes)).float()
            images, targets = self.regularization.mix(images.float(), probabilities)
        return images, targets, index
