"""What a constructor takes, read from its source: the schema of the YAML that names it.

The arguments before a bare `*` (and with `**options` the base class's) are the keys, their annotations say
which values they take. Importing the constructors instead would import torch, which takes seconds.
"""

from __future__ import annotations

import ast
import os
import sys
import types
import typing
from dataclasses import dataclass
from functools import cache, reduce
from importlib.util import find_spec
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from cifarlab import types as bounds


@dataclass(frozen=True)
class Parameter:
    """One key: what it may hold, and whether the YAML must give it."""

    annotation: Any
    required: bool


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
    if annotation in (int, float) and isinstance(value, bool):
        return False
    if annotation is float:  # neither NaN, nor infinite, nor a whole number beyond
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    if annotation is int:
        return isinstance(value, int) and -(2**63) <= value < 2**63
    return value is None if annotation in (None, types.NoneType) else isinstance(value, annotation)


def describe(annotation: Any) -> str:
    """What `conforms` accepts, in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return str(arguments[1].says)
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


@cache
def kinds(target: str) -> frozenset[str]:
    """The names of all base classes of the class of that dotted name."""
    module, _, name = target.rpartition(".")
    source = parse(module)
    definition = source and find(source, name)
    if not isinstance(definition, ast.ClassDef):
        return frozenset()
    names = bases(module, definition)
    return frozenset(base.rpartition(".")[2] for base in names).union(*map(kinds, names))


@cache
def methods(target: str) -> dict[str, bool]:
    """The methods of the class of that dotted name, each with whether it is abstract."""
    module, _, name = target.rpartition(".")
    source = parse(module)
    definition = source and find(source, name)
    if not isinstance(definition, ast.ClassDef):
        return {}
    result: dict[str, bool] = {}
    for base in reversed(bases(module, definition)):  # the first has the say
        result |= methods(base)
    for node in definition.body:
        if isinstance(node, ast.FunctionDef):
            result[node.name] = any("abstractmethod" in ast.unparse(mark) for mark in node.decorator_list)
    return result


def base_signature(module: str, definition: ast.ClassDef) -> dict[str, Parameter]:
    """What the base classes that are this project's own take."""
    result: dict[str, Parameter] = {}
    for base in bases(module, definition):
        result |= signature(base) or {}
    return result


def bases(module: str, definition: ast.ClassDef) -> list[str]:
    """The dotted names of a class's bases, with the modules that they come from."""
    written = [ast.unparse(base) for base in definition.bases]
    return [f"{origin_of(module, name.partition('.')[0])}.{name}" for name in written]


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
        if os.path.isfile(file):  # which answers also for a name that is too long
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
