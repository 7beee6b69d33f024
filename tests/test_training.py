"""Whole runs on the digits: what they leave, that they resume to the same bits, and how they fail."""

import csv
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import QUICK
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from cifarlab.errors import RunFailed, UserError
from cifarlab.hardware import capture
from cifarlab.models import winograd
from cifarlab.runs import record as records
from cifarlab.runs.callbacks import RunRecord
from cifarlab.training import going_on_from, train

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
# all that is random, and all that has a state
# wide enough for Winograd's convolutions
WINOGRAD = ["model.width=24", "trainer.precision=32-true", "trainer.limit_train_batches=3"]
STATEFUL = ["reg=[dropout,augment,cutout,mixup,batch_norm,early_stopping]", "scheduler=plateau"]


def run(folder: Path, *overrides: str) -> dict:
    """One run in this process."""
    typed = [*QUICK, *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", typed), resolve=True)
    folder.mkdir(parents=True, exist_ok=True)
    return train(config, folder, typed, {"model": "vgg1", "reg": ["none"], "data": "digits"})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def metrics(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_a_run_leaves_a_folder_that_explains_itself(tmp_path: Path) -> None:
    record = run(tmp_path, "logger=tensorboard", "export=pt2")
    names = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert [n for n in names if not n.startswith("events.out.tfevents.")] == [
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "config.yaml",
        "curves.png",
        "metrics.csv",
        "model.pt2",
        "record.json",
        "weights.safetensors",
    ]
    assert any(n.startswith("events") for n in names)
    saved = json.loads((tmp_path / "record.json").read_text())
    assert saved == json.loads(json.dumps(record))
    assert saved.keys() == records.EMPTY.keys()
    assert (saved["status"], saved["error"], saved["epochs"], saved["steps"]) == ("done", None, 2, 12)
    assert saved["data"]["train_images"] + saved["data"]["val_images"] == 1438
    assert saved["data"]["test_images"] == saved["test"]["images"] == 359
    assert (
        saved["model"]["parameters"] == sum(t.numel() for t in weights(tmp_path).values()) - 6
    )  # the scaling
    assert saved["model"]["export_difference"] == pytest.approx(0, abs=1e-6)
    rows = metrics(tmp_path)
    assert list(rows[0]) == [
        "epoch",
        "step",
        "lr",
        "train/loss",
        "train/accuracy",
        "val/loss",
        "val/accuracy",
    ]
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "6"), ("2", "12")]
    assert saved["val"]["accuracy"] == pytest.approx(float(rows[-1]["val/accuracy"]))
    best = max(rows, key=lambda row: float(row["val/accuracy"]))
    assert saved["best_val"]["epoch"] == int(best["epoch"])
    for name in ("best", "last"):
        checkpoint = torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert checkpoint["state_dict"].keys() == weights(tmp_path).keys()


@pytest.mark.parametrize(
    "options",
    [
        STATEFUL,
        ["scheduler=step", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.1"],
        ["trainer.check_val_every_n_epoch=2", "test_weights=best", "optimizer=rmsprop"],
        ["reg=[weight_averaging,batch_norm,augment]", "scheduler=inverse_time", "optimizer=adamw"],
        ["trainer.val_check_interval=0.5", "scheduler=exponential", "optimizer=nesterov"],
        WINOGRAD,
    ],
    ids=["stateful", "accumulation", "sparse-validation", "averaging", "dense-validation", "winograd"],
)
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, options: list[str]) -> None:
    whole = run(tmp_path / "whole", *options, "trainer.max_epochs=3")
    run(tmp_path / "first", *options, "trainer.max_epochs=2")
    assert len(metrics(tmp_path / "first")) == 2
    (tmp_path / "first").rename(tmp_path / "moved")  # a folder may be moved between
    resumed = run(tmp_path / "moved", *options, "trainer.max_epochs=3", f"resume={tmp_path}/moved")
    assert same(tmp_path / "whole", tmp_path / "moved")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "moved")
    for key in ("epochs", "steps", "val", "best_val", "test"):
        assert whole[key] == resumed[key]
    best = [
        torch.load(tmp_path / name / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "moved")
    ]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])


def test_equal_seeds_are_equal_and_others_differ(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tmp_path / name, *STATEFUL, f"seed={seed}", "trainer.max_epochs=1")
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")


