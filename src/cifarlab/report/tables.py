"""The report as text: for the terminal, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
import shutil
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cifarlab.report.comparison import Comparison, p_value
from cifarlab.report.rows import Row
from cifarlab.report.statistics import Difference, Estimate
from cifarlab.report.summary import METRICS, Report, shown_path
from cifarlab.untrusted import no_formula

DASH = "\N{EN DASH}"
MOST_SENTENCES = 20
NARROWEST = 24  # characters of the column that folds
COSTS = 3  # columns, the last: training, epochs, parameters


class Column(NamedTuple):
    """A column of the table: its title, what it shows of a row, and by what it is sorted."""

    title: str
    show: Callable[[Row], str]
    value: Callable[[Row], float | None]


def percent(found: Estimate | None) -> str:
    """Mean ± standard deviation, a dash where one run has no spread."""
    if found is None:
        return DASH
    return f"{100 * found.mean:.2f} ± {DASH if found.sd is None else format(100 * found.sd, '.2f')}"


def span(interval: tuple[float, float] | None, sign: str = "") -> str:
    return DASH if interval is None else " to ".join(format(100 * end, f"{sign}.2f") for end in interval)


def duration(seconds: float | None) -> str:
    """Three digits are enough: 14.2 s, 78.8 min, 5.24 h."""
    if seconds is None:
        return DASH
    for limit, unit, name in ((100, 1, "s"), (6_000, 60, "min")):
        if seconds < limit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds / 3600:.1f} h"


def epochs(row: Row) -> str:
    low, high = row.epochs
    return str(low) if low == high else f"{low} to {high}"


def columns(report: Report) -> list[Column]:
    """All columns, the ones to leave out first where room is short last."""

    def accuracy(metric: str) -> Column:
        return Column(
            f"{METRICS[metric].removesuffix(' accuracy')} %",
            lambda row: percent(row.metric(metric)),
            lambda row: found.mean if (found := row.metric(metric)) else None,
        )

    first, second = ("test", "val") if report.metric == "test" else ("val", "test")
    interval = Column(
        "95 % interval",
        lambda row: span(found.interval if (found := row.metric(first)) else None),
        lambda row: found.half_width if (found := row.metric(first)) else None,
    )
    return [
        Column("n", lambda row: row.count, lambda row: len(row.runs)),
        accuracy(first),
        interval,
        accuracy(second),
        Column("training", lambda row: duration(row.seconds), lambda row: row.seconds),
        Column("epochs", epochs, lambda row: row.epochs[1]),
        Column(
            "parameters",
            lambda row: DASH if row.parameters is None else f"{row.parameters:,}",
            lambda row: row.parameters,
        ),
    ]


def title(row: Row) -> str:
    return f"{row.name} †" if row.validates_on_test else row.name


def cells(report: Report) -> list[list[str]]:
    """The table, its head first."""
    shown = columns(report)
    head = ["configuration", *(column.title for column in shown)]
    return [head, *([title(row), *(column.show(row) for column in shown)] for row in report.rows)]


def difference_cells(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """The comparisons with the baseline, their head first; p is Holm's."""
    bases = {found.baseline.name for found in comparisons}
    rows = [["configuration", "n", "difference, points", "95 % interval", "p", "p (Holm)", "in words"]]
    for found in comparisons:
        gain = found.difference
        spread = "" if gain.sd is None else f" ± {100 * gain.sd:.2f}"
        ps = [DASH if p is None else p_value(p).removeprefix("= ") for p in (gain.p, found.p_holm)]
        against = f" (against {found.baseline.name})" if len(bases) > 1 else ""
        cell = f"{100 * gain.mean:+.2f}{spread or f' ± {DASH}'}"
        words = found.verdict + found.over + (" (Welch)" if gain.kind == "unpaired" else "")
        rows.append([found.row.name + against, str(gain.n), cell, span(gain.interval, "+"), *ps, words])
    return rows


def against(report: Report) -> str:
    return f"Against {report.baseline}, in points of {report.metric_name}"


def sentences(report: Report) -> list[str]:
    """Each comparison in words."""
    several = len({found.baseline.name for found in report.comparisons}) > 1
    return [
        f"{found.row.name}{f' against {found.baseline.name}' * several}: {found.sentence}"
        for found in report.comparisons
    ]


