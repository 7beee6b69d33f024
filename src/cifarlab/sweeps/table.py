"""A sweep's last word: every job in a line, and what to do next."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from cifarlab.mistakes import shown
from cifarlab.runs import record as records
from cifarlab.sweeps.jobs import Outcome

COLUMNS = ("#", "status", "test", "validation", "job", "folder")


def line(outcome: Outcome) -> str:
    """One job's end, as it is said at once."""
    job, status = outcome.job, outcome.status
    figures = [
        f"{name} {value:.2%}"
        for name, part in (("test", "test"), ("validation", "best_val"))
        if (value := outcome.accuracy(part)) is not None
    ]
    why = [outcome.error.rstrip(".")] if outcome.error else []
    return f"{job.title}: {status}" + f" ({'; '.join([*why, *figures])})" * bool(why or figures)


def table(outcomes: Sequence[Outcome], sweep: Path) -> str:
    """A row per job, with what tells it from the others and its folder; reasons and numbers below.

    The folder is as seen from the sweep's where it lies there.
    """
    outcomes = sorted(outcomes, key=lambda outcome: outcome.job.number)
    rows = [COLUMNS, *(row(outcome, sweep) for outcome in outcomes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(r, widths, strict=True)).rstrip() for r in rows
    ]
    counts = Counter(outcome.status for outcome in outcomes)
    reasons = [f"#{o.job.number}: {o.error}" for o in outcomes if needs_reason(o)]
    return "\n".join([*lines, *reasons, ", ".join(f"{n} {status}" for status, n in counts.items()) + "."])


def needs_reason(outcome: Outcome) -> bool:
    """Whether a job was not run to its end, and not because it had been before."""
    skipped = outcome.status == "skipped" and outcome.record is None
    return skipped or outcome.status in ("failed", "elsewhere")


def row(outcome: Outcome, sweep: Path) -> tuple[str, ...]:
    test, validation = (
        "-" if value is None else f"{value:.2%}" for value in map(outcome.accuracy, ("test", "best_val"))
    )
    folder = outcome.job.folder
    name = folder.name if folder.parent == sweep else shown(folder)
    varied = shlex.join(outcome.job.varied) or "-"
    return str(outcome.job.number), outcome.status, test, validation, varied, name


def cross_validation(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each configuration that all folds were trained of: the mean accuracy on the parts left out.

    It is that of the last epoch: the best one would be chosen by the very images that it is scored on.
    """
    folds: dict[str, dict[int, Outcome]] = defaultdict(dict)
    for outcome in outcomes:
        settled = outcome.job.settled
        if settled is None or outcome.accuracy("val") is None or outcome.status not in ("done", "skipped"):
            continue
        data = settled.plain["data"]
        if data["validation"] == "fold":
            same = records.config_hash({**settled.plain, "data": {**data, "fold": None}})
            folds[same][data["fold"]] = outcome
    lines = []
    for parts in folds.values():
        one = next(iter(parts.values())).job
        if one.settled is None or len(parts) < one.settled.plain["data"]["folds"]:
            continue
        values = [outcome.accuracy("val") or 0.0 for outcome in parts.values()]
        others = " ".join(override for override in one.varied if not override.startswith("data.fold="))
        lines.append(
            f"Cross-validated accuracy over {len(values)} folds: {mean(values):.2%}, standard deviation "
            f"{stdev(values):.2%}" + f" ({others})" * bool(others)
        )
    return lines
