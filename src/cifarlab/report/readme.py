"""The README's table of results, made from the records in `results/`: `make results`."""

from __future__ import annotations

import re
from pathlib import Path

from cifarlab.atomic import write_text
from cifarlab.report.summary import build
from cifarlab.report.tables import markdown_table

ROOT = Path(__file__).parents[3]
PLACE = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.S)


def rebuilt(readme: str, results: Path) -> str:
    """The text with what stands between its `results` marks made anew from the records below a folder."""
    report = build([results])
    notes = "\n".join(f"{note}\n" for note in report.notes)
    table = f"\n{markdown_table(report)}\n{notes}\n"
    return PLACE.sub(lambda _: table, readme)


if __name__ == "__main__":
    path = ROOT / "README.md"
    write_text(path, rebuilt(path.read_text(), ROOT / "results"))