def factor_cells(report: Report) -> list[list[str]]:
    """What each regularizer brings, the head first."""
    rows = [["regularizer", "alone", "added to all others", "mean", "95 % interval", "pairs", "n"]]
    for factor in report.factors:
        mean = factor.effect
        gains = [
            DASH if gain is None else f"{100 * gain:+.2f}" for gain in (factor.alone, factor.last, mean.mean)
        ]
        rows.append([factor.name, *gains, span(mean.interval, "+"), str(len(factor.steps)), str(mean.n)])
    return rows


def unfinished_cells(report: Report) -> list[list[str]]:
    rows = [[run.status, shown_path(run.folder), reason] for run, reason in report.unfinished]
    return [["status", "folder", "why"], *rows]


# --- Markdown


def markdown_cells(rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> str:
    """A Markdown table whose `numbers` columns are aligned right."""
    head, *body = [[markdown_text(cell) for cell in row] for row in rows]
    rule = ["---:" if index in numbers else "---" for index in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body)) + "\n"


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", text)


def markdown_table(report: Report) -> str:
    """The table of configurations as Markdown, and nothing else."""
    rows = cells(report)
    return markdown_cells(rows, range(1, len(rows[0])))


def markdown(report: Report, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """The whole report; pictures are (file name, caption)."""
    parts = [f"# {heading(report)}\n"]
    if report.common:
        parts.append(f"All rows: {markdown_text(report.common)}\n")
    if report.rows:
        parts.append(markdown_table(report))
    parts += [f"{markdown_text(note)}\n" for note in report.notes]
    if report.comparisons:
        parts.append(f"## {markdown_text(against(report))}\n")
        parts.append(markdown_cells(difference_cells(report.comparisons), range(1, 6)))
        parts.append("".join(f"- {markdown_text(words)}\n" for words in sentences(report)[:MOST_SENTENCES]))
    if report.factors:
        parts.append(f"## What each regularizer brings, in points of {report.metric_name}\n")
        parts.append(markdown_cells(factor_cells(report), range(1, 7)))
    if pictures:
        parts.append("## Pictures\n")
        parts += [
            f"![{markdown_text(caption)}]({file})\n\n{markdown_text(caption)}\n" for file, caption in pictures
        ]
    if report.unfinished:
        parts.append("## Not in the table\n")
        parts.append(markdown_cells(unfinished_cells(report), []))
    return "\n".join(parts)


def heading(report: Report) -> str:
    runs, rows = sum(len(row.runs) for row in report.rows), len(report.rows)
    return f"{runs:,} run{'s' * (runs != 1)} of {rows:,} configuration{'s' * (rows != 1)}"


# --- CSV


def comma_separated(report: Report) -> str:
    """A line per configuration, then one per run that is not done; accuracies from 0 to 1, as in records."""
    compared = {id(found.row): found for found in report.comparisons}
    lines: list[dict[str, Any]] = []
    for row in report.rows:
        line: dict[str, Any] = {"configuration": row.name, "status": "done"}
        line |= {"runs": len(row.runs), "seeds": len(row.seeds), "folds": row.folds or None}
        for metric in METRICS:
            line |= parts_of(f"{metric}_accuracy", row.metric(metric))
        line |= {"train_seconds": row.seconds, "epochs": row.epochs[1], "parameters": row.parameters}
        line["validated_on_test"] = row.validates_on_test
        if (against := compared.get(id(row))) is not None:
            gain = against.difference
            line |= {"baseline": against.baseline.name, "comparison": gain.kind}
            line |= {**parts_of("difference", gain), "p": gain.p, "p_holm": against.p_holm}
        line["folder"] = shown_path(row.runs[0].folder.parent if len(row.runs) > 1 else row.runs[0].folder)
        lines.append(line)
    for run, reason in report.unfinished:
        name = " ".join(run.overrides)
        lines.append(
            {"configuration": name, "status": run.status, "error": reason, "folder": shown_path(run.folder)}
        )
    text = io.StringIO()
    names = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({key: no_formula(part) for key, part in line.items()})
    return text.getvalue()


def parts_of(name: str, found: Estimate | Difference | None) -> dict[str, float | None]:
    """Mean, standard deviation, interval and n under names of their own."""
    low, high = (found and found.interval) or (None, None)
    mean, sd, n = (found.mean, found.sd, found.n) if found else (None, None, None)
    return {f"{name}_mean": mean, f"{name}_sd": sd, f"{name}_low": low, f"{name}_high": high, f"{name}_n": n}


# --- LaTeX


def latex(report: Report, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """Tables and figures to \\input into a document."""
    parts = ["% needs \\usepackage{booktabs,graphicx} and UTF-8"]
    notes = [f"All rows: {report.common}."] if report.common else []
    parts.append(latex_table(cells(report), " ".join([heading(report) + ".", *notes, *report.notes])))
    if report.comparisons:
        caption = f"Differences to {report.baseline} in points of {report.metric_name}."
        parts.append(latex_table(difference_cells(report.comparisons), caption))
    if report.factors:
        parts.append(latex_table(factor_cells(report), f"Gain in points of {report.metric_name}."))
    for file, caption in pictures:
        parts.append(
            "\\begin{figure}\n  \\centering\n"
            f"  \\includegraphics[width=\\linewidth]{{\\detokenize{{{file}}}}}\n"
            f"  \\caption{{{latex_text(caption)}}}\n\\end{{figure}}"
        )
    if report.unfinished:
        parts.append(latex_table(unfinished_cells(report), "Runs that are not in the table."))
    return "\n\n".join(parts) + "\n"


def latex_table(rows: Sequence[Sequence[str]], caption: str) -> str:
    head, *body = [" & ".join(map(latex_text, row)) + r" \\" for row in rows]
    lines = [r"\begin{table}", r"  \centering", rf"  \caption{{{latex_text(caption)}}}"]
    lines += [
        rf"  \begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}",
        r"    \toprule",
        f"    {head}",
        r"    \midrule",
    ]
    lines += [f"    {line}" for line in body]
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table}"])


LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "†": r"\textdagger{}",
    DASH: "--",
}


