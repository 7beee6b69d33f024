"""Checkpoints that are whole or not there, and the weights alone."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cifarlab.atomic import atomically
from cifarlab.errors import UserError
from cifarlab.models.classifier import Classifier
from cifarlab.untrusted import LARGEST_ARCHIVE, Refused, check_archive, check_plain, memory

HARMLESS = 10_000_000  # parameters that any machine has memory for
MOST_VALUES = 3_000_000  # in a checkpoint, which has nine for an epoch


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file, then renames: a kill in the middle leaves the checkpoint before it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()  # into the file itself a write that fails would fail again in torch's own way
        torch.save(checkpoint, content)
        with atomically(Path(path)) as file:
            file.write(content.getbuffer())

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        return read_checkpoint(Path(path))


class RunCheckpoint(ModelCheckpoint):
    """Lightning's, which knows its one file again wherever the run's folder is, and removes no other."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, enable_version_counter=False, **options)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        score, file = state_dict["best_model_score"], str(Path(str(self.dirpath), f"{self.filename}.ckpt"))
        number = isinstance(score, Tensor) and score.numel() == 1
        if not number and (score is not None or state_dict["best_k_models"]):
            raise ValueError("the best score is no number")
        kept = {file: score} if state_dict["best_k_models"] else {}
        ours = {"dirpath": self.dirpath, "best_k_models": kept, "kth_best_model_path": file if kept else ""}
        ours |= {"best_model_path": file if state_dict["best_model_path"] else "", "last_model_path": ""}
        super().load_state_dict({**state_dict, **ours})


def read_checkpoint(path: Path) -> dict[str, Any]:
    """All of a checkpoint, on the CPU, without running any code in it.

    Raises:
        UserError: when it is not there, damaged, or holds other than plain values and tensors.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: no epoch of that run was finished, or it was removed.")
    try:
        check_archive(path)
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        check_values(content)
        missing = {"state_dict", "callbacks", "classes"} - content.keys()
        if missing:
            raise Refused(f"it has no {', '.join(sorted(missing))}")
        state = content["state_dict"]
        if not isinstance(state, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
        ):
            raise Refused("its state_dict holds other than tensors by their names")
        return content
    except Refused as refusal:
        raise UserError(f"{path} cannot be read as a checkpoint: {refusal}.") from None
    except Exception as error:  # a damaged file can fail in any way
        raise UserError(f"{path} cannot be read as a checkpoint ({type(error).__name__}).") from None


def check_values(content: Any) -> None:
    """Refuse other tensors than plain ones, and a few lists within lists that stand for billions of values.

    Raises:
        Refused: for these.
    """
    rest, count = [content], 0
    while rest:
        value, count = rest.pop(), count + 1  # a list counts wherever it stands: others walk it as often
        if count > MOST_VALUES:
            raise Refused(f"it holds more than {MOST_VALUES:,} values")
        # the indices of others are not checked in loading, and what computes with them trusts them
        if isinstance(value, Tensor) and not is_plain(value):
            raise Refused("it holds other than plain tensors")
        if isinstance(value, dict):
            rest += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            rest += value


def refuse_larger(make: Callable[[], nn.Module], file: Path) -> None:
    """Refuse a configuration, which may be a stranger's, of a network larger than the file of its weights.

    It is built without memory. This machine's sets a limit too: a file may claim more bytes than it takes.

    Raises:
        UserError: with the number of parameters.
    """
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in make().parameters())
    if 16 * parameters > memory():  # weights, gradients, and Adam's two means
        raise UserError(f"A network of {parameters:,} parameters cannot be trained in this machine's memory.")
    # each has several bytes in the file
    if file.is_file() and parameters > max(HARMLESS, file.stat().st_size):
        raise UserError(f"{file} is too small for a network of {parameters:,} parameters.")


def is_plain(tensor: Tensor) -> bool:
    strange = tensor.is_quantized or tensor.is_nested or tensor.device.type != "cpu"
    return tensor.layout is torch.strided and not strange


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
        check_plain(path, min(LARGEST_ARCHIVE, memory()))
        with safe_open(path, framework="pt") as file:
            classes = json.loads((file.metadata() or {})["classes"])
            return {key: file.get_tensor(key) for key in file.keys()}, classes  # noqa: SIM118
    except Refused as refusal:
        raise UserError(f"{path} cannot be read as a run's weights: {refusal}.") from None
    except Exception as error:  # as above
        raise UserError(f"{path} cannot be read as a run's weights ({type(error).__name__}).") from None
