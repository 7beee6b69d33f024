"""The README's tables and `docs/results.md`, from `results/` and `benchmarks/results/`: `make results`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cifarlab.atomic import write_text
from cifarlab.report.history import Curve, curve
from cifarlab.report.pictures import curves_figure, save
from cifarlab.report.rows import Row
from cifarlab.report.statistics import Estimate, estimate
from cifarlab.report.summary import Report, build
from cifarlab.report.tables import DASH, duration, percent, span

ROOT = Path(__file__).parents[3]
# of benchmarks/run.py
SECTIONS = ("loop", "batch", "rewrites", "speedrun", "together", "memory", "start", "keras")
# docs/results_<name>.png, and the rows whose curves it shows
PICTURES = {"a3_a9": ("A3", "A9"), "a": tuple(f"A{number}" for number in range(1, 11))}
# a line of the README's tables of experiments
EXPERIMENT = re.compile(r"^\| (\w+) \| (.+) \| (\d+) \| (.+) \| (`.*experiment=(.+)`) \|$", re.M)


class Experiment(NamedTuple):
    """Such a line's cells, and the name in its command."""

    number: str
    network: str
    epochs: str
    aim: str
    command: str
    name: str


def rebuilt(readme: str, root: Path) -> str:
    """The text with what stands between its marks made anew from the records and timings in a checkout."""
    readme = place(readme, "results", results(readme, root))
    readme = place(readme, "curves", links(readme, root))
    return place(readme, "timings", timings(root / "benchmarks"))


def place(text: str, name: str, content: str) -> str:
    """The text with that content between `<!-- name -->` and `<!-- /name -->`."""
    between = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.S)
    text, places = between.subn(lambda _: f"\n{content}\n\n", text)
    if places != 1:
        raise ValueError(f"there are {places} places between <!-- {name} --> and <!-- /{name} -->, not 1")
    return text


def experiments(readme: str, report: Report) -> Iterator[tuple[Experiment, Row | None]]:
    """The README's experiments in their order, each with its runs to the end, if there are any."""
    rows = {row.choices["experiment"]: row for row in report.rows}
    for found in EXPERIMENT.findall(readme):
        experiment = Experiment(*found)
        yield experiment, rows.get(experiment.name)


def results(readme: str, root: Path) -> str:
    """The table of the experiments that were run, and its notes."""
    report = build([root / "results"])
    head = ["row", "held against", "test %", "95 % interval", "with flips and shifts %", "n"]
    head += ["validation peak", "training", "on"]
    lines = [f"| {' | '.join(head)} |", "|---|---|---:|---:|---:|---:|---:|---:|---|"]
    for experiment, row in experiments(readme, report):
        if row is not None:
            link = f"[{experiment.number}](docs/results.md#{experiment.number.lower()})"
            interval = span(row.test.interval if row.test else None)
            cells = [link, experiment.aim, percent(row.test), interval, percent(moved(row))]
            cells += [str(len(row.runs)), peak(row), duration(row.seconds), machine(row)]
            lines.append(f"| {' | '.join(cells)} |")
    # no validation accuracy that is of the test images is shown
    notes = [note for note in report.notes if not note.startswith("\N{DAGGER}")]
    return "\n\n".join(["\n".join(lines), *notes])


def moved(row: Row) -> Estimate | None:
    """The test accuracy with flips and shifts, where beside each run's record lies what `evaluate.py` wrote.

    Raises:
        ValueError: it is of other images, views or weights.
    """
    found = {}
    for run in row.runs:
        file = run.folder / "scores.json"
        if not file.exists():
            return None
        scores = json.loads(file.read_text())
        if (scores["split"], scores["shifts"], scores["accuracy"]) != ("test", 1, run.test):
            raise ValueError(f"{file} is not of this run's test images with flips=true shifts=1")
        found[run.cell] = scores["with_shifts"]["accuracy"]
    return estimate(found)


def peak(row: Row) -> str:
    """The highest validation accuracy, of the mean over the seeds, and its epoch; a dash where the test
    images or none validated."""
    found = None if row.validates_on_test else curve(row, warn=print)
    if found is None:
        return DASH
    highest, epoch = max(zip(found.mean, (-epoch for epoch in found.epochs), strict=True))
    return f"{100 * highest:.2f} % in epoch {-epoch}"


def machine(row: Row) -> str:
    """What it was trained on."""
    device, threads = (row.runs[0].environment[name] for name in ("device", "threads"))
    return f"{device}, {threads} thread{'s' * (threads != '1')}"


