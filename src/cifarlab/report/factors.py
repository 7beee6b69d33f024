"""What each regularizer of a lattice brings, the others present or absent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean

from cifarlab.report.reading import Settings
from cifarlab.report.rows import Row, has, told, value, varies
from cifarlab.report.statistics import Cell, Difference, Estimate, difference, estimate


@dataclass(frozen=True)
class Step:
    """Two rows that differ in one factor only; `context` names the other factors present."""

    context: str
    without: Row
    having: Row
    gain: Difference


@dataclass(frozen=True)
class Factor:
    """A regularizer, or several that only occur together, with every step that adds it."""

    name: str
    steps: Sequence[Step]
    metric: str
    alone: float | None  # the mean gain where no other is present
    last: float | None  # and where all others are
    only: str = ""  # of which model and data its rows are, where the report has several

    @cached_property
    def effect(self) -> Estimate:
        """The mean gain over the steps, its spread that over the seeds which all of these rows have."""
        steps = [(step.without.scores(self.metric), step.having.scores(self.metric)) for step in self.steps]
        common: set[Cell] = set.intersection(*(set(scores) for step in steps for scores in step))
        gains = {cell: fmean(after[cell] - before[cell] for before, after in steps) for cell in common}
        return estimate(gains) or Estimate(1, fmean(step.gain.mean for step in self.steps))


def factors(rows: Sequence[Row], metric: str) -> list[Factor]:
    """The regularizers that some rows have and others lack; none unless at least two make a lattice.

    A mean over different data, splits or models would be one of nothing: of several lattices the one with
    the most steps counts, and `only` says which it is.
    """
    rows = [row for row in rows if row.scores(metric) and row.runs[0].configured]
    alike: dict[Settings, list[Row]] = {}
    for row in rows:
        alike.setdefault(setting(row), []).append(row)
    found = [(some[0], lattice(some, metric)) for some in alike.values()]
    if len(found) < 2:
        return found[0][1] if found else []
    one, largest = max(found, key=lambda pair: sum(len(factor.steps) for factor in pair[1]))
    only = " ".join(f"{key}={value(one, key)}" for key in differing(rows) if has(one, key))
    return [replace(factor, only=only) for factor in largest]


def setting(row: Row) -> Settings:
    """What has to be equal for two rows' gains to be comparable: the data, their split, and the model."""
    return tuple(pair for pair in row.runs[0].settings if pair[0].startswith(("data.", "model.")))


def differing(rows: Sequence[Row]) -> list[str]:
    """Which words tell these apart: the options, and the keys that they leave open."""
    options = [name for name in ("model", "data") if varies(row.choices[name] for row in rows)]
    keys = sorted({key for row in rows for key, _ in setting(row)})
    return options + [
        key
        for key in keys
        if varies(row.settings.get(key) for row in rows) and not told(rows, key, ("model", "data"))
    ]


def lattice(rows: Sequence[Row], metric: str) -> list[Factor]:
    """The factors of rows that are alike in data and model."""
    parts = {id(row): parts_of(row) for row in rows}
    everything = sorted(set[str]().union(*parts.values()))
    together: dict[tuple[bool, ...], list[str]] = {}
    for part in everything:
        together.setdefault(tuple(part in parts[id(row)] for row in rows), []).append(part)
    names = [frozenset(group) for where, group in together.items() if len(set(where)) > 1]
    constant = frozenset(part for where, group in together.items() if len(set(where)) == 1 for part in group)
    found = []
    for factor in names:
        steps = []
        having = {without(row, factor): row for row in rows if factor <= parts[id(row)]}
        for row in rows:
            if parts[id(row)] & factor or (fuller := having.get(without(row, factor))) is None:
                continue
            gain = difference(fuller.scores(metric), row.scores(metric))
            others = sorted(parts[id(row)] - constant)
            if gain is not None:
                steps.append((len(others), Step("+".join(others) or "alone", row, fuller, gain)))
        if steps:
            most = sum(map(len, names)) - len(factor)
            alone = [step.gain.mean for count, step in steps if count == 0]
            last = [step.gain.mean for count, step in steps if count == most]
            found.append(
                Factor(
                    "+".join(sorted(factor)),
                    [step for _, step in sorted(steps, key=lambda step: step[0])],
                    metric,
                    fmean(alone) if alone else None,
                    fmean(last) if last else None,
                )
            )
    found.sort(key=lambda factor: -factor.effect.mean)
    return found if len(found) > 1 else []


def parts_of(row: Row) -> frozenset[str]:
    """The names of a configuration's regularizers."""
    return frozenset(key.split(".")[1] for key in row.settings if key.startswith("reg."))


def without(row: Row, factor: frozenset[str]) -> tuple[tuple[str, object], ...]:
    """A row's settings but for those regularizers."""
    gone = tuple(f"reg.{part}." for part in factor)
    return tuple(pair for pair in row.runs[0].settings if not pair[0].startswith(gone))
