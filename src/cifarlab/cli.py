"""The manners that all commands share: Hydra's command line, one sentence for a mistake, an exit code.

Nothing here imports torch, so `--help`, completion and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
import signal
import string
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from cifarlab import config as configs
from cifarlab import signals
from cifarlab.config import WrongKey
from cifarlab.errors import RunFailed, UserError
from cifarlab.mistakes import (
    as_typed,
    checked,
    conf_of,
    explain,
    first,
    mistake_in,
    origin,
    refusal,
    refuse,
    related,
    said,
    shown,
)
from cifarlab.runs import record as records
from cifarlab.runs import resume
from cifarlab.sweeps import values as sweep_values
from cifarlab.sweeps.ablation import KINDS, listed
from cifarlab.sweeps.folders import Claim, sweep_folder
from cifarlab.untrusted import harmless

log = logging.getLogger(__name__)


def now() -> str:
    """UTC to the microsecond, as part of a folder's name."""
    return datetime.now(UTC).strftime("%Y-%m-%d_%H-%M-%S-%f")


def short(overrides: Sequence[str]) -> str:
    """What was typed as part of a folder's name: keys without groups, at most 80 harmless characters."""
    parts = (text.lstrip("+~").partition("=") for text in overrides)
    words = (f"{key.rpartition('.')[2]}={value}" for key, _, value in parts)
    return re.sub(r"[^\w.=+-]+", "-", "_".join(words)).strip("-")[:80]


def run_folder(resume: str | None, overrides: Sequence[str]) -> str:
    """The run's folder: the one to resume, else a new one named by the time and what was typed."""
    return str(resume) if resume is not None else f"logs/runs/{now()}_{short(overrides)}".rstrip("_")


# cached: every use of the time of one run or sweep gets the same
OmegaConf.register_new_resolver("short", short, replace=True)
OmegaConf.register_new_resolver("run_folder", run_folder, use_cache=True, replace=True)
OmegaConf.register_new_resolver("utc_now", now, use_cache=True, replace=True)
OmegaConf.register_new_resolver("sweep_folder", sweep_folder, use_cache=True, replace=True)


@contextmanager
def plain_errors(sweeps: bool = False) -> Iterator[None]:
    """Run a Hydra application; turn what a user can cause into one sentence on stderr and an exit code.

    The command listens for signals already. `sweeps` says whether it knows what to do with `-m`.
    """
    logging.raiseExceptions = False  # a log that cannot be written, as behind a closed terminal, ends no run
    traces = os.environ.get("HYDRA_FULL_ERROR")
    Door.traces = traces == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra hands its errors on to us instead of printing them
    door = Door(sys.argv[0], sweeps)
    try:
        signals.heed()
        sys.argv[1:] = door.read(sys.argv[1:])
        answer = door.answer()
        if answer is not None or not sweeps:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # without a run to save, `... | head` ends quietly
        if answer is not None:
            print(answer)
            sys.exit(0)
        yield
    except (Exception, PastHydra, signals.Stop) as error:
        # what a signal interrupted may have made another error of it
        if stop := error if isinstance(error, signals.Stop) else signals.heard:
            CheckConfig.remove_unstarted()
            with suppress(OSError):
                if not stop.told:
                    print(f"{stop.reason}.", file=sys.stderr)
            raise stop from None
        mistake = error.__cause__ if isinstance(error, PastHydra) else error
        mistake = mistake and (CheckConfig.refused_write(mistake) or mistake)
        sentence = mistake and (said(mistake) or explain(mistake, door.conf, door.flags.overrides))
        if sentence is None:
            raise
        if Door.traces:
            traceback.print_exc()
        print(harmless(str(sentence)), file=sys.stderr)
        sys.exit(getattr(mistake, "exit_code", UserError.exit_code))
    finally:
        signals.too_late()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # nobody is there to read it: no reason for Python's exit code 120
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        del os.environ["HYDRA_FULL_ERROR"]
        if traces is not None:
            os.environ["HYDRA_FULL_ERROR"] = traces


