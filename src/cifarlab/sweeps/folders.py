"""Where sweeps and their jobs lie, who is at work there, and which job has been run before."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from cifarlab.atomic import write_text
from cifarlab.errors import UserError
from cifarlab.runs import record as records
from cifarlab.untrusted import Refused, read_json, read_text

SWEEPS = Path("logs/sweeps")
PATIENCE = 0.5  # seconds in which those who only ask for a claim are gone
# the variables by which a launcher of several processes tells one its number
RANKS = ("LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK")


class Claim:
    """A folder held by this process; the kernel lets go of it when the process ends, however it ends.

    Where the file system has no such locks nothing is held and nobody is refused.
    """

    def __init__(self, folder: Path) -> None:
        """Raises:
        UserError: when another process holds the folder.
        """
        self.descriptor, end = os.open(folder, os.O_RDONLY), time.monotonic() + PATIENCE
        while not locked(self.descriptor, fcntl.LOCK_EX):
            if time.monotonic() > end:
                self.release()
                raise UserError(f"{folder} is at work in another process; wait for it, or stop it.")
            time.sleep(0.01)

    def release(self) -> None:
        os.close(self.descriptor)


def locked(descriptor: int, kind: int) -> bool:
    """Whether the folder could be locked; yes where the file system has no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def claim_run(folder: Path) -> Claim | None:
    """The claim of the first of a run's processes on the run's folder.

    Raises:
        UserError: when the run goes on in another process.
    """
    return None if any(os.environ.get(name, "0") != "0" for name in RANKS) else Claim(folder)


def is_claimed(folder: Path) -> bool:
    """Whether some process holds the folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False
    # several may ask at once; that they do keeps a claim waiting for a moment
    claimed = not locked(descriptor, fcntl.LOCK_SH)
    os.close(descriptor)
    return claimed


def what_is_swept(overrides: Mapping[str, Sequence[str]]) -> list[str]:
    """What makes a sweep the same sweep, of the overrides of Hydra's keys (`hydra`) and of ours (`task`)."""
    own = [
        text
        for text in overrides["hydra"]
        if text.startswith(("hydra.sweeper.ablation", "hydra.sweeper.params"))
    ]
    return sorted([*overrides["task"], *own])


def sweep_folder(overrides: Mapping[str, Sequence[str]], now: str) -> str:
    """The folder of the latest sweep of the same; a new one for `force=true`, or where there is none."""
    wanted = what_is_swept(overrides)
    new = "hydra.launcher.force=true" in overrides["hydra"]
    folders = [] if new else SWEEPS.glob("*/")
    same = [folder for folder in folders if remembered(folder).get("overrides") == wanted]
    return str(max(same, default=SWEEPS / now))


def remember(folder: Path, swept: list[str], forced: bool) -> None:
    """Write the file by which the same sweep finds its folder again, and knows that it began with `force`."""
    write_text(folder / "sweep.json", json.dumps({"overrides": swept, "forced": forced}, indent=2) + "\n")


def remembered(folder: Path) -> dict[str, Any]:
    """What that file says; nothing where there is none, or a torn one."""
    try:
        said = read_json(folder / "sweep.json")
    except (OSError, Refused):
        return {}
    return said if isinstance(said, dict) else {}


class Finder:
    """The runs that sweeps have left, by the hash of their configuration.

    All below logs/sweeps is found; of a sweep that began with `force`, and in a folder chosen by
    `hydra.sweep.dir=`, only what lies in its own.
    """

    def __init__(self, sweep: Path, forced: bool = False) -> None:
        self.sweep, self.forced = sweep, forced

    @cached_property
    def folders(self) -> dict[str, list[Path]]:
        """Read with one pattern: of thousands of records only a few are needed whole."""
        found = defaultdict(list)
        everywhere = not self.forced and self.sweep.resolve().parent == SWEEPS.resolve()
        for path in SWEEPS.glob("*/*/record.json") if everywhere else self.sweep.glob("*/record.json"):
            with suppress(OSError, Refused):
                if match := re.search(r'"config_hash": "(\w+)"', read_text(path)):
                    found[match[1]].append(path.parent)
        return found

    def find(self, config_hash: str) -> tuple[Path, dict[str, Any]] | None:
        """A finished run of that configuration, else the one that came furthest, with its record."""
        runs = []
        for folder in self.folders.get(config_hash, []):
            try:
                runs.append((folder, records.read(folder)))
            except UserError:  # torn: of no use
                continue
        return max(runs, key=lambda run: (run[1]["status"] == "done", run[1]["epochs"]), default=None)


def free_folder(folder: Path) -> Path:
    """The folder, or with a number behind its name where another run lies in it."""
    number, name = 1, folder
    while is_taken(name):
        number += 1
        name = folder.with_name(f"{folder.name}_{number}")
    return name


def is_taken(folder: Path) -> bool:
    """Whether a run lies there that began, or would have if its configuration had not been wrong."""
    try:
        return records.read(folder)["config_hash"] is not None
    except UserError:
        return (folder / "record.json").exists()
