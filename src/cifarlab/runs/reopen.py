"""A run opened again from its folder: its configuration, its network with the weights, its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from cifarlab import config as configs
from cifarlab import hardware
from cifarlab.config import WrongKey
from cifarlab.data.module import ImageData
from cifarlab.data.scaling import blank_scaling
from cifarlab.errors import UserError
from cifarlab.models.classifier import Classifier
from cifarlab.regularizers import Regularization
from cifarlab.runs import record as records
from cifarlab.runs.checkpoints import load_weights
from cifarlab.runs.resume import existing_folder

Weights = Literal["scored", "last", "best"]


@dataclass
class OpenRun:
    """A run's folder, its plain configuration and record, and its network in eval mode on the device."""

    folder: Path
    config: dict[str, Any]
    record: dict[str, Any]
    model: Classifier
    weights: Path  # the file they were read from
    precision: str  # as Lightning spells it

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, and the precision that the run was scored in."""
        kind = self.model.device.type
        half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.precision)
        with torch.inference_mode(), torch.autocast(kind, dtype=half, enabled=half is not None):
            yield

    def logits(self, images: Tensor) -> Tensor:
        """For uint8 images (N, 3, 32, 32), N at least 1, float32 logits (N, num_classes) on the CPU.

        In the batches of the run's own evaluation: in others the last digits would differ.
        """
        size = self.config["data"]["eval_batch_size"]
        with self.inference():
            parts = [self.model(part.to(self.model.device)).float().cpu() for part in images.split(size)]
        return torch.cat(parts)

    def data(self) -> ImageData:
        """The run's data, loaded and split as they were; without augmentation.

        Raises:
            UserError: they are not to be had, or not those that the run had.
        """
        data: ImageData = instantiate(
            self.config["data"], seed=self.config["seed"], regularization=Regularization()
        )
        data.setup()
        if data.fingerprint != self.record["data"]["fingerprint"]:
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
    record = records.read(folder)
    config: Any = OmegaConf.to_container(records.read_config(folder))
    try:
        configs.check(config)
        config["data"] |= {key: value for key, value in (data or {}).items() if value is not None}
    except WrongKey as error:
        raise UserError(f"{folder}/config.yaml: {error}") from error
    configs.check(config)
    classes = record["data"]["num_classes"]
    if not (isinstance(classes, int) and 1 <= classes <= 100_000):
        raise UserError(f"{folder}/record.json: data.num_classes={classes}: expected the number of classes.")
    model: Classifier = instantiate(
        config["model"],
        num_classes=classes,
        regularization=Regularization([instantiate(part) for part in config["reg"].values()]),
        scaling=blank_scaling(config["data"]["scaling"]),
        _convert_="all",
    )
    path = weights_file(folder, weights)
    load_weights(model, path)
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("accelerator=gpu: there is no GPU that torch can use here; type accelerator=cpu.")
    options = hardware.settle({"accelerator": accelerator, "precision": record["environment"]["precision"]})
    device = torch.device("cuda" if options["accelerator"] == "gpu" else "cpu")
    precision = hardware.possible(options["precision"], device.type)
    model = model.to(device, memory_format=model.memory_format).eval()
    return OpenRun(folder, config, record, model, path, precision)


def weights_file(folder: Path, weights: Weights) -> Path:
    """Where a run has those weights.

    Raises:
        UserError: nowhere.
    """
    checkpoints = folder / "checkpoints"
    if weights == "best":
        path = checkpoints / "best.ckpt"
        if not path.is_file():
            raise UserError(f"{folder} has no checkpoints/best.ckpt: that run did not validate.")
        return path
    if weights == "scored" and (folder / "weights.safetensors").is_file():
        return folder / "weights.safetensors"
    if not (checkpoints / "last.ckpt").is_file():
        raise UserError(f"{folder} has no weights: no epoch of that run was finished.")
    return checkpoints / "last.ckpt"
