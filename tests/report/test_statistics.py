"""Intervals and tests against numbers worked out by hand and against scipy.stats."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scipy import stats

from cifarlab.report.statistics import difference, estimate, holm

A = {(0, None): 0.700, (1, None): 0.710, (2, None): 0.720}
B = {(0, None): 0.605, (1, None): 0.612, (2, None): 0.619}


def test_mean_standard_deviation_and_interval() -> None:
    found = estimate(A)
    assert found is not None
    assert (found.n, found.mean, found.sd) == (3, pytest.approx(0.71), pytest.approx(0.01))
    # t of 2 degrees of freedom at 97.5 % is 4.30265
    assert found.half_width == pytest.approx(4.30265 * 0.01 / math.sqrt(3), rel=1e-5)
    assert found.interval == pytest.approx((0.71 - 0.0248414, 0.71 + 0.0248414), abs=1e-6)


def test_one_run_has_no_spread() -> None:
    found = estimate({(0, None): 0.7})
    assert found is not None
    assert (found.n, found.mean, found.sd, found.interval) == (1, 0.7, None, None)
    assert estimate({}) is None


def test_folds_of_one_seed_are_the_sample_with_a_wider_interval() -> None:
    folds = [0.70, 0.72, 0.71, 0.73, 0.69]
    found = estimate({(0, (fold, 5)): score for fold, score in enumerate(folds)})
    assert found is not None
    assert (found.n, found.mean) == (5, pytest.approx(0.71))
    sd = math.sqrt(0.001 / 4)
    assert found.sd == pytest.approx(sd)
    # validation images to training images as 1 to 4; t of 4 degrees of freedom is 2.77645
    assert found.half_width == pytest.approx(2.77645 * sd * math.sqrt(1 / 5 + 1 / 4), rel=1e-5)


def test_seeds_are_averaged_within_each_fold() -> None:
    scores = {(0, (0, 2)): 0.70, (0, (1, 2)): 0.74, (1, (0, 2)): 0.71, (1, (1, 2)): 0.77}
    found = estimate(scores)
    assert found is not None
    assert (found.n, found.mean, found.overlap) == (2, pytest.approx(0.73), 1.0)  # 0.705 and 0.755
    assert found.sd == pytest.approx(0.05 / math.sqrt(2))
    # t of 1 degree of freedom is 12.7062
    assert found.half_width == pytest.approx(12.7062 * found.sd * math.sqrt(1 / 2 + 1), rel=1e-5)


def test_equal_samples_have_no_interval() -> None:
    found = estimate({(seed, None): 0.8245 for seed in range(3)})
    assert found is not None
    assert (found.n, found.interval) == (3, None)


def test_paired_difference_agrees_with_scipy() -> None:
    found = difference(A, B)
    assert found is not None
    test = stats.ttest_rel(list(A.values()), list(B.values()))
    assert (found.kind, found.n) == ("paired", 3)
    assert found.p == pytest.approx(test.pvalue, rel=1e-9)
    interval = test.confidence_interval()
    assert found.interval == pytest.approx((interval.low, interval.high))


def test_only_common_seeds_are_paired() -> None:
    found, alone = difference(A | {(7, None): 0.1}, B | {(8, None): 0.9}), difference(A, B)
    assert found is not None
    assert alone is not None
    assert (found.seeds, alone.seeds) == ((3, 4, 4), (3, 3, 3))
    assert replace(found, seeds=alone.seeds) == alone


def test_welch_where_no_seed_is_common() -> None:
    others = {(seed + 10, None): score for (seed, _), score in B.items()} | {(20, None): 0.63}
    found = difference(A, others)
    assert found is not None
    test = stats.ttest_ind(list(A.values()), list(others.values()), equal_var=False)
    assert found.kind == "unpaired"
    assert found.p == pytest.approx(test.pvalue, rel=1e-9)
    interval = test.confidence_interval()
    assert found.interval == pytest.approx((interval.low, interval.high))


def test_one_seed_gives_a_difference_and_nothing_else() -> None:
    found = difference({(0, None): 0.8}, {(0, None): 0.7})
    assert found is not None
    assert (found.kind, found.n, found.mean) == ("single", 1, pytest.approx(0.1))
    assert found.p is found.interval is None


def test_equal_differences_give_no_p_value() -> None:
    found = difference({cell: score + 0.1 for cell, score in A.items()}, A)
    assert found is not None
    assert (found.kind, found.n, found.p, found.interval) == ("single", 3, None, None)


def test_folds_of_another_split_are_not_paired() -> None:
    five = {(0, (fold, 5)): 0.7 + fold / 100 for fold in range(5)}
    ten = {(0, (fold, 10)): 0.6 + fold / 200 for fold in range(10)}
    found = difference(five, ten)
    assert found is not None
    assert found.kind == "unpaired"


def test_holm() -> None:
    # 3 x 0.01; 2 x 0.03; 0.04, which may not fall below the one before
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
