"""The report over many synthetic runs: seconds and MiB.

    python benchmarks/report.py [runs=10000] [epochs=100]

Writes that many run folders (a random search, three seeds each), then reports on them, each time in a process
of its own, for the terminal alone and with each kind of file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "report"))

from synthetic import write_many  # noqa: E402


def main(runs: int = 10_000, epochs: int = 100) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = write_many(Path(name) / "runs", runs, epochs=epochs)
        for form in ("", "csv", "md", "html"):
            options = [f"out={name}/report.{form}", "baseline=model.width=32"] if form else []
            started = time.perf_counter()
            command = [sys.executable, str(ROOT / "report.py"), str(folder), *options]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _, status, used = os.wait4(process.pid, 0)
            seconds, cpu = time.perf_counter() - started, used.ru_utime + used.ru_stime
            print(
                f"{form or 'terminal':8}  {seconds:5.1f} s ({cpu:.1f} s of one core), "
                f"{used.ru_maxrss / 1024:.0f} MiB, exit code {os.waitstatus_to_exitcode(status)}"
            )


if __name__ == "__main__":
    main(**{key: int(value) for key, value in (text.split("=") for text in sys.argv[1:])})