class Door:
    """A command that opens with Hydra: its script, its arguments and the folder its options lie in."""

    traces = False  # whether the user asked to see them

    def __init__(self, script: str, sweeps: bool) -> None:
        self.script = Path(script).resolve()
        self.sweeps = sweeps
        self.conf = self.script.parent / "conf"
        self.flags = argparse.Namespace(overrides=[])

    def read(self, arguments: list[str]) -> list[str]:
        """The arguments as Hydra wants them, once all is in order that can be seen without composing.

        Raises:
            UserError: for the first mistake.
        """
        parser = get_args_parser()
        parser.error = refuse  # type: ignore[method-assign]
        # unlike Hydra itself, which parses next, this takes flags between overrides
        self.flags = flags = parser.parse_intermixed_args(arguments)
        if flags.config_dir or flags.config_path:
            refuse("the configuration lies in conf/, beside the command")
        modes = [flags.run, flags.multirun, flags.cfg, flags.info, flags.shell_completion]
        if sum(map(bool, modes)) > 1:
            refuse("only one of --run, --multirun, --cfg, --info and --shell_completion can be asked for")
        if flags.multirun and not self.sweeps:
            raise UserError(f"{self.script.name} does one thing at a time: leave out -m.")
        others = [argument for argument in arguments if argument not in flags.overrides]
        typed = [
            checked(resume.quoted(text), self.conf, flags.multirun, self.sweeps) for text in flags.overrides
        ]
        typed, wishes = self.wishes(typed)
        folder = resume.folder_of(typed)
        if folder is not None and flags.multirun:
            raise UserError("resume= goes on with one run: leave out -m.")
        flags.overrides = [resume.admit(o, folder) if folder else str(o.input_line) for o in typed] + wishes
        return flags.overrides + others

    def wishes(self, typed: list[Override]) -> tuple[list[Override], list[str]]:
        """What was typed without `force` and `ablation`, and these as Hydra's launcher and sweeper take them.

        Raises:
            UserError: for a value that they do not have, and outside a sweep.
        """
        others, wishes = [], []
        # a job's own command holds the sweep's search, which says more than how to search
        swept = self.flags.multirun or any(override.key_or_group == "hydra.job.num" for override in typed)
        for override in typed if self.sweeps else []:
            key, text = override.key_or_group, override.input_line
            value = None if override.is_sweep_override() else override.value()
            if key in ("force", "ablation", "search") and value is not None and not swept:
                raise UserError(f"{text} is about a sweep: type -m.")
            if key == "force":
                if not isinstance(value, bool):
                    raise UserError(f"{text}: expected true or false.")
                wishes.append(f"hydra.launcher.force={str(value).lower()}")
            elif key == "ablation":
                if value not in KINDS:
                    raise UserError(f"{text}: {configs.nearest(str(value), KINDS)}")
                listed(typed)
                wishes.append(f"hydra.sweeper.ablation={value}")
            elif key == "hydra/launcher" and (self.conf / key / "cifarlab" / f"{value}.yaml").is_file():
                # in a folder of ours, for Hydra lays an installed plugin's of that name over one beside it
                wishes.append(f"{key}=cifarlab/{value}")
            else:
                others.append(override)
                if key == "search" and value is not None:
                    wishes.append("hydra/sweeper=cifarlab/optuna")
        if "hydra/sweeper=cifarlab/optuna" in wishes and any("ablation=" in wish for wish in wishes):
            raise UserError("ablation= runs all that it lists and search= chooses: leave out one of them.")
        return others if self.sweeps else typed, wishes

    def answer(self) -> str | None:
        """What to print instead of running: where Hydra would know too little, or take long."""
        shows = self.sweeps and self.flags.cfg == "job" and not self.flags.package
        if not (self.flags.help or shows):
            return None
        with initialize_config_dir(str(self.conf), version_base="1.3"):
            name = self.flags.config_name or self.script.stem
            config = compose(name, self.flags.overrides, return_hydra_config=True)
            if not self.flags.help:
                return OmegaConf.to_yaml(OmegaConf.create(settle(config, config.hydra).plain))
        # half of Hydra's time goes into groups of its own
        template = string.Template(config.hydra.help.template)
        plain = {key: value for key, value in config.items_ex(resolve=False) if key != "hydra"}
        chosen = [g for g in configs.groups(self.conf) if g in config.hydra.runtime.choices]
        groups = [f"{g}: {', '.join(configs.options(self.conf, g))}" for g in chosen]
        return template.substitute(
            APP_CONFIG_GROUPS="\n".join(groups), CONFIG=OmegaConf.to_yaml(OmegaConf.create(plain))
        )


