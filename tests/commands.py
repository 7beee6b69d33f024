"""What a command of the project's did, for tests that run one in their own process."""

import json
from collections.abc import Callable
from typing import NamedTuple


class Answer(NamedTuple):
    """Exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def jobs(self) -> list[dict]:
        """The lines of stdout that are JSON objects."""
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]


Command = Callable[..., Answer]
# a short training on the digits, for a test that needs a run
QUICK = [
    "data=digits",
    "model=vgg1",
    "model.width=4",
    "model.dense=16",
    "optimizer=adam",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=6",
    "logger=none",
    "export=none",
]
