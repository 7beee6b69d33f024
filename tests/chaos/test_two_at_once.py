"""Two processes never work in one run's folder, whichever way the second came there."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import folders
import pretend
import processes
import pytest
from commands import QUICK

from cifarlab.runs import record as records
from cifarlab.sweeps.folders import is_claimed
from cifarlab.sweeps.jobs import Job, ended

OPTIONS = [*QUICK, "trainer.max_epochs=3", "trainer.limit_train_batches=4", "reg=[dropout,batch_norm]"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was alone, in a folder to work in."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(processes.CHECKOUT / "conf", folder / "conf")
    assert processes.finish(folder, *OPTIONS, "hydra.run.dir=reference") == 0
    return folder / "reference"


def wait_for(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not there():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_of_many_started_in_one_folder_one_runs(
    reference: Path, tries: Callable[[int, int], int], survived: Callable[[str, int], None]
) -> None:
    """At once, while the first is at work, and when it is done; also of those that resume a killed run."""
    rounds, many, chance = tries(1, 12), tries(3, 8), random.Random(0)
    for number in range(rounds):
        run = reference.with_name(f"shared_{number}")
        typed = [*OPTIONS, f"hydra.run.dir={run}"]
        if number % 3 == 2:
            process = processes.start(run.parent, *typed)
            wait_for((run / "checkpoints/last.ckpt").exists)
            process.kill()
            processes.ended(process)
            typed = [f"resume={run}"]
        texts = [run.with_name(f"{run.name}_{n}.txt") for n in range(many)]
        started = []
        for text in texts:
            started.append(processes.start(run.parent, *typed, output=text))
            time.sleep(chance.uniform(0, 0.5) if number % 3 == 1 else 0)
        codes = [processes.ended(process) for process in started]
        allowed = {f"{run} is at work in another process; wait for it, or stop it.\n"}
        if number % 3 == 2:
            assert 0 in codes  # and of one who came when the run was done, who found nothing left to train
        else:
            assert sorted(codes) == [0] + [2] * (many - 1)
            name = run.relative_to(run.parent)
            allowed |= {
                f"{where} holds a run already; go on with it by resume={where} or choose another "
                "hydra.run.dir=.\n"
                for where in (name, run)
            }
        for code, text in zip(codes, texts, strict=True):
            assert code == 0 or (code == 2 and text.read_text() in allowed)
        folders.check_whole(run)
        folders.check_same(run, reference)
        assert folders.logged_epochs(run) == [1, 2, 3]
    survived("commands in one folder, one of them run and all others refused", rounds * many)


def test_a_run_at_work_is_not_resumed(
    reference: Path, tries: Callable[[int, int], int], survived: Callable[[str, int], None]
) -> None:
    """Nor is it disturbed by those who try."""
    run, count = reference.with_name("disturbed"), tries(1, 10)
    long = ["trainer.max_epochs=100000", f"hydra.run.dir={run}"]
    process = processes.start(run.parent, *OPTIONS, *long)
    wait_for((run / "checkpoints/last.ckpt").exists)
    before = records.read_config(run)
    for number in range(count):
        text = run.with_name(f"second_{number}.txt")
        second = processes.start(run.parent, f"resume={run}", "trainer.max_epochs=1", output=text)
        assert processes.ended(second) == 2
        assert text.read_text() == f"{run} is at work in another process; wait for it, or stop it.\n"
    assert process.is_alive()
    assert records.read(run)["status"] == "running"
    assert records.read_config(run) == before
    process.kill()
    assert processes.ended(process) == -signal.SIGKILL
    folders.check_whole(run)
    epochs = folders.logged_epochs(run)
    assert epochs == list(range(1, len(epochs) + 1))
    assert not [line for line in (run / "train.log").read_text().splitlines() if "at work" in line]
    survived("resumptions of a run at work, refused", count)


def test_a_mistake_removes_no_folder_that_was_there_before(reference: Path) -> None:
    folder = reference.with_name("belongings")
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    wrong = [*OPTIONS, "start_from=null", "data.batch_size=100000", "data.drop_last=true"]
    assert processes.finish(folder.parent, *wrong, f"hydra.run.dir={folder}") == 2
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert processes.finish(folder.parent, *wrong, f"hydra.run.dir={folder}_new") == 2
    assert not folder.with_name("belongings_new").exists()


@pytest.fixture
def swept(workplace: Path) -> Iterator[Path]:
    """A folder to sweep in, where a run of seed 16 takes a while and the others none."""
    (workplace / "train.py").write_text(pretend.COMMAND)
    yield workplace
    wait_for(lambda: not any(map(is_claimed, workplace.glob("logs/sweeps/*/*"))))


def test_the_jobs_of_a_killed_sweep_are_left_to_end(
    swept: Path, tries: Callable[[int, int], int], survived: Callable[[str, int], None]
) -> None:
    """They end by themselves; the same command knows that they are at work, and goes on once they are not."""
    typed = ["-m", "seed=16,1", "trainer.max_epochs=40", "optimizer.lr=0.3"]
    for number in range(tries(1, 8)):
        shutil.rmtree(swept / "logs", ignore_errors=True)
        sweep = pretend.start(*typed)
        wait_for(lambda: any(swept.glob("logs/sweeps/*/*/metrics.csv")))
        (job,) = swept.glob("logs/sweeps/*/*16*/")
        sweep.kill()
        assert sweep.wait() == -signal.SIGKILL
        if number % 2:  # the machine has gone down, and the job with it
            os.kill(holder(job), signal.SIGKILL)
        else:
            os.kill(holder(job), signal.SIGSTOP)  # not to end too soon
            same = pretend.start(*typed)
            assert same.communicate()[0].count("at work in another process") == 2
            assert same.returncode == 1
            os.kill(holder(job), signal.SIGCONT)
        wait_for(lambda job=job: not is_claimed(job))
        assert records.read(job)["status"] == ("running" if number % 2 else "done")
        assert pretend.start(*typed).wait() == 0
        found = {name: record["status"] for name, record in pretend.records_of(swept).items()}
        assert list(found.values()) == ["done", "done"]
    survived("killed sweeps, finished by the same command", tries(1, 8))


def test_a_job_is_what_became_of_its_run(tmp_path: Path) -> None:
    """Another process may have ended it, or been killed between its first checkpoint and its record."""
    job = Job(0, [], tmp_path)
    records.write(tmp_path, records.EMPTY | {"status": "done"})
    assert ended(job, 2).status == records.read(tmp_path)["status"] == "done"
    assert not job.goes_on
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    assert job.goes_on


def holder(job: Path) -> int:
    """The process that has the folder open."""
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(descriptor.readlink() == job for descriptor in descriptors.iterdir()):
                return int(descriptors.parent.name)
        except OSError:  # another user's, or gone
            continue
    raise AssertionError(f"nobody holds {job}")
