"""Everything a report says, before it takes a form."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cifarlab.errors import UserError
from cifarlab.report import reading
from cifarlab.report.comparison import Comparison, compare
from cifarlab.report.factors import Factor, factors
from cifarlab.report.reading import Run
from cifarlab.report.rows import Row, group, name
from cifarlab.untrusted import clean

METRICS = {"test": "test accuracy", "val": "validation accuracy"}
SORTS = ("test", "val", "time", "parameters", "name")


@dataclass
class Report:
    """The rows in their order and what is said of them; `metric` is the accuracy that is compared."""

    rows: list[Row]
    others: list[Run]
    common: str
    metric: str
    baseline: str | None
    comparisons: list[Comparison]

    @cached_property
    def factors(self) -> list[Factor]:
        return factors(self.rows, self.metric)

    @property
    def metric_name(self) -> str:
        """The metric in words, true for every row."""
        crossed = self.metric == "val" and bool(self.rows) and all(row.folds > 1 for row in self.rows)
        return "cross-validated accuracy" if crossed else METRICS[self.metric]

    @cached_property
    def notes(self) -> list[str]:
        """Footnotes, one sentence each."""
        notes = [
            "± is the standard deviation over runs (n - 1), the interval that of the mean by Student's t."
        ]
        if any(row.validates_on_test for row in self.rows):
            notes.append("† Validated on the test images: its validation figures are test figures.")
        if not all(row.folds > 1 for row in self.rows):
            images = "test" if self.metric == "test" else "validation"
            notes.append(
                f"The interval is of the seeds' spread on these {images} images and this split; at accuracy "
                f"p another sample of N {images} images would add a standard error of about sqrt(p(1 - p)/N)."
            )
        if any(row.folds > 1 for row in self.rows):
            notes.append(
                "Folds make one row and are its samples, each the mean over its seeds: seeds share the "
                "partition. Folds share training images, so the interval is widened (Nadeau, Bengio 2003)."
            )
        if self.factors:
            notes.append("The regularizers' intervals are each at 95 %, not corrected for their number.")
            if self.factors[0].only:
                notes.append(f"What each regularizer brings is of the rows with {self.factors[0].only} only.")
        if len({run.environment.get("device") for row in self.rows for run in row.runs}) > 1:
            notes.append("The runs had different devices: their times are not comparable.")
        if len({run.choices["data"] for row in self.rows for run in row.runs}) > 1:
            notes.append("The rows are of different data sets: their accuracies are not comparable.")
        notes += [f"{row.name}: {note}." for row in self.rows for note in row.notes()]
        return notes

    @cached_property
    def unfinished(self) -> list[tuple[Run, str]]:
        """The runs that are not done, and why."""
        done = {(run.settings, run.cell): run for row in self.rows for run in row.runs}
        listed = []
        for run in self.others:
            reason = run.error or f"{run.epochs} epoch{'s' * (run.epochs != 1)} done"
            later = done.get((run.settings, run.cell))
            listed.append((run, reason[:300] + (f" (done since: {later.folder})" if later else "")))
        return listed


def build(
    folders: Sequence[Path],
    baseline: str | None = None,
    sort: str | None = None,
    metric: str | None = None,
    warn: Callable[[str], None] = lambda message: None,
) -> Report:
    """Read the runs below these folders and make of them what a report says.

    Args:
        folders: each is searched with all that is below it.
        baseline: the row to compare with, as `compare` takes it.
        sort: one of SORTS; by default the metric.
        metric: "test" or "val"; by default "test" if any run has a test accuracy, but "val" if all are
            folds: theirs is the cross-validated accuracy.
        warn: is told, in one line each, of the files left out.

    Raises:
        UserError: when no run is there, or none is the baseline.
    """
    runs = []
    for folder in reading.find(folders, warn):
        try:
            runs.append(reading.read(folder))
        except reading.Unreadable as problem:
            warn(f"{clean(str(folder / 'record.json'))} {problem}: left out.")
    if not runs:
        raise UserError(
            f"No run that can be read lies in {', '.join(map(str, folders))}; expected folders such as "
            "logs/runs."
        )
    rows = group(run for run in runs if run.status == "done")
    common = name(rows)
    metric = metric or default_metric(rows)
    sort_rows(rows, sort or metric)
    comparisons = compare(rows, baseline, metric) if baseline else []
    others = [run for run in runs if run.status != "done"]
    return Report(rows, others, common, metric, baseline, comparisons)


def default_metric(rows: Sequence[Row]) -> str:
    folds = all(row.folds for row in rows) and any(row.val for row in rows)
    return "test" if not rows or (any(row.test for row in rows) and not folds) else "val"


def sort_rows(rows: list[Row], by: str) -> None:
    """Best accuracy, least time or fewest parameters first; rows without come last."""

    def key(row: Row) -> tuple[bool, float, str]:
        if by in METRICS:
            found = row.metric(by)
            figure = None if found is None else -found.mean
        else:
            figure = {"time": row.seconds, "parameters": row.parameters}.get(by, 0)
        return figure is None, figure or 0.0, row.name

    rows.sort(key=key)


def shown_path(path: Path) -> str:
    """Relative to where the command was given, if it lies below."""
    relative = os.path.relpath(path)
    return clean(str(path) if relative.startswith("..") else relative)
