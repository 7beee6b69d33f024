"""Validation accuracy by epoch over the seeds of a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from cifarlab.report.reading import Unreadable, clean, read_curve
from cifarlab.report.rows import Row
from cifarlab.report.summary import Report


@dataclass(frozen=True)
class Curve:
    """A row's mean, lowest and highest validation accuracy at each epoch that any of its runs validated."""

    row: Row
    runs: int
    epochs: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def curves(report: Report, most: int, warn: Callable[[str], None]) -> list[Curve]:
    """The curves of the first `most` rows; what has none is told to `warn`, in one line each."""
    if len(report.rows) > most:
        warn(f"The curves are those of the first {most} of {len(report.rows)} rows.")
    return [found for row in report.rows[:most] if (found := curve(row, warn)) is not None]


def curve(row: Row, warn: Callable[[str], None]) -> Curve | None:
    at: dict[int, list[float]] = {}
    runs = 0
    for run in row.runs:
        try:
            points = read_curve(run.folder)
        except Unreadable as problem:
            warn(f"{clean(str(run.folder / 'metrics.csv'))} {problem}: the curve is left out.")
            continue
        runs += bool(points)
        for epoch, accuracy in points:
            at.setdefault(epoch, []).append(accuracy)
    if not at:
        return None
    epochs = sorted(at)
    return Curve(
        row,
        runs,
        epochs,
        [fmean(at[epoch]) for epoch in epochs],
        [min(at[epoch]) for epoch in epochs],
        [max(at[epoch]) for epoch in epochs],
    )