class Settled(NamedTuple):
    """What a run gets: its plain, checked configuration, the overrides typed, and the options chosen."""

    plain: dict[str, Any]
    overrides: list[str]
    choices: dict[str, Any]


def settle(config: DictConfig, hydra: Any) -> Settled:
    """Resolve and check what Hydra composed, for a resumed run on top of what it was saved with.

    Raises:
        UserError: when the configuration is wrong.
    """
    _, overrides = as_typed(hydra)
    folder = None if config.get("resume") is None else resume.existing_folder("resume", config.resume)
    if folder is not None:
        merged, overrides, choices = resume.resumed(folder, overrides, conf_of(hydra))
    else:
        parts = {key: part for key, part in config.items_ex(resolve=False) if key != "hydra"}
        merged = OmegaConf.create({"reg": {}, **parts})
        choices = {name: hydra.runtime.choices.get(name) for name in records.EMPTY["choices"]}
    try:
        plain: Any = OmegaConf.to_container(merged, resolve=True)
        if folder is None:
            leave_behind(plain, overrides, hydra)
            choices["reg"] = [str(name) for name in plain["reg"]] or ["none"]
        configs.check(plain)
        if hydra.mode is RunMode.MULTIRUN:
            configs.check_sweep(plain)
    except (WrongKey, OmegaConfBaseException) as error:
        keys = error.keys if isinstance(error, WrongKey) else (str(error.full_key),)
        problem = str(error) if isinstance(error, WrongKey) else f"{keys[0]}: {str(error).splitlines()[0]}."
        file = origin(keys[0], hydra, folder)
        raise WrongKey(f"{shown(file)}: {problem}" if file else problem, *keys) from error
    if folder is None and plain["start_from"] is not None:
        start = resume.existing_folder("start_from", plain["start_from"])
        records.read(start)
        if not (start / "checkpoints" / "last.ckpt").is_file():
            raise UserError(f"start_from={start}: that run has no checkpoints/last.ckpt to start from.")
    return Settled(plain, overrides, choices)


def leave_behind(plain: dict[str, Any], overrides: Sequence[str], hydra: Any) -> None:
    """Take out what an experiment sets of its own options where the command line chose others."""
    experiments = conf_of(hydra) / "experiment"
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        group = override.key_or_group
        for name in configs.strange(group, plain.get(group)) if group in configs.TARGETS else []:
            file = origin(f"{group}.{name}", hydra, None)
            if file is not None and file.is_relative_to(experiments):
                del plain[group][name]


class PastHydra(BaseException):
    """Carries a mistake, its cause, out of a callback, where Hydra only warns of an ordinary exception."""


MISTAKES = (UserError, HydraException, OmegaConfBaseException)


