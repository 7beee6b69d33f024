"""Checkpoints that are whole or not there, and the weights alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from safetensors.torch import save
from torch import Tensor, nn

from cifarlab.atomic import atomically
from cifarlab.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file, then renames: a kill in the middle leaves the checkpoint before it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomically(Path(path)) as file:
            torch.save(checkpoint, file)


def load_weights(model: nn.Module, folder: Path, which: str) -> None:
    """Put the weights of that run's `last` or `best` checkpoint into the model.

    Raises:
        UserError: when the run has none, or they are another network's.
    """
    path = folder / "checkpoints" / f"{which}.ckpt"
    if not path.is_file():
        raise UserError(f"{folder} has no checkpoints/{which}.ckpt: no epoch of that run was finished.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{path} holds another network's weights ({reason})") from None
    except Exception as error:
        raise UserError(f"{path} cannot be read as a checkpoint ({type(error).__name__}).") from None


def save_weights(model: nn.Module, path: Path) -> None:
    """The state dict as plain tensors in a safetensors file."""
    state: dict[str, Tensor] = {name: value.contiguous() for name, value in model.state_dict().items()}
    with atomically(path) as file:
        file.write(save(state))
