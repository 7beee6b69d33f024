"""A run opened again from its folder: its configuration, its network with the weights, its data.

The folder may be a stranger's: what is used of its configuration and record is checked first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from cifarlab import config as configs
from cifarlab import hardware
from cifarlab.config import WrongKey
from cifarlab.data.module import ImageData
from cifarlab.data.scaling import blank_scaling
from cifarlab.errors import UserError
from cifarlab.mistakes import conf_of
from cifarlab.models.classifier import Classifier
from cifarlab.regularizers import Regularization
from cifarlab.runs import record as records
from cifarlab.runs.checkpoints import load_weights, refuse_larger
from cifarlab.runs.resume import existing_folder, find_images
from cifarlab.types import Count, Seed

Weights = Literal["scored", "last", "best"]

NEEDED: dict[str, Any] = {  # of the record
    "data.num_classes": Count,
    "data.fingerprint": str,
    "environment.precision": Literal["32-true", "bf16-mixed", "16-mixed"],
}


@dataclass
class OpenRun:
    """A run's folder, its plain configuration and record, and its network in eval mode on the device."""

    folder: Path
    config: dict[str, Any]
    record: dict[str, Any]
    model: Classifier
    weights: Literal["last", "best"]  # of the last epoch, or of the one with the best validation accuracy
    file: Path  # that they were read from
    precision: str  # as Lightning spells it
    images: ImageData  # not loaded yet: see `data`

    @property
    def batch_size(self) -> int:
        """Images in a batch of the run's evaluation: in others the last digits would differ."""
        return self.images.eval_batch_size

    @property
    def validates_all(self) -> bool:
        """Whether the run validated on all images of its split, at the ends of epochs."""
        trainer = self.config.get("trainer")
        keys = ("limit_val_batches", "val_check_interval")
        # 1.0 is the whole, and 1 a single batch
        return isinstance(trainer, dict) and all(str(trainer.get(key)) in ("None", "1.0") for key in keys)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, and the precision that the run was scored in."""
        kind = self.model.device.type
        half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.precision)
        with torch.inference_mode(), torch.autocast(kind, dtype=half, enabled=half is not None):
            yield

    def logits(self, images: Tensor) -> Tensor:
        """For uint8 images (N, 3, 32, 32), N at least 1, float32 logits (N, num_classes) on the CPU."""
        with self.inference():
            batches = images.split(self.batch_size)
            parts = [self.model(part.to(self.model.device)).float().cpu() for part in batches]
        return torch.cat(parts)

    def data(self) -> ImageData:
        """The run's data, loaded and split as they were; without augmentation.

        Raises:
            UserError: they are not to be had, or not those that the run had.
        """
        data = self.images
        data.setup()
        assert data.set is not None
        known = self.record["data"]
        if (data.fingerprint, len(data.set.classes)) != (known["fingerprint"], known["num_classes"]):
            raise UserError(
                f"{self.folder}: data={data.name} as it is here is not what that run was trained on (its "
                "fingerprint differs from the record's); let data.root= name the folder with the same files."
            )
        return data


def open_run(
    folder: Path,
    weights: Weights = "scored",
    data: Mapping[str, Any] | None = None,
    accelerator: str = "auto",
) -> OpenRun:
    """Rebuild a finished or interrupted run from its folder alone.

    Args:
        weights: `scored` (those that were, else the last epoch's), or the checkpoint `last` or `best`.
        data: keys of `data` that are other than the run's, such as `root`; what is None stays.
        accelerator: as the Trainer's.

    Raises:
        UserError: the folder holds no run, or one that cannot be rebuilt.
    """
    existing_folder("run", str(folder))
    record = read_record(folder)
    config = read_config(folder)
    # outside a command no option is known, and nothing is downloaded
    find_images(config["data"], conf_of(HydraConfig.get()) if HydraConfig.initialized() else None)
    config["data"] |= {key: value for key, value in (data or {}).items() if value is not None}
    configs.check_target("data", "data", config["data"])
    root = (data or {}).get("root")
    if isinstance(root, str) and not Path(root).is_dir():  # training would download to it, were it not there
        raise UserError(f"data.root={root}: there is no such folder; expected the one with the images.")
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("accelerator=gpu: there is no GPU that torch can use here; type accelerator=cpu.")
    chosen, file = choose_weights(folder, record, weights)
    try:
        images: ImageData = instantiate(config["data"], seed=config["seed"], regularization=Regularization())
        make = partial(
            instantiate,
            config["model"],
            num_classes=record["data"]["num_classes"],
            regularization=Regularization([instantiate(part) for part in config["reg"].values()]),
            _convert_="all",
        )
        refuse_larger(make, file)
        model: Classifier = make(scaling=blank_scaling(images.scaling))
    except (InstantiationException, OmegaConfBaseException) as error:
        reason = (str(error.__cause__ or error) or type(error.__cause__).__name__).splitlines()[0].rstrip(".")
        raise UserError(f"{folder}/config.yaml: that run cannot be rebuilt ({reason}).") from error
    load_weights(model, file)
    options = hardware.settle({"accelerator": accelerator, "precision": record["environment"]["precision"]})
    device = torch.device("cuda" if options["accelerator"] == "gpu" else "cpu")
    precision = hardware.possible(options["precision"], device.type)
    model = model.to(device, memory_format=model.memory_format).eval()
    return OpenRun(folder, config, record, model, chosen, file, precision, images)


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a run that has had an epoch.

    Raises:
        UserError: there is none, or a value is missing or cannot be.
    """
    record = records.read(folder)
    records.check(folder, record, NEEDED)
    return record


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run, checked in the parts that its network and data are made from.

    The others may be what another version of Lightning or of this project took.

    Raises:
        UserError: it cannot be read, or a key is wrong.
    """
    config: Any = OmegaConf.to_container(records.read_config(folder))
    try:
        configs.check_value("seed", config.get("seed"), Seed)
        for group in ("data", "model"):
            configs.check_target(group, group, config.get(group))
        for name, part in configs.check_mapping("reg", config.get("reg")).items():
            configs.check_target("reg", f"reg.{name}", part)
        configs.check_folds(config["data"])
        configs.check_regularizers(config["reg"])
    except WrongKey as error:
        raise UserError(f"{folder}/config.yaml: {error}") from error
    plain: dict[str, Any] = config
    return plain


def choose_weights(
    folder: Path, record: Mapping[str, Any], weights: Weights
) -> tuple[Literal["last", "best"], Path]:
    """Which weights those are, and the file that a run has them in.

    Raises:
        UserError: it has none.
    """
    chosen: Literal["last", "best"] = (
        (record["test"]["weights"] or "last") if weights == "scored" else weights
    )
    alone, checkpoint = folder / "weights.safetensors", folder / "checkpoints" / f"{chosen}.ckpt"
    # a run that was finished once, and then went on and was stopped, still has the older ones in that file
    if weights == "scored" and record["status"] == "done" and alone.is_file():
        return chosen, alone
    if not checkpoint.is_file():
        why = "that run did not validate" if chosen == "best" else "no epoch of that run was finished"
        raise UserError(f"{checkpoint} is missing: {why}, or it was removed.")
    return chosen, checkpoint
