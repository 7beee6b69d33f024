"""Runs made to hurt whoever opens them: one sentence, nothing run, nothing outside touched, little memory.

Each command is a process of its own whose address space may grow by a gigabyte; a payload that ran would
leave a file behind.
"""

import json
import os
import pickle
import re
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import QUICK
from processes import finish, start
from synthetic import write_run

from cifarlab.report.command import main as report
from cifarlab.sweeps.folders import Finder, sweep_folder
from cifarlab.untrusted import FILES, FOLDERS, HARMFUL

ROOM = 2**30  # bytes by which a command's address space may grow
CONF = Path(__file__).parents[2] / "conf"
SECRET = "the-secret-of-the-environment"


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


class Evaluated(Code):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({self.marker!r}, 'w')",)


def little_room() -> None:
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + ROOM, held + ROOM))
    os.environ["A_SECRET"] = SECRET


def answer(place: Path, script: str, *arguments: str) -> tuple[int | None, str]:
    """The exit code and all that was said, within a minute."""
    output = place / "output.txt"
    output.write_text("")
    process = start(place, *arguments, script=script, output=output, before=little_room)
    process.join(60)
    if process.exitcode is None:
        process.kill()
    return process.exitcode, output.read_text(errors="replace")


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run in it that nobody changes."""
    place = tmp_path_factory.mktemp("origin")
    shutil.copytree(CONF, place / "conf")
    options = ["export=pt2", "reg=[dropout,flip]", "hydra.run.dir=run"]
    assert finish(place, *(o for o in QUICK if not o.startswith("export")), *options) == 0
    return place


def lay(node: Any, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        node = node[parent]
    node[last] = value


def configured(key: str, value: Any) -> Callable[[Path, str], None]:
    """A change of the configuration; MARKER in it becomes the payload's file."""

    def change(run: Path, marker: str) -> None:
        config = yaml.safe_load((run / "config.yaml").read_text())
        lay(config, key, json.loads(json.dumps(value).replace("MARKER", marker)))
        (run / "config.yaml").write_text(yaml.safe_dump(config))

    return change


def written(name: str, content: str | bytes) -> Callable[[Path, str], None]:
    def change(run: Path, marker: str) -> None:
        text = content.replace("MARKER", marker) if isinstance(content, str) else content
        (run / name).write_bytes(text.encode() if isinstance(text, str) else text)

    return change


def recorded(key: str, value: Any) -> Callable[[Path, str], None]:
    def change(run: Path, marker: str) -> None:
        record = json.loads((run / "record.json").read_text())
        lay(record, key, value)
        (run / "record.json").write_text(json.dumps(record))

    return change


def link(name: str, target: str) -> Callable[[Path, str], None]:
    def change(run: Path, marker: str) -> None:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(target)

    return change


def sparse(name: str, head: bytes = b"") -> Callable[[Path, str], None]:
    """A file of 10 GB that takes no room."""

    def change(run: Path, marker: str) -> None:
        with open(run / name, "wb") as file:
            file.write(head)
            file.truncate(10**10)

    return change


def pipe(name: str) -> Callable[[Path, str], None]:
    def change(run: Path, marker: str) -> None:
        (run / name).unlink()
        os.mkfifo(run / name)

    return change


WEIGHTS = ("weights.safetensors", "checkpoints/last.ckpt", "checkpoints/best.ckpt")


def placed(name: str, make: Callable[[Path, str], object]) -> Callable[[Path, str], None]:
    """Something else in the place of a file or folder of the run."""

    def change(run: Path, marker: str) -> None:
        path = run / name
        path.parent.mkdir(exist_ok=True)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        make(path, marker)

    return change


def weights(make: Callable[[Path, str], None]) -> Callable[[Path, str], None]:
    """The same file as every checkpoint; no weights.safetensors, so that it counts."""

    def change(run: Path, marker: str) -> None:
        make(run / WEIGHTS[1], marker)
        for name in (WEIGHTS[0], WEIGHTS[2]):
            (run / name).unlink()
        os.link(run / WEIGHTS[1], run / WEIGHTS[2])  # a copy of a sparse file would take room

    return change


