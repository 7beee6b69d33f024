"""One job of a sweep: what it is, the command that runs it, and what came of it."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, open_dict

from cifarlab import cli
from cifarlab.errors import UserError
from cifarlab.mistakes import as_typed, conf_of, explain, said, shown
from cifarlab.runs import record as records
from cifarlab.sweeps.folders import Finder, free_folder, is_claimed

# of Hydra's own keys the sweep's, not the job's
SWEEP_KEYS = ("hydra.mode", "hydra.sweep", "hydra.sweeper", "hydra.launcher", "hydra.run", "hydra.job.num")

Status = Literal["done", "skipped", "failed", "interrupted", "pruned", "elsewhere"]


@dataclass
class Job:
    """A job as it will be run, or why it will not."""

    number: int
    overrides: list[str]
    folder: Path
    settled: cli.Settled | None = None
    config_hash: str | None = None
    command: list[str] = field(default_factory=list)
    varied: list[str] = field(default_factory=list)  # the overrides that not every job of the sweep has
    outcome: Outcome | None = None  # known before it runs

    @property
    def title(self) -> str:
        return f"#{self.number} {shlex.join(self.varied)}".rstrip()

    def arguments(self) -> list[str]:
        """The command line: of a new run or, where the folder has one with epochs behind it, of that."""
        number, folder = f"hydra.job.num={self.number}", str(self.folder).replace("'", "\\'")
        if not self.goes_on:
            if not is_claimed(self.folder):
                (self.folder / "record.json").unlink(missing_ok=True)
            return [*self.command, *self.overrides, f"hydra.run.dir='{folder}'", number]
        # where the data lie may have changed since, which does not make another run of it
        before = records.read(self.folder)["overrides"]
        now = [o for o in self.overrides if o.partition("=")[0] in records.NOT_HASHED and o not in before]
        return [*self.command, *now, f"resume='{folder}'", number]

    @property
    def goes_on(self) -> bool:
        """Whether the folder holds a run with an epoch behind it, of which a kill may have kept no record."""
        saved = (self.folder / "checkpoints" / "last.ckpt").exists()
        return (self.folder / "record.json").exists() and (saved or records.read(self.folder)["epochs"] > 0)


@dataclass
class Outcome:
    """How a job ended; the record where it left one."""

    job: Job
    status: Status
    error: str | None = None
    record: dict[str, Any] | None = None

    def accuracy(self, part: str) -> float | None:
        return self.record[part]["accuracy"] if self.record else None


class Planner:
    """Makes a sweep's jobs of their overrides, and finds those again that were run before."""

    def __init__(self, config: DictConfig, loader: ConfigLoader, again: bool, forced: bool) -> None:
        """Args:
        config: the sweep's, as Hydra composed it.
        again: whether nothing is skipped or gone on with.
        forced: whether only what lies in the sweep's folder is.
        """
        self.config, self.loader, self.again = config, loader, again
        self.folder = Path(config.hydra.sweep.dir)
        self.finder = Finder(self.folder, forced)
        self.planned: dict[str, Job] = {}
        script, name = Path(sys.argv[0]).resolve(), config.hydra.job.config_name
        hydra = [o for o in config.hydra.overrides.hydra if not is_sweeps(o)]
        chosen = [] if name == script.stem else [f"--config-name={name}"]
        self.command = [sys.executable, str(script), *chosen, *hydra]

    def plan(self, number: int, overrides: Sequence[str]) -> Job:
        """The job of that number; one whose configuration is wrong has failed already."""
        fixed = as_typed(self.config.hydra)[1]
        varied = [override for override in overrides if override not in fixed]
        # in the folder's name, which has an end, what tells the jobs apart comes first
        naming = [*varied, *(override for override in overrides if override in fixed)]
        folder = self.folder / f"{number}_{cli.short(naming)}".rstrip("_")
        job = Job(number, list(overrides), folder, command=self.command, varied=varied)
        try:
            config = self.loader.load_sweep_config(self.config, job.overrides)
            with open_dict(config.hydra):
                config.hydra.job.id = config.hydra.job.num = number
                config.hydra.overrides.task = naming
                job.folder = self.folder / config.hydra.sweep.subdir
                config.hydra.overrides.task = job.overrides
            job.settled = cli.settle(config, config.hydra)
        except cli.MISTAKES as error:
            sentence = said(error) or explain(error, conf_of(self.config.hydra), job.overrides) or str(error)
            job.folder = free_folder(job.folder)
            job.outcome = failed(job, sentence)
            return job
        job.config_hash = records.config_hash(job.settled.plain)
        twin = self.planned.setdefault(job.config_hash, job)
        if twin is not job:
            job.folder = twin.folder
            job.outcome = Outcome(job, "skipped", f"the same as #{twin.number}")
            return job
        found = None if self.again else self.finder.find(job.config_hash)
        if found is None:
            job.folder = free_folder(job.folder)
            return job
        job.folder, record = found
        if record["status"] == "done":
            job.outcome = Outcome(job, "skipped", "done before", record)
        elif is_claimed(job.folder):
            job.outcome = Outcome(job, "elsewhere", "at work in another process", record)
        return job


