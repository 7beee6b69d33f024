"""Finds runs and reads what a report needs of them. The files may be anybody's: every value is checked."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cifarlab.runs.record import ADDED, NOT_HASHED, SCHEMA
from cifarlab.untrusted import LARGEST_YAML, Refused, clean, parse_yaml, read_json, read_text

Settings = tuple[tuple[str, Hashable], ...]  # a configuration: its dotted keys and their values, sorted

CHOICES = ("experiment", "model", "reg", "data", "optimizer", "scheduler")
ENVIRONMENT = ("device", "precision", "threads", "python", "torch", "lightning", "git_commit")
STATUSES = ("running", "done", "interrupted", "failed")
# what tells the runs of one configuration apart, or has no part in what comes out
NO_SETTING = ("seed", "data.fold", *NOT_HASHED)
MOST_FOLDS = 10_000  # each that a seed lacks is named


class Unreadable(Exception):
    """Why a file is left out: the end of a sentence that begins with its name."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a report takes from a run's folder.

    `test` and `val` are accuracies from 0 to 1 of the weights that were scored, but for a fold `val` is the
    last epoch's: the best one would be chosen by the very images that it is scored on. `fold` is
    (fold, folds) in a cross-validation; without a readable config.yaml `configured` is False and `settings`
    are what was typed.
    """

    folder: Path
    status: str
    error: str | None
    finished: str
    overrides: tuple[str, ...]
    choices: Mapping[str, str | None]
    settings: Settings
    configured: bool
    seed: int
    fold: tuple[int, int] | None
    validates_on_test: bool
    test: float | None
    val: float | None
    seconds: float | None
    epochs: int
    parameters: int | None
    environment: Mapping[str, str]

    @property
    def cell(self) -> tuple[int, tuple[int, int] | None]:
        """What makes it one of several runs of a configuration: its seed and fold."""
        return self.seed, self.fold

    def typed(self) -> Iterator[tuple[str, str]]:
        """The keys and values typed on the command line, in order: of two, the last counts."""
        for override in self.overrides:
            key, _, value = override.lstrip("+~").partition("=")
            yield key, value


def find(folders: Iterable[Path], warn: Callable[[str], None]) -> Iterator[Path]:
    """Every folder at or below these that holds a record.json, once, whatever links lead to it."""
    seen = set()
    for top in folders:
        for here, below, files in os.walk(top, followlinks=True, onerror=lambda e: warn(f"{e}: left out.")):
            try:
                status = os.stat(here)
            except OSError as error:
                warn(f"{error}: left out.")
                continue
            if (status.st_dev, status.st_ino) in seen:
                below.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            below.sort()
            if "record.json" in files:
                yield Path(here)


def read(folder: Path) -> Run:
    """The run in that folder.

    Raises:
        Unreadable: when record.json is torn, of another kind, or holds a value that cannot be.
    """
    try:
        record = read_json(folder / "record.json")
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror})") from None
    except Refused as refusal:
        raise Unreadable(f"cannot be read: {refusal}") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise Unreadable(f"is no record of schema {SCHEMA}")

    def value(key: str, kind: Callable[[Any], bool], required: bool = False) -> Any:
        node: Any = record
        for part in key.split("."):
            if not isinstance(node, dict) or part not in node:
                raise Unreadable(f"has no {key}")
            node = node[part]
        if not kind(node) and (required or node is not None):
            raise Unreadable(f"has {key}={clean(json.dumps(node))[:40]}, which cannot be")
        return node

    status = value("status", STATUSES.__contains__, required=True)
    overrides = tuple(clean(text) for text in value("overrides", texts, required=True))
    choices = {}
    for name in CHOICES:
        chosen = value(f"choices.{name}", texts if name == "reg" else text_like)
        choices[name] = None if chosen is None else clean("+".join([chosen] if name != "reg" else chosen))
    settings, configured = read_settings(folder), True
    if settings is None:
        settings, configured = typed_settings(choices, overrides), False
    known = dict(settings)
    fold = None
    if known.get("data.validation") == "fold":
        part, parts = known.get("data.fold", 0), known.get("data.folds", 5)
        if not (isinstance(part, int) and isinstance(parts, int) and 0 <= part < parts <= MOST_FOLDS):
            raise Unreadable(f"belongs to fold {part} of {parts}, which cannot be")
        fold = (part, parts)
    weights = value("test.weights", text_like) or known.get("test_weights")
    return Run(
        folder=folder,
        status=status,
        error=clean(value("error", text_like) or "") or None,
        finished=value("finished", text_like) or "",
        overrides=overrides,
        choices=choices,
        settings=shared(tuple((k, v) for k, v in settings if not left_out(k) and ADDED.get(k) != v)),
        configured=configured,
        seed=value("seed", whole, required=True),
        fold=fold,
        validates_on_test=value("data.validation", scalar) == "test",
        test=value("test.accuracy", fraction),
        val=value("best_val.accuracy" if weights == "best" and fold is None else "val.accuracy", fraction),
        seconds=value("train_seconds", number),
        epochs=value("epochs", whole, required=True),
        parameters=value("model.parameters", whole),
        environment={
            name: clean(str(value(f"environment.{name}", scalar)))
            for name in ENVIRONMENT
            if value(f"environment.{name}", scalar) is not None
        },
    )


def read_settings(folder: Path) -> Settings | None:
    """All of config.yaml, flat; None where it cannot be read.

    A run's settings lie in a dozen blocks of which most are the same in thousands of runs, so each distinct
    block is parsed once: the time goes into what differs.
    """
    try:
        blocks = re.split(r"\n(?=[^\s#-])", read_text(folder / "config.yaml", LARGEST_YAML))
        return tuple(sorted(dict(pair for block in blocks for pair in parse(block)).items()))
    except (OSError, Refused):
        return None


@cache
def parse(block: str) -> Settings:
    node = parse_yaml(block)
    if not isinstance(node, dict):
        raise Refused("it holds no keys")
    return tuple(flat(node))


def flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Hashable]]:
    """Nested mappings as dotted keys with hashable values."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield clean(f"{prefix}{key}"), frozen(value)


