"""A run scored again."""

from typing import Literal, Any
from pathlib import Path


def evaluate(
    run: str,
    split: Literal["test", "val", "train"] = "test",
    weights: Literal["scored", "last", "best"] = "scored",
    flips: bool = False,
    out: str | None = None,
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    data: Any = None,
) -> None:
    from cifarlab.runs.reopen import open_run

    opened = open_run(Path(run), weights, data, accelerator)
    d = opened.data()
    x = opened.logits(d.set.test_images)
    l, _, c = opened.model.losses(x, d.set.test_labels)
    print(l.double().mean(), c.double().mean(), opened.record["test"], opened.model.classes)
