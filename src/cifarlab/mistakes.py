"""One sentence for whatever is wrong with a command or a YAML, be it found here or by Hydra or OmegaConf."""

from __future__ import annotations

import errno
import re
import shlex
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from cifarlab.config import TARGETS, groups, nearest, options, show, unknown
from cifarlab.errors import RunFailed, UserError

# what comes of the machine and its settings, not of the program
REFUSALS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENAMETOOLONG,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
)


def mistake_in(error: BaseException) -> UserError | RunFailed | None:
    """The error if it has a sentence for the user, also if Hydra wrapped it."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    if why := refusal(error):
        error = UserError(f"{why}.")
    return error if isinstance(error, UserError | RunFailed) else None


def refusal(error: BaseException, place: Path | None = None) -> str | None:
    """Which file the system did not let us read or write, and why; of other errors nothing.

    `place` is named where the error names no file, as that of a write does.
    """
    if isinstance(error, ValueError):  # by which logging says that it cannot open its file
        error = error.__cause__ or error
    if not isinstance(error, OSError) or error.errno not in REFUSALS:
        return None
    file = error.filename or place
    return f"{error.strerror}: {shown(Path(file))}" if isinstance(file, str | Path) else error.strerror


def said(error: BaseException) -> str | None:
    """That sentence."""
    found = mistake_in(error)
    return None if found is None else str(found)


def refuse(message: str) -> NoReturn:
    raise UserError(f"{message[:1].upper()}{message[1:]}; --help shows what there is.")


def checked(text: str, conf: Path, sweeps: bool, able: bool = True) -> Override:
    """An override, once all is in order that can be seen without composing.

    `sweeps` says whether -m was typed, `able` whether the command knows it.

    Raises:
        UserError: for what cannot be read, a sweep without -m, and an option that its group does not have.
    """
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        override = None
    if override is None or not override.key_or_group:
        example = "model=vgg3 or trainer.max_epochs=10" if able else "out=FOLDER"
        raise UserError(f"{text!r} cannot be read: expected key=value, such as {example}.")
    key = override.key_or_group
    if override.is_sweep_override() and not able:
        several = f"write {key}=[{override.get_value_string()}] for all of them"
        raise UserError(f"{text} holds several values: {several}, or quotes inside quotes for a comma.")
    if override.is_sweep_override() and not sweeps:
        both = f", or for all at once {key}=[{override.get_value_string()}]" if key == "reg" else ""
        command = f"python {Path(sys.argv[0]).name} -m {shlex.quote(text)}"
        raise UserError(f"{text} holds several values, which is a sweep: type `{command}`{both}.")
    if key in groups(conf) or key == "hydra" or key.startswith("hydra/"):
        kinds = str | None if override.is_delete() else str | list | dict
        plain = not override.is_sweep_override() and (override.is_delete() or key not in groups(conf))
        if plain and not isinstance(override.value(), kinds):
            raise UserError(f"{text}: expected the name of one of the options of {key}.")
    if key not in groups(conf) or override.is_delete() or isinstance(override.value(), dict):
        return override
    if override.is_add() or override.is_force_add():
        raise UserError(f"{text}: a group's option is chosen without a plus: {text.lstrip('+')}.")
    known = options(conf, key)
    for value in values(override):
        if isinstance(value, list) and key in TARGETS and key != "reg":
            raise UserError(f"{text}: expected one {key}, not a list of them.")
        for option in map(show, value if isinstance(value, list) else [value]):
            if option not in known:
                raise UserError(f"{text}: {key} has no option {option!r}; {nearest(option, known)}")
    return override


def values(override: Override) -> list[Any]:
    """The values that an override gives its key, one or several; none where only Hydra can tell."""
    if not override.is_sweep_override():
        return [override.value()]
    if not override.is_discrete_sweep() or override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        return []
    return [Override._convert_value(value) for value in override.sweep_iterator()]


def first(override: Override) -> str:
    """The override, of a sweep with its first value alone."""
    if not override.is_sweep_override():
        return str(override.input_line)
    if override.is_interval_sweep():
        value = str(override.value().start)  # type: ignore[union-attr]
    else:
        value = next(override.sweep_string_iterator(), "")
    return f"{override.get_key_element()}={value}"


def explain(error: BaseException, conf: Path, overrides: list[str]) -> str | None:
    """One sentence for a configuration that Hydra could not compose; None for any other error."""
    if file := being_read(error):
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or one_line(error)
        return f"{shown(file)}{line} cannot be read as keys and values in YAML: {problem.rstrip('.')}."
    if isinstance(error, ValueError) and (text := being_laid(error)):  # a word as the number of a list's part
        return f"{text} does not fit what it would change; --help shows what there is."
    if isinstance(error, InstantiationException) or not isinstance(
        error, HydraException | OmegaConfBaseException
    ):
        return None
    if foreign := re.match(r"Could not override '(.+?)'\. No match in the defaults list", str(error)):
        return f"{foreign[1]} is no group of this command; --help shows what there is."
    return explain_key(error.__cause__, conf) or explain_option(error, conf, overrides) or one_line(error)


def explain_key(error: BaseException | None, conf: Path) -> str | None:
    """A key that was typed and that the configuration does not have."""
    if not isinstance(error, ConfigAttributeError | ConfigKeyError) or error.parent_node is None:
        return None
    owner, name = error.parent_node._get_full_key(""), str(error.key)
    known = {*error.parent_node} - {"_target_"}
    if owner == "reg" and name in options(conf, "reg"):
        choice = f"[{','.join([*error.parent_node, name])}]" if known else name
        return f"reg.{name}: {name!r} is not among the chosen regularizers; choose it by reg={choice}."
    if not owner and "trainer" in known:  # a training has groups that are no keys, such as experiment
        known = (known | {*groups(conf)}) - {"hydra"}
    return unknown(owner, name, sorted(known))


def explain_option(error: BaseException, conf: Path, overrides: list[str]) -> str | None:
    """An option that a YAML's defaults name and that its group does not have."""
    if not isinstance(error, MissingConfigException) or not error.missing_cfg_file:
        return None
    group, _, option = error.missing_cfg_file.partition("/")
    known = options(conf, group)
    if group not in groups(conf):
        group, _, option = error.missing_cfg_file.rpartition("/")
        known = list(error.options or [])
    # Hydra names the file whose default was overridden, which may have been by an experiment
    parent = re.match(r"In '(.+?)'", str(error))
    files = [text.replace("=", "/") for text in overrides] + ([parent[1]] if parent else [])
    paths = [conf / f"{file}.yaml" for file in files]
    guilty = [path for path in paths if path.is_file() and option in path.read_text()]
    file = f"{shown(guilty[0])}: " if guilty else ""
    return f"{file}{group} has no option {option!r}; {nearest(option, known)}"


