"""The README's tables: of results from `results/`, of timings from `benchmarks/results/`: `make results`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from cifarlab.atomic import write_text
from cifarlab.report.summary import build
from cifarlab.report.tables import markdown_table

ROOT = Path(__file__).parents[3]
SECTIONS = ("loop", "batch", "rewrites", "together", "memory", "start", "keras")  # of benchmarks/run.py


def rebuilt(readme: str, root: Path) -> str:
    """The text with what stands between its marks made anew from the records and timings in a checkout."""
    return place(place(readme, "results", results(root / "results")), "timings", timings(root / "benchmarks"))


def place(text: str, name: str, content: str) -> str:
    """The text with that content between `<!-- name -->` and `<!-- /name -->`."""
    between = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.S)
    return between.sub(lambda _: f"\n{content}\n\n", text)


def results(folder: Path) -> str:
    """The table over all records below a folder, and its notes."""
    report = build([folder])
    return "\n".join([f"{markdown_table(report)}", *(f"{note}\n" for note in report.notes)]).rstrip("\n")


def timings(folder: Path) -> str:
    """A table of what `run.py` left in `results/`, and the machines that it was measured on."""
    lines = ["| sections= | what | ours | held against | ratio |", "|---|---|---:|---:|---:|"]
    machines: dict[str, list[str]] = {}
    for section in SECTIONS:
        file = folder / "results" / f"{section}.json"
        if not file.exists():
            continue
        content = json.loads(file.read_text())
        for row in content["rows"]:
            form = "{:,.2f} s" if row["unit"] == "s" else "{:,.0f} " + row["unit"]
            figures = " | ".join(form.format(row[side]) for side in ("ours", "other"))
            lines.append(f"| `{section}` | {row['what']} | {figures} | {row['ratio']:.2f} |")
        machines.setdefault(described(content["machine"], content["rounds"]), []).append(section)
    notes = [f"{', '.join(sections)}: {machine}." for machine, sections in machines.items()]
    return "\n\n".join(["\n".join(lines), *notes])


def described(machine: dict[str, Any], rounds: int) -> str:
    where = f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}"
    product = f"a {machine['dtype']} product at {machine['matrix_gflops']:,.0f} GFLOP/s"
    copy = f"a copy at {machine['copy_gb_per_second']:.1f} GB/s"
    epoch = f"E, an epoch of the bare VGG-3 loop, {machine['e_seconds']:.1f} s"
    return f"medians of {rounds} rounds; {where}; {product}, {copy}; {epoch}"


if __name__ == "__main__":
    path = ROOT / "README.md"
    write_text(path, rebuilt(path.read_text(), ROOT))
