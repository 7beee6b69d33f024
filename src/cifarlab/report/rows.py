"""Runs of one configuration make a row; a row's name says in what it differs from the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

from cifarlab.config import show
from cifarlab.report.reading import CHOICES, ENVIRONMENT, Run
from cifarlab.report.statistics import Cell, Estimate, estimate, whole

# said above the table whenever all rows share it, typed or not
ALWAYS_SAID = ("optimizer.lr", "data.batch_size", "data.validation", "trainer.max_epochs")


@dataclass
class Row:
    """The finished runs of one configuration, one per seed and fold; `repeats` are further ones of these."""

    runs: list[Run]
    repeats: list[Run] = field(default_factory=list)
    name: str = ""

    @cached_property
    def settings(self) -> dict[str, Any]:
        return dict(self.runs[0].settings)

    @cached_property
    def choices(self) -> dict[str, str | None]:
        """The options chosen; where several words led to the same configuration, the commonest."""
        return {
            name: Counter(run.choices[name] for run in self.runs).most_common(1)[0][0] for name in CHOICES
        }

    def scores(self, metric: str) -> dict[Cell, float]:
        """`test` or `val` accuracies by seed and fold, without the seeds that lack some of the folds."""
        return whole(self.known(metric))

    def known(self, metric: str) -> dict[Cell, float]:
        """All that there are."""
        found = {run.cell: getattr(run, metric) for run in self.runs}
        return {cell: score for cell, score in found.items() if score is not None}

    @cached_property
    def test(self) -> Estimate | None:
        return estimate(self.scores("test"))

    @cached_property
    def val(self) -> Estimate | None:
        return estimate(self.scores("val"))

    def metric(self, name: str) -> Estimate | None:
        return self.test if name == "test" else self.val

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})

    @property
    def folds(self) -> int:
        """How many folds a cross-validation has here; 0 for other runs."""
        return len({run.fold for run in self.runs if run.fold})

    @cached_property
    def missing(self) -> dict[int, list[int]]:
        """The folds that seeds of a cross-validation lack."""
        cells = {run.cell for run in self.runs}
        total = max((run.fold[1] for run in self.runs if run.fold), default=0)
        lacking = {seed: [k for k in range(total) if (seed, (k, total)) not in cells] for seed in self.seeds}
        return {seed: folds for seed, folds in lacking.items() if folds}

    @property
    def count(self) -> str:
        """n as it is shown."""
        if not self.folds:
            return str(len(self.runs))
        count = len(self.seeds) - (len(self.missing) if self.folds > 1 else 0)
        seeds = f"{count} seeds, " if count > 1 else ""
        return f"{seeds}{self.folds} fold{'s' * (self.folds > 1)}"

    @cached_property
    def seconds(self) -> float | None:
        known = [run.seconds for run in self.runs if run.seconds is not None]
        return fmean(known) if known else None

    @property
    def epochs(self) -> tuple[int, int]:
        """The fewest and the most: early stopping ends seeds at different epochs."""
        counts = [run.epochs for run in self.runs]
        return min(counts), max(counts)

    @property
    def parameters(self) -> int | None:
        return self.runs[0].parameters

    @property
    def validates_on_test(self) -> bool:
        return any(run.validates_on_test for run in self.runs)

    def notes(self) -> list[str]:
        """What a reader has to know of this row."""
        notes = []
        mixed = [f"{name.replace('_', ' ')} ({', '.join(sorted(values))})" for name, values in self.mixed()]
        if mixed:
            notes.append(f"its runs differ in {'; '.join(mixed)}")
        if self.repeats:
            times = len(self.repeats)
            notes.append(
                f"{times} further run{'s' * (times > 1)} of the same configuration and seed "
                f"{'are' if times > 1 else 'is'} left out: a repeat is no independent sample"
            )
        if self.folds == 1:
            notes.append("all runs are of one fold: this is no cross-validation")
        elif self.missing:
            lacking = [
                f"seed {seed} lacks fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))}"
                for seed, folds in self.missing.items()
            ]
            notes.append(f"left out until all folds are done: {'; '.join(lacking)}")
        for metric, what in (("test", "test"), ("val", "validation")):
            have = len(self.known(metric))
            if 0 < have < len(self.runs):
                notes.append(f"only {have} of its {len(self.runs)} runs have a {what} accuracy")
        if not self.runs[0].configured:
            notes.append("its config.yaml cannot be read: told apart by what was typed")
        return notes

    def mixed(self) -> list[tuple[str, set[str]]]:
        """The parts of the environment in which its runs differ."""
        found = ((name, {run.environment.get(name, "unknown") for run in self.runs}) for name in ENVIRONMENT)
        return [(name, {value[:12] if name == "git_commit" else value for value in values})
                for name, values in found if len(values) > 1]  # fmt: skip


def group(runs: Iterable[Run]) -> list[Row]:
    """A row per configuration; of several runs with the same seed and fold the latest finished counts."""
    by_settings: dict[Any, dict[Cell, list[Run]]] = {}
    for run in runs:
        by_settings.setdefault(run.settings, {}).setdefault(run.cell, []).append(run)
    rows = []
    for cells in by_settings.values():
        ordered = [sorted(same, key=lambda run: (run.finished, str(run.folder))) for same in cells.values()]
        row = Row([same[-1] for same in ordered], [run for same in ordered for run in same[:-1]])
        row.runs.sort(key=lambda run: (run.seed, run.fold or (0, 0)))
        rows.append(row)
    return rows


def name(rows: Sequence[Row]) -> str:
    """Name each row by what differs between them; returns what they share, as it would be typed.

    An option stands for the keys that it sets: `model=vgg3` is said, not `model.blocks=3`, unless that key
    was typed, or differs between rows with the same option. An experiment stands for options and keys
    likewise if each row has one.
    """
    typed = {key for row in rows for run in row.runs for key, _ in run.typed()}
    options = [option for option in CHOICES if varies([row.choices[option] for row in rows])]
    if "experiment" in options and any(row.choices["experiment"] is None for row in rows):
        options.remove("experiment")
    leader = ["experiment"] if "experiment" in options else []
    shown = leader + [
        option
        for option in options
        if option not in leader and (option in typed or not told(rows, option, leader))
    ]
    keys = sorted({key for row in rows for key in row.settings} - set(CHOICES))
    for key in keys:
        if varies([row.settings.get(key) for row in rows]):
            owner = key.partition(".")[0]
            by = leader + ([owner] if owner in CHOICES else [])
            if key in typed or not told(rows, key, by):
                shown.append(key)
    for row in rows:
        words = [f"{key}={value(row, key, rounded=True)}" for key in shown if has(row, key)]
        row.name = " ".join(words) or f"model={row.choices['model']} reg={row.choices['reg']}"
        if not row.runs[0].configured:
            row.name += " (no config.yaml)"
    return shared_words(rows, typed)


def shared_words(rows: Sequence[Row], typed: set[str]) -> str:
    keys = [*CHOICES, *ALWAYS_SAID, *sorted(typed - {*CHOICES, *ALWAYS_SAID})]
    return " ".join(
        f"{key}={value(rows[0], key)}"
        for key in keys
        if rows and all(has(row, key) for row in rows) and not varies([value(row, key) for row in rows])
    )


def has(row: Row, key: str) -> bool:
    return row.choices[key] is not None if key in CHOICES else key in row.settings


def value(row: Row, key: str, rounded: bool = False) -> str:
    """The value of a choice or key, as it is typed."""
    found = row.choices[key] if key in CHOICES else row.settings.get(key)
    return (
        f"{found:.6g}"
        if rounded and isinstance(found, float)
        else show(list(found) if isinstance(found, tuple) else found)
    )


def varies(values: Iterable[Any]) -> bool:
    return len(set(values)) > 1


def told(rows: Sequence[Row], key: str, by: Sequence[str]) -> bool:
    """Whether rows that agree in these choices also agree in that key: then the choices say it."""
    found: dict[tuple[str | None, ...], set[str]] = {}
    for row in rows:
        found.setdefault(tuple(row.choices[name] for name in by), set()).add(value(row, key))
    return bool(by) and all(len(values) == 1 for values in found.values())
