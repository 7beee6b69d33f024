"""kill -9 at any moment of a run: nothing in its folder is torn, and it goes on to the same bits."""

import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import folders
import processes
import pytest
from commands import QUICK

EPOCHS = 3
# all that is random, and all that has a state
OPTIONS = [
    *QUICK,
    "reg=[dropout,augment,batch_norm]",
    "scheduler=cosine",
    f"trainer.max_epochs={EPOCHS}",
    "trainer.limit_train_batches=4",
]
KINDS = {
    "plain": [],
    "all": ["logger=tensorboard", "export=pt2", "test_weights=best", "scheduler=plateau"],
}
WHAT = "kills, each resumed to the same bits"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Of each kind a run that is never stopped, in a folder to work in."""
    folder = tmp_path_factory.mktemp("kills")
    shutil.copytree(processes.CHECKOUT / "conf", folder / "conf")

    def reference(kind: str) -> Path:
        run = folder / kind
        if not run.exists():
            before = partial(processes.kill_at, run, None)
            assert processes.finish(folder, *new(run, kind), before=before) == 0
        return run

    return reference


def new(run: Path, kind: str) -> list[str]:
    return [*OPTIONS, *KINDS[kind], f"hydra.run.dir={run}"]


def again(run: Path, kind: str) -> list[str]:
    """What goes on with a run that was killed: the same command, if it was before the run's record."""
    return [f"resume={run}"] if (run / "record.json").exists() else new(run, kind)


def check_goes_on(run: Path, reference: Path) -> None:
    """The killed run is whole, and ends as the reference with no finished epoch done again."""
    folders.check_whole(run)
    saved, logged = folders.saved_epochs(run), folders.logged_epochs(run)
    assert processes.finish(run.parent, *again(run, reference.name)) == 0
    assert folders.logged_epochs(run) == [*logged, *range(saved + 1, EPOCHS + 1)]
    assert logged in (list(range(1, saved + 1)), list(range(1, saved)))  # the kill may come before the line
    folders.check_whole(run)
    folders.check_same(run, reference)
    shutil.rmtree(run)


def test_killed_while_any_file_is_written_and_after(
    reference: Callable[[str], Path], tries: Callable[[int, int], int], survived: Callable[[str, int], None]
) -> None:
    """Every state that a folder can be left in."""
    kind = "plain" if tries(1, 2) == 1 else "all"
    whole = reference(kind)
    count = len(whole.with_suffix(".moments").read_text().splitlines())
    wanted = tries(2, count)
    for number in range(wanted):
        moment = 1 + (2 * number + 1) * count // (2 * wanted)
        run = whole.with_name(f"at_{moment}")
        before = partial(processes.kill_at, run, moment)
        assert processes.finish(run.parent, *new(run, kind), before=before) == -9
        check_goes_on(run, whole)
    survived(WHAT, wanted)


def test_killed_at_random(
    reference: Callable[[str], Path], tries: Callable[[int, int], int], survived: Callable[[str, int], None]
) -> None:
    """At any time from the command's start to its end."""
    wanted, done, chance = tries(1, 100), 0, random.Random(0)
    seconds = dict.fromkeys(KINDS, 3.0)
    while done < wanted:
        kind = "all" if done % 4 == 3 else "plain"
        whole, run = reference(kind), reference(kind).with_name(f"random_{done}")
        process, started = processes.start(run.parent, *new(run, kind)), time.monotonic()
        process.join(chance.uniform(0, seconds[kind]))
        if process.exitcode is not None:  # it was faster
            seconds[kind] = time.monotonic() - started
            shutil.rmtree(run)
            continue
        process.kill()
        assert processes.ended(process) == -9
        check_goes_on(run, whole)
        done += 1
    survived(WHAT, done)


def test_killed_again_and_again(
    reference: Callable[[str], Path], tries: Callable[[int, int], int], survived: Callable[[str, int], None]
) -> None:
    """A run that is killed in each of its lives, until it has ended."""
    chance, kills = random.Random(1), 0
    for number in range(tries(1, 5)):
        kind = "all" if number else "plain"
        whole, run = reference(kind), reference(kind).with_name(f"often_{number}")
        code = -9
        while code == -9:
            before = partial(processes.kill_at, run, chance.randint(8, 30))
            code = processes.finish(run.parent, *again(run, kind), before=before)
            folders.check_whole(run)
            kills += code == -9
        assert code == 0
        folders.check_same(run, whole)
        logged = folders.logged_epochs(run)
        assert sorted(logged) == logged
    survived(WHAT, kills)
