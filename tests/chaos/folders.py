"""What must hold of a run's folder, at any moment and at the end."""

import csv
import re
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from cifarlab.runs import record as records
from cifarlab.runs.checkpoints import read_checkpoint, read_weights
from cifarlab.runs.export import load_exported


def saved_epochs(run: Path) -> int:
    """How many epochs the last checkpoint has behind it."""
    path = run / "checkpoints/last.ckpt"
    return len(read_checkpoint(path)["callbacks"]["RunRecord"]["history"]) if path.exists() else 0


def logged_epochs(run: Path) -> list[int]:
    """The epochs that train.log tells of."""
    path = run / "train.log"
    return [int(n) for n in re.findall(r"^epoch (\d+)/", path.read_text(), re.M)] if path.exists() else []


def check_whole(run: Path) -> None:
    """Read every file that is there under its name; see that none claims what another does not hold."""
    for path in run.glob("checkpoints/*.ckpt"):
        read_checkpoint(path)
    saved = saved_epochs(run)
    if (run / "metrics.csv").exists():
        assert len(metrics(run)) <= saved
    if (run / "curves.png").exists():
        Image.open(run / "curves.png").load()
    if (run / "weights.safetensors").exists():
        read_weights(run / "weights.safetensors")
    if (run / "model.pt2").exists():
        load_exported(run / "model.pt2")
    for path in run.glob("events.*"):
        list(EventFileLoader(str(path)).Load())
    if (run / "config.yaml").exists():
        records.read_config(run)
    if (run / "record.json").exists():
        record = records.read(run)
        assert (record["best_val"]["epoch"] or 0) <= record["epochs"] <= saved
        assert (run / "config.yaml").exists()
        assert record["status"] == "running" or (run / "weights.safetensors").exists()


def metrics(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert all(None not in row and None not in row.values() for row in rows)  # of a torn line
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


# the latter two are Lightning's notes of what this process did, which it reads nowhere
NOT_COMPARED = ("seconds", "epoch_loop.scheduler_progress", "current_score")


def bits(value: Any, run: Path) -> Any:
    """A checkpoint's content, so that equal is the same to the bit; without times and the folder's name."""
    if isinstance(value, dict):
        return {bits(key, run): bits(part, run) for key, part in value.items() if key not in NOT_COMPARED}
    if isinstance(value, (list, tuple)):
        return [bits(part, run) for part in value]
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().view(-1).view(torch.uint8).tolist()
    if isinstance(value, str):
        return value.replace(str(run), "")
    return value


def ends(run: Path) -> tuple[bytes, list[dict[str, str]], dict[str, Any]]:
    """The last weights, the history and the figures, less the seconds that they took."""
    keys = ("status", "error", "epochs", "steps", "config_hash", "data", "model", "val", "best_val", "test")
    record = records.read(run)
    return (run / "weights.safetensors").read_bytes(), metrics(run), {key: record[key] for key in keys}


def check_same(run: Path, reference: Path) -> None:
    """The run ended as the reference did, which was never stopped, and left nothing else behind."""
    names = [sorted(p.relative_to(f).as_posix() for p in f.rglob("*")) for f in (run, reference)]
    names = [[name for name in some if not name.startswith("events.")] for some in names]
    assert names[0] == names[1]
    for name in ("last", "best"):
        found, expected = (
            torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True) for folder in (run, reference)
        )
        assert bits(found, run) == bits(expected, reference)
    assert ends(run) == ends(reference)
