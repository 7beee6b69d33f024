"""Checkpoints that are whole or not there, and the weights alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from cifarlab.atomic import atomically
from cifarlab.errors import UserError
from cifarlab.models.classifier import Classifier
from cifarlab.untrusted import Refused, check_archive


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file, then renames: a kill in the middle leaves the checkpoint before it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomically(Path(path)) as file:
            torch.save(checkpoint, file)


class RunCheckpoint(ModelCheckpoint):
    """Lightning's, which knows its best checkpoint again after the run's folder was moved or copied."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, enable_version_counter=False, **options)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        there, here = str(state_dict["dirpath"]), str(self.dirpath)

        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {moved(key): moved(part) for key, part in value.items()}
            return value.replace(there, here, 1) if isinstance(value, str) else value

        super().load_state_dict(moved(state_dict))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU.

    Raises:
        UserError: when it is not there, or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: no epoch of that run was finished, or it was removed.")
    try:
        check_archive(path)
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return {key: content[key] for key in ("state_dict", "callbacks", "classes")}
    except Refused as refusal:
        raise UserError(f"{path} cannot be read as a checkpoint: {refusal}.") from None
    except Exception as error:  # a damaged file can fail in any way
        raise UserError(f"{path} cannot be read as a checkpoint ({type(error).__name__}).") from None


def load_weights(model: Classifier, path: Path, scaling: bool = True) -> None:
    """Put the weights of a checkpoint or a safetensors file into the model, and the classes' names.

    Without `scaling` the model keeps its own pixel scaling, and its own classes.

    Raises:
        UserError: when the file cannot be read, or the weights are another network's.
    """
    state, classes = read_weights(path) if path.suffix == ".safetensors" else checkpoint_weights(path)
    if scaling:
        if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
            raise UserError(f"{path} does not name the classes of its network.")
        if len(classes) != model.num_classes:
            raise UserError(
                f"{path} holds the weights of a network for {len(classes)} classes, not for "
                f"{model.num_classes}."
            )
        model.classes = classes
    else:
        own = {name: value for name, value in model.state_dict().items() if name.startswith("scaling.")}
        state = {name: value for name, value in state.items() if not name.startswith("scaling.")} | own
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:  # the latter for what is no state dict
        reason = str(error).strip().splitlines()[-1].strip().rstrip(".")
        raise UserError(f"{path} holds another network's weights ({reason}).") from None


def save_weights(model: Classifier, path: Path) -> None:
    """The state dict as plain tensors in a safetensors file, the classes' names in its metadata."""
    state: dict[str, Tensor] = {name: value.contiguous() for name, value in model.state_dict().items()}
    with atomically(path) as file:
        file.write(save(state, metadata={"classes": json.dumps(model.classes)}))


def checkpoint_weights(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """A checkpoint's state dict, and the classes' names.

    Raises:
        UserError: when it is not there, or damaged.
    """
    content = read_checkpoint(path)
    return content["state_dict"], content["classes"]


def read_weights(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """What `save_weights` wrote.

    Raises:
        UserError: when it is not there, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            classes = json.loads((file.metadata() or {})["classes"])
            return {key: file.get_tensor(key) for key in file.keys()}, classes  # noqa: SIM118
    except Exception as error:  # as above
        raise UserError(f"{path} cannot be read as a run's weights ({type(error).__name__}).") from None
