"""The report as one HTML file: it makes no request, and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from cifarlab.report import tables
from cifarlab.report.comparison import Comparison
from cifarlab.report.history import Curve
from cifarlab.report.pictures import pareto_front, timed_rows
from cifarlab.report.rows import Row
from cifarlab.report.summary import METRICS, Report

MOST_ROWS = 300  # whose curves are inside; the table holds all
MOST_POINTS = 200  # of a curve


def html(report: Report, curves: Sequence[Curve]) -> str:
    """The page. Text from records is escaped; should that ever fail, the policy lets no other script run."""
    style, script = (files(__package__).joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src '{digest(style)}'; script-src '{digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    heading = escape(tables.heading(report))
    common = f'<p class="common">All rows: <code>{escape(report.common)}</code></p>' if report.common else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{heading}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{heading}</h1>
{common}
</header>
<main>
{charts(report, curves)}
{configurations(report)}
{regularizers(report)}
{sentences(report)}
{unfinished(report)}
</main>
<script type="application/json" id="data">{embedded(data(report, curves))}</script>
<script>{script}</script>
</body>
</html>
"""


def digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def embedded(value: Any) -> str:
    """JSON that no script element can end in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def data(report: Report, curves: Sequence[Curve]) -> dict[str, Any]:
    """What the page's script draws; accuracies in percent."""
    number = {id(row): index for index, row in enumerate(report.rows)}
    chosen = [*range(min(6, len(report.rows)))]
    chosen += sorted({number[id(found.baseline)] for found in report.comparisons[:1]} - set(chosen))
    return {
        "metric": METRICS[report.metric],
        "rows": [tables.title(row) for row in report.rows],
        "chosen": chosen,
        "curves": {number[id(curve.row)]: thinned(curve) for curve in curves},
        "points": [point(report, row, number[id(row)]) for row in timed_rows(report)],
        "front": [number[id(row)] for row in pareto_front(report, timed_rows(report))],
        "factors": [
            {
                "name": factor.name,
                "mean": percent(factor.effect.mean),
                "interval": [percent(end) for end in factor.effect.interval or ()],
                "n": factor.effect.n,
                "steps": [[step.context, percent(step.gain.mean)] for step in factor.steps],
            }
            for factor in report.factors
        ],
    }


def percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 3)


