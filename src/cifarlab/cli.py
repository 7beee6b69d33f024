"""The manners that all commands share: Hydra's command line, one sentence for a mistake, an exit code.

Nothing here imports torch, so `--help`, completion and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import shutil
import string
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
)
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from cifarlab import config as configs
from cifarlab.config import WrongKey, nearest, unknown
from cifarlab.errors import RunFailed, UserError
from cifarlab.runs import record as records

log = logging.getLogger(__name__)

# groups whose option made the weights or the data: a resumed run cannot change it
FIXED_ON_RESUME = ("data", "model", "reg", "optimizer", "experiment")
FOLDER_KEYS = ("resume", "start_from", "run")


def short(overrides: str) -> str:
    """Overrides as part of a folder's name: at most 60 harmless characters."""
    return re.sub(r"[^\w.=,+-]+", "-", overrides).strip("-")[:60]


def run_folder(resume: str | None, overrides: str) -> str:
    """The run's folder: the one to resume, else a new one named by the time (UTC) and what was typed."""
    if resume is not None:
        return str(resume)
    name = "_".join(filter(None, [datetime.now(UTC).strftime("%Y-%m-%d_%H-%M-%S-%f"), short(overrides)]))
    return f"logs/runs/{name}"


OmegaConf.register_new_resolver("short", short, replace=True)
OmegaConf.register_new_resolver("run_folder", run_folder, use_cache=True, replace=True)
OmegaConf.register_new_resolver(
    "utc_now", lambda: datetime.now(UTC).strftime("%Y-%m-%d_%H-%M-%S-%f"), use_cache=True, replace=True
)


class Refused(BaseException):
    """Carries a mistake, its cause, out of a callback, where Hydra only warns of an ordinary exception."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """Run a Hydra application; turn what a user can cause into one sentence on stderr and an exit code."""
    traces = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra hands its errors on to us instead of printing them
    door = Door(sys.argv[0])
    try:
        sys.argv[1:] = door.read(sys.argv[1:])
        if door.flags.help:
            print(door.help())
            sys.exit(0)
        yield
    except KeyboardInterrupt:
        print("Stopped by Ctrl-C.", file=sys.stderr)
        sys.exit(130)
    except (Exception, Refused) as error:
        mistake = error.__cause__ if isinstance(error, Refused) else error
        sentence = mistake and (said(mistake) or door.explain(mistake))
        if sentence is None:
            raise
        if traces == "1":
            traceback.print_exc()
        print(sentence, file=sys.stderr)
        sys.exit(getattr(mistake, "exit_code", UserError.exit_code))
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
        if traces is not None:
            os.environ["HYDRA_FULL_ERROR"] = traces


def said(error: BaseException) -> str | None:
    """The sentence of an error that has one, also of one that Hydra wrapped."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return str(error) if isinstance(error, UserError | RunFailed) else None


