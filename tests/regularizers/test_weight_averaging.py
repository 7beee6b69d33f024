"""The moving average against its definition, and where a run uses it."""

import json
from pathlib import Path

import pytest
import torch
from commands import QUICK, Command
from safetensors.torch import load_file

from cifarlab.regularizers import WeightAveraging
from cifarlab.runs.callbacks import AveragedWeights

TRAIN = Path(__file__).parents[2] / "train.py"
AVERAGED = [*QUICK, "reg=weight_averaging", "hydra.run.dir=run"]


def test_the_average_follows_fast_while_it_is_young() -> None:
    averaging = WeightAveraging(decay=0.9)
    assert [averaging.share(step) for step in (0, 2, 10)] == pytest.approx([0.9, 0.75, 9 / 20])
    assert averaging.share(1000) == pytest.approx(0.1)


def test_floats_move_and_whole_numbers_are_copied() -> None:
    callback = AveragedWeights(WeightAveraging(decay=0.9).share)
    assert callback.should_update(step_idx=2)
    assert not callback.should_update(epoch_idx=2)
    average, labels = [torch.tensor([1.0, 2.0])], [torch.tensor([7, 6])]
    callback.move(average, [torch.tensor([5.0, 2.0])], None)
    callback.move(labels, [torch.tensor([7, 3])], None)
    assert average[0].tolist() == [4.0, 2.0]
    assert labels[0].tolist() == [7, 3]


def test_the_average_is_what_a_run_validates_scores_and_leaves(workplace: Path, command: Command) -> None:
    assert command(TRAIN, *AVERAGED, "trainer.max_epochs=1").code == 0
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    left, average, own = (
        load_file("run/weights.safetensors"),
        checkpoint["state_dict"],
        checkpoint["current_model_state"],
    )
    assert all(torch.equal(left[name], average[name]) for name in left)
    assert not torch.equal(own["net.0.weight"], average["net.0.weight"])
    record = json.loads(Path("run/record.json").read_text())
    again = command(TRAIN.with_name("evaluate.py"), "run=run", "split=val", "weights=last")
    assert f"{record['val']['loss']:.4f}" in again.out
    assert command(TRAIN, "resume=run").code == 0  # of a run that has no epoch left to do
    assert json.loads(Path("run/record.json").read_text())["test"] == record["test"]
    now = load_file("run/weights.safetensors")
    assert all(torch.equal(left[name], now[name]) for name in left)
