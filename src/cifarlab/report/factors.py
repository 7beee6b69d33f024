"""What each regularizer of a lattice brings, the others present or absent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from cifarlab.report.rows import Row
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

    @cached_property
    def effect(self) -> Estimate:
        """The mean gain over the steps, its spread that over the seeds which all of these rows have."""
        steps = [(step.without.scores(self.metric), step.having.scores(self.metric)) for step in self.steps]
        common: set[Cell] = set.intersection(*(set(scores) for step in steps for scores in step))
        gains = {cell: fmean(after[cell] - before[cell] for before, after in steps) for cell in common}
        return estimate(gains) or Estimate(1, fmean(step.gain.mean for step in self.steps))


def factors(rows: Sequence[Row], metric: str) -> list[Factor]:
    """The regularizers that some rows have and others lack; none unless at least two make a lattice."""
    rows = [row for row in rows if row.scores(metric) and row.runs[0].configured]
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