def is_sweeps(override: str) -> bool:
    """Whether the override of a key of Hydra's is about the sweep."""
    key = override.lstrip("+~").partition("=")[0].replace("/", ".")
    return any(key == name or key.startswith(f"{name}.") for name in SWEEP_KEYS)


def ended(job: Job, code: int | str) -> Outcome:
    """What came of a job whose command ended with that exit code, below 0 the signal that killed it, or text.

    What the run could not put down itself is recorded here.
    """
    try:
        record = records.read(job.folder)
    except UserError:
        record = None
    if code == 0 or (record and record["status"] == "done"):  # maybe by another process
        return Outcome(job, "done", None, record)
    if code in (130, 143, -signal.SIGINT, -signal.SIGTERM):
        if record and record["status"] == "running":  # killed before it could say so
            record |= {"status": "interrupted", "error": "stopped with its sweep", "finished": records.now()}
            with suppress(OSError):
                records.write(job.folder, record)
        return Outcome(job, "interrupted", record["error"] if record else None, record)
    if is_claimed(job.folder):
        return Outcome(job, "elsewhere", "at work in another process", record)
    if isinstance(code, str):
        return failed(job, code)
    if code < 0:
        hint = ", possibly for its memory" if -code == signal.SIGKILL else ""
        return failed(job, f"Killed by {signal.Signals(-code).name}{hint}.")
    if record is None or record["status"] != "failed":
        file = job.folder / "train.log"
        where = f"; see {shown(file)}" if file.exists() else ""
        return failed(job, f"Ended with exit code {code}{where}.")
    return Outcome(job, "failed", record["error"], record)


def failed(job: Job, error: str) -> Outcome:
    """A failure put down in the job's record."""
    return Outcome(job, "failed", error, record_failure(job.folder, error, job.settled, job.overrides))


def record_failure(
    folder: Path, error: str, settled: cli.Settled | None, overrides: Sequence[str]
) -> dict[str, Any]:
    """Write into a run's record that it failed, and why; into a new one where the run began none."""
    try:
        record = records.read(folder)
    except UserError:
        record = new_record(settled, overrides)
        folder.mkdir(parents=True, exist_ok=True)
        if settled is not None:
            records.write_config(folder, {**settled.plain, "resume": None})
    record |= {"status": "failed", "error": error, "finished": records.now()}
    records.write(folder, record)
    return record


def new_record(settled: cli.Settled | None, overrides: Sequence[str]) -> dict[str, Any]:
    """The record of a run that did not begin, of an unknown configuration if that is wrong."""
    if settled is None:
        seeds = [text.removeprefix("seed=") for text in overrides if text.startswith("seed=")]
        seed = int(seeds[-1]) if seeds and seeds[-1].isdecimal() else 0
        return records.new({"seed": seed}, {}) | {"overrides": list(overrides)}
    record = records.new(settled.plain, settled.choices)
    return record | {"overrides": settled.overrides, "config_hash": records.config_hash(settled.plain)}
