"""`model.pt2` and `model.onnx`: the live network's probabilities, without this project; strangers' files."""

import io
import json
import logging
import re
import subprocess
import sys
import zipfile
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cifarlab.data.scaling import Whitening, make_scaling
from cifarlab.errors import RunFailed, UserError
from cifarlab.models.classifier import Classifier
from cifarlab.models.layers import ACTIVATIONS
from cifarlab.models.plain import VGG
from cifarlab.models.resnet import ResNet
from cifarlab.models.transfer import Normalize, Resize
from cifarlab.regularizers import Regularization
from cifarlab.regularizers.batch_norm import BatchNorm
from cifarlab.regularizers.dropout import Dropout
from cifarlab.runs import export
from cifarlab.runs import record as records

ROOT = Path(__file__).parents[2]
IMAGES = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
DATA: Any = SimpleNamespace(set=SimpleNamespace(train_images=IMAGES))
CLASSES = ["cat", "dog", "käfer"]


class Tiny(Classifier):
    """Whatever layers, from scaled images to three logits."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(num_classes=3, scaling=make_scaling("unit", IMAGES))
        self.net = nn.Sequential(*layers)
        self.classes = CLASSES


def write(folder: Path, model: Classifier, kind: str = "pt2") -> float | None:
    record = deepcopy(records.EMPTY) | {"epochs": 2}
    record["test"]["accuracy"] = 0.5
    return export.write(folder, model, DATA, {"export": kind, "resume": "x", "seed": 3}, record)


def probabilities(model: Classifier, images: Tensor) -> Tensor:
    with torch.no_grad():
        return deepcopy(model).eval()(images).softmax(1)


@pytest.fixture(scope="module")
def network() -> Classifier:
    """A network with all that differs between training and scoring."""
    torch.manual_seed(0)
    regularization = Regularization([BatchNorm(), Dropout(0.5)])
    model = VGG(1, 4, 8, num_classes=3, regularization=regularization, scaling=make_scaling("unit", IMAGES))
    model.classes = CLASSES
    model = model.to(memory_format=model.memory_format)
    model(IMAGES)  # moves the running statistics
    return model


@pytest.fixture(scope="module")
def folder(network: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert write(folder, network) == pytest.approx(0, abs=1e-6)
    return folder


def test_any_number_of_images_gets_the_networks_probabilities(network: Classifier, folder: Path) -> None:
    extra = {"meta.json": ""}
    program = torch.export.load(folder / "model.pt2", extra_files=extra).module()
    loaded, meta = export.load_exported(folder / "model.pt2")
    for size in (1, 2, 33):
        live = probabilities(network, IMAGES[:size])
        for found in (program(IMAGES[:size]), loaded(IMAGES[:size])):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, live, rtol=0, atol=1e-6)
    assert meta == json.loads(extra["meta.json"])
    assert (meta["classes"], meta["epochs"], meta["scores"]["test"]["accuracy"]) == (CLASSES, 2, 0.5)
    assert meta["config"] == {"export": "pt2", "resume": None, "seed": 3}


def test_the_file_holds_no_pickle_and_no_path_of_this_machine(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.pt2") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert [name for name, content in members.items() if name.endswith(".pt") and content] == []
    assert [name for name, content in members.items() if str(ROOT).encode() in content] == []


def test_the_network_stays_as_it_is(network: Classifier, tmp_path: Path) -> None:
    model = deepcopy(network).train()
    model.net[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    write(tmp_path, model)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(parameter.requires_grad for parameter in model.parameters())
    for (name, now), before in zip(model.state_dict().items(), network.state_dict().values(), strict=True):
        assert torch.equal(now, before), name
        assert now.stride() == before.stride(), name


@pytest.mark.parametrize("scaling", ["center", "standardize", "whiten", "raw"])
def test_every_scaling(tmp_path: Path, scaling: str) -> None:
    model = Tiny(nn.Flatten(), nn.Linear(3072, 3))
    if scaling == "whiten":  # with a matrix of any values, for the real one takes seconds
        model.scaling = Whitening(torch.rand(3072), torch.randn(3072, 3072) / 100)
    else:
        model.scaling = make_scaling(scaling, IMAGES)
    assert write(tmp_path, model) == pytest.approx(0, abs=1e-6)


def test_every_activation(tmp_path: Path) -> None:
    layers = [activation() for activation in ACTIVATIONS.values()]
    model = Tiny(nn.Conv2d(3, 2, 3, stride=4), *layers, nn.Flatten(), nn.Linear(128, 3))
    assert write(tmp_path, model) == pytest.approx(0, abs=1e-6)


def test_a_residual_network(tmp_path: Path) -> None:
    model = ResNet([4, 8], [1, 1], "identity", num_classes=3, scaling=make_scaling("unit", IMAGES))
    model = model.to(memory_format=model.memory_format)
    assert write(tmp_path, model) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("size", [24, 48])
def test_a_network_that_resizes(tmp_path: Path, size: int) -> None:
    layers = [Normalize(), Resize(size), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)]
    assert write(tmp_path, Tiny(*layers)) == pytest.approx(0, abs=1e-6)


class Branching(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


def test_what_cannot_be_traced_is_said_and_leaves_no_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert write(tmp_path, Tiny(Branching())) is None
    assert "could not be exported" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_difference_is_measured_and_said(
    network: Classifier, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = lambda images: probabilities(network, images) + 0.25  # noqa: E731
    monkeypatch.setattr(export, "networks", lambda *_: [off])
    with caplog.at_level(logging.WARNING):
        assert write(tmp_path, network) == pytest.approx(0.25, abs=1e-6)
    assert "differ from the run's by up to 2.5e-01" in caplog.text


def test_nan_fails_the_run_and_leaves_no_file(tmp_path: Path) -> None:
    model = Tiny(nn.Flatten(), nn.Linear(3072, 3))
    model.net[1].weight.data.fill_(torch.nan)
    with pytest.raises(RunFailed, match="NaN"):
        write(tmp_path, model)
    assert list(tmp_path.iterdir()) == []


def test_export_none_writes_nothing(network: Classifier, tmp_path: Path) -> None:
    assert write(tmp_path, network, "none") is None
    assert list(tmp_path.iterdir()) == []


def test_onnx(network: Classifier, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert write(tmp_path, network, "onnx") == pytest.approx(0, abs=1e-5)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for size in (1, 33):
        (found,) = session.run(["probabilities"], {"images": IMAGES[:size].numpy()})
        np.testing.assert_allclose(found, probabilities(network, IMAGES[:size]), rtol=0, atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["meta.json"])["classes"] == CLASSES
    assert (tmp_path / "model.pt2").is_file()


def test_onnx_without_its_packages_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name.startswith("onnxs") else name)
    export.require("pt2")
    with pytest.raises(UserError, match=r"export=onnx needs onnxscript: pip install -e '\.\[onnx\]'"):
        export.require("onnx")


# ------------------------------------------------------------------------------------- strangers' files


@pytest.fixture(scope="module")
def members(folder: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(folder / "model.pt2") as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def pack(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"model/{name}", content)
    return path


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.path,)


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


PROGRAM, WEIGHTS, CONSTANTS = (
    "models/model.json",
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)
# each puts Python where torch.export.load would run it: a pattern in a member, what takes its place
CODE = {
    "expression": (PROGRAM, r"Symbol\([^)]*\)", "PYTHON"),
    "guard": (PROGRAM, r'"name": "images"', '"name": "images=PYTHON"'),
    "operator": (PROGRAM, r"torch\.ops\.aten\.relu_?\.default", "torch.os.mkdir"),
    "method": (PROGRAM, r"torch\.ops\.aten\.relu_?\.default", "torch.ops.load_library"),
    "file": (PROGRAM, '"as_string": "same"', '"as_string": "train.py"'),
    "pickled weights": (WEIGHTS, '"use_pickle": false', '"use_pickle": true'),
    "pickled object": (WEIGHTS, '"weight_0"', '"../custom_obj_0"'),
}


@pytest.mark.parametrize("place", CODE)
def test_code_in_a_strangers_file_is_refused(members: dict[str, bytes], tmp_path: Path, place: str) -> None:
    member, pattern, python = CODE[place]
    code = python.replace("PYTHON", f"__import__('os').mkdir('{tmp_path}/ran')")
    text, changes = re.subn(pattern, lambda _: code, members[member].decode())
    assert changes
    path = pack(tmp_path / "model.pt2", members | {member: text.encode()})
    with pytest.raises(UserError, match=r"which no run writes|weights are pickled"):
        export.load_exported(path)
    assert not (tmp_path / "ran").exists()


def test_a_large_text_in_a_strangers_file_is_not_read(members: dict[str, bytes], tmp_path: Path) -> None:
    blank = b" " * (export.LARGEST_JSON + 1)
    with pytest.raises(UserError, match=r"its models/model.json has more than 20,000,000 bytes"):
        export.load_exported(pack(tmp_path / "model.pt2", members | {PROGRAM: blank}))


def test_pickles_and_libraries_in_a_strangers_file_are_left_alone(
    members: dict[str, bytes], folder: Path, tmp_path: Path
) -> None:
    bomb = pickled(Bomb(tmp_path / "ran"))
    places = ("data/sample_inputs/model.pt", "data/weights/model.pt", "data/constants/model.pt")
    guards = json.loads(members[PROGRAM]) | {"guards_code": [f"__import__('os').mkdir('{tmp_path}/ran')"]}
    library = {"data/aotinductor/model/model.so": b"\x7fELF"}
    changed = dict.fromkeys(places, bomb) | library | {PROGRAM: json.dumps(guards).encode()}
    network, _ = export.load_exported(pack(tmp_path / "model.pt2", members | changed))
    assert torch.equal(network(IMAGES), export.load_exported(folder / "model.pt2")[0](IMAGES))
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_exported_network(members: dict[str, bytes], folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"

    def answer() -> str:
        with pytest.raises(UserError) as refusal:
            export.load_exported(path)
        assert str(refusal.value).startswith(str(path))
        return str(refusal.value).removeprefix(str(path))

    assert answer() == ": there is no such file; expected a run's model.pt2."
    whole = (folder / "model.pt2").read_bytes()
    for content in (b"", b"a text", whole[:5000], pickled({"a": 1})):
        path.write_bytes(content)
        assert answer().startswith(" cannot be read as a run's model.pt2")
    pack(path, members, zipfile.ZIP_DEFLATED)
    assert "is compressed" in answer()
    pack(path, {name: content for name, content in members.items() if "meta" not in name})
    assert answer().endswith("it has no extra/meta.json.")
    for meta, reason in (
        ({"classes": 3}, "its meta.json does not name the classes."),
        ({"classes": ["one", "two"]}, "it does not give 2 probabilities for an image."),
        ([], "(TypeError)."),
    ):
        pack(path, members | {"extra/meta.json": json.dumps(meta).encode()})
        assert answer().endswith(reason)


# ---------------------------------------------------------------------------------------------- README

# runs a snippet where neither this project nor torchvision can be imported
ALONE = "import sys; sys.modules |= dict.fromkeys(('cifarlab', 'torchvision')); exec(sys.stdin.read())"


def test_the_readmes_snippet_labels_an_image_with_torch_alone(
    network: Classifier, folder: Path, tmp_path: Path
) -> None:
    section = (ROOT / "README.md").read_text().partition("## Handing the model on\n")[2].partition("\n## ")[0]
    snippet = re.search(r"```python\n(#.*?)```", section, re.S)
    assert snippet is not None
    assert len([line for line in snippet[1].splitlines() if line and not line.startswith("#")]) <= 5
    (tmp_path / "model.pt2").symlink_to(folder / "model.pt2")
    Image.fromarray(IMAGES[5].permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    command = [sys.executable, "-c", ALONE]
    said = subprocess.run(command, input=snippet[1], cwd=tmp_path, capture_output=True, text=True, check=True)
    best = probabilities(network, IMAGES[5:6])[0].max(0)
    name, probability = said.stdout.split()
    assert name == CLASSES[best.indices]
    assert float(probability) == pytest.approx(best.values.item(), abs=1e-6)
    assert said.stderr == ""