class Door:
    """A command that opens with Hydra: its script, its arguments and the folders its options lie in."""

    def __init__(self, script: str) -> None:
        self.script = Path(script).resolve()
        self.flags = argparse.Namespace(overrides=[])
        self.folders = [self.script.parent / "conf"]

    def read(self, arguments: list[str]) -> list[str]:
        """The arguments as Hydra wants them, once all is in order that can be seen without composing.

        Raises:
            UserError: for the first mistake.
        """
        parser = get_args_parser()
        parser.error = refuse  # type: ignore[method-assign]
        # unlike Hydra itself, which parses next, this takes flags between overrides
        self.flags = parser.parse_intermixed_args(arguments)
        if self.flags.config_path:
            self.folders = [self.script.parent / self.flags.config_path]
        if self.flags.config_dir:
            self.folders.insert(0, Path(self.flags.config_dir).resolve())
        flags = [argument for argument in arguments if argument not in self.flags.overrides]
        overrides = with_saved_overrides(list(map(quoted, self.flags.overrides)), self.flags.multirun)
        for text in overrides:
            self.check_override(text)
        self.flags.overrides = overrides
        return overrides + flags

    def check_override(self, text: str) -> None:
        """Refuse what cannot be read, a sweep without -m, and an option that its group does not have."""
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            override = None
        if override is None or not override.key_or_group:
            example = "key=value, such as model=vgg3 or trainer.max_epochs=10"
            raise UserError(f"{text!r} cannot be read: expected {example}.")
        key = override.key_or_group
        if override.is_sweep_override() and not self.flags.multirun:
            both = f", or for all at once {key}=[{override.get_value_string()}]" if key == "reg" else ""
            command = f"python {self.script.name} -m {shlex.quote(text)}"
            raise UserError(f"{text} holds several values, which is a sweep: type `{command}`{both}.")
        if key not in self.groups() or override.is_delete() or isinstance(override.value(), dict):
            return
        if override.is_add() or override.is_force_add():
            raise UserError(f"{text}: a group's option is chosen without a plus: {text.lstrip('+')}.")
        known = self.options(key)
        for value in values(override):
            if isinstance(value, list) and key in configs.TARGETS and key != "reg":
                raise UserError(f"{text}: expected one {key}, not a list of them.")
            for option in map(configs.show, value if isinstance(value, list) else [value]):
                if option not in known:
                    raise UserError(f"{text}: {key} has no option {option!r}; {nearest(option, known)}")

    def groups(self) -> list[str]:
        """The names of the groups."""
        paths = [path for folder in self.folders for path in folder.glob("*/")]
        return sorted({path.name for path in paths} - {"hydra"})

    def options(self, group: str) -> list[str]:
        """The names that `group=` takes."""
        homes = [folder / group for folder in self.folders]
        paths = [path.relative_to(home).with_suffix("") for home in homes for path in home.rglob("*.yaml")]
        return sorted({path.as_posix() for path in paths})

    def compose(self, overrides: list[str], **options: Any) -> DictConfig:
        """The configuration that those overrides make."""
        *more, conf = self.folders
        if more:
            overrides = [f"hydra.searchpath=['file://{more[0]}']", *overrides]
        with initialize_config_dir(str(conf), version_base="1.3"):
            return compose(self.flags.config_name or self.script.stem, overrides, **options)

    def help(self) -> str:
        """What `hydra.help` asks for, in half of Hydra's time, most of which goes into groups of its own."""
        config = self.compose(self.flags.overrides, return_hydra_config=True)
        template = string.Template(config.hydra.help.template)
        plain = {key: value for key, value in config.items() if key != "hydra"}
        groups = "\n".join(f"{group}: {', '.join(self.options(group))}" for group in self.groups())
        return template.substitute(
            APP_CONFIG_GROUPS=groups, CONFIG=OmegaConf.to_yaml(OmegaConf.create(plain))
        )

    def explain(self, error: BaseException) -> str | None:
        """One sentence for a configuration that Hydra could not compose; None for any other error."""
        if file := being_read(error):
            mark = getattr(error, "problem_mark", None)
            line = f", line {mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or one_line(error)
            return f"{shown(file)}{line} cannot be read as keys and values in YAML: {problem}."
        if isinstance(error, InstantiationException) or not (
            isinstance(error, HydraException | OmegaConfBaseException) or raised_in_hydra(error)
        ):
            return None
        typed = self.flags.overrides
        deleted = {o[1:].partition("=")[0] for o in typed if o.startswith("~")} - {*self.groups()}
        if deleted:
            # a key that cannot be deleted cannot be set either, of which Hydra says more
            kept = [o for o in typed if not o.startswith("~")]
            try:
                self.compose([*kept, *(f"{key}=null" for key in deleted)])
            except ConfigCompositionException as same:
                error = same
        return self.explain_key(error.__cause__) or self.explain_option(error) or one_line(error)

    def explain_key(self, error: BaseException | None) -> str | None:
        """A key that was typed and that the configuration does not have."""
        if not isinstance(error, ConfigAttributeError | ConfigKeyError) or error.parent_node is None:
            return None
        owner, name = error.parent_node._get_full_key(""), str(error.key)
        known = {*error.parent_node} - {"_target_"}
        if owner == "reg" and name in self.options("reg"):
            choice = f"[{','.join([*error.parent_node, name])}]" if known else name
            return f"reg.{name}: {name!r} is not among the chosen regularizers; choose it by reg={choice}."
        if not owner:
            known = (known | {*self.groups()}) - {"hydra"}
        return unknown(owner, name, sorted(known))

    def explain_option(self, error: BaseException) -> str | None:
        """An option that a YAML's defaults name and that its group does not have."""
        if not isinstance(error, MissingConfigException) or not error.missing_cfg_file:
            return None
        group, _, option = error.missing_cfg_file.partition("/")
        known = self.options(group)
        if group not in self.groups():
            group, _, option = error.missing_cfg_file.rpartition("/")
            known = list(error.options or [])
        # Hydra names the file whose default was overridden, which may have been by an experiment
        parent = re.match(r"In '(.+?)'", str(error))
        files = [o.replace("=", "/") for o in self.flags.overrides] + ([parent[1]] if parent else [])
        paths = [folder / f"{file}.yaml" for file in files for folder in self.folders]
        guilty = [path for path in paths if path.is_file() and option in path.read_text()]
        file = f"{shown(guilty[0])}: " if guilty else ""
        return f"{file}{group} has no option {option!r}; {nearest(option, known)}"