def test_the_best_weights_are_scored_if_asked(tmp_path: Path) -> None:
    record = run(tmp_path, "test_weights=best", "trainer.max_epochs=3", "optimizer.lr=0.02")
    best = torch.load(tmp_path / "checkpoints/best.ckpt", weights_only=True)
    assert all(torch.equal(best["state_dict"][k], v) for k, v in weights(tmp_path).items())
    assert record["test"]["weights"] == "best"
    assert best["epoch"] + 1 == record["best_val"]["epoch"]


def test_a_new_run_from_another_ones_weights(tmp_path: Path) -> None:
    run(tmp_path / "first")
    still = ["optimizer.lr=1e-30", "trainer.max_epochs=1", "data.scaling=center"]
    run(tmp_path / "second", f"start_from={tmp_path}/first", *still)
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    # the scaling is the new run's own
    assert {name for name in first if not torch.equal(first[name], second[name])} == {"scaling.mean"}
    with pytest.raises(UserError, match="another network's weights"):
        run(tmp_path / "third", f"start_from={tmp_path}/first", "model.width=8")


def test_a_loss_that_turns_nan_fails_the_run_and_names_the_step(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"(NaN|infinite) at step \d+ \(epoch 1\)"):
        run(tmp_path, "optimizer=sgd", "optimizer.lr=1e30")
    record = records.read(tmp_path)
    assert record["status"] == "failed"
    assert "at step" in record["error"]
    assert not (tmp_path / "checkpoints/last.ckpt").exists()


@pytest.mark.parametrize(
    "options", [["trainer.limit_train_batches=1"], ["reg=early_stopping"]], ids=["last step", "stopping"]
)
def test_a_bad_loss_never_ends_as_done(tmp_path: Path, options: list[str]) -> None:
    """The step that ruins the weights may be the last one, whose own loss was still good."""
    with pytest.raises(RunFailed):
        run(tmp_path, "optimizer=sgd", "optimizer.lr=1e30", "trainer.max_epochs=1", *options)
    assert records.read(tmp_path)["status"] == "failed"


def test_weights_that_the_last_step_ruins_never_reach_a_checkpoint(tmp_path: Path) -> None:
    ruinous = ["optimizer=sgd", "optimizer.lr=1e30", "trainer.limit_train_batches=1"]
    unseen = ["data.validation=none", "test=false"]
    with pytest.raises(RunFailed, match="weights became NaN or infinite in epoch 1: lower"):
        run(tmp_path, *ruinous, *unseen, "optimizer.lr=1e39", "optimizer.momentum=0")
    assert not (tmp_path / "checkpoints/last.ckpt").exists()


def test_gradients_that_explode_can_be_clipped(tmp_path: Path) -> None:
    wild = ["optimizer=sgd", "optimizer.lr=1e3", "trainer.gradient_clip_val=1e-6", "model.activation=elu"]
    assert run(tmp_path, *wild)["status"] == "done"


def test_a_row_holds_only_its_own_epochs_validation(tmp_path: Path) -> None:
    record = run(tmp_path, "trainer.check_val_every_n_epoch=2", "trainer.max_epochs=3")
    assert [bool(row["val/loss"]) for row in metrics(tmp_path)] == [False, True, False]
    assert record["val"]["accuracy"] is None
    assert record["best_val"]["epoch"] == 2


def test_a_run_that_ends_inside_an_epoch(tmp_path: Path) -> None:
    record = run(tmp_path, "trainer.max_steps=8")
    assert (record["status"], record["steps"]) == ("done", 8)
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == ["6", "8"]
    assert rows[0]["train/loss"] != rows[1]["train/loss"]
    with pytest.raises(UserError, match="ended in the middle of an epoch"):
        run(tmp_path, "trainer.max_steps=20", f"resume={tmp_path}")


def test_a_run_ended_by_early_stopping_stays_ended(tmp_path: Path) -> None:
    options = ["reg=early_stopping", "reg.early_stopping.patience=1", "optimizer.lr=1e-30"]
    run(tmp_path, *options, "trainer.max_epochs=9")
    again = run(tmp_path, *options, "trainer.max_epochs=9", f"resume={tmp_path}")
    assert (again["status"], again["epochs"]) == ("done", 2)


def test_a_resume_needs_a_whole_checkpoint_and_forgets_the_old_score(tmp_path: Path) -> None:
    run(tmp_path, "trainer.max_epochs=1")
    (tmp_path / "model.pt2").touch()
    assert run(tmp_path, "test=false", f"resume={tmp_path}")["test"] == records.EMPTY["test"]
    assert not (tmp_path / "model.pt2").exists()
    with pytest.raises(UserError, match=r"2 epochs behind it"):
        run(tmp_path, "trainer.max_epochs=1", f"resume={tmp_path}")
    last = tmp_path / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        run(tmp_path, "trainer.max_epochs=3", f"resume={tmp_path}")
    last.unlink()
    with pytest.raises(UserError, match=r"last\.ckpt is missing"):
        run(tmp_path, "trainer.max_epochs=3", f"resume={tmp_path}")
    assert records.read(tmp_path)["status"] == "done"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), MemoryError(), KeyError()])