def being_read(error: BaseException) -> Path | None:
    """The YAML that Hydra was reading when the error came, which not every such error names."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "load_config" and "full_path" in frame.f_locals:
            return Path(frame.f_locals["full_path"])
    return None


def being_laid(error: BaseException) -> str | None:
    """The override that was being laid over the configuration when OmegaConf raised an error of Python's."""
    if isinstance(error, OmegaConfBaseException):
        return None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        override = frame.f_locals.get("override")
        if frame.f_code.co_name in ("_apply_overrides_to_config", "resumed") and override is not None:
            return str(override.input_line)
    return None


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


def related(key: str, other: str) -> bool:
    """Whether one dotted key holds the other."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def as_typed(hydra: Any) -> tuple[list[str], list[str]]:
    """The overrides of Hydra's own keys and those of ours, the `${...}` in them not resolved."""
    own, task = (OmegaConf.to_container(hydra.overrides[kind]) for kind in ("hydra", "task"))
    return own, task  # type: ignore[return-value]


def conf_of(hydra: Any) -> Path:
    """The folder that the command's configuration lies in."""
    return next(Path(source.path) for source in hydra.runtime.config_sources if source.provider == "main")


def origin(key: str, hydra: Any, folder: Path | None) -> Path | None:
    """The last file that names a key, for a resumed run the one in its folder; None if the key was typed."""
    own, task = as_typed(hydra)
    typed = [override.key_or_group for override in OverridesParser.create().parse_overrides(task)]
    if folder is not None:
        return None if any(related(key, other) for other in typed) else folder / "config.yaml"
    if key in typed or not GlobalHydra.instance().is_initialized():
        return None
    loader = GlobalHydra.instance().config_loader()
    composed = loader.compute_defaults_list(hydra.job.config_name, [*own, *task], RunMode.RUN)
    if any(related(key, override.key_or_group) for override in composed.config_overrides):
        return None
    for default in reversed(composed.defaults):
        file, package = conf_of(hydra) / f"{default.config_path}.yaml", default.package
        inside = key.removeprefix(f"{package}.") if package else key
        if file.is_file() and (
            inside == package or holds(OmegaConf.to_container(OmegaConf.load(file)), inside)
        ):
            return file
    return None


def holds(node: Any, key: str) -> bool:
    """Whether nested mappings have that dotted key."""
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True