class SayMistake(Callback):
    """Takes a mistake past Hydra, which would print a line of its own."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if job_return.status is JobStatus.FAILED and said(job_return._return_value):
            raise PastHydra from job_return._return_value


class CheckConfig(SayMistake):
    """Checks the configuration once Hydra has composed it, then claims the run's folder."""

    settled: Settled | None = None  # of the single run that is about to start
    claim: Claim | None = None  # of the folder of the run at work
    folder: Path | None = None  # that folder
    made: Path | None = None  # the same if it is this run's own, to be removed with it

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        CheckConfig.folder = CheckConfig.made = None
        try:
            settled, folder = settle(config, config.hydra), Path(config.hydra.run.dir)
            with signals.held():
                new = not folder.exists()
                CheckConfig.claim = resume.take(folder, config.get("resume"))
                CheckConfig.settled, CheckConfig.folder = settled, folder
                CheckConfig.made = folder if new else None
        except (*MISTAKES, OSError) as error:
            raise PastHydra from error

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a sweep whose own options or first job are wrong, but for a value that the sweep changes."""
        loader = GlobalHydra.instance().config_loader()
        typed = OverridesParser.create(loader).parse_overrides(as_typed(config.hydra)[1])
        swept = [override for override in typed if override.is_sweep_override()]
        try:
            sweep_values.check(config.hydra.launcher, config.hydra.sweeper)
            job = loader.load_sweep_config(config, [first(override) for override in typed])
            settle(job, job.hydra)
        except WrongKey as error:
            if not any(related(key, override.key_or_group) for key in error.keys for override in swept):
                raise PastHydra from error
        except MISTAKES as error:
            raise PastHydra from error

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        claim, CheckConfig.claim = CheckConfig.claim, None
        try:
            if job_return.status is JobStatus.FAILED:
                self.on_failure(config, job_return, begun=claim is not None)
        finally:
            if claim is not None:
                claim.release()

    def on_failure(self, config: DictConfig, job_return: JobReturn, begun: bool) -> None:
        """Leave in train.log what was wrong, in a sweep also on the terminal, at once: the others go on."""
        error = job_return._return_value
        text = said(error) or "".join(traceback.format_exception(error))
        if config.hydra.mode is RunMode.MULTIRUN:
            log.error(text)
            return
        for handler in logging.root.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handle(logging.makeLogRecord({"msg": text, "levelno": logging.ERROR}))
        folder = Path(config.hydra.runtime.output_dir)
        if not OmegaConf.is_missing(config.hydra.job, "num"):  # the command of a job of a sweep
            if begun:
                from cifarlab.sweeps.jobs import record_failure

                settled = settle(config, config.hydra)
                short_text = said(error) or f"{type(error).__name__}: {error}"
                with suppress(OSError):  # which has made it fail, and is what it says
                    record_failure(folder, short_text, settled, settled.overrides)
        elif begun and isinstance(mistake_in(error), UserError):
            self.remove_unstarted(epochs=0)
        super().on_job_end(config, job_return)

    @classmethod
    def refused_write(cls, error: BaseException) -> RunFailed | None:
        """That the system did not let this run write its folder, whose record there is not yet."""
        folder, why = cls.folder, refusal(error, cls.folder)
        if folder is None or why is None or f": {shown(folder)}/" not in f"{why}/":
            return None
        cls.remove_unstarted()
        return RunFailed(f"{why}; once that is mended, give the same command again.")

    @classmethod
    def remove_unstarted(cls, epochs: int | None = None) -> None:
        """Remove the folder that this run has made, unless there is a record of more epochs in it."""
        folder = cls.made
        if folder and (not (folder / "record.json").exists() or records.read(folder)["epochs"] == epochs):
            shutil.rmtree(folder, ignore_errors=True)


def arguments(config: DictConfig, function: str) -> dict[str, Any]:
    """Inside the Hydra job of a command without a run of its own: its keys, which are a function's arguments.

    Raises:
        UserError: when a key is missing or wrong.
    """
    hydra = HydraConfig.get()
    try:
        plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        configs.check_command(plain, function)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} is missing: give it by {error.full_key}=...") from error
    except WrongKey as error:
        file = origin(error.keys[0], hydra, None)
        raise UserError(f"{shown(file)}: {error}" if file else str(error)) from error
    return plain


def job(config: DictConfig) -> tuple[dict[str, Any], Path, list[str], dict[str, Any]]:
    """Inside a Hydra job: its configuration, folder, overrides and choices."""
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    settled, CheckConfig.settled = CheckConfig.settled, None
    if settled is None:  # a job of a sweep
        signals.listen()  # anew, for those of other launchers share this process
        signals.heed()
        settled = settle(config, hydra)
        CheckConfig.claim = resume.take(folder, None)
    return settled.plain, folder, settled.overrides, settled.choices
