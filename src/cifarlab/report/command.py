"""What `python report.py` does: its arguments read, the report built, printed and written."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cifarlab import signals
from cifarlab.atomic import write_text
from cifarlab.config import nearest
from cifarlab.errors import UserError
from cifarlab.report import page, pictures, tables
from cifarlab.report.history import curves
from cifarlab.report.summary import METRICS, SORTS, Report, build
from cifarlab.untrusted import harmless

FORMS = (".md", ".csv", ".tex", ".html")
HELP = f"""\
report.py: one table over many runs, with intervals, comparisons and pictures.

  python report.py DIR...
  python report.py logs/sweeps/2026-01-31_12-00-00-000000 baseline=reg=none out=report.html

Every DIR is searched for runs with all that is below it. Runs of one configuration, whatever
their seeds and folds, make a row.

Options:

  out=FILE        also write the report there, as its name ends: {", ".join(FORMS)};
                  pictures lie beside .md and .tex, and inside .html; may be given several times
  baseline=KEY=VALUE[,KEY=VALUE...]
                  compare each row with the one that is so, at equal seeds: baseline=reg=none
  metric={"|".join(METRICS)}     the accuracy that is compared (default: test, if there is one; val for folds)
  sort={"|".join(SORTS)}
                  the rows' order (default: the metric)"""


@dataclass
class Options:
    """The command line, read."""

    folders: list[Path] = field(default_factory=list)
    out: list[Path] = field(default_factory=list)
    baseline: str | None = None
    sort: str | None = None
    metric: str | None = None


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    if {"--help", "-h"} & set(arguments):
        print(HELP)
        return 0
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `report.py logs | head` ends quietly
    try:
        signals.heed()
        options = read_options(arguments)
        warn = lambda message: print(harmless(message), file=sys.stderr)  # noqa: E731
        report = build(options.folders, options.baseline, options.sort, options.metric, warn)
        print(tables.terminal(report, tables.terminal_width() if sys.stdout.isatty() else None))
        for file in options.out:
            for note in write_report(report, file):
                warn(note)
            print(f"\nwritten: {file}")
    except UserError as error:
        print(harmless(str(error)), file=sys.stderr)
        return error.exit_code
    except signals.Stop as stop:
        print(f"{stop.reason}.", file=sys.stderr)
        return stop.code
    return 0


def read_options(arguments: Sequence[str]) -> Options:
    """Folders and options in any order.

    Raises:
        UserError: for the first that is neither.
    """
    options = Options()
    known = {"out": None, "baseline": None, "sort": SORTS, "metric": tuple(METRICS)}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if os.path.isdir(argument):  # before the rest: a run's own folder is named by what was typed
            options.folders.append(Path(argument))
        elif argument.startswith("-"):
            raise UserError(f"{argument}: report.py takes folders and key=value; --help shows what there is.")
        elif not equals or "/" in key:
            raise UserError(
                f"{argument}: there is no such folder; expected one with runs, such as logs/runs."
            )
        elif key not in known:
            raise UserError(f"{argument}: report.py has no option {key!r}; {nearest(key, list(known))}")
        elif key == "out":
            options.out.append(checked_file(value))
        elif (words := known[key]) is not None and value not in words:
            raise UserError(f"{argument}: {key} has no {value!r}; {nearest(value, words)}")
        else:
            setattr(options, key, value)
    if not options.folders:
        raise UserError("report.py needs a folder with runs, such as logs/runs; --help shows what there is.")
    return options


def checked_file(name: str) -> Path:
    file = Path(name)
    if file.suffix not in FORMS:
        raise UserError(f"out={name}: expected a file name that ends in {', '.join(FORMS)}.")
    if not os.path.isdir(file.parent):
        raise UserError(f"out={name}: there is no folder {file.parent}; make it first.")
    if os.path.isdir(file):
        raise UserError(f"out={name}: that is a folder; expected a file's name.")
    return file


def write_report(report: Report, file: Path) -> list[str]:
    """Write the report in the form that the file's name asks for; returns what was left out of its pictures.

    Raises:
        UserError: when the file cannot be written.
    """
    notes: list[str] = []
    try:
        if file.suffix == ".csv":
            write_text(file, tables.comma_separated(report))
            return notes
        if file.suffix == ".html":
            drawn = curves(report, page.MOST_ROWS, notes.append)
            write_text(file, page.html(report, drawn))
            return notes
        drawn = curves(report, pictures.MOST_CURVES, notes.append)
        images = pictures.draw(report, drawn, file)
        form = tables.markdown if file.suffix == ".md" else tables.latex
        write_text(file, form(report, images))
    except OSError as error:
        raise UserError(f"out={file}: cannot be written ({error.strerror}).") from None
    return notes
