"""Checks of a composed configuration that need no torch, so that a mistake is answered at once.

A constructor's signature is the schema of the YAML that names it: the arguments before a bare `*` (and with
`**options` its base class's) are the keys, their annotations say which values they take. Signatures are read
from the source, because importing them would import torch.
"""

from __future__ import annotations

import ast
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from importlib.util import find_spec
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from cifarlab import types as bounds
from cifarlab.errors import UserError
from cifarlab.types import Count, Natural, Within

# the only places a `_target_` may name: a configuration from a stranger can call nothing else
TARGETS = {
    "data": "cifarlab.data",
    "model": "cifarlab.models",
    "reg": "cifarlab.regularizers",
    "optimizer": "cifarlab.optim.optimizers",
    "scheduler": "cifarlab.optim.schedules",
    "logger": "cifarlab.runs.loggers",
}
ROOT: dict[str, Any] = {
    "seed": Natural,
    "test": bool,
    "test_weights": Literal["last", "best"],
    "resume": str | None,
    "start_from": str | None,
}
# Trainer arguments whose annotation in Lightning says less than we can
TRAINER: dict[str, Any] = {
    "accelerator": Literal["auto", "cpu", "gpu"],
    "precision": Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"],
    "max_epochs": Count | Literal[-1],
    "max_steps": Count | Literal[-1],
    "accumulate_grad_batches": Count,
    "check_val_every_n_epoch": Count,
    "gradient_clip_val": bounds.NonNegative | None,
    "enable_progress_bar": bool | Literal["auto"],
}
TRAINER_OURS = ("callbacks", "logger", "plugins", "default_root_dir")  # the run's own, not the user's


class WrongKey(UserError):
    """A key that cannot be as it is; `keys` are those the mistake may be in, the likeliest first."""

    def __init__(self, message: str, *keys: str) -> None:
        super().__init__(message)
        self.keys = keys


@dataclass(frozen=True)
class Parameter:
    """One key: what it may hold, and whether the YAML must give it."""

    annotation: Any
    required: bool


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


def check_together(config: Mapping[str, Any]) -> None:
    """What no key can say alone."""
    data = config["data"]
    fold, folds, validation = (data.get(key) for key in ("fold", "folds", "validation"))
    if folds == 1:
        raise WrongKey("data.folds=1: expected a whole number of 2 or more.", "data.folds")
    if None not in (fold, folds) and fold >= folds:
        message = f"data.fold={fold}: expected 0 to {folds - 1}, because data.folds={folds}."
        raise WrongKey(message, "data.fold", "data.folds")
    if validation not in ("none", "test"):
        return
    choosing = {
        "reg=early_stopping": ("reg", "early_stopping" in config["reg"]),
        "scheduler=plateau": ("scheduler", config["scheduler"]["_target_"].endswith(".plateau")),
        "test_weights=best": ("test_weights", config["test_weights"] == "best"),
    }
    problem = "needs validation images" if validation == "none" else "would choose by the test images"
    for wish, (key, wanted) in choosing.items():
        if wanted:
            message = f"{wish} {problem}: type data.validation=split instead of {validation}."
            raise WrongKey(message, "data.validation", key)


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
    if not (isinstance(target, str) and (target == home or target.startswith(home + "."))):
        raise WrongKey(
            f"{key}._target_={show(target)}: expected a name in {home}; {option}.", f"{key}._target_"
        )
    parameters = signature(target)
    # in the other groups only functions stand at the place that is allowed; here there are helpers beside
    if parameters is None or (group in ("data", "model", "reg") and not is_class(target)):
        raise WrongKey(f"{key}._target_={target}: there is no such class or function.", f"{key}._target_")
    check_keys(key, {name: value for name, value in node.items() if name != "_target_"}, parameters)


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


def conforms(value: Any, annotation: Any) -> bool:
    """Whether a plain value (from YAML) may stand where that annotation is."""
    if annotation is Any:
        return True
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return conforms(value, arguments[0]) and all(value in part for part in arguments[1:])
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return any(conforms(value, choice) for choice in arguments)
    if origin is list:
        return isinstance(value, list) and all(conforms(part, arguments[0]) for part in value)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if annotation in (None, types.NoneType) else isinstance(value, annotation)


def describe(annotation: Any) -> str:
    """What `conforms` accepts, in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return next(part.says for part in arguments[1:] if isinstance(part, Within))
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return ", or ".join(describe(choice) for choice in arguments)
    if origin is list:
        return f"a list, each entry {describe(arguments[0])}"
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        types.NoneType: "null",
    }
    return words.get(annotation, "something else")


def literals(annotation: Any) -> list[Any]:
    """All the words that an annotation names."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return list(arguments)
    return [word for part in arguments for word in literals(part)]


