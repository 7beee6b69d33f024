"""Checks of a composed configuration that need no torch, so that a mistake is answered at once.

What a key may hold is read from the constructor that takes it (`cifarlab.signatures`); what only several keys
together can say is checked here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from cifarlab import types as bounds
from cifarlab.errors import UserError
from cifarlab.signatures import (
    Parameter,
    conforms,
    describe,
    is_class,
    kinds,
    literals,
    methods,
    signature,
)
from cifarlab.types import Count, Seed

# the only places a `_target_` may name: a configuration from a stranger can call nothing else
TARGETS = {
    "data": "cifarlab.data",
    "model": "cifarlab.models",
    "reg": "cifarlab.regularizers",
    "optimizer": "cifarlab.optim.optimizers",
    "scheduler": "cifarlab.optim.schedules",
    "logger": "cifarlab.runs.loggers",
}
# what the classes among them are derived from; the other groups name functions
BASES = {"data": "ImageData", "model": "Classifier", "reg": "Regularizer"}
ROOT: dict[str, Any] = {
    "seed": Seed,
    "test": bool,
    "test_weights": Literal["last", "best"],
    "resume": str | None,
    "start_from": str | None,
    "export": Literal["pt2", "onnx", "none"],
}


@dataclass(frozen=True)
class Only:
    """The one value that a run can have, and why it can have no other."""

    value: Any
    why: str

    def __contains__(self, value: Any) -> bool:
        return bool(value == self.value)

    @property
    def says(self) -> str:
        return f"{show(self.value)}, because {self.why}"


# Trainer arguments whose annotation in Lightning says less than we can
TRAINER: dict[str, Any] = {
    "accelerator": Literal["auto", "cpu", "gpu"],
    "precision": Literal["auto", "32-true", "bf16-mixed", "16-mixed"],
    "max_epochs": Count | Literal[-1],
    "max_steps": Count | Literal[-1],
    "accumulate_grad_batches": Count,
    "capture": Literal["auto", "compile", "none"],  # ours, not Lightning's
    "convolution": Literal["auto", "direct"],  # ours as well
    "check_val_every_n_epoch": Count,
    "gradient_clip_val": bounds.NonNegative | None,
    "limit_train_batches": bounds.Positive | None,
    "enable_progress_bar": bool | Literal["auto"],
    "num_sanity_val_steps": Annotated[Any, Only(0, "only the scores of an epoch are recorded")],
    "overfit_batches": Annotated[Any, Only(0.0, "all parts of the data keep their images")],
    "fast_dev_run": Annotated[Any, Only(False, "it would leave no checkpoint (trainer=smoke is short)")],
    "barebones": Annotated[Any, Only(False, "a run is recorded")],
    "enable_checkpointing": Annotated[Any, Only(True, "a run is resumed and scored from its checkpoints")],
    "reload_dataloaders_every_n_epochs": Annotated[Any, Only(0, "the images stay in memory")],
    "model_registry": Annotated[Any, Only(None, "weights are sent nowhere")],
}
TRAINER_OURS = ("callbacks", "logger", "plugins", "default_root_dir")  # the run's own, not the user's
# the kinds of regularizer (`cifarlab.regularizers.base`) of which a run has one
ONE_PLACE = {
    "DropoutRates": "set of dropout rates",
    "Normalization": "normalization",
    "Smoothing": "label smoothing",
    "Selection": "selection of images",
}


class WrongKey(UserError):
    """A key that cannot be as it is; `keys` are those the mistake may be in, the likeliest first."""

    def __init__(self, message: str, *keys: str) -> None:
        super().__init__(message)
        self.keys = keys


def check(config: Mapping[str, Any]) -> None:
    """Refuse a resolved configuration that cannot run.

    Raises:
        WrongKey: naming the first key that is wrong, what was expected and the nearest right name.
    """
    known = [*ROOT, *TARGETS, "trainer"]
    check_names("", config, known)
    for name in known:
        if name not in config:
            raise WrongKey(f"{name} is missing: give it by {name}=...", name)
    for key, annotation in ROOT.items():
        check_value(key, config[key], annotation)
    for group in ("data", "model", "optimizer", "scheduler", "logger"):
        if group != "logger" or config[group]:  # logger=none is empty
            check_target(group, group, config[group])
    for name, part in check_mapping("reg", config["reg"]).items():
        check_target("reg", f"reg.{name}", part)
    check_keys("trainer", check_mapping("trainer", config["trainer"]), trainer_signature())
    check_together(config)


def check_command(config: Mapping[str, Any], function: str) -> None:
    """Refuse the resolved configuration of a command that calls that function with its keys.

    Raises:
        WrongKey: as `check`.
    """
    parameters = signature(function)
    assert parameters is not None
    check_names("", config, parameters)
    for key, value in config.items():
        if key in TARGETS and "_target_" in value:
            check_target(key, key, value)
            if key == "data":
                check_folds(value)
        elif key == "reg":
            for name, part in value.items():
                check_target("reg", f"reg.{name}", part)
            check_regularizers(value)
        else:
            check_value(key, value, parameters[key].annotation)


def check_together(config: Mapping[str, Any]) -> None:
    """What no key can say alone."""
    check_folds(config["data"])
    check_validation(config)
    check_optimizer(config["optimizer"])
    check_length(config["scheduler"], config["trainer"])
    check_regularizers(config["reg"])
    check_epochs(config["reg"], config["trainer"])
    check_scaling(config["reg"], config["data"])
    if config["model"]["_target_"] == "cifarlab.models.plain.ConvNet":
        check_blocks(config["model"], own_rates="DropoutRates" not in chosen_kinds(config["reg"]))
    check_limits(config["trainer"], config["test"])


def chosen_kinds(reg: Mapping[str, Any]) -> frozenset[str]:
    """The kinds of all regularizers that a run holds."""
    return frozenset().union(*(kinds(part["_target_"]) for part in reg.values()))


def check_folds(data: Mapping[str, Any]) -> None:
    fold, folds = data.get("fold"), data.get("folds")
    if folds == 1:
        raise WrongKey("data.folds=1: expected a whole number of 2 or more.", "data.folds")
    if fold is not None and folds is not None and fold >= folds:
        message = f"data.fold={fold}: expected 0 to {folds - 1}, because data.folds={folds}."
        raise WrongKey(message, "data.fold", "data.folds")


def check_validation(config: Mapping[str, Any]) -> None:
    """Whatever chooses by validation has one, and not one on the test images."""
    trainer, validation = config["trainer"], config["data"].get("validation")
    every, epochs = trainer.get("check_val_every_n_epoch") or 1, trainer.get("max_epochs", -1)
    if validation == "none":
        key, problem = (
            "data.validation",
            "needs validation images: type data.validation=split instead of none",
        )
    elif trainer.get("limit_val_batches") == 0:
        key, problem = (
            "trainer.limit_val_batches",
            "needs validation: let trainer.limit_val_batches be above 0",
        )
    elif 0 < epochs < every:
        key = "trainer.check_val_every_n_epoch"
        problem = f"needs validation, but trainer.max_epochs={epochs} ends before {key}={every}"
    elif validation == "test":
        key = "data.validation"
        problem = "would choose by the test images: type data.validation=split instead of test"
    else:
        return
    choosing = {
        "reg=early_stopping": ("reg", "StoppingRule" in chosen_kinds(config["reg"])),
        "scheduler=plateau": ("scheduler", config["scheduler"]["_target_"].endswith(".plateau")),
        "test_weights=best": ("test_weights", config["test_weights"] == "best"),
    }
    for wish, (choice, wanted) in choosing.items():
        if wanted:
            raise WrongKey(f"{wish} {problem}.", key, choice)


def check_optimizer(optimizer: Mapping[str, Any]) -> None:
    if optimizer.get("nesterov") and not optimizer.get("momentum"):
        message = "optimizer.nesterov=true needs optimizer.momentum above 0, for example 0.9."
        raise WrongKey(message, "optimizer.momentum", "optimizer.nesterov")


def check_length(scheduler: Mapping[str, Any], trainer: Mapping[str, Any]) -> None:
    """A schedule that ends with the run needs to know when that is."""
    name = scheduler["_target_"].rpartition(".")[2]
    by_steps = scheduler.get("interval", "step") == "step" and trainer.get("max_steps", -1) != -1
    if name in ("cosine", "linear", "one_cycle") and trainer.get("max_epochs") == -1 and not by_steps:
        raise WrongKey(
            f"scheduler={name} needs to know the length of the run: set trainer.max_epochs to 1 or more "
            "(trainer.max_steps does if scheduler.interval=step).",
            "trainer.max_epochs",
            "scheduler",
        )


def check_regularizers(reg: Mapping[str, Any]) -> None:
    for kind, what in ONE_PLACE.items():
        names = [name for name, part in reg.items() if kind in kinds(part["_target_"])]
        if len(names) > 1:
            message = f"reg holds {' and '.join(names)}, but a run has one {what}; choose one of them."
            raise WrongKey(message, "reg")
    if {"Selection", "Mix"} <= chosen_kinds(reg):
        names = [name for name, part in reg.items() if {"Selection", "Mix"} & kinds(part["_target_"])]
        raise WrongKey(
            f"reg holds {' and '.join(names)}: the loss of a mixed image does not say how hard either is; "
            "choose one of them.",
            "reg",
        )
    for name, part in reg.items():
        if {"low", "high"} <= part.keys() and part["low"] > part["high"]:
            low, high = part["low"], part["high"]
            message = f"reg.{name}.low={low} is above reg.{name}.high={high}; write the smaller one as low."
            raise WrongKey(message, f"reg.{name}.low", f"reg.{name}.high")
        if {"sizes", "until"} <= part.keys():
            sizes, until = part["sizes"], part["until"]
            if not sizes:
                message = f"reg.{name}.sizes=[]: expected at least one size."
                raise WrongKey(message, f"reg.{name}.sizes")
            if len(sizes) != len(until) or until != sorted(set(until)):
                raise WrongKey(
                    f"reg.{name}.until={show(until)}: expected a share of the epochs for each of "
                    f"reg.{name}.sizes={show(sizes)}, each larger than the one before.",
                    f"reg.{name}.until",
                    f"reg.{name}.sizes",
                )


def check_epochs(reg: Mapping[str, Any], trainer: Mapping[str, Any]) -> None:
    """What regularizers need to know of the epochs, and of who sees their losses."""
    sized = resizing(reg)
    open_end = trainer.get("max_epochs") == -1
    lengths = {"max_epochs": open_end, "max_steps": trainer.get("max_steps", -1) != -1}
    lengths["max_time"] = trainer.get("max_time") is not None
    if sized is not None and (key := next((key for key, wrong in lengths.items() if wrong), None)):
        raise WrongKey(
            f"reg={sized} counts in epochs of the run, not trainer.{key}={show(trainer[key])}: say by "
            "trainer.max_epochs alone, 1 or more, how long it is.",
            f"trainer.{key}",
            "reg",
        )
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    one = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
    if "Selection" in chosen_kinds(reg) and not (one and nodes == 1):
        key, value = ("num_nodes", nodes) if one else ("devices", devices)
        raise WrongKey(
            "reg=hard_examples chooses by the losses that one process has seen; set "
            f"trainer.{key}=1, not {show(value)}.",
            f"trainer.{key}",
            "reg",
        )


def resizing(reg: Mapping[str, Any]) -> str | None:
    """The regularizer that changes the images' size, if there is one."""
    return next((name for name, part in reg.items() if {"sizes", "until"} <= part.keys()), None)