def test_a_checkpoint_is_not_to_blame_for_the_machine(tmp_path: Path, error: Exception) -> None:
    recorder = RunRecord(tmp_path, records.EMPTY, False)
    blamed = isinstance(error, KeyError)
    with pytest.raises(UserError if blamed else type(error)), going_on_from(tmp_path / "last.ckpt", recorder):
        raise error


def test_a_missing_package_of_the_trainers_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs torch_xla"):
        run(tmp_path, "trainer.profiler=xla")


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_interrupts_with_the_last_epoch_saved(tmp_path: Path, number: int, code: int) -> None:
    line = [sys.executable, "train.py", *QUICK, "trainer.max_epochs=10000", f"hydra.run.dir={tmp_path}/run"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for said in process.stdout:
            if said.startswith("epoch 3/"):
                process.send_signal(number)
                break
        process.stdout.read()
        assert process.wait(timeout=60) == code
    record = records.read(tmp_path / "run")
    assert record["status"] == "interrupted"
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["epoch"] + 1 == record["epochs"] >= 3


def test_a_run_without_validation(tmp_path: Path) -> None:
    record = run(tmp_path, "data.validation=none")
    assert record["val"] == {"accuracy": None, "loss": None}
    assert record["best_val"]["epoch"] is None
    assert not (tmp_path / "checkpoints/best.ckpt").exists()
    assert [row["val/loss"] for row in metrics(tmp_path)] == ["", ""]


def test_early_stopping_stops(tmp_path: Path) -> None:
    options = ["reg=early_stopping", "reg.early_stopping.patience=1", "optimizer.lr=1e-30"]
    assert run(tmp_path, *options, "trainer.max_epochs=9")["epochs"] == 2


def test_one_cycle_takes_its_total_from_the_trainer(tmp_path: Path) -> None:
    run(tmp_path, "scheduler=one_cycle", "trainer.max_epochs=3", "optimizer.lr=0.01")
    rates = [float(row["lr"]) for row in metrics(tmp_path)]
    # 18 steps, the peak at 0.3 x 18 - 1 = 4.4; the rates are those of steps 0, 6 and 12
    peak = 0.3 * 18 - 1

    def annealed(step: int) -> float:
        return 0.01 * (
            (1 - 1e-4 / 25) / 2 * (1 + math.cos(math.pi * (step - peak) / (17 - peak))) + 1e-4 / 25
        )

    assert rates == pytest.approx([0.01 / 25, annealed(6), annealed(12)], rel=1e-6)


def test_a_captured_network_trains_as_a_plain_one(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    counters.clear()
    options = ["optimizer=sgd", "trainer.limit_train_batches=3"]
    run(tmp_path / "plain", *options)
    assert counters["stats"]["unique_graphs"] == 0
    run(tmp_path / "captured", *options, "trainer.capture=compile")
    assert counters["stats"]["unique_graphs"] >= 1
    assert not counters["unimplemented"]
    plain, captured = weights(tmp_path / "plain"), weights(tmp_path / "captured")
    assert captured.keys() == plain.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(captured[name], weight, rtol=1e-3, atol=1e-5)


def test_winograds_convolutions_train_as_plain_ones(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("winograd.c needs a C compiler")
    # smooth: behind black pixels ReLU is at its kink, where rounding decides about gradients
    options = [*WINOGRAD, "optimizer=sgd", "model.activation=gelu"]
    for way, expected in (("auto", "winograd"), ("direct", "direct")):
        record = run(tmp_path / way, *options, f"trainer.convolution={way}")
        assert record["environment"]["convolution"] == expected
    ours, plain = weights(tmp_path / "auto"), weights(tmp_path / "direct")
    assert not same(tmp_path / "auto", tmp_path / "direct")
    for name, weight in plain.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=1e-4)


def test_a_run_goes_on_with_the_convolutions_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("winograd.c needs a C compiler")

    def went_on(way: str | None, *overrides: str) -> str:
        folder = tmp_path / str(way)
        run(folder, *WINOGRAD, "trainer.max_epochs=1", *overrides)
        record = records.read(folder)
        record["environment"]["convolution"] = way  # None: from before the key
        records.write(folder, record | {"epochs": 0})  # as a kill between checkpoint and record leaves it
        return run(folder, *WINOGRAD, f"resume={folder}")["environment"]["convolution"]

    assert went_on("direct", "trainer.convolution=direct") == "direct"
    assert went_on(None, "trainer.convolution=direct") == "direct"
    assert went_on("winograd") == "winograd"
    monkeypatch.setenv("PATH", "")
    winograd.library.cache_clear()
    resume = [*WINOGRAD, f"resume={tmp_path}/winograd", "trainer.max_epochs=3"]
    with pytest.raises(UserError, match=r"need gcc.*trainer\.convolution=direct"):
        run(tmp_path / "winograd", *resume)
    plain = run(tmp_path / "winograd", *resume, "trainer.convolution=direct")
    winograd.library.cache_clear()
    assert plain["environment"]["convolution"] == "direct"


@pytest.mark.parametrize(
    "how, device, processes, accumulated, mode",
    [
        ("none", "cuda", 1, 1, None),
        ("auto", "cpu", 1, 1, None),
        ("auto", "cuda", 2, 1, None),
        ("auto", "cuda", 1, 4, None),
        ("auto", "cuda", 1, 1, "reduce-overhead"),
        ("compile", "cuda", 1, 1, "reduce-overhead"),
        ("compile", "cuda", 1, 4, "default"),
        ("compile", "cpu", 1, 1, "default"),
    ],
)
def test_what_is_captured_and_how(
    how: str, device: str, processes: int, accumulated: int, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda function, mode, dynamic: modes.append(mode))
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device(device)),
        world_size=processes,
        accumulate_grad_batches=accumulated,
    )
    capture(torch.nn.Identity(), how, trainer)
    assert modes == ([] if mode is None else [mode])