@cache
def trainer_signature() -> dict[str, Parameter]:
    """Every argument of Lightning's Trainer that is the user's to set."""
    parameters = signature("pytorch_lightning.trainer.trainer.Trainer")
    assert parameters is not None
    ours = {name: Parameter(annotation, required=False) for name, annotation in TRAINER.items()}
    return {n: Parameter(p.annotation, False) for n, p in parameters.items() if n not in TRAINER_OURS} | ours


@cache
def signature(target: str) -> dict[str, Parameter] | None:
    """The keys that the class or function of that dotted name takes; None where there is none."""
    module, _, name = target.rpartition(".")
    source = parse(module)
    definition = source and find(source, name)
    if isinstance(definition, ast.FunctionDef):
        return arguments_of(module, definition)
    if not isinstance(definition, ast.ClassDef):
        return None
    constructor = find(definition, "__init__")
    if isinstance(constructor, ast.FunctionDef):
        own = arguments_of(module, constructor)
        inherits = constructor.args.kwarg is not None and constructor.args.kwarg.arg == "options"
        return own | (base_signature(module, definition) if inherits else {})
    # a dataclass: its annotated fields, those of its bases first
    fields = {
        node.target.id: Parameter(evaluate(module, node.annotation), required=node.value is None)
        for node in definition.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and definition.decorator_list
    }
    return base_signature(module, definition) | fields


def base_signature(module: str, definition: ast.ClassDef) -> dict[str, Parameter]:
    """What the base classes that are this project's own take."""
    result: dict[str, Parameter] = {}
    for base in definition.bases:
        if isinstance(base, ast.Name):
            result |= signature(f"{origin_of(module, base.id)}.{base.id}") or {}
    return result


def arguments_of(module: str, function: ast.FunctionDef) -> dict[str, Parameter]:
    """The arguments that are keys: the positional ones but `self`, and in Lightning's Trainer, the others."""
    arguments = [argument for argument in function.args.args if argument.arg != "self"]
    needed = len(arguments) - len(function.args.defaults)
    if not module.startswith("cifarlab."):
        arguments += function.args.kwonlyargs
    return {
        argument.arg: Parameter(evaluate(module, argument.annotation), required=number < needed)
        for number, argument in enumerate(arguments)
    }


def is_class(target: str) -> bool:
    module, _, name = target.rpartition(".")
    source = parse(module)
    return source is not None and isinstance(find(source, name), ast.ClassDef)


@cache
def parse(module: str) -> ast.Module | None:
    """A module's syntax tree, without importing it (only the top-level package is looked up)."""
    package, *rest = module.split(".")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0], *rest)
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return ast.parse(file.read_text())
    return None


def find(scope: ast.Module | ast.ClassDef, name: str) -> ast.AST | None:
    """The definition, or the value assigned to that name, directly inside a module or class."""
    for node in scope.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return node
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == name for t in node.targets
        ):
            return node.value
    return None


def origin_of(module: str, name: str) -> str:
    """The module a name comes from: an import's, else this one."""
    source = parse(module)
    for node in source.body if source else []:
        if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
            return node.module or module
    return module


def evaluate(module: str, node: ast.AST | None) -> Any:
    """The annotation as a typing object; `Any` for what this module does not know."""
    if isinstance(node, ast.Constant):
        return (
            evaluate(module, ast.parse(node.value, mode="eval").body) if isinstance(node.value, str) else None
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return union([evaluate(module, node.left), evaluate(module, node.right)])
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        match node.value.id:
            case "Literal":
                return Literal[tuple(ast.literal_eval(part) for part in parts)]
            case "list" | "List":
                return list[evaluate(module, parts[0])]  # type: ignore[misc]
            case "Union":
                return union([evaluate(module, part) for part in parts])
            case "Optional":
                return union([evaluate(module, parts[0]), None])
    if isinstance(node, ast.Name):
        known = {"int": int, "float": float, "str": str, "bool": bool}
        if node.id in known:
            return known[node.id]
        home = origin_of(module, node.id)
        if home == bounds.__name__:
            return getattr(bounds, node.id)
        if home.startswith("cifarlab.") and (source := parse(home)) is not None:
            return evaluate(home, find(source, node.id))
    return Any


def union(parts: list[Any]) -> Any:
    return Any if Any in parts else reduce(or_, parts)