def archived(kind: str) -> Callable[[Path, str], None]:
    """A checkpoint whose archive is made to hurt."""

    def make(path: Path, marker: str) -> None:
        whole = torch.load(path, weights_only=True)
        if kind in ("reduce", "eval", "nested"):
            code: Any = Evaluated(marker) if kind == "eval" else Code(marker)
            torch.save(whole | {"classes": {"a": [code]} if kind == "nested" else code}, path)
        elif kind == "raw pickle":
            path.write_bytes(pickle.dumps(Code(marker)))
        elif kind == "old pickle":
            torch.save(whole | {"classes": Code(marker)}, path, _use_new_zipfile_serialization=False)
        elif kind == "sparse tensor":
            indices = torch.tensor([[10**9]])
            torch.save(whole | {"classes": torch.sparse_coo_tensor(indices, [1.0], (2**40,))}, path)
        elif kind == "expanded":
            state = {name: torch.ones(1).expand(10**12) for name in whole["state_dict"]}
            torch.save(whole | {"state_dict": state}, path)
        elif kind == "bomb":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("archive/data.pkl", b"\0" * 10**8)
        elif kind == "outside":
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr("../../" * 20 + marker.lstrip("/"), b"x")
        elif kind == "many":
            with zipfile.ZipFile(path, "w") as archive:
                for number in range(100_002):
                    archive.writestr(f"{number}", b"")
        else:  # a tensor that begins behind its storage
            with zipfile.ZipFile(path) as archive:
                entries = {info.filename: archive.read(info) for info in archive.infolist()}
            name = next(name for name in entries if name.endswith("data.pkl"))
            old, new = b"QK\x00", b"QJ\xff\xff\xff\x7f"
            place = entries[name].index(old)
            entries[name] = entries[name][:place] + new + entries[name][place + len(old) :]
            with zipfile.ZipFile(path, "w") as archive:
                for entry, content in entries.items():
                    archive.writestr(entry, content)

    return weights(make)


def tampered(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, str], None]:
    """A checkpoint of plain values, of which some are not what a run saves."""

    def make(path: Path, marker: str) -> None:
        whole = torch.load(path, weights_only=True)
        change(whole)
        torch.save(whole, path)

    return weights(make)


def laughs() -> list[Any]:
    """A few lists that stand for 10**12 values."""
    value: list[Any] = [0] * 10
    for _ in range(11):
        value = [value] * 10
    return value


def header(claim: dict[str, Any], length: int | None = None) -> bytes:
    """A safetensors file with that header, and hardly any data."""
    text = json.dumps(claim).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + b"\0" * 64


