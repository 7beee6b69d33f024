"""What `resume=DIR` makes: the configuration in that folder, with what is typed now laid over it."""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from cifarlab import config as configs
from cifarlab.errors import UserError
from cifarlab.mistakes import shown
from cifarlab.runs import record as records
from cifarlab.sweeps.folders import Claim, claim_run
from cifarlab.untrusted import check_run_folder

# how long, where and at which rate the run goes on: all else would make another run of it
GROUPS = ("trainer", "scheduler", "logger")
RATES = ("optimizer.lr", "optimizer.adam_lr")
KEYS = (
    "resume",
    "test",
    "test_weights",
    "export",
    *RATES,
    "data.root",
    "data.mirrors",
    "data.eval_batch_size",
)
PATH_KEYS = ("resume", "start_from", "run", "images", "out", "gallery", "data.root")

# what Hydra reads as text, or null for none: neither a number nor true, false, nan or inf
PLAIN = re.compile(
    r"(?!(true|false|nan|inf)$)([a-z_.][\w.+-]*|[\w./+-]*/[\w./+-]*)", re.ASCII | re.IGNORECASE
)


def quoted(override: str) -> str:
    """The name of a file or folder in quotes, for a run's own name holds what Hydra would read.

    Left alone are plain words, what is quoted already, a list, an interpolation, and a choice of folders in a
    sweep.
    """
    key, _, value = override.partition("=")
    as_it_is = PLAIN.fullmatch(value) or value[:1] in ("", "'", '"', "[") or value.startswith("${")
    if key not in PATH_KEYS or as_it_is or ("," in value and not os.path.exists(value)):
        return override
    mark = '"' if "'" in value else "'"
    text = value.replace(mark, "\\" + mark)
    closing = text[len(text.rstrip("\\")) :]  # backslashes at the end would take the quote's meaning
    return f"{key}={mark}{text}{closing}{mark}"


def existing_folder(key: str, name: str) -> Path:
    """The folder of a run, perhaps a stranger's, that `resume=`, `start_from=` or `run=` names.

    Raises:
        UserError: when it is not there, or holds links or the like where a run has its files.
    """
    if not os.path.isdir(name):
        what = "this is a file" if os.path.isfile(name) else "there is no such folder"
        raise UserError(f"{key}={name}: {what}; expected the folder of a run, such as logs/runs/...")
    check_run_folder(Path(name))
    return Path(name)


def take(folder: Path, resumed: str | None) -> Claim | None:
    """Make and claim the run's folder: no two runs share one, and no two processes a run.

    Raises:
        UserError: when another process is at work there, or it holds a run other than the resumed one.
    """
    if resumed is not None and folder.resolve() != Path(resumed).resolve():
        raise UserError(f"hydra.run.dir={folder}: a resumed run goes on in its own folder; leave this out.")
    if folder.resolve() == Path.cwd():
        raise UserError("hydra.run.dir= names this very folder; name one of the run's own, or leave it out.")
    folder.mkdir(parents=True, exist_ok=True)
    claim = claim_run(folder)
    # the other processes of a distributed run come when the first has begun its record
    if resumed is None and (folder / "record.json").exists() and os.environ.get("LOCAL_RANK", "0") == "0":
        if claim is not None:
            claim.release()
        name = shown(folder)
        raise UserError(
            f"{name} holds a run already; go on with it by resume={name} or choose another hydra.run.dir=."
        )
    return claim


def parse(overrides: list[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(overrides)


def folder_of(overrides: list[Override]) -> Path | None:
    """The folder of the run to resume, if one is."""
    names = [override.value() for override in overrides if override.key_or_group == "resume"]
    return existing_folder("resume", str(names[-1])) if names and names[-1] is not None else None


def admit(override: Override, folder: Path) -> str:
    """The override as Hydra composes it on a resume, whatever options that run chose.

    Raises:
        UserError: when it would make another run.
    """
    text, key = str(override.input_line), override.key_or_group
    group, _, name = key.partition(".")
    if key == "start_from":
        raise UserError(f"{text}: start_from= makes a new run and resume= goes on with one; leave out one.")
    if group not in (*configs.ROOT, *configs.TARGETS, "trainer", "experiment"):
        return text  # Hydra's own, or unknown, of which Hydra says so
    if not (group in GROUPS or key in KEYS) or override.is_delete():
        raise UserError(
            f"{text}: a resumed run cannot change {key}; start a new one from its weights with "
            f"start_from={folder}."
        )
    return f"++{text.lstrip('+')}" if name else text


def find_images(data: Any, conf: Path | None) -> None:
    """Let a run's `data`, perhaps a stranger's, name no server, and no folder to be made or downloaded to.

    A `root` that is there stays, to be read; else root and mirrors are those that `conf` has for this data.
    """
    if not isinstance(data, MutableMapping) or data.keys().isdisjoint({"root", "mirrors"}):
        return
    files = sorted(conf.glob("data/*.yaml")) if conf else []
    options: list[Any] = [OmegaConf.load(file) for file in files]
    same = next((option for option in options if option.get("_target_") == data.get("_target_")), None)
    own: Any = {} if same is None else OmegaConf.to_container(same, resolve=True)
    root = data.pop("root", None)
    data.pop("mirrors", None)
    data.update({key: own[key] for key in ("root", "mirrors") if key in own})
    if isinstance(root, str) and root != own.get("root") and os.path.isdir(root):
        data.update(root=root, mirrors=[])


def resumed(folder: Path, overrides: list[str], conf: Path) -> tuple[DictConfig, list[str], dict[str, Any]]:
    """That run's configuration, overrides and choices with the overrides that are typed now.

    An option of `trainer` changes the keys that it sets; one of `scheduler` or `logger` takes the old one's
    place.

    Raises:
        UserError: when the folder holds no run, or its rate can no longer be set.
    """
    record, config = records.read(folder), records.read_config(folder)
    choices = dict(record["choices"])
    find_images(config.get("data"), conf)
    typed = parse(overrides)
    # options before single keys, as Hydra has it
    for override in sorted(typed, key=lambda override: override.key_or_group not in GROUPS):
        key, value = override.key_or_group, override.value()
        if key in GROUPS and isinstance(value, str):
            if key in choices:
                choices[key] = value
            option = OmegaConf.load(conf / key / f"{value}.yaml")
            OmegaConf.update(config, key, option, merge=key == "trainer", force_add=True)
        else:
            OmegaConf.update(config, key, value, force_add=True)
    schedule = str(OmegaConf.select(config, "scheduler._target_"))
    rates = [override.key_or_group for override in typed if override.key_or_group in RATES]
    if schedule.endswith(".plateau") and rates:
        raise UserError(
            f"{rates[0]}: under scheduler=plateau a resumed run keeps the rate it had come to; choose "
            f"another scheduler, or start a new run with start_from={folder}."
        )
    now = [text.removeprefix("++") for text in overrides if not text.startswith("resume=")]
    return config, [*record["overrides"], *now], choices