def test_superclasses_are_scored_beside_classes() -> None:
    from cifarlab.models.plain import VGG

    model = VGG(blocks=1, width=4, dense=8, num_classes=4)
    model.superclass_of = torch.tensor([0, 0, 1, 1])
    model.net = torch.nn.Flatten()  # four pixels are the logits
    logits = torch.eye(4).view(4, 1, 2, 2)[[0, 1, 2, 3]]
    model.score((logits, torch.tensor([0, 0, 0, 3]), torch.arange(4)))
    device = torch.device("cpu")
    assert model.eval_tally.sums(device)[1:].tolist() == [2, 4]
    assert model.eval_super.sums(device)[1:].tolist() == [3, 4]


def command(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    # as many as here, for sums over several threads round in another order
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    line = [sys.executable, "train.py", *arguments]
    return subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, **options
    )


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    """Gradients averaged over two halves of a batch are the batch's; nothing else is random here."""
    quick = [*QUICK[:-3], "trainer.limit_train_batches=4", "data.eval_batch_size=100", "logger=none"]
    pair = ["trainer=ddp", "trainer.accelerator=cpu", "data.batch_size=16", f"hydra.run.dir={tmp_path}/two"]
    result = command(*[o for o in quick if o != "trainer=cpu"], *pair)
    assert result.returncode == 0, result.stderr
    one = run(
        tmp_path / "one", "trainer.limit_train_batches=4", "data.batch_size=32", "data.eval_batch_size=200"
    )
    two = records.read(tmp_path / "two")
    assert two["model"]["export_difference"] == pytest.approx(0, abs=1e-6)
    assert two["test"]["accuracy"] == pytest.approx(one["test"]["accuracy"], abs=0.01)
    assert two["test"]["loss"] == pytest.approx(one["test"]["loss"], rel=1e-3)
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(first[k], second[k], rtol=1e-3, atol=1e-5) for k in first)


def test_resume_from_the_command_line(tmp_path: Path) -> None:
    folder = f"{tmp_path}/run"
    result = command(*QUICK, "trainer.max_epochs=1", f"hydra.run.dir={folder}")
    assert result.returncode == 0, result.stderr
    resumed = command(f"resume={folder}", "trainer.max_epochs=2")
    assert resumed.returncode == 0, resumed.stderr
    assert "Run folder" in resumed.stdout
    record = records.read(Path(folder))
    assert (record["epochs"], record["status"], record["choices"]["model"]) == (2, "done", "vgg1")
    run(tmp_path / "whole")
    assert same(Path(folder), tmp_path / "whole")
    log = (Path(folder) / "train.log").read_text()
    assert "epoch 1/1" in log
    assert "epoch 2/2" in log
