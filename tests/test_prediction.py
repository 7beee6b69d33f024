"""`predict.py` as a user meets it: the live network's labels, the files it writes, its exit codes."""

from __future__ import annotations

import csv
import inspect
import io
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from commands import Command
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cifarlab import prediction
from cifarlab.data.scaling import make_scaling
from cifarlab.models.classifier import Classifier
from cifarlab.runs import export
from cifarlab.runs import record as records
from cifarlab.runs.checkpoints import save_weights

ROOT = Path(__file__).parents[1]
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "esc\x1b[31m"]
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


class Run(NamedTuple):
    folder: Path
    model: Classifier

    def best(self, pixels: np.ndarray, top: int) -> list[tuple[str, float]]:
        """The live network's classes and probabilities for uint8 (32, 32, 3)."""
        with torch.no_grad():
            logits = self.model(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])[0]
        found = logits.softmax(0).sort(descending=True)
        names = [CLASSES[k].replace("\x1b", "\\x1b") for k in found.indices]
        return list(zip(names, found.values.tolist(), strict=True))[:top]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run's folder with random weights: what a network says is tested here, not whether it is right."""
    folder = tmp_path_factory.mktemp("run")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        small = ["data=digits", "model=vgg1", "model.width=4", "model.dense=16"]
        config: Any = OmegaConf.to_container(compose("train", small), resolve=True)
    torch.manual_seed(0)
    images = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    model = instantiate(config["model"], num_classes=10, scaling=make_scaling("unit", images)).eval()
    model.classes = CLASSES
    torch.nn.init.normal_(model.net[-1].weight)  # decided answers
    record = records.new(config, {})
    record["data"]["num_classes"], record["environment"]["precision"] = 10, "32-true"
    record["data"]["fingerprint"], record["status"] = "0", "done"
    records.write(folder, record)
    records.write_config(folder, config)
    save_weights(model, folder / "weights.safetensors")
    data: Any = SimpleNamespace(set=SimpleNamespace(train_images=images))
    export.write(folder, model, data, config, record)
    return Run(folder, model)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of twelve images, to work beside."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(f"photos/{number:02}.png")
    return Path("photos")


@pytest.fixture
def predict(command: Command) -> Command:
    return partial(command, ROOT / "predict.py")


def from_json(name: str) -> list[tuple[str, list[tuple[str, float]] | str]]:
    rows = json.loads(Path(name).read_text())
    return [
        (
            row["file"],
            row["error"] if "error" in row else [(c["class"], c["probability"]) for c in row["top"]],
        )
        for row in rows
    ]


def from_csv(name: str, top: int) -> list[tuple[str, list[tuple[str, float]] | str]]:
    with open(name, newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        (
            row["file"],
            row["error"] or [(row[f"class_{k}"], float(row[f"probability_{k}"])) for k in range(1, top + 1)],
        )
        for row in rows
    ]


def same(found: list[tuple[str, float]] | str, expected: list[tuple[str, float]]) -> None:
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert [value for _, value in found] == pytest.approx([value for _, value in expected], abs=2e-6)


