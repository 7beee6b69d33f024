"""Which jobs an ablation makes of one list of regularizers."""

from __future__ import annotations

from math import comb
from pathlib import Path

import pytest
from commands import Command

from cifarlab.sweeps.ablation import ablate, parts, subsets

CONF = Path(__file__).parents[2] / "conf"


def test_the_subsets_of_each_kind() -> None:
    names = ["a", "b", "c"]
    assert subsets(names, "alone") == [(), ("a",), ("b",), ("c",)]
    assert subsets(names, "leave_one_out") == [("a", "b", "c"), ("b", "c"), ("a", "c"), ("a", "b")]
    lattice = subsets(names, "lattice")
    assert [sum(len(chosen) == size for chosen in lattice) for size in range(4)] == [
        comb(3, k) for k in range(4)
    ]
    assert (lattice[0], lattice[-1]) == ((), ("a", "b", "c"))
    for kind in ("alone", "leave_one_out", "lattice"):
        assert sorted(subsets(["a"], kind)) == [(), ("a",)]


def test_an_option_may_gather_several_parts() -> None:
    assert parts(CONF, "augment") == {"flip", "shift"}
    assert parts(CONF, "none") == set()


@pytest.mark.parametrize(
    "key, where",
    [
        ("reg.dropout.rate=0.3", {"reg=[dropout,augment]", "reg=[dropout]"}),
        ("reg.shift.height=0.2", {"reg=[dropout,augment]", "reg=[augment]"}),
        ("reg.dropt.rate=0.3", set()),
        ("optimizer.lr=1", {"reg=none", "reg=[dropout]", "reg=[augment]", "reg=[dropout,augment]"}),
    ],
)
def test_the_keys_of_what_is_left_out_are_left_out(key: str, where: set[str]) -> None:
    jobs = ablate([["reg=[dropout,augment]", key]], ["dropout", "augment"], "lattice", CONF)
    assert {job[0] for job in jobs if key in job} == where
    assert len(jobs) == 4


def test_leaving_one_out(run: Command, started: list[str]) -> None:
    answer = run("-m", "ablation=leave_one_out", "reg=[dropout,augment]", "seed=1,2", "reg.dropout.rate=0.4")
    assert answer.code == 0
    assert started == [
        "#0 seed=1",
        "#1 seed=2",
        "#2 'reg=[augment]' seed=1",
        "#3 'reg=[augment]' seed=2",
        "#4 'reg=[dropout]' seed=1",
        "#5 'reg=[dropout]' seed=2",
    ]
    started.clear()
    # what was run for one ablation need not be for another
    run("-m", "ablation=alone", "reg=[dropout,augment]", "seed=1,2", "reg.dropout.rate=0.4")
    assert started == ["#0 reg=none seed=1", "#1 reg=none seed=2"]
