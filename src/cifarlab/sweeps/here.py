"""Jobs on this machine, each a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from cifarlab import cli
from cifarlab.sweeps.jobs import Job
from cifarlab.sweeps.loop import Work

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Process:
    """A job's process, out of reach of the terminal's Ctrl-C, which the sweep hands on."""

    def __init__(self, job: Job, environment: dict[str, str], aloud: bool) -> None:
        """`aloud` lets it speak on the terminal; otherwise its train.log holds what it says."""
        job.folder.mkdir(parents=True, exist_ok=True)
        output: Any = None if aloud else open(job.folder / "train.log", "a")  # noqa: SIM115
        sys.stdout.flush()
        self.process = subprocess.Popen(
            job.arguments(),
            env=child_environment() | environment,
            stdin=subprocess.DEVNULL,
            stdout=output and subprocess.DEVNULL,  # what it logs is in the file already
            stderr=output,
            process_group=0,
        )
        if output:
            output.close()

    def code(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()


class Here:
    """So many jobs at once, which share the cores and, one after another, the GPUs."""

    pause = 0.1

    def __init__(self, n_jobs: int, threads: int | None = None) -> None:
        """`n_jobs=-1`: one on each GPU or, without any, on each core; `threads=None`: an equal share."""
        self.gpus = gpus() if n_jobs != 1 else []
        self.room = n_jobs if n_jobs > 0 else len(self.gpus) or cores()
        self.threads = threads
        self.slots: list[Process | None] = [None] * self.room

    def start(self, jobs: list[Job]) -> list[Work]:
        return [self.start_one(job) for job in jobs]

    def start_one(self, job: Job) -> Work:
        slot = next(
            i for i, process in enumerate(self.slots) if process is None or process.code() is not None
        )
        self.slots[slot] = process = Process(job, self.environment(slot), aloud=self.room == 1)
        return process

    def environment(self, slot: int) -> dict[str, str]:
        """What the job in that place finds: its threads and its GPU."""
        variables: dict[str, str] = {}
        if self.threads or self.room > 1:
            variables |= dict.fromkeys(THREADS, str(self.threads or max(1, cores() // self.room)))
        if self.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        return variables


def child_environment() -> dict[str, str]:
    """This process's environment as the user made it."""
    return os.environ | {"HYDRA_FULL_ERROR": "1" if cli.Door.traces else "0"}


def cores() -> int:
    """How many this process may use: a container's share counts, where there is one."""
    from joblib import cpu_count  # slow to import

    return int(cpu_count())


def gpus() -> list[str]:
    """The GPUs that a process finds here, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.split()
