"""`record.json`: what a run was, on what, and what came of it. Needs neither torch nor Lightning."""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifarlab.atomic import write_text
from cifarlab.errors import UserError
from cifarlab.signatures import conforms, describe
from cifarlab.types import Count, Fraction, Natural, NonNegative
from cifarlab.untrusted import Refused, clean, read_json, read_yaml

SCHEMA = 1
# what a run is, whatever it ran on and wherever it lies: the rest stays out of the configuration's hash
NOT_HASHED = ("resume", "export", "logger", "data.root", "data.mirrors", "trainer.enable_progress_bar")
# keys that the first runs did not have yet: one at that value is as good as none
ADDED = {"trainer.capture": "none", "trainer.convolution": "auto", "model.bias_epochs": None}

EMPTY: dict[str, Any] = {
    "schema": SCHEMA,
    "status": "running",
    "error": None,
    "started": None,
    "finished": None,
    "overrides": [],
    "choices": {k: None for k in ("model", "reg", "data", "optimizer", "scheduler", "experiment")},
    "config_hash": None,
    "seed": None,
    "data": {
        k: None
        for k in (
            "name",
            "num_classes",
            "train_images",
            "val_images",
            "test_images",
            "validation",
            "fingerprint",
        )
    },
    "model": {"parameters": None, "export_difference": None},
    "environment": {
        k: None
        for k in (
            "python",
            "torch",
            "lightning",
            "device",
            "precision",
            "convolution",
            "threads",
            "git_commit",
            "git_dirty",
        )
    },
    "epochs": 0,
    "steps": 0,
    "train_seconds": None,
    "images_per_second": None,
    "wall_seconds": None,
    "peak_memory_bytes": None,
    "val": {"accuracy": None, "loss": None},
    "best_val": {"accuracy": None, "loss": None, "epoch": None},
    "test": {k: None for k in ("accuracy", "superclass_accuracy", "loss", "images", "weights")},
}


# what of that others rely on, each None until it is known: the file may be torn by hand, or a stranger's
KINDS: dict[str, Any] = {
    "status": Literal["running", "done", "interrupted", "failed"],
    "error": str | None,
    "overrides": list[str],
    **{f"choices.{name}": str | list[str] | None for name in EMPTY["choices"]},
    "config_hash": str | None,
    "data.num_classes": Count | None,
    "data.fingerprint": str | None,
    "environment.device": str | None,
    "environment.precision": Literal["32-true", "bf16-mixed", "16-mixed"] | None,
    "environment.convolution": Literal["winograd", "direct"] | None,
    "environment.threads": int | None,
    "environment.torch": str | None,
    "epochs": Natural,
    "steps": Natural,
    "wall_seconds": NonNegative | None,
    "val.accuracy": Fraction | None,
    "val.loss": NonNegative | None,
    "best_val.accuracy": Fraction | None,
    "best_val.loss": NonNegative | None,
    "best_val.epoch": Count | None,
    "test.accuracy": Fraction | None,
    "test.superclass_accuracy": Fraction | None,
    "test.loss": NonNegative | None,
    "test.images": Count | None,
    "test.weights": Literal["last", "best"] | None,
}


def new(config: dict[str, Any], choices: dict[str, Any]) -> dict[str, Any]:
    """The record of a run that is about to start."""
    record = copy.deepcopy(EMPTY)
    record |= {"started": now(), "seed": config["seed"]}
    record["choices"] |= choices
    return record


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write(folder: Path, record: dict[str, Any]) -> None:
    """Write the whole record; NaN and infinity, which JSON lacks, become null."""
    write_text(folder / "record.json", json.dumps(finite(record), indent=2) + "\n")


def finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and value - value != 0 else value


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """`config.yaml`: the resolved configuration, from which the run can be rebuilt."""
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))


def read_config(folder: Path) -> DictConfig:
    """The configuration a run was saved with.

    Raises:
        UserError: when it cannot be read.
    """
    try:
        plain = read_yaml(folder / "config.yaml")
        if not isinstance(plain, dict):
            raise Refused("it is no configuration of a run")
        if (text := interpolation(plain)) is not None:  # which could ask for environment variables
            raise Refused(f"it holds {clean(text)[:40]!r}, where a run writes what that stands for")
        return OmegaConf.create({"export": "pt2", **plain})  # a run from before the key has none
    except (OSError, Refused, OmegaConfBaseException) as error:
        raise UserError(f"{folder}/config.yaml cannot be read: {reason(error)}.") from None


def interpolation(node: Any) -> str | None:
    """The first text in nested lists and mappings that OmegaConf would put something else in the place of."""
    if isinstance(node, str):
        return node if "${" in node else None
    parts = [*node, *node.values()] if isinstance(node, dict) else node if isinstance(node, list) else []
    return next((text for part in parts if (text := interpolation(part)) is not None), None)


def reason(error: Exception) -> str:
    """Why a file was not read, to end a sentence with."""
    return str(getattr(error, "strerror", None) or error).partition("\n")[0].rstrip(".")


def read(folder: Path) -> dict[str, Any]:
    """The record in that folder, what is used of it checked.

    Raises:
        UserError: when there is none, it is not one, or a value cannot be.
    """
    try:
        record = read_json(folder / "record.json")
    except FileNotFoundError:
        raise UserError(f"{folder} is no run folder: it has no record.json.") from None
    except (OSError, Refused) as error:
        raise UserError(f"{folder}/record.json cannot be read: {reason(error)}.") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or not EMPTY.keys() <= record.keys():
        raise UserError(f"{folder}/record.json is no record of schema {SCHEMA}.")
    check(folder, record, KINDS)
    return record


def check(folder: Path, record: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raises:
    UserError: naming the first dotted key whose value is not of its kind.
    """
    for key, annotation in kinds.items():
        part, _, name = key.rpartition(".")
        owner = record[part] if part else record
        if not isinstance(owner, dict):
            key, value, expected = part, owner, "keys with values"
        elif conforms(value := owner.get(name), annotation):
            continue
        else:
            expected = describe(annotation)
        raise UserError(f"{folder}/record.json: {key}={json.dumps(value)[:40]}: expected {expected}.")


def config_hash(config: dict[str, Any]) -> str:
    """12 hexadecimal digits, the same for the same resolved configuration on any machine, in any folder."""
    kept = json.loads(json.dumps(config))
    for path in (*NOT_HASHED, *ADDED):
        *parents, last = path.split(".")
        node = kept
        for parent in parents:
            node = node.get(parent, {})
        if path in NOT_HASHED or node.get(last) == ADDED[path]:
            node.pop(last, None)
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def environment() -> dict[str, Any]:
    """The software: what can be known before the run starts."""
    from importlib.metadata import version  # slow to import, and commands that only read records need it not

    return {
        "python": platform.python_version(),
        "torch": version("torch"),
        "lightning": version("pytorch-lightning"),
        "git_commit": git("rev-parse", "HEAD") or None,
        "git_dirty": None if (changes := git("status", "--porcelain")) is None else bool(changes),
    }


def git(*command: str) -> str | None:
    """What git says of the checkout this file is in; None where there is no git or no checkout."""
    try:
        result = subprocess.run(
            ["git", *command],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
