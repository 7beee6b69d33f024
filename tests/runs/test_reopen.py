"""A run opened from its folder alone: the same network, and one sentence for every folder that holds none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import QUICK
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cifarlab.errors import UserError
from cifarlab.runs.checkpoints import check_values, read_weights, refuse_larger
from cifarlab.runs.reopen import OpenRun, choose_weights, open_run, read_record
from cifarlab.runs.resume import find_images, resumed
from cifarlab.training import train
from cifarlab.untrusted import LARGEST_ARCHIVE, Refused

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody changes."""
    folder = tmp_path_factory.mktemp("run")
    overrides = [*QUICK, "reg=[batch_norm,dropout]", "data.scaling=standardize"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("train", overrides), resolve=True)
    train(config, folder, overrides, {"model": "vgg1", "reg": ["none"], "data": "digits"})
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "run")


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    """Apply a change to a record or a configuration."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    else:
        config = OmegaConf.load(path)
        change(config)
        OmegaConf.save(config, path)


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        open_run(folder, **options)
    return str(error.value)


def test_the_network_is_the_one_that_was_scored(finished: Path) -> None:
    opened = open_run(finished)
    assert (opened.weights, opened.file.name, opened.precision) == ("last", "weights.safetensors", "32-true")
    assert not opened.model.training
    data = opened.data()
    assert data.set is not None
    logits = opened.logits(data.set.test_images)
    assert logits.shape == (359, 10)
    assert not logits.requires_grad
    hits = (logits.argmax(1) == data.set.test_labels).double().mean().item()
    assert hits == opened.record["test"]["accuracy"]
    assert torch.equal(
        opened.logits(data.set.test_images[:7]), open_run(finished).logits(data.set.test_images[:7])
    )


def test_the_data_are_split_as_they_were(finished: Path) -> None:
    data = open_run(finished).data()
    assert data.counts == {"train": 1294, "val": 144, "test": 359}
    assert data.fingerprint == json.loads((finished / "record.json").read_text())["data"]["fingerprint"]


def test_keys_of_the_data_can_be_other_than_the_runs(run: Path) -> None:
    assert open_run(run, data={"eval_batch_size": 9}).batch_size == 9
    assert open_run(run, data={"eval_batch_size": None}).batch_size == 125
    assert "data.eval_batch_size=0: expected a whole number" in refusal(run, data={"eval_batch_size": 0})
    assert "data.root: data has no key 'root'" in refusal(run, data={"root": "elsewhere"})


def test_other_data_than_the_runs_are_refused(run: Path) -> None:
    rewrite(run / "config.yaml", lambda config: config.data.update(validation=0.2))
    with pytest.raises(UserError, match="is not what that run was trained on"):
        open_run(run).data()


def test_a_folder_without_what_the_network_does_not_need_opens(run: Path) -> None:
    for name in ("metrics.csv", "curves.png", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        (run / name).unlink()
    rewrite(run / "config.yaml", lambda config: config.pop("trainer"))
    opened: OpenRun = open_run(run)
    assert opened.file.name == "weights.safetensors"
    assert not opened.validates_all  # nobody knows


@pytest.mark.parametrize(
    "weights, status, scored, chosen",
    [
        ("scored", "done", "best", ("best", "weights.safetensors")),
        ("scored", "done", None, ("last", "weights.safetensors")),
        ("last", "done", "best", ("last", "checkpoints/last.ckpt")),
        ("best", "done", "last", ("best", "checkpoints/best.ckpt")),
        # finished, resumed and stopped: the file holds what was scored before
        ("scored", "interrupted", None, ("last", "checkpoints/last.ckpt")),
    ],
)
def test_which_weights(finished: Path, weights: Any, status: str, scored: str | None, chosen: Any) -> None:
    record = {"status": status, "test": {"weights": scored}}
    assert choose_weights(finished, record, weights) == (chosen[0], finished / chosen[1])


def test_a_finished_run_without_its_weights_file_has_them_in_a_checkpoint(run: Path) -> None:
    (run / "weights.safetensors").unlink()
    assert open_run(run).file == run / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    "limits, whole",
    [
        ({}, True),
        ({"limit_val_batches": 1.0, "val_check_interval": 1.0}, True),
        ({"limit_val_batches": 1}, False),  # a single batch
        ({"val_check_interval": 0.5}, False),
    ],
)
def test_whether_a_run_validated_on_all_images(run: Path, limits: dict[str, Any], whole: bool) -> None:
    rewrite(run / "config.yaml", lambda config: config.trainer.update(limits))
    assert open_run(run).validates_all is whole


def test_folders_that_hold_no_run(tmp_path: Path, run: Path) -> None:
    assert "there is no such folder" in refusal(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "is no run folder: it has no record.json" in refusal(tmp_path / "empty")
    (run / "config.yaml").unlink()
    assert "config.yaml cannot be read" in refusal(run)


def test_a_run_without_a_finished_epoch(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    rewrite(run / "record.json", lambda record: record.update(status="interrupted", epochs=0))
    assert "no epoch of that run was finished" in refusal(run)


def test_a_run_that_did_not_validate(run: Path) -> None:
    (run / "checkpoints" / "best.ckpt").unlink()
    assert "that run did not validate" in refusal(run, weights="best")


@pytest.mark.parametrize(
    "name, weights", [("weights.safetensors", "scored"), ("checkpoints/last.ckpt", "last")]
)
@pytest.mark.parametrize("kept", [0, 0.5, 0.999])
def test_torn_weights(run: Path, name: str, weights: str, kept: float) -> None:
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: int(kept * len(content))])
    said = refusal(run, weights=weights)
    assert str(run / name) in said
    assert "cannot be read" in said


def test_weights_of_another_network(run: Path) -> None:
    rewrite(run / "config.yaml", lambda config: config.model.update(width=8))
    assert "holds another network's weights (size mismatch for net" in refusal(run)


def test_weights_of_another_number_of_classes(run: Path) -> None:
    rewrite(run / "record.json", lambda record: record["data"].update(num_classes=20))
    assert "weights.safetensors" in refusal(run)


@pytest.mark.parametrize(
    "part, key, value",
    [
        ("data", "num_classes", "ten"),
        ("data", "num_classes", 0),
        ("data", "num_classes", None),
        ("data", "fingerprint", 5),
        ("environment", "precision", "fp8"),
        ("environment", "threads", "two"),
        ("test", "accuracy", "high"),
        ("test", "accuracy", 1.5),
        ("test", "weights", ["last"]),
        ("val", "loss", {}),
    ],
)
def test_a_record_that_cannot_be(run: Path, part: str, key: str, value: Any) -> None:
    rewrite(run / "record.json", lambda record: record[part].update({key: value}))
    assert f"record.json: {part}.{key}={json.dumps(value)}: expected " in refusal(run)


@pytest.mark.parametrize("key", ["data", "environment", "val", "best_val", "test", "status", "epochs"])
def test_a_record_with_something_else_instead_of_a_part(run: Path, key: str) -> None:
    rewrite(run / "record.json", lambda record: record.update({key: ["\x1b[31m"]}))
    assert f'record.json: {key}=["\\u001b[31m"]: expected ' in refusal(run)


def test_keys_that_an_older_record_lacks(run: Path) -> None:
    rewrite(run / "record.json", lambda record: record["test"].pop("superclass_accuracy"))
    assert "superclass_accuracy" not in read_record(run)["test"]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda config: config.update(model="vgg3"), "model=vgg3: expected keys with values"),
        (lambda config: config.pop("data"), "data=null: expected keys with values"),
        (lambda config: config.model.update(_target_="os.system"), "expected a name in cifarlab.models"),
        (
            lambda config: config.update(reg={"a": {"_target_": "os.system"}}),
            "expected a name in cifarlab.reg",
        ),
        (lambda config: config.update(seed="x"), "seed=x: expected a whole number"),
        (
            lambda config: config.data.update(_target_="cifarlab.data.sets.CIFAR10", root="${nothing:}"),
            "it holds '${nothing:}'",
        ),
        (
            lambda config: config.data.update(_target_="cifarlab.data.module.ImageData"),
            "expected a class derived from ImageData, with all its methods",
        ),
        (
            lambda config: config.reg.dropout.update(rate="${nothing}"),
            "it holds '${nothing}'",
        ),
    ],
)
def test_a_configuration_that_cannot_be(run: Path, change: Callable[[Any], Any], said: str) -> None:
    rewrite(run / "config.yaml", change)
    answer = refusal(run)
    assert answer.startswith(f"{run}/config.yaml")
    assert said in answer


def test_a_gpu_that_is_not_there(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "there is no GPU that torch can use here" in refusal(finished, accelerator="gpu")


def test_a_precision_that_is_not_in_hardware_here(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifarlab.hardware.has_fast_bfloat16", lambda device: False)
    rewrite(run / "record.json", lambda record: record["environment"].update(precision="bf16-mixed"))
    assert open_run(run).precision == "32-true"


@pytest.mark.parametrize("there", [True, False])
def test_a_run_names_no_server_and_no_folder_to_be_made(there: bool, run: Path, tmp_path: Path) -> None:
    """Its folder may be a stranger's: only what is typed and the options of this checkout do."""
    own = OmegaConf.load(CONF / "data" / "cifar10.yaml")
    root = tmp_path if there else tmp_path / "new"
    data = {"_target_": own._target_, "root": str(root), "mirrors": ["http://stranger/"], "batch_size": 9}
    found = dict(data)
    find_images(found, CONF)
    at = {"root": str(root), "mirrors": []} if there else {"root": own.root, "mirrors": list(own.mirrors)}
    assert found == {"_target_": own._target_, **at, "batch_size": 9}
    alone = dict(data)
    find_images(alone, None)
    assert "http://stranger/" not in alone.get("mirrors", [])
    rewrite(run / "config.yaml", lambda config: config.update(data=data))
    assert OmegaConf.to_container(resumed(run, [], CONF)[0].data) == found
    typed = resumed(run, [f"data.root={tmp_path}/typed", "data.mirrors=[http://mine/]"], CONF)[0].data
    assert (typed.root, typed.mirrors) == (f"{tmp_path}/typed", ["http://mine/"])
    data["root"] = own.root  # this checkout's own: downloading goes there anyway
    find_images(data, CONF)
    assert data["mirrors"] == list(own.mirrors)


def test_lists_that_stand_for_billions_of_values() -> None:
    value: list[Any] = [0] * 10
    for _ in range(11):
        value = [value] * 10
    with pytest.raises(Refused, match="more than 3,000,000 values"):
        check_values({"a": (1, [value])})
    check_values({"a": [{"epoch": number} for number in range(1000)]})


def test_files_that_claim_more_than_they_take(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with open(path, "wb") as file:
        file.truncate(LARGEST_ARCHIVE + 1)  # a hole
    with pytest.raises(UserError, match="cannot be read as a run's weights: it has more than"):
        read_weights(path)
    with open(path, "wb") as file:
        file.truncate(10**13)
    with pytest.raises(UserError, match="cannot be trained in this machine's memory"):
        refuse_larger(lambda: torch.nn.Linear(10**6, 10**6), path)
