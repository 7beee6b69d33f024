"""Baselines found by what was typed or configured, and what is said of a difference."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import write_lattice, write_run

from cifarlab.errors import UserError
from cifarlab.report.summary import Report, build


def report(folder: Path, scores: dict[tuple[str, ...], list[float]], **options: str) -> Report:
    for reg, values in scores.items():
        for seed, score in enumerate(values):
            write_run(folder / f"{'+'.join(reg)}_{seed}", score, reg=reg, seed=seed)
    return build([folder], **options)


def test_sentence(tmp_path: Path) -> None:
    scores = {(): [0.72, 0.73, 0.71], ("dropout",): [0.817, 0.828, 0.809]}
    (found,) = report(tmp_path, scores, baseline="reg=none").comparisons
    # differences 9.7, 9.8, 9.9: sd 0.1, half-width 4.30265 x 0.1 / sqrt(3) = 0.248, t = 169.7
    assert found.sentence == (
        "+9.80 ± 0.10 points (n = 3, 95 % interval +9.55 to +10.05, p < 0.0001): a real difference. "
        "Differences under 0.25 points would be noise."
    )
    assert (found.row.name, found.baseline.name) == ("reg=dropout", "reg=none")


def test_one_seed_says_nothing_about_chance(tmp_path: Path) -> None:
    (found,) = report(tmp_path, {(): [0.72], ("flip",): [0.75]}, baseline="reg=none").comparisons
    assert found.sentence == "+3.00 points (n = 1): one seed says nothing about chance."


def test_holm_takes_back_what_is_one_of_many(tmp_path: Path) -> None:
    base = [0.720, 0.730, 0.710]
    close = [0.730, 0.738, 0.718]  # differences 1.0, 0.8, 0.8: p = 0.0059
    noise = [0.740, 0.720, 0.715]  # differences 2.0, -1.0, 0.5: p = 0.63
    scores = {(): base, ("flip",): close, ("shift",): noise}
    first, second = report(tmp_path / "two", scores, baseline="reg=none").comparisons
    assert (first.row.name, second.row.name) == ("reg=flip", "reg=shift")
    assert first.p_holm == pytest.approx(2 * 0.0059, abs=1e-4)
    assert (first.verdict, second.verdict) == ("a real difference", "no more than chance would give")
    regs = [("dropout",), ("batch_norm",), ("dropout", "flip"), ("dropout", "shift"), ("flip", "shift")]
    regs += [("dropout", "batch_norm"), ("batch_norm", "flip"), ("batch_norm", "shift")]
    many = report(tmp_path / "many", scores | dict.fromkeys(regs, noise), baseline="reg=none")
    found = next(found for found in many.comparisons if found.row.name == "reg=flip")
    assert found.verdict == "may be chance: it is one of 10 comparisons"
    # 0.87 points are more than the 0.29 of the interval: no word of noise that would contradict the verdict
    assert found.sentence == (
        "+0.87 ± 0.12 points (n = 3, 95 % interval +0.58 to +1.15, p = 0.006, after Holm 0.059): "
        "may be chance: it is one of 10 comparisons."
    )


def test_seeds_that_only_one_has_are_said(tmp_path: Path) -> None:
    scores = {(): [0.72, 0.73, 0.71], ("flip",): [0.74, 0.76]}
    (found,) = report(tmp_path, scores, baseline="reg=none").comparisons
    assert "(n = 2 over the 2 common seeds of 2 and 3, 95 % interval" in found.sentence


@pytest.mark.parametrize("baseline", ["reg=[augment,dropout]", "reg=[dropout, augment]", "reg=dropout+flip"])
def test_regularizers_are_found_as_typed_in_any_order(tmp_path: Path, baseline: str) -> None:
    write_run(tmp_path / "a", 0.7)
    write_run(tmp_path / "b", 0.8, reg=("dropout", "flip"), typed=["reg=[dropout,augment]"])
    (found,) = build([tmp_path], baseline=baseline).comparisons
    assert found.baseline.name == "reg=dropout+flip"


def test_a_single_regularizer_needs_no_brackets(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0.7)
    write_run(tmp_path / "b", 0.8, reg=("flip", "shift"), typed=["reg=[augment]"])
    (found,) = build([tmp_path], baseline="reg=augment").comparisons
    assert found.baseline.name == "reg=flip+shift"


@pytest.mark.parametrize(
    "baseline",
    ["reg=dropout+flip", "reg=[flip,dropout]", "reg=[dropout,flip]", "optimizer.lr=1e-2,reg=[flip,dropout]"],
)
def test_a_baseline_in_any_words(tmp_path: Path, baseline: str) -> None:
    found = report(tmp_path, {(): [0.7, 0.8], ("dropout", "flip"): [0.75, 0.81]}, baseline=baseline)
    assert [comparison.baseline.name for comparison in found.comparisons] == ["reg=dropout+flip"]


def test_several_baselines_pair_with_what_else_is_equal(tmp_path: Path) -> None:
    for width in (32, 64):
        for reg in ((), ("flip",)):
            for seed in range(2):
                folder = tmp_path / f"{width}{reg}{seed}"
                score = 0.6 + width / 1000 + 0.05 * len(reg) + seed / 100 * (1 + len(reg))
                write_run(folder, score, reg=reg, seed=seed, changes={"model.width": width})
    found = build([tmp_path], baseline="reg=none").comparisons
    assert sorted((each.row.name, each.baseline.name) for each in found) == [
        ("reg=flip model.width=32", "reg=none model.width=32"),
        ("reg=flip model.width=64", "reg=none model.width=64"),
    ]


@pytest.mark.parametrize(
    "baseline, words",
    [
        ("none", "expected key=value, such as baseline=reg=none"),
        ("reg=nnoe", "no finished run is so; did you mean 'none'?"),
        ("rge=none", "no run has a key 'rge'; did you mean 'reg'?"),
        ("reg=none,model.width=64", "no finished run is so; expected one of 32."),
    ],
)
def test_no_baseline(tmp_path: Path, baseline: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        report(tmp_path, {(): [0.7], ("flip",): [0.8]}, baseline=baseline)
    assert words in str(error.value)


def test_what_each_regularizer_brings(tmp_path: Path) -> None:
    scores = {
        (): [0.70, 0.72],
        ("dropout",): [0.76, 0.78],
        ("flip",): [0.74, 0.77],
        ("dropout", "flip"): [0.78, 0.80],
    }
    dropout, flip = report(tmp_path, scores).factors
    assert (dropout.name, flip.name) == ("dropout", "flip")
    assert dropout.alone == pytest.approx(0.06)
    assert dropout.last == pytest.approx(0.035)  # 0.04 and 0.03
    assert flip.alone == pytest.approx(0.045)
    # dropout by seed: (0.06 + 0.04) / 2 and (0.06 + 0.03) / 2
    assert (dropout.effect.n, dropout.effect.mean) == (2, pytest.approx(0.0475))
    assert dropout.effect.sd == pytest.approx(0.005 / 2**0.5)


def test_leave_one_out_has_a_step_for_each(tmp_path: Path) -> None:
    scores = {("dropout", "flip", "shift"): [0.8], ("dropout", "flip"): [0.79], ("flip", "shift"): [0.75]}
    factors = report(tmp_path, scores).factors
    assert [(each.name, each.alone, round(each.last or 0, 9)) for each in factors] == [
        ("dropout", None, 0.05),
        ("shift", None, 0.01),
    ]


def test_regularizers_that_only_come_together_are_one(tmp_path: Path) -> None:
    scores = {(): [0.7], ("flip", "shift"): [0.75], ("dropout",): [0.76], ("dropout", "flip", "shift"): [0.8]}
    assert [factor.name for factor in report(tmp_path, scores).factors] == ["dropout", "flip+shift"]


def test_gains_are_not_averaged_over_models(tmp_path: Path) -> None:
    scores = {(): 0.70, ("dropout",): 0.76, ("flip",): 0.74, ("dropout", "flip"): 0.79}
    for reg, score in scores.items():
        write_run(tmp_path / f"3{'+'.join(reg)}", score, reg=reg)
        if len(reg) < 2:
            folder, less = tmp_path / f"1{'+'.join(reg)}", score - 0.3 - len(reg) / 10
            record = {"choices.model": "vgg1"}
            write_run(folder, less, reg=reg, changes={"model.blocks": 1}, record=record)
    found = build([tmp_path])
    # without dropout 0.70 and 0.74, with it 0.76 and 0.79
    assert [(each.name, round(each.effect.mean, 9)) for each in found.factors] == [
        ("dropout", 0.055),
        ("flip", 0.035),
    ]
    assert "What each regularizer brings is of the rows with model=vgg3 only." in found.notes


def test_a_lattice_has_half_its_rows_as_steps(tmp_path: Path) -> None:
    factors = build([write_lattice(tmp_path, seeds=2, epochs=1)]).factors
    assert [len(factor.steps) for factor in factors] == [8, 8, 8, 8]
    assert {factor.name for factor in factors} == {"dropout", "flip", "shift", "batch_norm"}