def frozen(value: Any) -> Hashable:
    if isinstance(value, list):
        return tuple(map(frozen, value))
    if isinstance(value, dict):
        return tuple(sorted({str(key): frozen(part) for key, part in value.items()}.items()))
    return clean(value) if isinstance(value, str) else value


def typed_settings(choices: Mapping[str, str | None], overrides: Iterable[str]) -> Settings:
    """The choices and what was typed besides, for want of a configuration."""
    typed = dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    typed = {key: value for key, value in typed.items() if not key.startswith("hydra")}
    numbers = {key: int(typed[key]) for key in ("data.fold", "data.folds") if typed.get(key, "").isdecimal()}
    chosen = {name: value for name, value in choices.items() if value is not None}
    return tuple(sorted({**typed, **numbers, **chosen}.items()))


@cache
def left_out(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in NO_SETTING)


@cache
def shared(settings: Settings) -> Settings:
    """The first of all equal ones, so that thousands of runs keep one copy."""
    return settings


def read_curve(folder: Path) -> list[tuple[int, float]]:
    """(epoch, validation accuracy) for each validated epoch in metrics.csv.

    Raises:
        Unreadable: when the file is missing, torn, or of another kind.
    """
    curve = []
    try:
        lines = csv.reader(read_text(folder / "metrics.csv").splitlines())
        header = next(lines)
        epoch, accuracy = header.index("epoch"), header.index("val/accuracy")
        for line in lines:
            if len(line) != len(header):
                raise Unreadable("is torn")
            if line[accuracy]:
                curve.append((int(line[epoch]), float(line[accuracy])))
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror})") from None
    except Refused as refusal:
        raise Unreadable(f"cannot be read: {refusal}") from None
    except (StopIteration, ValueError, csv.Error):
        raise Unreadable("holds no curve") from None
    if not all(whole(epoch) and fraction(value) for epoch, value in curve):
        raise Unreadable("holds what is no accuracy")
    return curve


def scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def text_like(value: Any) -> bool:
    return isinstance(value, str)


def texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def number(value: Any) -> bool:
    """0 or more, and so small that sums stay finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**63


def whole(value: Any) -> bool:
    return number(value) and isinstance(value, int)


def fraction(value: Any) -> bool:
    return number(value) and value <= 1