RUNNING = {"_target_": "os.system", "_args_": ["touch MARKER"]}
PARTS = {"shape": [10**12], "data_offsets": [0, 4 * 10**12]}
CONFIGURATIONS = {
    **{f"{key} is os.system": configured(key, RUNNING) for key in ("model", "data", "reg.dropout")},
    "a target inside": configured(
        "reg.x", {"_target_": "cifarlab.regularizers.affine.Composed", "parts": [RUNNING]}
    ),
    "a target in a helper": configured(
        "data", {"_target_": "cifarlab.data.scaling.ChannelScaling", "mean": RUNNING, "std": 1}
    ),
    "a target in a value": configured("model.width", RUNNING),
    "no model but its base": configured("model", {"_target_": "cifarlab.models.classifier.Classifier"}),
    "no regularizer": configured("reg", {"x": {"_target_": "cifarlab.regularizers.base.Penalty"}}),
    "no data": configured("data", {"_target_": "cifarlab.data.module.Batches", "images": 9, "batch_size": 9}),
    "a target by path": configured("model._target_", "cifarlab.models./tmp/evil.X"),
    "a long target": configured("model._target_", "cifarlab.models." + "a" * 2_000),
    "Hydra's keys": configured("model._args_", [RUNNING]),
    "environment in a path": configured("model.activation", "${oc.env:A_SECRET}"),
    "environment in a key": configured("reg", {"${oc.env:A_SECRET}": 1}),
    "a resolver": configured("seed", "${oc.decode:'1'}"),
    "a Python object": written("config.yaml", "seed: !!python/object/apply:os.system ['touch MARKER']\n"),
    "aliases": written("config.yaml", "a: &a [x, x]\nb: &b [*a, *a]\n"),
    "deep nesting": written("config.yaml", "a: " + "[" * 50_000),
    "many parts": written("config.yaml", "a: [" + "x," * 1_900_000 + "]"),
    "a long number": written("config.yaml", "seed: " + "1:" * 90_000 + "1"),
    "a huge number": configured("model.width", 10**30),
    "a huge network": configured("model.width", 10**6),
    "a huge seed": written("config.yaml", "seed: 0x" + "f" * 4_000),
    "a large configuration": sparse("config.yaml"),
    "a device as configuration": link("config.yaml", "/dev/zero"),
    "a pipe as configuration": pipe("config.yaml"),
}
RECORDS = {
    "a large record": sparse("record.json"),
    "a deep record": written("record.json", "[" * 100_000),
    "a device as record": link("record.json", "/dev/zero"),
    "memory as record": link("record.json", "/proc/self/mem"),
    "a pipe as record": pipe("record.json"),
    "a loop as record": link("record.json", "record.json"),
    "no text": written("record.json", b"\xff\xfe"),
    **{
        f"record {key}": recorded(key, value)
        for key, value in {
            "schema": 2,
            "status": ["\x1b[2J"],
            "epochs": "many",
            "overrides": "\x1b]0;title\x07",
            "choices": [1],
            "choices.model": {"a": 1},
            "val": None,
            "val.accuracy": 10**400,
            "test": "<script>",
        }.items()
    },
}
CHECKPOINTS = {
    **{
        kind: archived(kind)
        for kind in (
            "reduce",
            "eval",
            "nested",
            "raw pickle",
            "old pickle",
            "sparse tensor",
            "expanded",
            "bomb",
            "outside",
            "many",
            "offset",
        )
    },
    "a large checkpoint": weights(lambda path, marker: sparse(path.name)(path.parent, marker)),
    "checkpoints elsewhere": lambda run, marker: (
        link("checkpoints", "/etc")(run, marker),
        (run / WEIGHTS[0]).unlink(),
    ),
}
TENSORS = {
    "a header of 10 GB": written(WEIGHTS[0], header({}, 10**10)),
    "a header beyond the file": written(WEIGHTS[0], header({}, 1_000)),
    "offsets outside": written(WEIGHTS[0], header({"a": {"dtype": "F32", **PARTS}})),
    "offsets that overlap": written(
        WEIGHTS[0], header({n: {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]} for n in "ab"})
    ),
    "a type of its own": written(WEIGHTS[0], header({"a": {"dtype": "os.system", **PARTS}})),
    "large tensors": sparse(WEIGHTS[0], header({})),
}
ENTRIES = {
    f"{kind} as {name}": placed(name, make)
    for name in (*FILES, *FOLDERS, "events.out.tfevents.1")
    for kind, make in {
        "a link to a file": lambda path, marker: path.symlink_to(marker),
        "a link to a folder": lambda path, marker: path.symlink_to("/etc"),
        "a pipe": lambda path, marker: os.mkfifo(path),
        "another": lambda path, marker: path.mkdir() if path.suffix else path.touch(),
    }.items()
}
RESUMED = {
    "small moments": tampered(lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.ones(1))),
    "no moments": tampered(lambda c: c["optimizer_states"][0]["state"][0].popitem()),
    "moments of numbers": tampered(lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=1.0)),
    "no step": tampered(lambda c: c["optimizer_states"][0]["state"][0].update(step="x")),
    "a rate of text": tampered(lambda c: c["optimizer_states"][0]["param_groups"][0].update(lr="x")),
    "a schedule of text": tampered(lambda c: c.update(lr_schedulers=[{"last_epoch": "x"}])),
    "loops of text": tampered(
        lambda c: c["loops"]["fit_loop"]["epoch_progress"]["current"].update(ready="x")
    ),
    "no loops": tampered(lambda c: c.update(loops={})),
    "a strange column": tampered(lambda c: c["callbacks"]["RunRecord"]["history"][0].update(x=1)),
    "a history of text": tampered(lambda c: c["callbacks"]["RunRecord"].update(history="ab")),
    "no seconds": tampered(lambda c: c["callbacks"]["RunRecord"]["history"][0].update(seconds=None)),
    "no best": tampered(lambda c: c["callbacks"]["RunRecord"].update(best={})),
    "a best of text": tampered(lambda c: c["callbacks"]["RunRecord"]["best"].update(epoch="x")),
    "scores of text": tampered(
        lambda c: [s.update(best_model_score="x") for k, s in c["callbacks"].items() if "Checkpoint" in k]
    ),
}
SHARED = {  # with what evaluates it
    "laughs": tampered(lambda c: c.update(more=laughs())),
    "weights in a list": tampered(lambda c: c.update(state_dict=[1])),
    "weights by number": tampered(lambda c: c.update(state_dict={1: torch.ones(1)})),
    "weights of text": tampered(lambda c: c.update(state_dict={"x": "y"})),
}
COMMANDS = {
    "evaluate.py": ["run=RUN"],
    "predict.py": ["run=RUN", "images=RUN/curves.png"],
    "train.py": ["resume=RUN"],
}


