"""Jobs that another engine runs: submitit under SLURM or its stand-in on this machine, or ray."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Literal

from cifarlab.errors import UserError
from cifarlab.mistakes import one_line
from cifarlab.sweeps.folders import is_claimed
from cifarlab.sweeps.jobs import Job
from cifarlab.sweeps.loop import Work

# submitit's own names; the others go to the cluster's executor
GENERIC = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")
WAIT = 60  # seconds that a run has to save its last epoch when its time is up


class Attended:
    """A job's command with somebody beside it, who ends it in good time and can be sent anew."""

    def __init__(self, job: Job, folder: str) -> None:
        self.job, self.folder = job, folder
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run it, from its last finished epoch if it has one; returns its exit code."""
        # submitit's signal reaches all processes of the job; the run is to be stopped by the one beside it
        self.process = subprocess.Popen(
            self.job.arguments(),
            cwd=self.folder,
            process_group=0,
            preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
        )
        try:
            # not wait(), which holds a lock that stop() needs when a signal calls it from here
            while (code := self.process.poll()) is None:
                time.sleep(0.1)
            return code
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Let the run save its last finished epoch and end."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(WAIT)
            except subprocess.TimeoutExpired:
                self.process.kill()

    def checkpoint(self) -> Any:
        """What submitit queues when the time is up: the same job, which then goes on."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        return DelayedSubmission(Attended(self.job, self.folder))


class Submitted:
    """A job that submitit has."""

    def __init__(self, job: Job, submitted: Any) -> None:
        self.folder, self.submitted, self.stopped = job.folder, submitted, False

    def code(self) -> int | str | None:
        # the run may outlive what was beside it by the time it takes to save its last epoch
        if not self.submitted.done() or (self.stopped and is_claimed(self.folder)):
            return None
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            code: int = self.submitted.result()
        except (
            UncompletedJobError,
            FailedJobError,
        ) as error:  # killed with what was beside it, or never begun
            return 143 if self.stopped else one_line(error)
        return code

    def stop(self) -> None:
        self.stopped = True
        self.submitted.cancel(check=False)

    def kill(self) -> None:
        self.stop()


class Submitit:
    """submitit's queue, its local one or SLURM's."""

    pause = 1.0

    def __init__(self, cluster: Literal["local", "slurm"], folder: Path, n_jobs: int, **options: Any) -> None:
        """`options` are submitit's by their own names; those that are None are left to it.

        Raises:
            UserError: when submitit is not installed, there is no SLURM here, or it does not know an option.
        """
        try:
            import submitit
        except ImportError:
            raise UserError(
                f"hydra/launcher=submitit_{cluster} needs submitit: pip install -e '.[submitit]'."
            ) from None
        self.room = n_jobs
        chosen = {
            name if name in GENERIC else f"{cluster}_{name}": value
            for name, value in options.items()
            if value is not None
        }
        if cluster == "slurm":
            chosen["slurm_array_parallelism"] = n_jobs
        countdown = {f"{cluster}_max_num_timeout": chosen.pop(f"{cluster}_max_num_timeout")}
        try:
            self.executor = submitit.AutoExecutor(folder / ".submitit" / "%j", cluster, **countdown)
            self.executor.update_parameters(**chosen)
        except (RuntimeError, NameError, ValueError, AssertionError) as error:
            raise UserError(f"hydra/launcher=submitit_{cluster}: {one_line(error)}") from None

    def start(self, jobs: list[Job]) -> list[Work]:
        """Submit them, under SLURM as an array."""
        with self.executor.batch():
            submitted = [self.executor.submit(Attended(job, os.getcwd())) for job in jobs]
        return [Submitted(job, one) for job, one in zip(jobs, submitted, strict=True)]


class Remote:
    """A job that ray has."""

    def __init__(self, job: Job, task: Any) -> None:
        self.folder, self.task, self.stopped = job.folder, task, False

    def code(self) -> int | str | None:
        import ray

        if not ray.wait([self.task], timeout=0)[0]:
            return None
        try:
            code: int = ray.get(self.task)
        except ray.exceptions.RayError as error:  # its machine is gone, or it was stopped
            return 143 if self.stopped else one_line(error)
        return code

    def stop(self) -> None:
        import ray

        self.stopped = True
        ray.cancel(self.task, force=False)  # a KeyboardInterrupt beside the run

    def kill(self) -> None:
        import ray

        ray.cancel(self.task, force=True)


class Ray:
    """A ray cluster, or one that is made for this sweep on this machine."""

    pause = 1.0

    def __init__(self, n_jobs: int, address: str | None, num_cpus: float, num_gpus: float) -> None:
        """`num_cpus` and `num_gpus` are what each job is given; a fraction shares a GPU.

        Raises:
            UserError: when ray is not installed, or there is no cluster at that address.
        """
        try:
            import ray
        except ImportError:
            raise UserError("hydra/launcher=ray needs ray: pip install -e '.[ray]'.") from None
        try:
            ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
        except ConnectionError as error:
            raise UserError(f"hydra.launcher.address={address}: {one_line(error)}") from None
        self.room = n_jobs
        # a job that was lost is tried again by the next call of the sweep
        self.attend = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=0)(attend)

    def start(self, jobs: list[Job]) -> list[Work]:
        return [Remote(job, self.attend.remote(job, os.getcwd())) for job in jobs]


def attend(job: Job, folder: str) -> int:
    """Run the job's command from that folder; its exit code."""
    return Attended(job, folder)()
