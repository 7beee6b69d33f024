"""The real data sets, where this machine has them; the tests here are skipped, with the reason, where not."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESTORE = ROOT.parent / "shared" / "data" / "restore.py"
FOLDERS = ("cifar-10-batches-py", "cifar-100-python")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """A folder with the official files of both sets: `data/`, filled from the copies beside the checkout."""
    root = ROOT / "data"
    if all((root / folder).is_dir() for folder in FOLDERS):
        return root
    if not RESTORE.is_file():
        pytest.skip(f"{root} does not hold {' and '.join(FOLDERS)}")
    result = subprocess.run([sys.executable, str(RESTORE), str(root)], capture_output=True, text=True)
    if result.returncode != 0:
        pytest.skip(f"{RESTORE} could not restore the data: {result.stderr.strip().splitlines()[-1]}")
    return root
