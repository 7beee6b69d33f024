"""Learning rates at step t against values worked out by hand and against torch's own schedulers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from cifarlab.errors import UserError
from cifarlab.optim import schedules


def optimizer(lr: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr)


def rates(scheduler: LRScheduler, count: int) -> list[float]:
    """The rate before each of `count` steps."""
    seen = []
    for _ in range(count):
        seen.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return seen


def make(name: str, lr: float = 1.0, steps: float = 10, epochs: float = 5, **keys: Any) -> dict[str, Any]:
    return getattr(schedules, name)(optimizer=optimizer(lr), steps=steps, epochs=epochs, **keys)


def path(name: str, count: int, **keys: Any) -> list[float]:
    return rates(make(name, **keys)["scheduler"], count)


def test_constant() -> None:
    assert path("constant", 3, lr=0.3) == [0.3] * 3


def test_linear() -> None:
    assert path("linear", 5, steps=5, lr=2.0) == pytest.approx([2, 1.6, 1.2, 0.8, 0.4])
    # two steps of warm-up, 1/3 and 2/3, then from 1 to 1/5 in eight
    expected = [1 / 3, 2 / 3, *(1 - 0.1 * t for t in range(9))]
    assert path("linear", 11, steps=10, warmup=0.2, final=0.2) == pytest.approx(expected)


def test_step() -> None:
    assert path("step", 7, lr=2.0, every=3, gamma=0.5) == [2, 2, 2, 1, 1, 1, 0.5]


def test_exponential() -> None:
    assert path("exponential", 4, lr=2.0, gamma=0.5) == [2, 1, 0.5, 0.25]


def test_inverse_time() -> None:
    assert path("inverse_time", 4, decay=0.5) == pytest.approx([1, 2 / 3, 1 / 2, 2 / 5])
    # after the 78,200 steps of 50 epochs in batches of 32, Keras's decay=1e-6 leaves 92.7 %
    scheduler = make("inverse_time", lr=1e-4)["scheduler"]
    scheduler.seek(78_200)
    assert scheduler.get_last_lr() == pytest.approx([1e-4 / 1.0782])


def test_cosine_by_hand() -> None:
    # 8 steps, the first 2 to warm up: 1/3, 2/3, then (1 + cos(pi t / 6)) / 2 of the way from 0.1 to 1
    down = [1, (1 + math.sqrt(3) / 2) / 2, 0.75, 0.5, 0.25, (1 - math.sqrt(3) / 2) / 2, 0, 0]
    expected = [1 / 3, 2 / 3] + [0.1 + 0.9 * x for x in down]
    assert path("cosine", 10, steps=8, warmup=0.25, final=0.1) == pytest.approx(expected)


def test_cosine_without_warmup_is_torchs() -> None:
    reference = CosineAnnealingLR(optimizer(0.3), T_max=20, eta_min=0.03)
    assert path("cosine", 21, lr=0.3, steps=20, final=0.1) == pytest.approx(rates(reference, 21))


def test_cosine_counts_epochs_where_told() -> None:
    entry = make("cosine", steps=5000, epochs=4, interval="epoch")
    assert entry["interval"] == "epoch"
    assert rates(entry["scheduler"], 5) == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0])


def test_cosine_may_be_all_warmup() -> None:
    assert path("cosine", 4, steps=4, warmup=1.0) == pytest.approx([0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize("pct_start", [0.2, 0.3, 0.5])
def test_one_cycle_is_torchs(pct_start: float) -> None:
    reference = OneCycleLR(
        optimizer(), max_lr=0.4, total_steps=50, pct_start=pct_start, div_factor=10, final_div_factor=100
    )
    ours = path("one_cycle", 49, lr=0.4, steps=50, pct_start=pct_start, div_factor=10, final_div_factor=100)
    assert ours == pytest.approx(rates(reference, 49), rel=1e-12)


def test_one_cycle_ends() -> None:
    # start 1/4; peak at 0.4 * 10 - 1 = 3; last step, 9, at 1/4/2, and no error afterwards
    ours = path("one_cycle", 12, pct_start=0.4, div_factor=4, final_div_factor=2)
    assert (ours[0], ours[3]) == (0.25, 1.0)
    assert ours[9:] == [0.125] * 3
    assert ours[6] == pytest.approx(0.125 + 0.875 / 2)  # half-way down
    assert path("one_cycle", 2, pct_start=0.0)[0] < 1.0
    assert path("one_cycle", 10, pct_start=1.0)[8] == pytest.approx(
        0.04 + 0.96 * (1 - math.cos(math.pi * 8 / 9)) / 2
    )


@pytest.mark.parametrize(
    "monitor, values", [("val/loss", [3, 2, 2, 2, 2, 1]), ("val/accuracy", [0.3, 0.4, 0.4, 0.4, 0.4, 0.5])]
)
def test_plateau(monitor: str, values: list[float]) -> None:
    entry = make("plateau", monitor=monitor, factor=0.5, patience=2, min_lr=0.4)
    assert (entry["interval"], entry["monitor"]) == ("epoch", monitor)
    scheduler = entry["scheduler"]
    seen = []
    for value in values:
        scheduler.step(value)
        seen.append(scheduler.optimizer.param_groups[0]["lr"])
    assert seen == [1, 1, 1, 1, 0.5, 0.5]  # the third epoch without a better one is more than 2
    for _ in range(9):
        scheduler.step(values[0])
    assert scheduler.optimizer.param_groups[0]["lr"] == 0.4


def test_unknown_length() -> None:
    for name in ("cosine", "one_cycle"):
        with pytest.raises(
            UserError, match=rf"scheduler={name} needs to know the length .* trainer\.max_epochs"
        ):
            make(name, steps=math.inf)
        with pytest.raises(UserError, match=rf"scheduler={name} needs"):
            make(name, epochs=-1, interval="epoch")
        make(name, epochs=-1)  # trainer.max_steps alone is enough for an interval of steps
    for name in ("constant", "step", "exponential", "inverse_time", "plateau"):
        make(name, steps=math.inf, epochs=-1)


def stopped(name: str, at: int, **keys: Any) -> tuple[dict, dict]:
    """What a checkpoint holds of optimizer and schedule after `at` steps."""
    scheduler = make(name, **keys)["scheduler"]
    rates(scheduler, at)
    return scheduler.optimizer.state_dict(), scheduler.state_dict()


def resumed(name: str, saved: tuple[dict, dict], **keys: Any) -> LRScheduler:
    scheduler = make(name, **keys)["scheduler"]
    scheduler.optimizer.load_state_dict(saved[0])
    scheduler.load_state_dict(saved[1])
    return scheduler


@pytest.mark.parametrize("name", ["constant", "step", "exponential", "inverse_time", "cosine", "one_cycle"])
def test_resume_goes_on(name: str) -> None:
    again = resumed(name, stopped(name, 4, lr=0.3), lr=0.3)
    assert rates(again, 6) == path(name, 10, lr=0.3)[4:]


def test_resume_with_more_steps_follows_the_longer_schedule() -> None:
    again = resumed("cosine", stopped("cosine", 10, steps=10), steps=20)
    # also the very first step, which the shorter schedule left at 0
    assert rates(again, 10) == pytest.approx(path("cosine", 20, steps=20)[10:])


def test_resume_with_another_rate_or_schedule() -> None:
    assert rates(resumed("constant", stopped("constant", 4), lr=0.25), 2) == [0.25, 0.25]
    keys = {"every": 2, "gamma": 0.5}
    assert rates(resumed("step", stopped("constant", 4), **keys), 3) == [0.25, 0.25, 0.125]


def test_plateau_resumes_with_what_it_saw_and_a_new_configuration() -> None:
    first = make("plateau", patience=9)["scheduler"]
    for loss in (1.0, 2.0, 2.0):
        first.step(loss)
    saved = first.optimizer.state_dict(), first.state_dict()

    again = resumed("plateau", saved, patience=2)
    again.step(1.5)  # the third epoch that is no better than 1
    assert again.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)

    accuracy = resumed("plateau", saved, monitor="val/accuracy", patience=2)
    accuracy.step(0.5)
    assert accuracy.best == 0.5
    after_constant = resumed("plateau", stopped("constant", 3), patience=2)
    assert after_constant.best == math.inf


@pytest.mark.parametrize("t", ["many", -1, 1.5, None, float("inf")])
def test_what_a_checkpoint_says_of_the_time_is_checked(t: Any) -> None:
    optimizer, _ = stopped("step", 4)
    with pytest.raises(ValueError, match="no count of steps"):
        resumed("step", (optimizer, {"last_epoch": t}))


@pytest.mark.parametrize("change", [{"best": "x"}, {"num_bad_epochs": None}, {"step": 1}])
def test_a_plateau_takes_no_other_state(change: dict[str, Any]) -> None:
    scheduler = make("plateau")["scheduler"]
    state = scheduler.state_dict()
    scheduler.load_state_dict(state)
    with pytest.raises(ValueError, match="other state than a plateau's"):
        scheduler.load_state_dict(state | change)
