"""TensorBoard on the folder of a sweep, looked at in a real browser: Chromium, where there is one."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cifarlab.training import train

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in BROWSERS if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"none of {', '.join(BROWSERS)} is on the PATH")

CONF = Path(__file__).parents[1] / "conf"
QUICK = ["data=digits", "model=vgg1", "model.width=4", "model.dense=16", "optimizer=adam", "trainer=cpu"]
QUICK += ["trainer.max_epochs=2", "trainer.limit_train_batches=8", "logger.histograms=true", "export=none"]
RUNS = {
    "0_still": (["none"], "optimizer.lr=1e-9"),
    "1_learns": (["dropout", "flip"], "optimizer.lr=0.01"),
}
CELL = "vaadin-grid-cell-content:visible"  # of the HPARAMS page's table
PICTURES = ("confusion_matrix", "first_layer_filters", "first_training_batch", "most_confident_mistakes")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs in it."""
    folder = tmp_path_factory.mktemp("sweep")
    for name, (reg, rate) in RUNS.items():
        typed = [*QUICK, f"reg=[{','.join(reg)}]", rate]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = OmegaConf.to_container(compose("train", typed), resolve=True)
        (folder / name).mkdir()
        train(config, folder / name, typed, {"model": "vgg1", "reg": reg})
    return folder


@pytest.fixture(scope="module")
def address(sweep: Path) -> Iterator[str]:
    """TensorBoard on that folder, everything in it read."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", sweep, "--host=127.0.0.1", "--port=0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            url = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+/", line)))
            # the last figure in each file, right before the hyperparameters
            while sum("val/best_accuracy" in tags for tags in ask(url, "scalars", "tags").values()) < len(
                RUNS
            ):
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def ask(url: str, plugin: str, what: str) -> Any:
    with urlopen(f"{url}data/plugin/{plugin}/{what}", timeout=30) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as play:
        # root, as in a container, has no sandbox
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 2000, "height": 1000})  # so wide that no column is cut off
    page.set_default_timeout(60_000)
    playwright.expect.set_options(timeout=60_000)
    yield page
    page.close()


def see(page: Any, *texts: str) -> None:
    for text in texts:
        playwright.expect(page.get_by_text(text, exact=True).first).to_be_visible()


def test_scalars(page: Any, address: str) -> None:
    page.goto(f"{address}#scalars")
    see(page, "test/accuracy", "test/loss", "train/accuracy", "train/loss", "train/lr")
    page.get_by_text("val", exact=True).click()  # of the groups only the first two are open
    see(page, "val/accuracy", "val/loss")
    assert ask(address, "scalars", "tags").keys() == RUNS.keys()  # no run of its own for the hyperparameters


def test_training_and_validation_in_one_chart(page: Any, address: str) -> None:
    page.goto(f"{address}#custom_scalars")
    see(page, "training and validation", "cross-entropy (nats)", "accuracy", "learning rate")
    # both curves of both runs in the first two charts, one of each in the third
    playwright.expect(page.get_by_text("Matches (4)")).to_have_count(2)
    playwright.expect(page.get_by_text("Matches (2)")).to_have_count(1)


def test_pictures(page: Any, address: str) -> None:
    page.goto(f"{address}#images")
    for name in PICTURES:
        playwright.expect(page.get_by_text(f"tag: visual/{name}", exact=True)).to_have_count(2)
    images = page.locator("img[src*=individualImage]")
    playwright.expect(images).to_have_count(2 * len(PICTURES))
    page.wait_for_function("image => image.complete", arg=images.last.element_handle())
    assert min(images.evaluate_all("all => all.map(image => image.naturalWidth)")) > 500


def test_histograms(page: Any, address: str) -> None:
    page.goto(f"{address}#histograms")
    see(page, "tag: weights/0.weight", "tag: weights/2.bias")


def test_runs_sorted_by_their_test_accuracy(page: Any, address: str, sweep: Path) -> None:
    page.goto(f"{address}#hparams")
    header, *rows = table(page)
    # those that differ come first, then the others; of the figures the test's
    assert header[2:4] == ["optimizer.lr", "reg"]
    assert header[7:9] == ["test/accuracy", "test/loss"]
    for row, (name, (reg, _)) in zip(rows, RUNS.items(), strict=True):
        record = json.loads((sweep / name / "record.json").read_text())
        assert (row[0], row[3]) == (name, " + ".join(reg))
        assert float(row[7]) == pytest.approx(record["test"]["accuracy"], abs=1e-5)
    choose(page, "Sort by", "test/accuracy")
    for direction, first in (("Descending", "1_learns"), ("Ascending", "0_still")):
        choose(page, "Direction", direction)
        playwright.expect(page.locator(CELL).nth(len(header))).to_have_text(first)


def table(page: Any) -> list[list[str]]:
    """The HPARAMS page's column names, then its rows; it shows the run, a box, five keys and five figures."""
    width, lines = 12, 1 + len(RUNS)
    playwright.expect(page.locator(CELL)).to_have_count(width * lines)
    cells = [text.strip() for text in page.locator(CELL).all_inner_texts()]
    return [cells[width * line :][:width] for line in range(lines)]


def choose(page: Any, label: str, item: str) -> None:
    page.locator(f"paper-dropdown-menu[label='{label}']").click()
    page.locator("paper-item:visible").get_by_text(item, exact=True).click()
