"""The HTML page: nothing from outside, no script of a stranger, and in a browser it draws what it should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic import write_lattice, write_run

from cifarlab.report.history import curves
from cifarlab.report.page import MOST_POINTS, MOST_ROWS, html, thinned
from cifarlab.report.summary import build

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium to look at the page with")
EVIL = "</script><script>document.title='stolen'</script><img src=x onerror=document.title='stolen'>\"'"
# what a user does with a mouse, told to the page by events; errors become the title
MOUSE = """
window.onerror = (message) => (document.title = `error: ${message}`);
const fire = (node, kind, x, y) => {
  const box = node.getBoundingClientRect();
  const at = { clientX: box.left + x * box.width, clientY: box.top + y * box.height };
  node.dispatchEvent(new PointerEvent(kind, { ...at, bubbles: true, button: 0 }));
};
setTimeout(() => {
  const curves = document.querySelector("#curves svg");
  fire(curves, "pointermove", 0.98, 0.1);
  document.body.dataset.tip = document.querySelector("#curves .tip").textContent;
  fire(curves, "pointerdown", 0.6, 0.2);
  fire(curves, "pointermove", 0.9, 0.7);
  fire(curves, "pointerup", 0.9, 0.7);
  document.body.dataset.zoomed = String(!document.querySelector("#curves .reset").hidden);
  document.querySelector("#curves .reset").click();
  document.body.dataset.reset = String(document.querySelector("#curves .reset").hidden);
  document.querySelector("#choose-none").click();
  document.querySelectorAll("#rows input")[5].click();
  document.querySelector("#filter").value = "flip shift";
  document.querySelector("#filter").dispatchEvent(new Event("input"));
  document.querySelectorAll("#rows thead th")[8].click();
  document.body.dataset.fastest = document.querySelector("#rows tbody tr:last-child").textContent;
}, 200);
"""


class Page(HTMLParser):
    """What of a page matters here."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a lattice of 16 configurations, with a failed run whose error is markup."""
    folder = tmp_path_factory.mktemp("page")
    write_lattice(folder / "runs", seeds=2, epochs=6)
    write_run(folder / "runs" / "failed", None, record={"status": "failed", "error": EVIL})
    write_run(folder / "runs" / "evil", 0.6, record={"choices.model": EVIL}, changes={"model.blocks": 1})
    report = build([folder / "runs"], baseline="reg=none,model=vgg3")
    path = folder / "report.html"
    path.write_text(html(report, curves(report, MOST_ROWS, lambda note: None)))
    return path


def rendered(page: Path, fragment: str = "") -> str:
    """The page's markup after its script has run."""
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000"]
    command += [f"--user-data-dir={page.parent / 'browser'}", "--window-size=1200,900", "--dump-dom"]
    return subprocess.run(
        [*command, f"{page.as_uri()}{fragment}"], capture_output=True, text=True, timeout=120, check=True
    ).stdout


def test_nothing_comes_from_outside(page: Path) -> None:
    text = page.read_text()
    links = {"href", "src", "srcset", "action", "style", "background", "formaction", "poster", "data"}
    tags = Page(text).tags
    assert not [tag for tag, attributes in tags if links & attributes.keys()]
    assert not {tag for tag, _ in tags} & {"link", "iframe", "object", "embed", "img", "base", "form"}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    (policy,) = [attributes["content"] for tag, attributes in tags if "http-equiv" in attributes]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert set(re.findall(r"\w+://[^\s\"'`)]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, no request


def test_text_from_records_is_only_text(page: Path) -> None:
    text = page.read_text()
    assert [tag for tag, _ in Page(text).tags].count("script") == 2
    assert EVIL not in text
    (embedded,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert any(EVIL.replace("\\", "") in name for name in json.loads(embedded)["rows"])


def test_long_curves_are_thinned(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 0.8, epochs=999)
    (curve,) = curves(build([tmp_path]), 1, lambda note: None)
    kept = thinned(curve)
    assert len(kept["epochs"]) == len(kept["mean"]) == 200 == MOST_POINTS
    assert (kept["epochs"][-1], kept["mean"][-1]) == (999, 80.0)


def test_the_comparison_stands_before_the_costs(page: Path) -> None:
    titles = re.findall(r'<th scope="col"><button type="button">([^<]*)', page.read_text())
    comparison = ["difference", "95 % interval", "p (Holm)"]
    assert titles[5:] == [*comparison, "training", "epochs", "parameters"]
    (line,) = re.findall(r'<tr data-row="0">.*', page.read_text())
    values = re.findall(r"<td[^>]*>([^<]*)", line)
    assert values[4].startswith("+")
    assert values[7].endswith(" min")


@browser
def test_the_page_draws(page: Path) -> None:
    text = rendered(page)
    assert "<title>33 runs of 17 configurations</title>" in text
    # the first six and the baseline, of two seeds each
    assert text.count('class="line"') == text.count('class="band"') == 7
    assert text.count('class="front"') == 1
    points = text.count('class="point"')
    assert points == 17 + 4 * (8 + 1)  # of time; 8 steps and a mean for each regularizer
    text = rendered(page, "#rows=2,4&curves=2,4,10,90")
    assert text.count('class="line"') == 2


@browser
def test_the_page_answers_a_mouse(page: Path) -> None:
    text = page.read_text()
    without_policy = re.sub(r"<meta http-equiv[^>]*>", "", text)
    moved = page.with_name("moved.html")
    moved.write_text(without_policy.replace("</body>", f"<script>{MOUSE}</script></body>"))
    text = rendered(moved)
    assert "<title>33 runs" in text
    body = dict(Page(text).tags[[tag for tag, _ in Page(text).tags].index("body")][1])
    assert str(body["data-tip"]).startswith("epoch 6")
    assert str(body["data-tip"]).count(" %") == 7
    assert (body["data-zoomed"], body["data-reset"]) == ("true", "true")
    assert text.count('class="line"') == 1
    assert len(re.findall(r'<tr data-row="\d+" hidden', text)) == 17 - 4
    assert "reg=none" in str(body["data-fastest"])