def refused(script: str, things: dict[str, Callable[..., Any]], origin: Path, tmp_path: Path) -> int:
    """Give each thing to the command, which has to refuse it; returns how many there were."""
    for number, (name, change) in enumerate(things.items()):
        place = tmp_path / str(number)
        place.mkdir()
        (place / "conf").symlink_to(CONF)
        run, marker = place / "run", place / "marker"
        shutil.copytree(origin / "run", run)
        change(run, str(marker))
        arguments = [text.replace("RUN", str(run)) for text in COMMANDS[script]]
        more = ["trainer.max_epochs=3"] if script == "train.py" else []
        code, said = answer(place, script, *arguments, *more)
        assert code == 2, f"{script}, {name}: {code}\n{said}"
        assert "Traceback" not in said, f"{name}: {said}"
        assert len(said) < 2_500, f"{name}: {said}"  # the table of layers may stand before the sentence
        assert "\x1b" not in said
        assert SECRET not in said
        assert {path.name for path in place.iterdir()} <= {"conf", "run", "output.txt", "logs"}, name
        shutil.rmtree(place)
    return len(things)


def test_a_checkpoint_removes_nothing_but_its_own_file(origin: Path, tmp_path: Path) -> None:
    """Lightning removes what a checkpoint says to have been the best before, folders with all they hold."""
    place = tmp_path / "place"
    shutil.copytree(origin / "run", place / "run")
    (place / "conf").symlink_to(CONF)
    (place / "precious").mkdir()
    path = place / "run" / "checkpoints" / "last.ckpt"
    whole = torch.load(path, weights_only=True)
    for key, state in whole["callbacks"].items():
        if "Checkpoint" in key:
            there = str(place / "run/checkpoints/../../precious")
            state |= {"dirpath": str(place / "run/checkpoints"), "best_model_path": there}
            state |= {"best_k_models": {there: torch.tensor(0.0)}, "kth_best_model_path": there}
            state |= {"best_model_score": torch.tensor(0.0), "kth_value": torch.tensor(0.0)}
    torch.save(whole, path)
    code, said = answer(place, "train.py", "resume=run", "trainer.max_epochs=3")
    assert code == 0, said
    assert (place / "precious").is_dir()


def test_a_report_of_hostile_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], survived: Callable[[str, int], None]
) -> None:
    names = [
        "<script>alert(1)</script>",
        "\x1b[31mred\nnew line",
        "=cmd()",
        "'\"&{}$",
        "\u202eturned",
        "a" * 250,
    ]
    top = tmp_path / "runs"
    for name in names:
        write_run(top / name.replace("/", "\u2215"), 0.8, record={"error": name, "status": "failed"})
    write_run(
        top / "whole", 0.8, changes={"data.batch_size": "=1+1", "model.width": "<img src=x onerror=alert(1)>"}
    )
    (top / "loop").symlink_to(top)
    for name, change in RECORDS.items():
        change(write_run(top / name, 0.8), "")
    outs = [tmp_path / f"report.{form}" for form in ("html", "csv", "md", "tex")]
    assert report([str(top), *(f"out={out}" for out in outs)]) == 0
    said = capsys.readouterr()
    assert len(said.err.splitlines()) >= len(RECORDS) - 2  # of a run's record a report reads less
    for text in (said.out, said.err, *(out.read_text() for out in outs)):
        assert not HARMFUL.search(text.replace("\n", ""))
    html = outs[0].read_text()
    assert "<script>alert" not in html
    assert "<img" not in html
    assert not re.search("^[=+@-]|,[=+@]", outs[1].read_text(), re.M)
    survived("hostile inputs refused", len(RECORDS) + len(names))


def test_a_sweep_reads_hostile_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: Callable[[str, int], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    sweeps = tmp_path / "logs" / "sweeps"
    wanted = ""
    for name, change in RECORDS.items():
        run = write_run(sweeps / "other" / name, 0.8)
        wanted = json.loads((run / "record.json").read_text())["config_hash"]
        change(run, "")
        other = write_run(sweeps / name, 0.8)
        change(other, "")
        (other / "record.json").rename(other / "sweep.json")
    (sweeps / "loop").symlink_to(sweeps)
    found = Finder(sweeps / "new").find(wanted)
    assert found is None or found[1]["epochs"] == 20
    assert sweep_folder({"hydra": [], "task": ["seed=1"]}, "now") == "logs/sweeps/now"
    survived("hostile inputs refused", 2 * len(RECORDS))


def some(things: dict[str, Any], count: int) -> dict[str, Any]:
    """That many of them, evenly."""
    names = list(things)[:: max(1, len(things) // count)]
    return {name: things[name] for name in names[:count]}


@pytest.mark.parametrize("script", COMMANDS)
def test_what_would_hurt_is_refused(
    script: str, origin: Path, tmp_path: Path, survived: Callable[[str, int], None],
    tries: Callable[[int, int], int],
) -> None:  # fmt: skip
    things = CONFIGURATIONS | RECORDS | CHECKPOINTS | ENTRIES | SHARED
    things |= RESUMED if script == "train.py" else TENSORS  # which is no file to go on from
    count = refused(script, some(things, tries(4, len(things))), origin, tmp_path)
    survived("hostile inputs refused", count)
