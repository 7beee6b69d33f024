"""The README's table of results is what the records in `results/` say."""

import shutil
from pathlib import Path

from cifarlab.report.readme import ROOT, rebuilt

README = (ROOT / "README.md").read_text()


def test_the_readme_shows_the_records() -> None:
    assert "66.58 ±" in README
    assert rebuilt(README, ROOT / "results") == README


def test_another_record_makes_another_table(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "results", tmp_path / "results")
    record = tmp_path / "results/posts/a1_vgg1/seed0/record.json"
    record.write_text(record.read_text().replace('"accuracy": 0.6658', '"accuracy": 0.7'))
    changed = rebuilt(README, tmp_path / "results")
    assert changed != README
    assert "70.00 ±" in changed
