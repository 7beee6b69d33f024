"""What a run's files say when it ends between an epoch and its checkpoint."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cifarlab import signals
from cifarlab.runs import record as records
from cifarlab.runs.callbacks import RunRecord
from cifarlab.runs.curves import Row


def row(epoch: int, accuracy: float) -> Row:
    scores = {"train/loss": 1.0, "train/accuracy": 0.5, "val/loss": 1.0, "val/accuracy": accuracy}
    return {"epoch": epoch, "step": 6 * epoch, "lr": 0.1, **scores, "seconds": 2.0}


@pytest.mark.parametrize("signal", [None, signals.Stop(15)])
def test_the_record_tells_of_saved_epochs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal: signals.Stop | None
) -> None:
    """Neither the best epoch nor the images of one that was not saved; no picture is drawn for a signal."""
    trainer = SimpleNamespace(is_global_zero=True, max_epochs=3)
    recorder = RunRecord(tmp_path, records.EMPTY | {"best_val": dict(records.EMPTY["best_val"])}, False)
    for epoch, accuracy in ((1, 0.4), (2, 0.6)):
        recorder.history.append(row(epoch, accuracy))
        recorder.best = {"accuracy": accuracy, "loss": 1.0, "epoch": epoch}
        recorder.train_images += 100
        if epoch == 1:
            recorder.publish(trainer)
    monkeypatch.setattr(signals, "heard", signal)
    recorder.on_exception(trainer, None, OSError())
    record = records.read(tmp_path)
    assert record["best_val"] == {"accuracy": 0.4, "loss": 1.0, "epoch": 1}
    assert (record["epochs"], record["images_per_second"]) == (1, 50)
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 2
    assert (tmp_path / "curves.png").exists() == (signal is None)


def test_peak_memory_is_that_of_the_program_alone() -> None:
    """Not of the larger process that started it, which a sweep or a benchmark may be."""
    code = """
import torch
from cifarlab.runs.callbacks import peak_memory_bytes
first = peak_memory_bytes(torch.device("cpu"))
kept = bytearray(200_000_000)
print(first, peak_memory_bytes(torch.device("cpu")))
"""
    large = bytearray(600_000_000)
    large[::4096] = bytes(len(large) // 4096 + 1)  # a byte of each page, so that it has it
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(large) == 600_000_000
    first, second = map(int, done.stdout.split())
    assert 100e6 < first < 1.2e9
    assert 150e6 < second - first < 250e6