def refuse(message: str) -> NoReturn:
    raise UserError(f"{message[:1].upper()}{message[1:]}; --help shows what there is.")


def quoted(override: str) -> str:
    """The name of a folder that is there in quotes: a run's own name holds commas, which would be a sweep."""
    key, _, value = override.partition("=")
    needs = key in FOLDER_KEYS and re.search(r"[^\w./=+-]", value) and Path(value).exists()
    return f"{key}='{value}'" if needs else override


def values(override: Override) -> list[Any]:
    """The values that an override gives its key, one or several; none where only Hydra can tell."""
    if not override.is_sweep_override():
        return [override.value()]
    if not override.is_discrete_sweep() or override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        return []
    return [Override._convert_value(value) for value in override.sweep_iterator()]


def with_saved_overrides(arguments: list[str], sweep: bool) -> list[str]:
    """For `resume=DIR`, what that run was started with, then what is typed now.

    Raises:
        UserError: when DIR is no run folder.
    """
    typed = [argument.removeprefix("resume=") for argument in arguments if argument.startswith("resume=")]
    if not typed or typed[-1] in ("", "null"):
        return arguments
    if sweep:
        raise UserError("resume= goes on with one run: leave out -m.")
    folder = existing_folder("resume", typed[-1].strip("'"))
    saved: list[str] = records.read(folder)["overrides"]
    # a process of a distributed run is started with its parent's arguments, which hold them
    return arguments if arguments[: len(saved)] == saved else saved + arguments


def existing_folder(key: str, name: str) -> Path:
    if not Path(name).is_dir():
        raise UserError(
            f"{key}={name}: there is no such folder; expected that of a run, such as logs/runs/..."
        )
    return Path(name)


def being_read(error: BaseException) -> Path | None:
    """The YAML that Hydra was reading when the error came."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "load_config" and "full_path" in frame.f_locals:
            return Path(frame.f_locals["full_path"])
    return None


def raised_in_hydra(error: BaseException) -> bool:
    """Whether Hydra's own code raised it; for a wrong flag it is a ValueError."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return isinstance(error, ValueError) and frame.f_globals["__name__"].startswith("hydra.")


def one_line(error: BaseException) -> str:
    """An error of Hydra's or OmegaConf's, its lines made one sentence."""
    text = " ".join(
        line.strip() for line in str(error).splitlines() if line.strip() and "object_type=" not in line
    )
    cause = str(error.__cause__).partition("\n")[0] if error.__cause__ else ""
    return f"{text} {cause}".strip().rstrip(".") + "." or type(error).__name__


def shown(path: Path) -> str:
    """A path as the user would type it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


class CheckConfig(Callback):
    """Checks the configuration once Hydra has composed it and before it makes any folder."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            settle(config, config.hydra)
        except (UserError, HydraException, OmegaConfBaseException) as error:
            raise Refused from error

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a sweep whose first job is wrong, unless that lies in a value which the sweep changes."""
        loader = GlobalHydra.instance().config_loader()
        typed = OverridesParser.create(loader).parse_overrides(as_typed(config.hydra)[1])
        swept = [override for override in typed if override.is_sweep_override()]
        try:
            job = loader.load_sweep_config(config, [first(override) for override in typed])
            settle(job, job.hydra)
        except WrongKey as error:
            if not any(related(key, override.key_or_group) for key in error.keys for override in swept):
                raise Refused from error
        except (UserError, HydraException, OmegaConfBaseException) as error:
            raise Refused from error

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Say at once, and in the job's train.log, what was wrong with a job of a sweep: the others go on."""
        if job_return.status is not JobStatus.FAILED:
            return
        error = job_return._return_value
        if config.hydra.mode is RunMode.MULTIRUN:
            log.error(said(error) or "".join(traceback.format_exception(error)))
        elif said(error):
            remove_unstarted(Path(config.hydra.runtime.output_dir))
            raise Refused from error  # past Hydra, which would print a line of its own


def remove_unstarted(folder: Path) -> None:
    """Remove a run's folder in which nothing was written but the log."""
    if [path.suffix for path in folder.iterdir()] == [".log"]:
        shutil.rmtree(folder)


def first(override: Override) -> str:
    """The override, of a sweep with its first value alone."""
    if not override.is_sweep_override():
        return str(override.input_line)
    if override.is_interval_sweep():
        value = str(override.value().start)  # type: ignore[union-attr]
    else:
        value = next(override.sweep_string_iterator(), "")
    return f"{override.get_key_element()}={value}"


