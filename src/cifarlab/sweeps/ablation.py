"""`ablation=` over a list of regularizers: which of them help, alone and in company."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from cifarlab.errors import UserError

KINDS = ("alone", "leave_one_out", "lattice")


def subsets(names: Sequence[str], kind: str) -> list[tuple[str, ...]]:
    """The lists of regularizers that an ablation runs, with the one the others are compared with first.

    `alone`: none, and each alone; `leave_one_out`: all, and all but each; `lattice`: every subset, by size.
    """
    count = len(names)
    sizes = {"alone": (0, 1), "leave_one_out": (count, count - 1), "lattice": range(count + 1)}[kind]
    chosen = list(chain.from_iterable(combinations(names, size) for size in sizes))
    # the first to go is the first in the list
    return [chosen[0], *reversed(chosen[1:])] if kind == "leave_one_out" else chosen


def listed(overrides: Sequence[Override]) -> list[str]:
    """The regularizers of the one list that is typed.

    Raises:
        UserError: when there is none, or it cannot be ablated.
    """
    typed = [override for override in overrides if override.key_or_group == "reg"]
    example = "such as reg=[dropout_increasing,augment,batch_norm]"
    if not typed:
        raise UserError(f"ablation= needs a list of regularizers, {example}.")
    value: Any = None if typed[-1].is_sweep_override() else typed[-1].value()
    if not isinstance(value, list) or not value or len(set(value)) < len(value):
        text = typed[-1].input_line
        raise UserError(f"{text}: ablation= takes one list of regularizers, each named once, {example}.")
    return [str(name) for name in value]


def parts(conf: Path, option: str) -> set[str]:
    """The names that an option of `reg` adds to `reg`: its own, or those of the options it gathers."""
    node: Any = OmegaConf.to_container(OmegaConf.load(conf / "reg" / f"{option}.yaml"))
    if not isinstance(node, dict):
        return set()
    gathered = (parts(conf, name) for name in node.pop("defaults", []) if isinstance(name, str))
    return set(node).union(*gathered)


def without_strangers(overrides: Sequence[str], names: Iterable[str]) -> list[str]:
    """The overrides without the keys of regularizers that a run does not have."""
    known = set(names)

    def stranger(override: str) -> bool:
        group, *rest = override.lstrip("+~").partition("=")[0].split(".")
        return group == "reg" and bool(rest) and rest[0] not in known

    return [override for override in overrides if not stranger(override)]


def ablate(jobs: Sequence[Sequence[str]], names: Sequence[str], kind: str, conf: Path) -> list[list[str]]:
    """Each job once for each subset of its regularizers, those of one subset together."""
    ablated = []
    for chosen in subsets(names, kind):
        kept = set().union(*(parts(conf, option) for option in chosen))
        reg = f"reg=[{','.join(chosen)}]" if chosen else "reg=none"
        for job in jobs:
            other = [reg if override.startswith("reg=") else override for override in job]
            ablated.append(without_strangers(other, kept))
    return [list(job) for job in dict.fromkeys(map(tuple, ablated))]