def latex_text(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return "".join(LATEX.get(character, character) for character in text)


# --- the terminal


def terminal(report: Report, width: int | None = None) -> str:
    """The report for a terminal of that many columns; None: for a pipe, as wide as it is, without rules."""
    parts = [heading(report)]
    if report.common:
        parts.append(f"all rows: {report.common}")
    if report.rows:
        parts.append(aligned(cells(report), width))
    parts.append("\n".join(report.notes if report.rows else []))
    if report.comparisons:
        parts.append("\n".join([f"{against(report)}:", *sentences(report)]))
    if report.factors:
        parts.append(f"What each regularizer brings, in points of {report.metric_name}:")
        parts.append(aligned(factor_cells(report), width))
    if report.unfinished:
        parts.append(aligned(unfinished_cells(report), width, numbers=False))
    return "\n\n".join(part for part in parts if part)


def aligned(rows: list[list[str]], width: int | None, numbers: bool = True) -> str:
    """Columns under their heads; those without room beside a readable first one are left out and named."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if width is None:
        return "\n".join(line(row, widths, numbers) for row in rows)
    kept = len(widths)
    while numbers and kept > 3 and min(widths[0], NARROWEST) + sum(widths[1:kept]) + 2 * (kept - 1) > width:
        kept -= 1
    # the longest text folds: a row's name, or why a run is not done
    folding = 0 if numbers else kept - 1
    room = width - 2 * (kept - 1) - sum(widths[:kept]) + widths[folding]
    widths[folding] = min(widths[folding], max(room, NARROWEST))
    lines = []
    for row in rows:
        first, *others = textwrap.wrap(row[folding], widths[folding], subsequent_indent="  ") or [""]
        lines.append(line([*row[:folding], first, *row[folding + 1 : kept]], widths, numbers))
        lines += [" " * (sum(widths[:folding]) + 2 * folding) + other for other in others]
        if row is rows[0]:
            lines.append("\N{BOX DRAWINGS LIGHT HORIZONTAL}" * (sum(widths[:kept]) + 2 * (kept - 1)))
    if kept < len(rows[0]):
        lines.append(f"(no room here for {', '.join(rows[0][kept:])})")
    return "\n".join(lines)


def line(row: Sequence[str], widths: Sequence[int], numbers: bool) -> str:
    """One line of a table: the first column left, numbers right."""
    padded = (
        f"{cell:>{wide}}" if numbers and index else f"{cell:<{wide}}"
        for index, (cell, wide) in enumerate(zip(row, widths, strict=False))
    )
    return "  ".join(padded).rstrip()


def terminal_width() -> int:
    return shutil.get_terminal_size().columns