def related(key: str, other: str) -> bool:
    """Whether one dotted key holds the other."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def settle(config: DictConfig, hydra: Any) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """What a run gets: its plain, checked configuration, the overrides typed, and the options chosen.

    A resumed run gets the configuration it was saved with, and on top of it what was typed now.

    Raises:
        UserError: when the configuration is wrong.
    """
    parts = {key: part for key, part in config.items_ex(resolve=False) if key != "hydra"}
    merged = OmegaConf.create({"reg": {}, **parts})
    chosen = {name: hydra.runtime.choices.get(name) for name in records.EMPTY["choices"]}
    chosen["reg"] = [str(name) for name in merged.reg] or ["none"]
    _, overrides = as_typed(hydra)
    folder = Path(config.resume) if config.get("resume") else None
    if folder is not None:
        merged, chosen = resumed(folder, merged, chosen, overrides)
    try:
        plain: Any = OmegaConf.to_container(merged, resolve=True)
        configs.check(plain)
    except (WrongKey, OmegaConfBaseException) as error:
        keys = error.keys if isinstance(error, WrongKey) else (str(error.full_key),)
        problem = str(error) if isinstance(error, WrongKey) else f"{keys[0]}: {str(error).splitlines()[0]}."
        file = origin(keys[0], hydra, folder)
        raise WrongKey(f"{shown(file)}: {problem}" if file else problem, *keys) from error
    if folder is None and plain["start_from"] is not None:
        start = existing_folder("start_from", plain["start_from"])
        records.read(start)
        if not (start / "checkpoints" / "last.ckpt").is_file():
            raise UserError(f"start_from={start}: that run has no checkpoints/last.ckpt to start from.")
    return plain, [text for text in overrides if not text.startswith("resume=")], chosen


def resumed(
    folder: Path, merged: DictConfig, chosen: dict[str, Any], overrides: list[str]
) -> tuple[DictConfig, dict[str, Any]]:
    """The configuration and choices of the run in that folder, with what was typed now."""
    choices = records.read(folder)["choices"]
    for group in FIXED_ON_RESUME:
        if chosen[group] != choices[group]:
            now, before = configs.show(chosen[group]), configs.show(choices[group])
            raise UserError(
                f"{group}={now} cannot replace {before} in a resumed run; start a new one from its weights "
                f"with start_from={folder}."
            )
    config = records.read_config(folder)
    for key in typed_now(folder, overrides):
        OmegaConf.update(config, key, OmegaConf.select(merged, key), merge=False, force_add=True)
    return config, choices


def typed_now(folder: Path, overrides: list[str]) -> list[str]:
    """The keys typed behind those that the run in that folder was started with."""
    typed = overrides[len(records.read(folder)["overrides"]) :]
    keys = [override.key_or_group for override in OverridesParser.create().parse_overrides(typed)]
    return [key for key in keys if key not in FIXED_ON_RESUME]


def as_typed(hydra: Any) -> tuple[list[str], list[str]]:
    """The overrides of Hydra's own keys and those of ours, the `${...}` in them not resolved."""
    own, task = (OmegaConf.to_container(hydra.overrides[kind]) for kind in ("hydra", "task"))
    return own, task  # type: ignore[return-value]


def origin(key: str, hydra: Any, folder: Path | None) -> Path | None:
    """The last file that names a key, for a resumed run the one in its folder; None if the key was typed."""
    if not GlobalHydra.instance().is_initialized():
        return None
    loader = GlobalHydra.instance().config_loader()
    own, task = as_typed(hydra)
    composed = loader.compute_defaults_list(hydra.job.config_name, [*own, *task], RunMode.RUN)
    typed = [override.key_or_group for override in composed.config_overrides]
    if any(related(key, other) for other in (typed if folder is None else typed_now(folder, task))):
        return None
    if folder is not None:
        return folder / "config.yaml"
    for default in reversed(composed.defaults):
        path, package = str(default.config_path), default.package
        inside = key.removeprefix(f"{package}.") if package else key
        for source in loader.get_sources():
            if source.scheme() != "file" or not source.is_config(path):
                continue
            if inside == package or holds(OmegaConf.to_container(source.load_config(path).config), inside):
                return Path(source.path, f"{path}.yaml")
    return None


def holds(node: Any, key: str) -> bool:
    """Whether nested mappings have that dotted key."""
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


def job(config: DictConfig) -> tuple[dict[str, Any], Path, list[str], dict[str, Any]]:
    """Inside a Hydra job: its configuration, folder, overrides and choices."""
    hydra = HydraConfig.get()
    plain, overrides, choices = settle(config, hydra)
    return plain, Path(hydra.runtime.output_dir), overrides, choices
