"""The benchmarks count what they say they do; no time is asserted."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import machine  # noqa: E402
import run  # noqa: E402
import training_loop  # noqa: E402


def test_a_row_has_the_median_of_the_ratios_of_each_round() -> None:
    row = run.compared("one, against another", [(10.0, 20.0), (30.0, 40.0), (40.0, 10.0)], wanted=0.5)
    assert (row.ours, row.other, row.ratio, row.span) == (30, 20, 0.75, (0.5, 4))
    assert row.wanted == "\N{GREATER-THAN OR EQUAL TO} 0.50"
    assert run.compared("", [(1.0, 2.0)], "s", 1).wanted == "\N{LESS-THAN OR EQUAL TO} 1.00"


def test_the_two_sides_take_turns_at_being_first() -> None:
    calls: list[str] = []
    ours, other = (lambda name=name: float(calls.append(name) or len(calls)) for name in "ab")
    assert run.in_turns(ours, other, 3) == [(1, 2), (4, 3), (5, 6)]
    assert "".join(calls) == "abbaab"


def test_every_speedrun_is_an_experiment_that_says_its_limit() -> None:
    files = (ROOT / "conf" / "experiment" / "speedrun").glob("*.yaml")
    said = {file.stem: re.search(r" in (\d+) E\b", file.read_text()) for file in files}
    assert {name: int(found[1]) for name, found in said.items() if found} == run.SPEEDRUNS


def test_the_bare_loop_counts_its_arithmetic() -> None:
    # multiplications and additions of an image's six convolutions and two dense layers, thrice for the
    # gradients, but for those of the pixels, which nobody needs
    pixels, widths = [32**2, 16**2, 8**2], [3, 32, 32, 64, 64, 128, 128]
    layers = [18 * pixels[i // 2] * widths[i] * widths[i + 1] for i in range(6)]
    layers += [2 * 2048 * 128, 2 * 128 * 10]
    assert machine.bare_vgg3(batch_size=2).flops() == 2 * (3 * sum(layers) - layers[0])


def test_the_whole_loop_is_measured_round_by_round() -> None:
    typed = ["data=digits", "model=vgg1", "model.width=4", "model.dense=8", "logger=none", "export=none"]
    rounds = training_loop.compare(typed, steps=2, rounds=2, bare_batch_size=32)
    assert len(rounds) == 2
    assert all(ours > 0 and bare > 0 for ours, bare in rounds)


def test_only_images_that_were_trained_on_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def three_batches(overrides: list[str], bare: training_loop.BareLoop) -> SimpleNamespace:
        bare.rates = [50.0, 50.0]
        return SimpleNamespace(train_images=2 * 1438, history=[{"seconds": 3.0}, {"seconds": 2.0}])

    monkeypatch.setattr(training_loop, "trained", three_batches)
    assert training_loop.compare(["data.batch_size=512"], steps=60, rounds=1) == [(719, 50)]


def test_a_training_is_timed_by_some_batches_of_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def two_seconds_an_epoch(overrides: list[str], batches: training_loop.Batches) -> SimpleNamespace:
        made.append(training_loop.composed(overrides)["trainer"]["limit_train_batches"])
        batches.count = 30
        return SimpleNamespace(history=[{"seconds": 2.0}, {"seconds": 2.0}])

    monkeypatch.setattr(training_loop, "trained", two_seconds_an_epoch)
    assert training_loop.training_seconds(["data=digits"], steps=5) == 30 / 5 * 4
    assert made == [5]


def test_an_epochs_batches_are_all_counted() -> None:
    batches = training_loop.Batches()
    typed = ["data=digits", "model=vgg1", "model.width=4", "model.dense=8", "logger=none", "export=none"]
    typed += ["data.validation=none", "test=false", "trainer.limit_train_batches=1", "trainer.max_epochs=2"]
    assert len(training_loop.trained(typed, batches).history) == 2
    assert batches.count == -(-1438 // 64)


def test_pages_of_a_mapped_file_are_shared_until_written_to(tmp_path: Path) -> None:
    file = tmp_path / "shared.bin"
    file.write_bytes(bytes(2**22))
    mapped = np.memmap(file, np.uint8, "c")
    assert mapped.sum() == 0
    assert run.mapped("shared.bin") == (4, 0)
    mapped[: 2**20] = 1
    assert run.mapped("shared.bin")[1] == 1
    assert run.mapped("another.bin") == (0, 0)


@pytest.mark.parametrize(
    "typed, answer",
    [
        ("sections=lop", "sections=lop: expected some of loop, batch, "),
        ("round=1", "round=1: expected sections= or rounds=."),
        ("rounds=abc", "rounds=abc: expected a whole number of 1 or more."),
        ("rounds=0", "rounds=0: expected a whole number of 1 or more."),
    ],
)
def test_a_mistake_is_one_sentence(typed: str, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", typed])
    with pytest.raises(SystemExit) as caught:
        run.main()
    assert str(caught.value).startswith(answer)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda f: f.stem
)
def test_a_kept_result_says_what_it_was_measured_on(file: Path) -> None:
    result = json.loads(file.read_text())
    assert result["section"] == file.stem
    assert result["section"] in run.SECTIONS
    assert result["rounds"] >= 5
    assert {"matrix_gflops", "e_seconds", "device"} <= result["machine"].keys()
    assert all(row["ours"] >= 0 and row["other"] > 0 for row in result["rows"])