def thinned(curve: Curve) -> dict[str, Any]:
    """At most some MOST_POINTS of its epochs, evenly, the last among them."""
    step = -(-len(curve.epochs) // MOST_POINTS)
    kept = range((len(curve.epochs) - 1) % step, len(curve.epochs), step)
    parts = {"mean": curve.mean, "low": curve.low, "high": curve.high}
    return {
        "n": curve.runs,
        "epochs": [curve.epochs[index] for index in kept],
        **{name: [percent(values[index]) for index in kept] for name, values in parts.items()},
    }


def point(report: Report, row: Row, number: int) -> list[Any]:
    found = row.metric(report.metric)
    assert found is not None
    return [number, round(row.seconds or 0, 3), percent(found.mean), percent(found.sd), len(row.runs)]


def charts(report: Report, curves: Sequence[Curve]) -> str:
    """The frames that the script draws in."""
    parts = []
    if curves:
        parts.append(
            chart("curves", "Validation accuracy by epoch", "Mean over runs; band: lowest to highest run.")
        )
    if len(timed_rows(report)) > 1:
        parts.append(
            chart("time", f"{METRICS[report.metric].capitalize()} against training time",
                  "Bars: standard deviation; line: Pareto front, nothing is both faster and better.")
        )  # fmt: skip
    if not parts:
        return ""
    return f"""<section aria-label="Pictures">
<div class="charts">{"".join(parts)}</div>
<div id="legend" aria-label="Chosen configurations"></div>
<p class="hint">Drag across a picture to zoom, double-click to see all of it. Click a row of the table, a
point or a name to choose what is drawn; the page's address keeps the choice.</p>
<noscript>The pictures need JavaScript; the tables do not.</noscript>
</section>"""


def chart(name: str, title: str, caption: str) -> str:
    return (
        f'<figure id="{name}"><figcaption><strong>{escape(title)}</strong>'
        '<button type="button" class="reset" hidden>Reset zoom</button>'
        f"<small>{escape(caption)}</small></figcaption></figure>"
    )


def configurations(report: Report) -> str:
    """The table, with the comparison beside each row; `data-v` is what a column is sorted by."""
    if not report.rows:
        return "<p>No run is done yet.</p>"
    shown = tables.columns(report)
    compared = {id(found.row): found for found in report.comparisons}
    head = ["configuration", *(column.title for column in shown)]
    if compared:
        head[-tables.COSTS : -tables.COSTS] = ["difference", "95 % interval", "p (Holm)"]
    titles = "".join(f'<th scope="col"><button type="button">{escape(title)}</button></th>' for title in head)
    lines = []
    for index, row in enumerate(report.rows):
        parts = [cell(column.show(row), column.value(row)) for column in shown]
        if compared:
            parts[-tables.COSTS : -tables.COSTS] = compared_cells(compared.get(id(row)))
        name = escape(tables.title(row)).replace("+", "+<wbr>")
        box = f'<label><input type="checkbox"><i></i><span>{name}</span></label>'
        lines.append(
            f'<tr data-row="{index}"><th scope="row" data-v="{index}">{box}</th>{"".join(parts)}</tr>'
        )
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return f"""<section>
<div class="tools"><h2>Configurations</h2>
<input type="search" id="filter" placeholder="Filter, e.g. dropout" aria-label="Filter the table">
<button type="button" id="choose-shown">Draw all shown</button>
<button type="button" id="choose-none">Draw none</button>
<output id="shown"></output></div>
<div class="scroll"><table id="rows"><thead><tr>{titles}</tr></thead><tbody>
{chr(10).join(lines)}
</tbody></table></div>
<ul class="notes">{notes}</ul>
</section>"""


def cell(text: str, value: float | None, mark: str = "") -> str:
    key = "" if value is None else f' data-v="{value!r}"'
    return f"<td{key}{mark}>{escape(text)}</td>"


def compared_cells(found: Comparison | None) -> list[str]:
    if found is None:
        return ["<td></td>"] * 3
    gain = found.difference
    _, _, difference, interval, _, p, _ = tables.difference_cells([found])[1]
    mark = f' title="{escape(found.sentence)}"'
    real = found.verdict == "a real difference"
    kind = f' class="{"better" if gain.mean > 0 else "worse"}"' if real else ""
    return [
        cell(difference, gain.mean, mark + kind),
        cell(interval, gain.interval[0] if gain.interval else None),
        cell(p, found.p_holm),
    ]


def sentences(report: Report) -> str:
    if not report.comparisons:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in tables.sentences(report))
    opened = " open" if len(report.comparisons) <= tables.MOST_SENTENCES else ""
    title = f"<summary><h2>{escape(tables.against(report))}, in words</h2></summary>"
    return f"<section><details{opened}>{title}<ul>{items}</ul></details></section>"


def regularizers(report: Report) -> str:
    if not report.factors:
        return ""
    caption = (
        "A dot for each choice of the others; the diamond is their mean with its 95 % interval. "
        f"In points of {report.metric_name}."
    )
    drawn = chart("factors", "What each regularizer brings", caption)
    return f"<section>{drawn}{plain_table(tables.factor_cells(report))}</section>"


def unfinished(report: Report) -> str:
    if not report.unfinished:
        return ""
    return (
        f"<section><h2>Not in the table</h2>{plain_table(tables.unfinished_cells(report), 'words')}</section>"
    )


def plain_table(rows: Sequence[Sequence[str]], kind: str = "") -> str:
    head, *body = rows
    titles = "".join(f"<th>{escape(text)}</th>" for text in head)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in body)
    table = f'<table class="{kind}"><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>'
    return f'<div class="scroll">{table}</div>'