def check_scaling(reg: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    sized = resizing(reg)
    if sized is not None and data.get("scaling") == "whiten":
        raise WrongKey(
            f"data.scaling=whiten is a matrix for all pixels of 32 x 32, which reg={sized} makes fewer; take "
            "data.scaling=standardize.",
            "data.scaling",
            "reg",
        )


def check_blocks(model: Mapping[str, Any], own_rates: bool) -> None:
    """Whether a ConvNet's lists fit each other, and leave a pixel of the image."""
    blocks, padding, rates = model["blocks"], model["padding"], model.get("dropout")
    size = 32
    for block in blocks:
        if not 1 <= len(block) <= len(padding):
            raise WrongKey(
                f"model.blocks={show(blocks)}: expected 1 to {len(padding)} convolutions in each block, one "
                f"for each entry of model.padding={show(padding)}.",
                "model.blocks",
                "model.padding",
            )
        # each valid convolution takes a pixel from every edge, the pool at the end halves
        size = (size - 2 * padding[: len(block)].count("valid")) // 2
    if size < 1:
        message = f"model.blocks={show(blocks)} leaves no pixel of a 32 x 32 image; take fewer blocks."
        raise WrongKey(message, "model.blocks", "model.padding")
    places = len(blocks) + len(model["dense"])
    if own_rates and rates and len(rates) != places:
        raise WrongKey(
            f"model.dropout={show(rates)}: expected {places} rates, one after each of {len(blocks)} pools "
            f"and {len(model['dense'])} dense layers.",
            "model.dropout",
            "model.blocks",
            "model.dense",
        )


def check_limits(trainer: Mapping[str, Any], test: bool) -> None:
    if test and trainer.get("limit_test_batches") == 0:
        message = (
            "trainer.limit_test_batches=0: nothing would be tested; type test=false to leave the test out."
        )
        raise WrongKey(message, "trainer.limit_test_batches", "test")
    time = trainer.get("max_time")
    if time is not None and not re.search("[1-9]", str(time)):
        message = (
            f"trainer.max_time={show(time)}: expected more than no time, such as 00:01:00:00 for an hour."
        )
        raise WrongKey(message, "trainer.max_time")


def check_sweep(config: Mapping[str, Any]) -> None:
    """Refuse in a sweep what starts the command anew in each of its processes.

    Raises:
        WrongKey: when the job would take several processes.
    """
    trainer = config["trainer"]
    devices, strategy = trainer.get("devices", 1), str(trainer.get("strategy"))
    if isinstance(devices, int) and devices != -1:
        several = devices > 1
    elif isinstance(devices, list):
        several = len(devices) > 1
    else:
        several = "ddp" in strategy
    if (several or trainer.get("num_nodes", 1) > 1) and not strategy.endswith("_spawn"):
        raise WrongKey(
            f"trainer.devices={show(devices)}: each process would start the sweep again; sweep with one "
            "device, or type trainer.strategy=ddp_spawn.",
            "trainer.devices",
            "trainer.strategy",
            "trainer",
        )


def groups(conf: Path) -> list[str]:
    """The names of the groups in that folder of YAMLs, without Hydra's own."""
    return sorted(path.name for path in conf.glob("*/") if path.name != "hydra")


def options(conf: Path, group: str) -> list[str]:
    """The names that `group=` takes."""
    home = conf / group
    return sorted(path.relative_to(home).with_suffix("").as_posix() for path in home.rglob("*.yaml"))


def check_mapping(key: str, node: Any) -> Mapping[str, Any]:
    if not isinstance(node, Mapping):
        raise WrongKey(f"{key}={show(node)}: expected keys with values, or {key}=OPTION.", key)
    return node


def check_target(group: str, key: str, node: Any) -> None:
    """A node with a `_target_` that is ours, and the keys that it takes."""
    node, home = check_mapping(key, node), TARGETS[group]
    option = f"an option of conf/{group} is chosen by {group}=OPTION"
    if "_target_" not in node:
        raise WrongKey(f"{key} has no _target_: {option}.", key)
    target = node["_target_"]
    if not is_below(home, target):
        raise WrongKey(
            f"{key}._target_={show(target)}: expected a name in {home}; {option}.", f"{key}._target_"
        )
    parameters = signature(target)
    if parameters is None or is_class(target) != (group in BASES):
        raise WrongKey(f"{key}._target_={target}: there is no such class or function.", f"{key}._target_")
    if group in BASES and (BASES[group] not in kinds(target) or any(methods(target).values())):
        whole = f"a class derived from {BASES[group]}, with all its methods"
        raise WrongKey(f"{key}._target_={target}: expected {whole}; {option}.", f"{key}._target_")
    given = {name: value for name, value in node.items() if name != "_target_"}
    for name, value in given.items():
        if holds_target(value):  # Hydra would call that first, whatever it names
            name = f"{key}.{name}"
            raise WrongKey(f"{name} holds a _target_ of its own, which no option takes.", name)
    check_keys(key, given, parameters)


def strange(group: str, node: Any) -> list[str]:
    """The keys that a group's option does not take; of `reg` those that hold no option."""
    if not isinstance(node, dict):
        return []
    if group == "reg":
        return [name for name, part in node.items() if isinstance(part, dict) and "_target_" not in part]
    target = node.get("_target_")
    known = signature(target) if is_below(TARGETS[group], target) else None
    return [] if known is None else [name for name in node if name not in {"_target_", *known}]


def is_below(home: str, target: Any) -> bool:
    """Whether that is a dotted name in that module or package."""
    return isinstance(target, str) and bool(re.fullmatch(rf"{re.escape(home)}(\.[^\W_]\w*)*", target))


def holds_target(node: Any) -> bool:
    """Whether there is a `_target_` anywhere in nested lists and mappings."""
    if isinstance(node, Mapping):
        return "_target_" in node or any(map(holds_target, node.values()))
    return isinstance(node, list) and any(map(holds_target, node))


def check_keys(key: str, given: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> None:
    check_names(key, given, parameters)
    for name, parameter in parameters.items():
        if name in given:
            check_value(f"{key}.{name}", given[name], parameter.annotation)
        elif parameter.required:
            raise WrongKey(f"{key}.{name} is missing, and has no default.", key)


def check_names(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in given:
        if name not in known:
            raise WrongKey(unknown(owner, str(name), known), f"{owner}.{name}" if owner else str(name))


def unknown(owner: str, name: str, known: Sequence[str]) -> str:
    """The sentence for a key that its owner (a dotted key; empty: the configuration) does not have."""
    key, whose = (f"{owner}.{name}", owner) if owner else (name, "the configuration")
    return f"{key}: {whose} has no key {name!r}; {nearest(name, known)}"


def nearest(name: str, known: Sequence[str]) -> str:
    """`did you mean 'dropout'?`, or what there is."""
    if close := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {close[0]!r}?"
    return f"expected one of {', '.join(known)}." if known else "it has none."


def check_value(key: str, value: Any, annotation: Any) -> None:
    if conforms(value, annotation):
        return
    words = [word for word in literals(annotation) if isinstance(word, str)]
    close = difflib.get_close_matches(str(value), words, n=1)
    hint = f"; did you mean {close[0]}?" if close else "."
    raise WrongKey(f"{key}={show(value)}: expected {describe(annotation)}{hint}", key)


def show(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, list):
        return f"[{','.join(map(show, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@cache
def trainer_signature() -> dict[str, Parameter]:
    """Every argument of Lightning's Trainer that is the user's to set."""
    parameters = signature("pytorch_lightning.trainer.trainer.Trainer")
    assert parameters is not None
    ours = {name: Parameter(annotation, required=False) for name, annotation in TRAINER.items()}
    return {n: Parameter(p.annotation, False) for n, p in parameters.items() if n not in TRAINER_OURS} | ours
