"""A search by optuna over what the overrides leave open, in a study that a later call goes on with."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.trial import Trial, TrialState

from cifarlab.errors import UserError
from cifarlab.report.reading import Unreadable, read_curve
from cifarlab.runs import record as records
from cifarlab.sweeps.jobs import Job, Outcome

Suggest = Callable[[Trial], str]


def space(overrides: Sequence[Override]) -> tuple[list[str], dict[str, Suggest]]:
    """The overrides that hold one value, and for each key with several how a trial chooses among them.

    `interval(a,b)` is continuous, `range(a,b)` whole numbers, both logarithmic inside `tag(log, ...)`; all
    else is a choice.

    Raises:
        UserError: when nothing is left to search.
    """
    last = {override.get_key_element(): override for override in overrides}
    fixed = [f"{k}={o.get_value_element_as_str()}" for k, o in last.items() if not o.is_sweep_override()]
    open_ = {key: suggestion(key, o) for key, o in last.items() if o.is_sweep_override()}
    if not open_:
        raise UserError("search=optuna has nothing to search: give a key several values, or an interval.")
    return fixed, open_


def suggestion(key: str, override: Override) -> Suggest:
    """How a trial chooses the override of that key."""
    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        low, high, log = float(value.start or 0), float(value.end or 0), "log" in value.tags
        check_bounds(override, low, high, log)
        return lambda trial: f"{key}={trial.suggest_float(key, low, high, log=log):.6g}"
    if isinstance(value, RangeSweep) and isinstance(value.start, int) and isinstance(value.step, int):
        # as in Python, the stop is not among them
        first, last = value.start, int(value.stop or 0) - 1
        step, log = value.step, "log" in value.tags
        check_bounds(override, first, last if step > 0 else first - 1, log)
        return lambda trial: f"{key}={trial.suggest_int(key, first, last, step=1 if log else step, log=log)}"
    choices = list(override.sweep_string_iterator())
    if not choices:
        raise UserError(f"{override.input_line} holds no value.")
    return lambda trial: f"{key}={trial.suggest_categorical(key, choices)}"


def check_bounds(override: Override, low: float, high: float, log: bool) -> None:
    """Raises:
    UserError: for bounds that optuna would not take.
    """
    if not float("-inf") < low <= high < float("inf"):
        raise UserError(f"{override.input_line} holds no value: expected two numbers, the smaller one first.")
    if log and low <= 0:
        raise UserError(f"{override.input_line}: a logarithmic scale begins above 0.")


@dataclass
class Search:
    """The trials of a study as jobs, told of their epochs and their ends.

    Args:
        folder: the sweep's, where the study is kept in `study.db`.
        trials: how many the study is to have in the end, over all calls.
        minutes: how long this call may take; what is at work then stops, and the next call goes on with it.
        startup: trials before the search learns from them, and before any is stopped for being worse than
            the median of the others at the same epoch.
        warmup: epochs that every trial has.
    """

    folder: Path
    overrides: Sequence[Override]
    trials: int
    minutes: float | None
    seed: int
    startup: int
    warmup: int
    live: dict[int, Trial] = field(default_factory=dict)  # by their number, which is the job's
    pruned: set[int] = field(default_factory=set)
    seen: dict[int, int] = field(default_factory=dict)  # epochs reported
    ends: dict[str | None, dict[str, Any]] = field(default_factory=dict)  # by the configuration's hash
    twins: dict[str | None, list[int]] = field(default_factory=lambda: defaultdict(list))  # waiting for one

    def __post_init__(self) -> None:
        self.fixed, self.open = space(self.overrides)
        self.deadline = time.monotonic() + 60 * self.minutes if self.minutes else float("inf")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder.mkdir(parents=True, exist_ok=True)
        storage = f"sqlite:///{self.folder.resolve()}/study.db"
        self.study = optuna.create_study(
            storage=storage,
            study_name="search",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(self.startup, self.warmup + 1),
        )
        # a second call with the sampler's first seed would draw the first points again
        begun = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = optuna.samplers.TPESampler(
            seed=self.seed + begun, n_startup_trials=self.startup, constant_liar=True
        )

    def jobs(self) -> Iterator[tuple[int, list[str]]]:
        """Trials that an earlier call left unfinished, then new ones while there is time and need of them."""
        for left in self.study.get_trials(states=[TrialState.RUNNING]):
            self.seen[left.number] = max(left.intermediate_values, default=0)
            yield self.job(Trial(self.study, left._trial_id))
        while time.monotonic() < self.deadline and len(self.study.get_trials(deepcopy=False)) < self.trials:
            yield self.job(self.study.ask())

    def job(self, trial: Trial) -> tuple[int, list[str]]:
        self.live[trial.number] = trial
        return trial.number, [*self.fixed, *(suggest(trial) for suggest in self.open.values())]

    def watch(self, job: Job) -> bool:
        """Report the job's epochs so far; True if it is to be stopped."""
        trial = self.live[job.number]
        for epoch, accuracy in validated_epochs(job.folder):
            if epoch > self.seen.get(job.number, 0):
                trial.report(accuracy, epoch)
                self.seen[job.number] = epoch
                if trial.should_prune():
                    self.pruned.add(job.number)
                    return True
        return time.monotonic() > self.deadline

    def hear(self, outcome: Outcome) -> None:
        """Tell the study how a trial ended, and its twins with it; one that was interrupted stays open."""
        number, accuracy = outcome.job.number, outcome.accuracy("best_val")
        same = outcome.job.config_hash
        end: dict[str, Any] | None = None
        if outcome.status == "skipped" and outcome.record is None:  # the same as one before it
            self.twins[same].append(number)
            end = self.ends.get(same)
        elif outcome.status in ("done", "skipped") and accuracy is not None:
            end = {"values": accuracy}
        elif outcome.status == "interrupted" and number in self.pruned:
            outcome.status = "pruned"
            if outcome.record is not None:
                outcome.record["error"] = outcome.error = "pruned by the search"
                records.write(outcome.job.folder, outcome.record)
            end = {"state": TrialState.PRUNED}
        elif outcome.status == "failed":
            end = {"state": TrialState.FAIL}
        if end is not None:
            self.ends[same] = end
            for trial in {number, *self.twins.pop(same, [])}:
                self.study.tell(trial, **end)

    def summary(self) -> str:
        """The best trial so far and its values."""
        done = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if not done:
            return "No trial is finished yet."
        best = self.study.best_trial
        values = " ".join(
            f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in best.params.items()
        )
        return f"Best of {len(done)} finished: trial {best.number}, validation {best.value:.2%}: {values}"


def validated_epochs(folder: Path) -> list[tuple[int, float]]:
    """(epoch, validation accuracy) of each validated epoch that the run has behind it."""
    try:
        return read_curve(folder)
    except Unreadable:
        return []
