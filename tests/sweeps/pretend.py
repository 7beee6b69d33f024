"""A `train.py` that pretends: a run is a record, and the seed decides what becomes of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from commands import Answer

COMMAND = """
import os, signal, time
from cifarlab import signals
signals.listen()
import hydra
from cifarlab.atomic import write_text
from cifarlab.cli import job, plain_errors
from cifarlab.errors import RunFailed
from cifarlab.runs import record as records
from cifarlab.signals import Stop

def pretend(plain, folder, overrides, choices):
    '''A run of as many epochs as it takes, the accuracy of each 0.5 at most and growing with the rate.'''
    resumed = plain["resume"] is not None
    record = records.read(folder) if resumed else records.new(plain, choices)
    record |= {"overrides": overrides, "config_hash": records.config_hash(plain), "status": "running"}
    records.write_config(folder, {**plain, "resume": None})
    best = min(plain["optimizer"]["lr"], 0.5)
    seed, rows = plain["seed"], ["epoch,val/accuracy"]
    try:
        while record["epochs"] < plain["trainer"]["max_epochs"]:
            record["epochs"] += 1
            record["best_val"] = {"accuracy": best, "loss": 1.0, "epoch": record["epochs"]}
            rows.append(f"{record['epochs']},{best}")
            write_text(folder / "metrics.csv", "\\n".join(rows) + "\\n")
            records.write(folder, record)
            if seed == 13:
                raise RunFailed("The loss became NaN in epoch 3.")
            if seed == 14:
                raise KeyError("a bug")
            if seed == 15:
                os.kill(os.getpid(), signal.SIGKILL)
            if seed == 16 or best < 0.01:
                time.sleep(0.05)
        record |= {"status": "done", "test": {**record["test"], "accuracy": best - seed / 100}}
    except Stop as stop:
        record |= {"status": "interrupted", "error": stop.reason}
        raise
    finally:
        records.write(folder, record)
    return record

@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config):
    pretend(*job(config))

if __name__ == "__main__":
    with plain_errors(sweeps=True):
        main()
"""


def records_of(project: Path) -> dict[str, dict]:
    """The records of all jobs below logs/sweeps, by the names of their folders."""
    files = (project / "logs/sweeps").glob("*/*/record.json")
    return {file.parent.name: json.loads(file.read_text()) for file in files}


def rows(answer: Answer) -> list[list[str]]:
    """Number, status, test and validation of each job in a sweep's last table."""
    lines = answer.out[answer.out.rindex("#  status") :].splitlines()
    return [line.split()[:4] for line in lines if re.match(r"\d+ {2,}", line)]


def start(*arguments: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