@pytest.mark.parametrize("kind", ["folder", "model.pt2"])
def test_images_get_the_live_networks_probabilities(
    run: Run, photos: Path, predict: Command, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(prediction, "BATCH", 5)  # 12 images are two batches and a rest
    source = run.folder if kind == "folder" else run.folder / kind
    answer = predict(f"run={source}", "images=photos", "out=new/a.json", "top=4")
    assert (answer.code, answer.err) == (0, "")
    found = from_json("new/a.json")
    assert [name for name, _ in found] == [f"photos/{number:02}.png" for number in range(12)]
    for pixels, (_, best) in zip(PIXELS, found, strict=True):
        same(best, run.best(pixels, 4))
    assert predict(f"run={source}", "images=photos", "out=a.csv", "top=20").code == 0
    for pixels, (_, best) in zip(PIXELS, from_csv("a.csv", 10), strict=True):
        same(best, run.best(pixels, 10))  # there are no more


def test_the_table_is_read_at_a_glance(run: Run, photos: Path, predict: Command) -> None:
    Image.fromarray(PIXELS[0]).save("写真.png")
    lines = predict(f"run={run.folder}", "images=['写真.png',photos/01.png]", "top=2").out.splitlines()
    assert lines[0].split() == ["file", "1", "2"]
    for line, name, pixels in zip(lines[1:], ("写真.png     ", "photos/01.png"), PIXELS, strict=False):
        cells = [f"{label:<11} {value:7.1%}" for label, value in run.best(pixels, 2)]
        assert line == "  ".join([name, *cells])
    assert lines[3].startswith("2 images labelled in ")
    assert len(lines) == 4


def test_what_a_file_holds_in_full_is_shown_in_part(run: Run, photos: Path, predict: Command) -> None:
    names = ",".join(["photos"] * 2)
    lines = predict(f"run={run.folder}", f"images=[{names}]", "out=a.csv").out.splitlines()
    assert [line.split()[0] for line in lines[19:22]] == ["photos/06.png", "photos/07.png", "..."]
    assert lines[21] == "... and 4 more"
    assert len(predict(f"run={run.folder}", f"images=[{names}]").out.splitlines()) == 26


def test_how_pictures_are_fitted_can_be_chosen(run: Run, photos: Path, predict: Command) -> None:
    wide = np.hstack([PIXELS[0], PIXELS[1], PIXELS[2]])
    Image.fromarray(wide).save("wide.png")
    predict(f"run={run.folder}", "images=wide.png", "out=a.json", "fit=crop")
    same(from_json("a.json")[0][1], run.best(PIXELS[1], 3))


def test_a_gallery_shows_the_first_hundred(
    run: Run, photos: Path, predict: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[torch.Tensor, list[str], str]] = []
    original = prediction.draw_gallery

    def draw(path: Path, predictions: list, count: int) -> None:
        original(path, predictions, count)
        drawn.append((prediction.stacked(predictions), [p.path.name for p in predictions], str(count)))

    monkeypatch.setattr(prediction, "draw_gallery", draw)
    monkeypatch.setattr(prediction, "PICTURES", 5)
    answer = predict(f"run={run.folder}", "images=photos", "gallery=a.png")
    assert "Pictures of the first 5 in a.png." in answer.out
    assert torch.equal(drawn[0][0], torch.from_numpy(PIXELS[:5]).permute(0, 3, 1, 2))
    assert drawn[0][1:] == ([f"0{number}.png" for number in range(5)], "12")
    with Image.open("a.png") as image:
        assert image.width > 5 * 32


def test_bad_files_do_not_stop_the_others(
    run: Run, photos: Path, predict: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "BATCH", 5)
    Path("photos/03.png").write_text("text")
    Path("photos/05.png").unlink()
    Path("photos/05.png").symlink_to("nowhere")
    answer = predict(f"run={run.folder}", "images=[photos,gone.png,photos/00.png]", "out=a.csv")
    assert answer.code == 1
    reasons = {
        "photos/03.png": "no PNG, JPEG, WebP, GIF, BMP or TIFF, or its beginning is damaged",
        "photos/05.png": "a link to nothing",
        "gone.png": "there is no such file",
    }
    assert answer.err.splitlines() == [
        "3 of 14 files could not be labelled:",
        *(f"  {name}: {reason}" for name, reason in reasons.items()),
    ]
    found = from_csv("a.csv", 3)
    assert {name: said for name, said in found if isinstance(said, str)} == reasons
    assert [len(said) for _, said in found if not isinstance(said, str)] == [3] * 11
    assert "11 images labelled" in answer.out
    predict(f"run={run.folder}", "images=[photos/03.png,photos/00.png]", "out=a.json")
    assert from_json("a.json")[0] == ("photos/03.png", reasons["photos/03.png"])


def test_only_bad_files_are_a_mistake(run: Run, photos: Path, predict: Command) -> None:
    for number in range(12):
        Path(f"photos/{number:02}.png").write_bytes(b"")
    answer = predict(f"run={run.folder}", "images=photos", "gallery=a.png")
    assert (answer.code, answer.out) == (2, "")
    first = "photos/00.png: 0 bytes; expected 1 byte to 1 GiB"
    assert answer.err == f"{first}, and no other of the 12 files can be labelled.\n"
    assert not Path("a.png").exists()
    alone = predict(f"run={run.folder}", "images=photos/00.png")
    assert (alone.code, alone.err) == (2, "photos/00.png: 0 bytes; expected 1 byte to 1 GiB.\n")


def test_weights_that_are_no_numbers_label_nothing(
    run: Run, photos: Path, tmp_path: Path, predict: Command
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.folder, copy)
    classes = safe_open(copy / "weights.safetensors", "pt").metadata()
    weights = load_file(copy / "weights.safetensors")
    weights["net.0.bias"][:] = float("nan")
    save_file(weights, copy / "weights.safetensors", metadata=classes)
    Image.new("RGB", (32, 32)).save("photos/good.png")
    answer = predict(f"run={copy}", "images=photos/good.png", "out=labels.json")
    assert (answer.code, answer.out) == (2, "")
    assert "probabilities that are NaN" in answer.err
    assert not Path("labels.json").exists()


def test_what_is_there_is_not_overwritten(run: Run, photos: Path, predict: Command) -> None:
    Image.new("RGB", (32, 32)).save("photos/good.png")
    Path("link").symlink_to("photos", target_is_directory=True)
    before = Path("photos/good.png").read_bytes()
    answer = predict(f"run={run.folder}", "images=photos", "gallery=link/good.png")
    assert (answer.code, Path("photos/good.png").read_bytes()) == (2, before)
    own = f"out={run.folder}/record.json"
    assert "a file of the run's own" in predict(f"run={run.folder}", "images=photos", own).err


def test_names_do_no_harm(run: Run, photos: Path, predict: Command) -> None:
    names = ["a\nb.png", "c\x1b[31m.png", 'd",e.png', "f\udcff.png", "g\u202e.png"]
    for path in photos.iterdir():
        path.unlink()
    for name in names:
        Image.fromarray(PIXELS[0]).save(photos / name)
    (photos / "h\n.png").write_text("text")
    shown = ["a\\nb.png", "c\\x1b[31m.png", 'd",e.png', "f\\udcff.png", "g\\u202e.png", "h\\n.png"]
    answer = predict(f"run={run.folder}", "images=photos", "out=a.csv", "gallery=a.png")
    assert [line.split()[0] for line in answer.out.splitlines()[1:6]] == [
        f"photos/{name}" for name in shown[:5]
    ]
    assert answer.err.splitlines()[1].startswith("  photos/h\\n.png: ")
    assert all(character.isprintable() or character == "\n" for character in answer.out + answer.err)
    assert [name for name, _ in from_csv("a.csv", 3)] == [f"photos/{name}" for name in shown]
    assert len(Path("a.csv").read_text().splitlines()) == 7
    predict(f"run={run.folder}", "images=photos", "out=a.json")
    assert [name for name, _ in from_json("a.json")] == [f"photos/{name}" for name in [*names, "h\n.png"]]


def test_names_on_stdin(run: Run, photos: Path, predict: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = b"photos/07.png\nphotos\nphotos/02.png\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
    answer = predict(f"run={run.folder}", "images=-", "out=a.json")
    assert answer.code == 1
    assert [name for name, _ in from_json("a.json")] == ["photos/07.png", "photos", "photos/02.png"]
    assert from_json("a.json")[1][1] == "a folder, not an image, or one without images"


def test_the_yaml_has_the_functions_arguments_and_defaults() -> None:
    node = OmegaConf.load(ROOT / "conf/predict.yaml")
    for name, parameter in inspect.signature(prediction.predict).parameters.items():
        needed = parameter.default is inspect.Parameter.empty
        assert OmegaConf.is_missing(node, name) == needed
        assert needed or node[name] == parameter.default
    assert {*node} == {*inspect.signature(prediction.predict).parameters, "defaults", "hydra"}


SENTENCES = {
    "images=photos": "run is missing: give it by run=...",
    "run=photos": "images is missing: give it by images=...",
    "run=gone images=photos": "run=gone: there is no such folder or file; expected a run's, or",
    "run=photos images=gone*": "images=gone* names nothing; expected an image file, a folder, a pattern",
    "run=photos images=[]": "images=[] names nothing; expected an image file, a folder,",
    "run=photos images=empty": "images=empty: that folder holds no PNG, JPEG, WebP, GIF, BMP or TIFF files;",
    "run=photos images=photos out=a.txt": "out=a.txt: expected the name of a .csv or .json file.",
    "run=photos images=photos out=csv": "out=csv: expected the name of a .csv or .json file.",
    "run=photos images=photos gallery=a.jpg": "gallery=a.jpg: expected the name of a .png file.",
    "run=photos images=photos out=taken/a.csv": "out=taken/a.csv: its folder cannot be made (",
    "run=photos images=photos gallery=folder.png": "gallery=folder.png cannot be written; name another file.",
    "run=photos images=photos top=0": "top=0: expected a whole number of 1 or more.",
    "run=photos images=photos fit=squash": "fit=squash: expected one of stretch, crop, pad.",
    "run=photos images=photos fir=crop": "fir: the configuration has no key 'fir'; did you mean 'fit'?",
    "run=photos images=photos -m": "predict.py does one thing at a time: leave out -m.",
    "run=taken.pt2 images=photos weights=best": "weights=best needs a run's folder: taken.pt2 holds the",
    "run=taken.pt2 images=photos accelerator=gpu": "accelerator=gpu needs a run's folder: taken.pt2 holds",
}


@pytest.mark.parametrize("typed, sentence", SENTENCES.items(), ids=SENTENCES)
def test_a_mistake_gets_one_sentence_at_once(
    photos: Path, predict: Command, monkeypatch: pytest.MonkeyPatch, typed: str, sentence: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    Path("empty").mkdir()
    Path("folder.png").mkdir()
    Path("taken").touch()
    Path("taken.pt2").touch()
    answer = predict(*typed.split(" "))
    assert (answer.code, answer.out) == (2, "")
    (said,) = answer.err.splitlines()
    assert said.startswith(sentence)
    assert said.endswith(".") or said.endswith("?")


def test_a_run_that_is_none(photos: Path, predict: Command) -> None:
    for name, sentence in {
        "photos": "photos is no run folder",
        "photos/00.png": "run=photos/00.png: expected a run's folder, or its model.pt2.",
    }.items():
        answer = predict(f"run={name}", "images=photos", "out=a.csv")
        assert (answer.code, answer.out) == (2, "")
        assert answer.err.startswith(sentence)
        assert not Path("a.csv").exists()


def test_an_image_is_not_overwritten(run: Run, photos: Path, predict: Command) -> None:
    before = Path("photos/04.png").read_bytes()
    answer = predict(f"run={run.folder}", "images=photos", "gallery=photos/04.png", "out=a.csv")
    assert answer.code == 2
    assert answer.err == "photos/04.png is one of the images and would be overwritten: name another file.\n"
    assert Path("photos/04.png").read_bytes() == before
    assert not Path("a.csv").exists()


def test_the_command_in_a_process_of_its_own(run: Run, photos: Path) -> None:
    Path("photos/03.png").write_text("text")
    done = subprocess.run(
        [sys.executable, str(ROOT / "predict.py"), f"run={run.folder}/model.pt2", "images=photos", "top=1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 13
    assert done.stderr.startswith("1 of 12 files could not be labelled:\n  photos/03.png: no PNG")
    assert {path.name for path in Path().iterdir()} == {"photos"}
