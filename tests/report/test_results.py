"""The README's tables are what the records in `results/` and the timings of the benchmarks say."""

import json
import re
import shutil
from pathlib import Path

from cifarlab.report.readme import ROOT, SECTIONS, rebuilt, timings

README = (ROOT / "README.md").read_text()


def test_the_readme_shows_the_records() -> None:
    assert "66.58 ±" in README
    assert rebuilt(README, ROOT) == README


def test_another_record_makes_another_table(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "results", tmp_path / "results")
    record = tmp_path / "results/posts/a1_vgg1/seed0/record.json"
    record.write_text(record.read_text().replace('"accuracy": 0.6658', '"accuracy": 0.7'))
    changed = rebuilt(README, tmp_path)
    assert changed != README
    assert "70.00 ±" in changed


def test_a_timing_is_a_line_of_the_table(tmp_path: Path) -> None:
    machine = {"device": "a CPU", "threads": 2, "torch": "2.15", "dtype": "float32", "matrix_gflops": 1234.5}
    machine |= {"copy_gb_per_second": 21.94, "e_seconds": 125.66}
    (tmp_path / "results").mkdir()
    for section, unit in (("start", "s"), ("loop", "images/s")):
        row = {"what": f"a {section}", "ours": 1234.567, "other": 2000, "unit": unit, "ratio": 0.617}
        content = {"machine": machine, "rounds": 5, "rows": [row]}
        (tmp_path / "results" / f"{section}.json").write_text(json.dumps(content))
    assert timings(tmp_path).splitlines() == [
        "| sections= | what | ours | held against | ratio |",
        "|---|---|---:|---:|---:|",
        "| `loop` | a loop | 1,235 images/s | 2,000 images/s | 0.62 |",
        "| `start` | a start | 1,234.57 s | 2,000.00 s | 0.62 |",
        "",
        "loop, start: medians of 5 rounds; a CPU, 2 threads, torch 2.15; a float32 product at 1,234 GFLOP/s, "
        "a copy at 21.9 GB/s; E, an epoch of the bare VGG-3 loop, 125.7 s.",
    ]


def test_the_sections_are_those_of_the_benchmarks() -> None:
    text = (ROOT / "benchmarks" / "run.py").read_text()
    listed = re.search(r"\[sections=([a-z,]+)\]", text)
    assert listed is not None
    assert tuple(listed[1].split(",")) == SECTIONS
