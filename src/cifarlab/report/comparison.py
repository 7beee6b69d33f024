"""Rows against a baseline: the differences, and whether they are more than chance."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cifarlab.config import nearest
from cifarlab.errors import UserError
from cifarlab.report.reading import CHOICES, Settings
from cifarlab.report.rows import Row, value
from cifarlab.report.statistics import Difference, difference, holm

LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """A row against its baseline; `p_holm` is the p-value adjusted for `tests`, the tests in the table."""

    row: Row
    baseline: Row
    difference: Difference
    p_holm: float | None
    tests: int

    @property
    def verdict(self) -> str:
        found = self.difference
        if found.n == 1:
            return "one seed says nothing about chance"
        if found.p is None or self.p_holm is None:
            return "all differences are equal, so nothing is known of their spread"
        if self.p_holm < LEVEL:
            return "a real difference"
        if found.p < LEVEL:
            return f"may be chance: it is one of {self.tests} comparisons"
        return "no more than chance would give"

    @property
    def over(self) -> str:
        """Which seeds the paired difference is of, where one side has more."""
        common, *each = self.difference.seeds
        if self.difference.kind == "unpaired" or not 0 < common < max(each):
            return ""
        return f" over the {common} common seed{'s' * (common > 1)} of {each[0]} and {each[1]}"

    @property
    def sentence(self) -> str:
        """The difference, how sure it is, and how large one would have to be at this n and spread."""
        found = self.difference
        plus_minus = "" if not found.sd else f" ± {100 * found.sd:.2f}"
        facts = [f"n = {found.n}{self.over}"]
        if found.interval and found.p is not None and self.p_holm is not None:
            low, high = found.interval
            adjusted = f", after Holm {p_value(self.p_holm).removeprefix('= ')}" if self.tests > 1 else ""
            facts += [
                f"95 % interval {100 * low:+.2f} to {100 * high:+.2f}",
                f"p {p_value(found.p)}{adjusted}",
            ]
        noise = ""
        chance = found.p is not None and self.p_holm is not None and found.p < LEVEL <= self.p_holm
        if found.half_width is not None and not chance:  # beyond the interval, and yet no real difference
            noise = f" Differences under {100 * found.half_width:.2f} points would be noise."
        welch = " Fewer than two runs pair, so this is Welch's test." if found.kind == "unpaired" else ""
        facts_said = ", ".join(facts)
        return f"{100 * found.mean:+.2f}{plus_minus} points ({facts_said}): {self.verdict}.{noise}{welch}"


def p_value(p: float) -> str:
    """`= 0.0004` or `< 0.0001`."""
    return "< 0.0001" if p < 1e-4 else f"= {p:.4f}" if p < 0.001 else f"= {p:.3f}"


def compare(rows: Sequence[Row], baseline: str, metric: str) -> list[Comparison]:
    """Each row against the baseline, p-values adjusted after Holm over all of them.

    `baseline` is one or several `key=value`, separated by commas. If several rows are so, a row is compared
    with the one that equals it in everything else.

    Raises:
        UserError: when no row is the baseline.
    """
    wanted = parse(baseline)
    bases = [row for row in rows if all(matches(row, key, wish) for key, wish in wanted)]
    if not bases:
        raise no_baseline(rows, wanted)
    keys = [key for key, _ in wanted]
    alike: dict[Settings, list[Row]] = {}
    for base in bases:
        alike.setdefault(rest(base, keys), []).append(base)
    found = []
    for row in rows:
        mine = bases if len(bases) == 1 else alike.get(rest(row, keys), [])
        if len(mine) != 1 or any(row is base for base in bases):
            continue
        if gained := difference(row.scores(metric), mine[0].scores(metric)):
            found.append((row, mine[0], gained))
    ps = [gained.p for _, _, gained in found if gained.p is not None]
    adjusted = iter(holm(ps))
    return [
        Comparison(row, base, gained, None if gained.p is None else next(adjusted), len(ps))
        for row, base, gained in found
    ]


def parse(baseline: str) -> list[tuple[str, str]]:
    """`model=vgg3,reg=[dropout,flip]` as pairs.

    Raises:
        UserError: when it is no such text.
    """
    parts = [part.partition("=") for part in re.split(r",(?=[\w.]+=)", baseline)]
    if not all(key and equals and wish for key, equals, wish in parts):
        raise UserError(f"baseline={baseline}: expected key=value, such as baseline=reg=none.")
    return [(key.strip(), wish.strip()) for key, _, wish in parts]


def matches(row: Row, key: str, wish: str) -> bool:
    """Whether a row has that value, or was typed so."""
    if any(dict(run.typed()).get(key) == wish for run in row.runs):
        return True
    if key == "reg":  # as typed, where `augment` is one, or as its parts, `flip+shift`
        said = [*(dict(run.typed()).get(key) for run in row.runs), row.choices[key]]
        return any(names(text) == names(wish) for text in said if text is not None)
    return (key in CHOICES or key in row.settings) and same(value(row, key), wish)


def names(text: str) -> set[str]:
    """The regularizers in `[a,b]`, `a+b` or `a`, in any order."""
    return {name.strip("'\" ") for name in re.split("[,+]", text.strip("[] "))} - {""} or {"none"}


def same(ours: str, wish: str) -> bool:
    try:
        return float(ours) == float(wish)
    except ValueError:
        return ours == wish


def rest(row: Row, keys: Sequence[str]) -> Settings:
    """A row's settings without those that a baseline's keys speak of."""
    groups = tuple(f"{key}." for key in keys)
    return tuple(
        pair for pair in row.runs[0].settings if pair[0] not in keys and not pair[0].startswith(groups)
    )


def no_baseline(rows: Sequence[Row], wanted: Sequence[tuple[str, str]]) -> UserError:
    """Names the first part that no row has, and what there is."""
    known = sorted({*CHOICES, *(key for row in rows for key in row.settings)})
    for key, wish in wanted:
        if key not in known:
            return UserError(f"baseline={key}={wish}: no run has a key {key!r}; {nearest(key, known)}")
        if not any(matches(row, key, wish) for row in rows):
            having = [row for row in rows if key in CHOICES or key in row.settings]
            there = sorted({value(row, key) for row in having})[:12]
            return UserError(f"baseline={key}={wish}: no finished run is so; {nearest(wish, there)}")
    both = ",".join(f"{key}={wish}" for key, wish in wanted)
    return UserError(f"baseline={both}: no finished run has all of these; leave out one.")
