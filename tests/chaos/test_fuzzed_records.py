"""Records, configurations and histories with any damage: read, or named in one line and left out."""

import contextlib
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import write_run

from cifarlab.errors import UserError
from cifarlab.report import page, tables
from cifarlab.report.history import curves
from cifarlab.report.summary import build
from cifarlab.runs import record as records
from cifarlab.runs.reopen import read_config, read_record
from cifarlab.sweeps.folders import Finder, remembered
from cifarlab.untrusted import HARMFUL

TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            "",
            "1e999",
            "0x" + "f" * 9000,
            "1:2:3.5",
            "2020-99-99",
            "${oc.env:HOME}",
            "???",
            "<script>",
            "\x1b[2J",
        ]
    ),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    TEXTS,
    st.sampled_from([10**400, -1, 2**63, 1e308, "fold"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda part: st.one_of(st.lists(part, max_size=3), st.dictionaries(TEXTS, part, max_size=3)),
    max_leaves=6,
)
PIECES = [
    "\0",
    "\x1b[31m",
    "!!set {a}",
    "&a [*a]",
    "*a",
    "!!python/object/apply:os.system [x]",
    "- ",
    "{",
    "}",
    "[",
    ":",
]
PIECES += [
    "1:" * 300,
    "<<: ",
    "? ",
    "!!float ''",
    "!!bool x",
    "\n",
    "\t",
    ",",
    '"',
    "'",
    "NaN",
    "-Infinity",
    "\ud800",
    "=cmd()",
]


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every part of nested mappings and lists."""
    parts = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, part in parts for place in places(part, (*path, key)))]


@st.composite
def damage(draw: st.DrawFn, whole: Any, dump: Callable[[Any], str]) -> str:
    """A file's text with parts of what it holds replaced or removed, then pieces put in, or cut off."""
    whole = copy.deepcopy(whole)
    for _ in range(draw(st.integers(0, 2)) if isinstance(whole, dict) else 0):
        *parents, last = draw(st.sampled_from(places(whole)[1:]))
        node = whole
        for key in parents:
            node = node[key]
        if draw(st.booleans()):
            node[last] = draw(VALUES)
        else:
            del node[last]
        if not whole:
            break
    text = dump(whole)
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        place = draw(st.integers(0, len(text)))
        piece = draw(st.one_of(st.sampled_from(PIECES), TEXTS))
        text = text[:place] + piece + text[place + draw(st.sampled_from([0, 0, 1, 5, 10_000])) :]
    return text


def test_every_damage_is_read_or_named(
    tmp_path: Path, survived: Callable[[str, int], None], tries: Callable[[int, int], int]
) -> None:
    top = tmp_path / "runs"
    for seed in range(2):
        write_run(top / f"whole{seed}", 0.8, seed=seed, epochs=2)
    folder = write_run(top / "damaged", 0.9, reg=("dropout",), epochs=3)
    record = json.loads((folder / "record.json").read_text())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    metrics = (folder / "metrics.csv").read_text()
    count = 0

    @settings(max_examples=tries(200, 10_000))
    @given(
        damage(record, json.dumps),
        damage(config, lambda value: yaml.safe_dump(value, allow_unicode=False)),
        damage(metrics, str),
        st.sampled_from(["", "reg=none", "seed=0", "data.validation=fold"]),
    )
    def check(record: str, config: str, metrics: str, baseline: str) -> None:
        nonlocal count
        for name, text in {"record.json": record, "config.yaml": config, "metrics.csv": metrics}.items():
            (folder / name).write_bytes(text.encode(errors="surrogatepass"))
        (folder / "sweep.json").write_bytes(record.encode(errors="surrogatepass"))
        for read in (records.read, read_record, read_config):
            with contextlib.suppress(UserError):
                read(folder)
        remembered(folder)
        Finder(top).find("x")
        said: list[str] = []
        with contextlib.suppress(UserError):  # no run is the baseline
            report = build([top], baseline=baseline or None, warn=said.append)
            drawn = curves(report, 9, said.append)
            assert "<script>alert" not in page.html(report, drawn)
            text = "\n".join(
                [tables.terminal(report, 100), *said, tables.comma_separated(report), tables.markdown(report)]
            )
            tables.latex(report).encode()
            assert not HARMFUL.search(text.replace("\n", ""))
        assert len(said) <= 2
        count += 1

    check()
    survived("cases fuzzed: records", count)


def test_a_folder_of_nothing_but_noise(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No run that can be read"):
        build([tmp_path])
