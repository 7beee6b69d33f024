"""The README's tables are what the records in `results/` and the timings of the benchmarks say."""

import json
import re
import shutil
from pathlib import Path

import pytest

from cifarlab.report.readme import ROOT, SECTIONS, links, page, pictures, rebuilt, results, timings

README = (ROOT / "README.md").read_text()


def test_the_readme_shows_the_records() -> None:
    assert "66.58 ±" in README
    assert rebuilt(README, ROOT) == README
    assert page(README, ROOT) == (ROOT / "docs" / "results.md").read_text()


def test_the_page_has_every_experiment_and_the_curve_of_a_run() -> None:
    text = page(README, ROOT)
    experiments = re.findall(r"`python train.py experiment=(.+)`, held", text)
    there = (ROOT / "conf" / "experiment").rglob("*.yaml")
    assert sorted(experiments) == sorted(f"{file.parent.name}/{file.stem}" for file in there)
    assert "Test accuracy 66.58 ± \N{EN DASH} % (n = 1); 2.3 h of training on cpu" in text
    assert "(n = 1), validation accuracy at its peak 36.14 % in epoch 10; 59.0 min of training" in text
    anchors = re.findall(r"\]\(docs/results\.md#(\w+)\)", README)
    assert len(anchors) >= 3
    assert set(anchors) <= {number.lower() for number in re.findall(r"^## (\w+)$", text, re.M)}
    linked = re.findall(r"\]\((.+?)\)", text)
    assert len(linked) >= 4
    assert all((ROOT / "docs" / file).is_file() for file in linked)


def test_another_record_makes_another_table(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "results", tmp_path / "results")
    record = tmp_path / "results/posts/a1_vgg1/seed0/record.json"
    record.write_text(record.read_text().replace('"accuracy": 0.6658', '"accuracy": 0.7'))
    changed = rebuilt(README, tmp_path)
    assert changed != README
    assert "70.00 ±" in changed


def test_the_peak_is_of_the_mean_over_the_seeds_and_never_of_the_test_images(tmp_path: Path) -> None:
    b2 = tmp_path / "results" / "posts" / "b2_convnet_cifar100"
    shutil.copytree(ROOT / "results" / "posts", tmp_path / "results" / "posts")
    shutil.copytree(b2 / "seed0", b2 / "seed1")
    record = b2 / "seed1" / "record.json"
    record.write_text(record.read_text().replace('"seed": 0', '"seed": 1'))
    for seed, accuracies in ((0, (0.5, 0.6, 0.1)), (1, (0.5, 0.3, 0.9))):
        rows = "".join(f"{epoch},{accuracy}\n" for epoch, accuracy in enumerate(accuracies, 1))
        (b2 / f"seed{seed}" / "metrics.csv").write_text(f"epoch,val/accuracy\n{rows}")
    shown = {line.split("]")[0]: line for line in results(README, tmp_path).splitlines()}
    assert " 2 | 50.00 % in epoch 1 | " in shown["| [B2"]  # and not the equal one of epoch 3
    assert " 1 | \N{EN DASH} | 2.3 h | " in shown["| [A1"]


def test_rows_with_curves_are_drawn_together(tmp_path: Path) -> None:
    for name in ("a3_baseline", "a9_dropout_increasing_augment_batch_norm", "a10_final_model"):
        folder = tmp_path / "results" / "posts" / name / "seed0"
        shutil.copytree(ROOT / "results/posts/a1_vgg1/seed0", folder)
        record, config = folder / "record.json", folder / "config.yaml"
        record.write_text(record.read_text().replace("posts/a1_vgg1", f"posts/{name}"))
        config.write_text(config.read_text().replace("blocks: 1", f"blocks: {len(name)}"))
    (folder / "metrics.csv").write_text("epoch,val/accuracy\n1,\n")  # A10 validates on nothing
    drawn = pictures(README, tmp_path)
    assert {what: [curve.row.name for curve in curves] for what, curves in drawn.items()} == {
        "a3_a9": ["A3: VGG-3", "A9: VGG-3, dropout 0.2 to 0.5, flips and shifts, batch norm"],
        "a": ["A3: VGG-3", "A9: VGG-3, dropout 0.2 to 0.5, flips and shifts, batch norm"],
    }
    assert drawn["a"][0].epochs == list(range(1, 101))
    assert links(README, tmp_path).splitlines() == [
        "![Validation accuracy by epoch, rows A3 and A9](docs/results_a3_a9.png)",
        "![Validation accuracy by epoch, rows A1 to A10](docs/results_a.png)",
    ]


def test_scores_with_flips_and_shifts_have_a_column(tmp_path: Path) -> None:
    s1 = tmp_path / "results" / "speedrun" / "cifar10_89"
    shutil.copytree(ROOT / "results" / "speedrun" / "cifar10_89", s1)
    for seed, accuracy in enumerate((0.90, 0.91, 0.92, 0.93, 0.94)):
        file = s1 / f"seed{seed}" / "scores.json"
        scores = json.loads(file.read_text())
        scores["with_shifts"]["accuracy"] = accuracy
        file.write_text(json.dumps(scores))
    assert " | 92.00 ± 1.58 | 5 | " in results(README, tmp_path)
    file.write_text(json.dumps({**scores, "split": "train"}))
    with pytest.raises(ValueError, match=r"seed4/scores.json is not of this run's test images"):
        results(README, tmp_path)
    file.unlink()
    assert " | \N{EN DASH} | 5 | " in results(README, tmp_path)


def test_a_timing_is_a_line_of_the_table(tmp_path: Path) -> None:
    machine = {"device": "a CPU", "threads": 2, "torch": "2.15", "dtype": "float32", "matrix_gflops": 1234.5}
    machine |= {"copy_gb_per_second": 21.94, "e_seconds": 125.66, "bare_vgg3_gflops": 802.4}
    (tmp_path / "results").mkdir()
    for section, unit in (("start", "s"), ("loop", "images/s")):
        row = {"what": f"a {section}", "ours": 1234.567, "other": 2000, "unit": unit, "ratio": 0.617}
        row |= {"span": [0.5, 0.7], "wanted": "> 0.60"}
        content = {"machine": machine, "rounds": 5, "rows": [row]}
        (tmp_path / "results" / f"{section}.json").write_text(json.dumps(content))
    assert timings(tmp_path).splitlines() == [
        "| sections= | what | ours | held against | ratio | lowest to highest | wanted |",
        "|---|---|---:|---:|---:|---:|---:|",
        "| `loop` | a loop | 1,235 images/s | 2,000 images/s | 0.62 | 0.50 to 0.70 | > 0.60 |",
        "| `start` | a start | 1,234.57 s | 2,000.00 s | 0.62 | 0.50 to 0.70 | > 0.60 |",
        "",
        "loop, start: medians of 5 rounds; a CPU, 2 threads, torch 2.15; a float32 product at 1,234 GFLOP/s, "
        "a copy at 21.9 GB/s; E, an epoch of the bare VGG-3 loop, 125.7 s, 0.65 of the product's rate.",
    ]


def test_a_table_without_its_place_is_refused() -> None:
    with pytest.raises(ValueError, match="there are 0 places between <!-- curves -->"):
        rebuilt(README.replace("<!-- curves -->", ""), ROOT)


def test_the_sections_are_those_of_the_benchmarks() -> None:
    text = (ROOT / "benchmarks" / "run.py").read_text()
    listed = re.search(r"\[sections=([a-z,]+)\]", text)
    assert listed is not None
    assert tuple(listed[1].split(",")) == SECTIONS
