"""Means with intervals, differences with p-values. Accuracies come and go as fractions from 0 to 1."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy.special import stdtr, stdtrit  # scipy.stats has the same but takes a second to import

Cell = tuple[int, tuple[int, int] | None]  # seed, and (fold, folds) in a cross-validation
NO_SPREAD = 1e-9  # what rounding leaves of equal numbers


@dataclass(frozen=True)
class Estimate:
    """A mean over n samples with their standard deviation (n - 1) and its 95 % interval by Student's t.

    `overlap` widens the interval where the samples share training images, see `samples`.
    """

    n: int
    mean: float
    sd: float | None = None
    overlap: float = 0.0

    @property
    def half_width(self) -> float | None:
        """Half of the interval: None for one sample or equal ones, which say nothing of spread."""
        if self.sd is None or self.sd < NO_SPREAD:
            return None
        return float(stdtrit(self.n - 1, 0.975)) * self.sd * math.sqrt(1 / self.n + self.overlap)

    @property
    def interval(self) -> tuple[float, float] | None:
        half = self.half_width
        return None if half is None else (self.mean - half, self.mean + half)


def estimate(scores: Mapping[Cell, float]) -> Estimate | None:
    """The mean over runs; None where there are none."""
    values, overlap = samples(scores)
    if not values:
        return None
    mean = fmean(values)
    if len(values) == 1:
        return Estimate(1, mean)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return Estimate(len(values), mean, sd, overlap)


def samples(scores: Mapping[Cell, float]) -> tuple[list[float], float]:
    """The numbers that count as a sample, and how far they overlap.

    In a cross-validation these are the folds, each the mean over its seeds: the seeds share the partition, so
    only the folds show the spread that comes with the images. They train on mostly the same ones: the
    variance of their mean is taken as sd^2 (1/n + validation images / training images), the correction of
    Nadeau and Bengio (2003). Of runs without folds, or all of one fold, the seeds are the samples.
    """
    by_fold: dict[tuple[int, int] | None, list[float]] = {}
    for (_, fold), score in sorted(scores.items()):
        by_fold.setdefault(fold, []).append(score)
    if len(by_fold) <= 1:
        return [score for values in by_fold.values() for score in values], 0.0
    total = max(fold[1] for fold in by_fold if fold is not None)
    return [fmean(values) for values in by_fold.values()], 1 / max(total - 1, 1)


def whole(scores: Mapping[Cell, float]) -> dict[Cell, float]:
    """Without the seeds of a cross-validation that lack a fold; runs all of one fold stay as they are."""
    if len({fold for _, fold in scores}) <= 1:
        return dict(scores)
    folds = Counter(seed for seed, _ in scores)
    return {(seed, fold): score for (seed, fold), score in scores.items() if fold and folds[seed] == fold[1]}


@dataclass(frozen=True)
class Difference:
    """How far one configuration is above another.

    `kind` is "paired" (over common seeds and folds), "unpaired" (Welch's test) or "single" (no test: one
    seed, or no spread at all). `sd` is that of the paired differences; "unpaired", the root of the mean
    variance. `seeds` are how many both have, this one has, and the baseline has.
    """

    kind: str
    n: int
    mean: float
    sd: float | None = None
    half_width: float | None = None
    p: float | None = None
    seeds: tuple[int, int, int] = (0, 0, 0)

    @property
    def interval(self) -> tuple[float, float] | None:
        half = self.half_width
        return None if half is None else (self.mean - half, self.mean + half)


def difference(scores: Mapping[Cell, float], baseline: Mapping[Cell, float]) -> Difference | None:
    """By Student's t at the seeds that both have, and only these; Welch's where fewer than two runs pair."""
    ours_seeds, theirs_seeds = ({seed for seed, _ in cells} for cells in (scores, baseline))
    seeds = len({seed for seed, _ in scores.keys() & baseline.keys()}), len(ours_seeds), len(theirs_seeds)
    common = {cell: scores[cell] - baseline[cell] for cell in scores.keys() & baseline.keys()}
    paired = estimate(common)
    if paired is not None and paired.n > 1:
        if paired.sd is None or paired.half_width is None:
            return Difference("single", paired.n, paired.mean, 0.0, seeds=seeds)
        error = paired.sd * math.sqrt(1 / paired.n + paired.overlap)
        p = two_sided(paired.mean / error, paired.n - 1)
        return Difference("paired", paired.n, paired.mean, paired.sd, paired.half_width, p, seeds)
    ours, theirs = estimate(scores), estimate(baseline)
    if ours is None or theirs is None:
        return None
    if ours.sd is None or theirs.sd is None or max(ours.sd, theirs.sd) < NO_SPREAD:
        only = paired or Estimate(min(ours.n, theirs.n), ours.mean - theirs.mean)
        return Difference("single", only.n, only.mean, seeds=seeds)
    errors = [part.sd**2 * (1 / part.n + part.overlap) for part in (ours, theirs) if part.sd is not None]
    error = math.sqrt(sum(errors))
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / (ours.n - 1) + errors[1] ** 2 / (theirs.n - 1))
    mean = ours.mean - theirs.mean
    return Difference(
        "unpaired",
        min(ours.n, theirs.n),
        mean,
        math.sqrt((ours.sd**2 + theirs.sd**2) / 2),
        float(stdtrit(freedom, 0.975)) * error,
        two_sided(mean / error, freedom),
        seeds,
    )


def two_sided(t: float, freedom: float) -> float:
    return 2 * float(stdtr(freedom, -abs(t)))


def holm(ps: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number, in the order given (Holm, 1979)."""
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = highest
    return adjusted
