"""The manners that all commands share: Hydra's command line, one sentence for a mistake, an exit code.

Nothing here imports torch, so `--help`, completion and mistakes are answered at once.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cifarlab import config as configs
from cifarlab.errors import RunFailed, UserError
from cifarlab.runs import record as records

# groups whose choice made the weights or the data: a resumed run cannot change them
FIXED_ON_RESUME = ("data", "model", "reg", "optimizer", "experiment")


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


@contextmanager
def plain_errors() -> Iterator[None]:
    """Run a Hydra application; turn what a user can cause into one sentence on stderr and an exit code."""
    traces = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra hands its errors on to us instead of printing them
    try:
        sys.argv[1:] = flags_first(with_saved_overrides(sys.argv[1:]))
        yield
    except (UserError, RunFailed) as error:
        stop(str(error), error.exit_code, traces)
    except InstantiationException as error:
        if not isinstance(error.__cause__, UserError):
            raise
        stop(str(error.__cause__), 2, traces)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        stop(explain(error, sys.argv[1:]), 2, traces)
    except KeyboardInterrupt:
        stop("Stopped by Ctrl-C.", 130, traces)


def stop(message: str, code: int, traces: bool = False) -> None:
    if traces:
        traceback.print_exc()
    print(message, file=sys.stderr)
    sys.exit(code)


def flags_first(arguments: list[str]) -> list[str]:
    """`-m` between overrides is an error to Hydra's parser; in front of them it is not."""
    flags = [a for a in arguments if a in ("-m", "--multirun")]
    return flags + [a for a in arguments if a not in flags]


def with_saved_overrides(arguments: list[str]) -> list[str]:
    """For `resume=DIR`, what that run was started with, then what is typed now.

    Raises:
        UserError: when DIR is no run folder, or something is typed that would make it another run.
    """
    folders = [a.removeprefix("resume=") for a in arguments if a.startswith("resume=")]
    if not folders or folders[-1] in ("", "null"):
        return arguments
    folder = Path(folders[-1])
    if not folder.is_dir():
        raise UserError(f"resume={folder}: there is no such folder.")
    saved = records.read(folder)["overrides"]
    for argument in arguments:
        group, _, _ = argument.partition("=")
        if group in FIXED_ON_RESUME:
            raise UserError(
                f"{argument} cannot be changed in a resumed run; start a new one from its weights with "
                f"start_from={folder}."
            )
    return saved + arguments


class CheckConfig(Callback):
    """Checks the configuration after Hydra has composed it and before any folder is made."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.check(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.check(config)

    def check(self, config: DictConfig) -> None:
        try:
            settle(config, config.hydra)
        # Hydra turns an ordinary exception in a callback into a warning
        except (UserError, OmegaConfBaseException) as error:
            stop(str(error), 2)


def settle(config: DictConfig, hydra: Any) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """What a run gets: its plain, checked configuration, the overrides typed, and the options chosen.

    A resumed run gets the configuration it was saved with, and on top of it what was typed now.

    Raises:
        UserError: when the configuration is wrong.
    """
    overrides = [o for o in hydra.overrides.task if not o.startswith("resume=")]
    chosen = {name: hydra.runtime.choices.get(name) for name in records.EMPTY["choices"]}
    tasks = OverridesParser.create().parse_overrides(list(hydra.overrides.task))
    chosen["reg"] = reg_names(config)
    merged = OmegaConf.create({k: v for k, v in config.items() if k != "hydra"})
    if config.get("resume"):
        folder = Path(config.resume)
        saved = records.read(folder)
        base = records.read_config(folder)
        typed = tasks[len(saved["overrides"]) :]
        for override in typed:
            key = override.key_or_group
            OmegaConf.update(base, key, OmegaConf.select(merged, key), merge=False, force_add=True)
        merged, chosen = base, saved["choices"]
    plain = OmegaConf.to_container(merged, resolve=True)
    assert isinstance(plain, dict)
    configs.check(plain)
    return plain, overrides, chosen


def reg_names(config: DictConfig) -> list[str]:
    return [str(name) for name in config.reg] or ["none"]


def job(config: DictConfig) -> tuple[dict[str, Any], Path, list[str], dict[str, Any]]:
    """Inside a Hydra job: its configuration, folder, overrides and choices."""
    hydra = HydraConfig.get()
    plain, overrides, choices = settle(config, hydra)
    return plain, Path(hydra.runtime.output_dir), overrides, choices


def explain(error: Exception, arguments: list[str]) -> str:
    """What is wrong with the command line or a YAML, in one sentence with the nearest right name."""
    overrides = [a for a in arguments if not a.startswith("-")]
    sweep = any(a in ("-m", "--multirun") for a in arguments)
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            return f"{text!r} cannot be read: expected key=value, such as model=vgg3 or trainer.max_epochs=10."
        if problem := explain_override(text, override, sweep):
            return problem
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = str(error.__cause__).splitlines()[0] if error.__cause__ else ""
    return " ".join(filter(None, [lines[0] if lines else type(error).__name__, cause]))


def explain_override(text: str, override: Any, sweep: bool) -> str | None:
    """What is wrong with one `key=value`, if that can be told from its key and the folders in conf/."""
    key, groups = override.key_or_group, configs.groups()
    root, _, rest = key.partition(".")
    if key == "hydra" or root.startswith("hydra"):
        return None
    if root not in groups and root not in configs.ROOT:
        return f"{text}: there is no key {root!r}{configs.nearest(root, [*groups, *configs.ROOT])}."
    if override.is_sweep_override() and not sweep:
        return f"{text} holds several values, which is a sweep: add -m, as in `python train.py -m {text}`."
    if key in groups and not override.is_sweep_override():
        value = override.value()
        for option in value if isinstance(value, list) else [value]:
            if option is not None and str(option) not in configs.options(key):
                return f"{text}: there is no {key} {str(option)!r}{configs.nearest(str(option), configs.options(key))}."
    if rest and root in groups:
        return explain_key(text, root, rest)
    return None


def explain_key(text: str, group: str, rest: str) -> str | None:
    """A key that the chosen options do not have."""
    chosen = [a for a in sys.argv[1:] if a.partition("=")[0] in configs.groups()]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(configs.CONF), version_base="1.3"):
            node = compose("train", overrides=chosen)[group]
    except (HydraException, OmegaConfBaseException):
        return None
    name, _, below = rest.partition(".")
    if group == "reg" and name not in node:
        return f"{text}: {name!r} is not among the chosen regularizers ({', '.join(node) or 'none'}); add reg={name}."
    keys: Any = configs.trainer_signature() if group == "trainer" else configs.signature(node.get("_target_", ""))
    if group == "reg":
        keys, name = configs.signature(node[name]["_target_"]), below
    if keys is not None and name not in keys:
        return f"{text}: {group} has no key {name!r}{configs.nearest(name, keys)}."
    return None
