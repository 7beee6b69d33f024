"""What a run writes for TensorBoard, read back from its event file, and that writing it changes no bit."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.util.tensor_util import make_ndarray
from torch import nn

from cifarlab.data.module import epoch_seed
from cifarlab.data.scaling import ChannelScaling, Whitening
from cifarlab.data.sets import Digits
from cifarlab.errors import RunFailed
from cifarlab.regularizers import Regularization
from cifarlab.regularizers.cutout import Cutout
from cifarlab.regularizers.mixing import Mixup
from cifarlab.runs import boards
from cifarlab.runs.boards import Board, caption, columns, visible
from tests.test_training import STATEFUL, metrics, run, same

ALL = ["logger=tensorboard", "logger.histograms=true", "logger.log_graph=true"]


def events(folder: Path) -> dict[str, dict[str, list[tuple[int, Any]]]]:
    """By plugin and tag, each step with its tensor, in the order of writing."""
    found: dict[str, dict[str, list[tuple[int, Any]]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda p: p.stat().st_mtime_ns):
        plugins: dict[str, str] = {}  # a tag's plugin is said once
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                plugin = plugins.setdefault(value.tag, value.metadata.plugin_data.plugin_name)
                found[plugin][value.tag].append((event.step, value.tensor))
    return found


def steps(series: list[tuple[int, Any]]) -> list[int]:
    return [step for step, _ in series]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder, *STATEFUL, *ALL, "trainer.max_epochs=3")
    return folder


def test_it_changes_no_bit(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, *STATEFUL, "logger=none", "trainer.max_epochs=3")
    assert not list(tmp_path.glob("events*"))
    assert same(whole, tmp_path)
    assert metrics(whole) == metrics(tmp_path)


def test_one_file_with_each_picture_at_its_step(whole: Path) -> None:
    assert len(list(whole.glob("events*"))) == 1
    assert not [path for path in whole.iterdir() if path.is_dir() and path.name != "checkpoints"]
    found = events(whole)
    assert {tag: steps(series) for tag, series in found["images"].items()} == {
        "visual/first_layer_filters": [0, 6, 12, 18],  # before, after epochs 1 and 2, at the end
        "visual/first_training_batch": [0],
        "visual/confusion_matrix": [18],
        "visual/most_confident_mistakes": [18],
    }
    rows = metrics(whole)
    for name, column in (
        *((f"{split}/{figure}",) * 2 for split in ("train", "val") for figure in ("loss", "accuracy")),
        ("train/lr", "lr"),
    ):
        series = found["scalars"][name]
        assert steps(series) == [int(row["step"]) for row in rows] == [6, 12, 18]
        assert [tensor.float_val[0] for _, tensor in series] == pytest.approx(
            [float(r[column]) for r in rows]
        )
    [(_, layout)] = found["custom_scalars"]["custom_scalars__config__"]
    charts = Layout.FromString(layout.string_val[0]).category[0].chart
    assert [list(chart.multiline.tag) for chart in charts] == [
        ["^train/loss$", "^val/loss$"],
        ["^train/accuracy$", "^val/accuracy$"],
        ["^train/lr$"],
    ]
    assert found["graphs"]


def test_histograms_and_graph_only_on_request(whole: Path, tmp_path: Path) -> None:
    found = events(whole)["histograms"]
    assert all(steps(series) == [6, 12, 18] for series in found.values())
    weights = torch.load(whole / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    # its rows are left edge, right edge and count
    counts = {tag: round(make_ndarray(series[-1][1])[:, 2].sum()) for tag, series in found.items()}
    # all but the buffers: the scaling's and batch norm's
    kept = {n: w for n, w in weights.items() if n.startswith("net.") and n.endswith((".weight", ".bias"))}
    assert counts == {f"weights/{name.removeprefix('net.')}": w.numel() for name, w in kept.items()}
    run(tmp_path, "logger=tensorboard", "trainer.max_epochs=1", "test=false")
    assert not {"histograms", "graphs"} & events(tmp_path).keys()


def test_a_resumed_run_adds_a_file_and_repeats_no_picture(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, *STATEFUL, "logger=tensorboard", "trainer.max_epochs=2")
    run(tmp_path, *STATEFUL, "logger=tensorboard", "trainer.max_epochs=3", f"resume={tmp_path}")
    assert len(list(tmp_path.glob("events*"))) == 2
    assert same(whole, tmp_path)
    found, unbroken = events(tmp_path), events(whole)
    assert {tag: steps(series) for tag, series in found["images"].items()} == {
        "visual/first_layer_filters": [0, 6, 12, 18],
        "visual/first_training_batch": [0],
        "visual/confusion_matrix": [12, 18],  # each part scored the test images
        "visual/most_confident_mistakes": [12, 18],
    }
    for tag, series in unbroken["images"].items():
        assert found["images"][tag][-1] == series[-1]
    run(tmp_path, *STATEFUL, "logger=tensorboard", "trainer.max_epochs=3", "test=false", f"resume={tmp_path}")
    # nothing was left to train, or to draw
    assert steps(events(tmp_path)["images"]["visual/first_layer_filters"]) == [0, 6, 12, 18]


def test_the_first_batch_is_the_one_that_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[torch.Tensor, torch.Tensor]] = []
    monkeypatch.setattr(Board, "draw_batch", lambda board, model, *batch: drawn.append(batch))
    run(tmp_path, "logger=tensorboard", "reg=[cutout,mixup]", "trainer.max_epochs=2", "test=false", "seed=3")
    [(images, targets)] = drawn
    # the same, anew: the epoch's first 64 images, then all that is random from the epoch's seed
    parts = Regularization([Cutout(), Mixup()])
    data = Digits(seed=3, regularization=parts)
    data.setup()
    first, labels, _ = next(iter(data.train_dataloader()))
    torch.manual_seed(epoch_seed(3, 0, 0))
    expected = parts.mix(parts.augment(first.float()), nn.functional.one_hot(labels, 10).float())
    assert torch.equal(images, expected[0][:32])
    assert torch.equal(targets, expected[1][:32])


def test_the_test_pictures_are_of_the_scored_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = []
    draw = boards.confusion_figure
    monkeypatch.setattr(boards, "confusion_figure", lambda *a: matrices.append(a[0]) or draw(*a))
    record = run(tmp_path, "logger=tensorboard", "trainer.limit_test_batches=2", "data.eval_batch_size=100")
    [matrix] = matrices
    assert matrix.sum() == record["test"]["images"] == 200
    assert matrix.trace() / 200 == pytest.approx(record["test"]["accuracy"])


def test_weights_that_are_not_finite_fail_the_run_with_its_own_words(tmp_path: Path) -> None:
    options = ["optimizer=sgd", "optimizer.lr=1e30", "trainer.max_epochs=1", "trainer.limit_train_batches=1"]
    with pytest.raises(RunFailed, match="lower optimizer"):
        run(tmp_path, *ALL, *options, "data.validation=none")


def test_what_the_network_sees_made_visible() -> None:
    pixels = torch.tensor([-3.0, 0.4, 254.6, 300.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    by_channel = ChannelScaling(torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.2, 0.2]))
    for scaling in (by_channel, nn.Identity()):
        assert visible(scaling, pixels)[0, 2].flatten().tolist() == [0, 0, 255, 255]
    # whitening by 255 times the identity and no mean leaves pixels as they are: here of standard deviation 10
    values = torch.tensor([-10.0, 10.0, 0.0]).view(1, 3, 1, 1)
    whitening = Whitening(torch.zeros(3), 255 * torch.eye(3))
    # 127.5 * (1 + value / 30), halves to even
    assert visible(whitening, values).flatten().tolist() == [85, 170, 128]


def test_captions() -> None:
    classes = ["cat", "dog", "ship"]
    assert caption(torch.tensor(1), classes) == "dog"
    assert caption(torch.tensor([0.29, 0.0, 0.71]), classes) == "ship 71%\ncat 29%"
    assert caption(torch.tensor([1.0, 0.0, 0.0]), classes) == "cat 100%"


def test_columns_of_the_hparams_page() -> None:
    part = {"_target_": "a.b", "lr": 0.1, "nesterov": True, "betas": [0.9, 0.99], "eps": None}
    config = {"seed": 10, "test": True, "optimizer": part, "reg": {"dropout": {"_target_": "c", "rate": 0.2}}}
    config |= {"model": {"width": 4}, "scheduler": {}, "data": {"root": "data", "mirrors": [], "fold": 0}}
    config["trainer"] = {"max_epochs": 5, "precision": "auto"}
    choices = {"model": "vgg1", "reg": ["dropout", "flip"], "experiment": None}
    assert columns(config, choices) == {
        "model": "vgg1",
        "reg": "dropout + flip",
        "seed": "10",
        "model.width": 4,
        "reg.dropout.rate": 0.2,
        "data.fold": 0,
        "optimizer.lr": 0.1,
        "optimizer.nesterov": "true",
        "optimizer.betas": "[0.9,0.99]",
        "trainer.max_epochs": 5,
    }