def pictures(readme: str, root: Path) -> dict[str, list[Curve]]:
    """The curves of each picture for which two rows or more have one."""
    curves: dict[str, Curve] = {}
    for experiment, row in experiments(readme, build([root / "results"])):
        if row is not None and (found := curve(row, warn=print)):
            row.name = f"{experiment.number}: {experiment.network}"
            curves[experiment.number] = found
    drawn = {what: [curves[n] for n in numbers if n in curves] for what, numbers in PICTURES.items()}
    return {what: some for what, some in drawn.items() if len(some) > 1}


def links(readme: str, root: Path) -> str:
    """The README's pictures."""
    lines = []
    for what in pictures(readme, root):
        first, *_, last = PICTURES[what]
        rows = f"{first} {'and' if len(PICTURES[what]) == 2 else 'to'} {last}"
        lines.append(f"![Validation accuracy by epoch, rows {rows}](docs/results_{what}.png)")
    return "\n".join(lines)


def page(readme: str, root: Path) -> str:
    """`docs/results.md`: every experiment of the README, and what came of it so far with a curve of a run."""
    parts = [
        "# Results\n",
        "Every experiment of the README with its runs to the end; `make results` writes this.",
    ]
    for experiment, row in experiments(readme, build([root / "results"])):
        parts.append(f"\n## {experiment.number}\n")
        what = f"{experiment.network}, {experiment.epochs} epochs, {experiment.command}"
        parts.append(f"{what}, held against: {experiment.aim}.\n")
        if row is None:
            parts.append("No run to its end yet.")
            continue
        folders = {run.seed: Path("..", run.folder.relative_to(root)) for run in row.runs}
        records = ", ".join(f"[seed {seed}]({folder}/record.json)" for seed, folder in folders.items())
        highest = peak(row)
        validation = "" if highest == DASH else f", validation accuracy at its peak {highest}"
        parts.append(
            f"Test accuracy {percent(row.test)} % (n = {len(row.runs)}){validation}; {duration(row.seconds)} "
            f"of training on {machine(row)}. Records: {records}.\n"
        )
        first = min(folders)
        parts.append(f"![Loss and accuracy by epoch, seed {first}]({folders[first]}/curves.png)")
    return "\n".join(parts) + "\n"


def timings(folder: Path) -> str:
    """A table of what `run.py` left in `results/`, and the machines that it was measured on."""
    lines = [
        "| sections= | what | ours | held against | ratio | lowest to highest | wanted |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    machines: dict[str, list[str]] = {}
    for section in SECTIONS:
        file = folder / "results" / f"{section}.json"
        if not file.exists():
            continue
        content = json.loads(file.read_text())
        for row in content["rows"]:
            form = "{:,.0f} " if row["unit"] in ("images/s", "MiB") else "{:,.2f} "
            cells = [(form + row["unit"]).format(row[side]).strip() for side in ("ours", "other")]
            cells += [f"{row['ratio']:.2f}", "{:.2f} to {:.2f}".format(*row["span"]), row["wanted"]]
            lines.append(f"| `{section}` | {row['what']} | {' | '.join(cells)} |")
        machines.setdefault(described(content["machine"], content["rounds"]), []).append(section)
    notes = [f"{', '.join(sections)}: {machine}." for machine, sections in machines.items()]
    return "\n\n".join(["\n".join(lines), *notes])


def described(machine: dict[str, Any], rounds: int) -> str:
    where = f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}"
    product = f"a {machine['dtype']} product at {machine['matrix_gflops']:,.0f} GFLOP/s"
    copy = f"a copy at {machine['copy_gb_per_second']:.1f} GB/s"
    share = machine["bare_vgg3_gflops"] / machine["matrix_gflops"]
    epoch = (
        f"E, an epoch of the bare VGG-3 loop, {machine['e_seconds']:.1f} s, {share:.2f} of the product's rate"
    )
    return f"medians of {rounds} rounds; {where}; {product}, {copy}; {epoch}"


if __name__ == "__main__":
    readme = rebuilt((ROOT / "README.md").read_text(), ROOT)
    write_text(ROOT / "README.md", readme)
    write_text(ROOT / "docs" / "results.md", page(readme, ROOT))
    for what, curves in pictures(readme, ROOT).items():
        save(curves_figure(curves), ROOT / "docs" / "results.md", what)
