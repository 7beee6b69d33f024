"""What Hydra finds of cifarlab's sweeps: it takes launchers and sweepers from this package alone."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from cifarlab.errors import RunFailed, UserError
from cifarlab.mistakes import conf_of
from cifarlab.sweeps.ablation import ablate, listed, without_strangers

log = logging.getLogger(__name__)


class Commands(Launcher):
    """Runs each job as a command of its own, unless it has been run before."""

    def __init__(self, force: bool = False) -> None:
        """With `force` nothing counts as run before."""
        self.force = force

    def engine(self) -> Any:
        """Where the jobs run (`cifarlab.sweeps.loop.Engine`)."""
        raise NotImplementedError

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def sweep(self, jobs: Iterable[tuple[int, Sequence[str]]], **watching: Any) -> list[Any]:
        """The outcomes of the numbered jobs (`cifarlab.sweeps.command.run_sweep`)."""
        from cifarlab.sweeps.command import run_sweep  # here: Hydra imports this file with every command

        return run_sweep(
            self.config, self.context.config_loader, self.engine(), jobs, again=self.force, **watching
        )

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """For other sweepers: each job's return is its best validation accuracy."""
        outcomes = self.sweep(enumerate(job_overrides, initial_job_idx))
        returns = []
        for outcome in sorted(outcomes, key=lambda outcome: outcome.job.number):
            well = outcome.status in ("done", "skipped")
            status = JobStatus.COMPLETED if well else JobStatus.FAILED
            value = outcome.accuracy("best_val") if well else RunFailed(outcome.error)
            returns.append(JobReturn(outcome.job.overrides, status=status, _return_value=value))
        return returns


class ThisMachine(Commands):
    """Here, so many at once."""

    def __init__(self, n_jobs: int = 1, threads: int | None = None, force: bool = False) -> None:
        super().__init__(force)
        self.n_jobs, self.threads = n_jobs, threads

    def engine(self) -> Any:
        from cifarlab.sweeps.here import Here

        return Here(self.n_jobs, self.threads)


class Submitit(Commands):
    """In submitit's queue, the local one or SLURM's; `options` are submitit's."""

    def __init__(
        self, cluster: Literal["local", "slurm"], n_jobs: int, force: bool = False, **options: Any
    ) -> None:
        super().__init__(force)
        self.cluster, self.n_jobs, self.options = cluster, n_jobs, options

    def engine(self) -> Any:
        from cifarlab.sweeps.elsewhere import Submitit

        plain: Any = OmegaConf.to_container(OmegaConf.create(self.options))
        folder = Path(self.config.hydra.sweep.dir)
        return Submitit(self.cluster, folder, self.n_jobs, **plain)


class Ray(Commands):
    """On a ray cluster (`cifarlab.sweeps.elsewhere.Ray`)."""

    def __init__(self, force: bool = False, **options: Any) -> None:
        super().__init__(force)
        self.options = options

    def engine(self) -> Any:
        from cifarlab.sweeps.elsewhere import Ray

        return Ray(**self.options)


class Grid(BasicSweeper):
    """Every combination of the values typed; for an ablation, of every list of regularizers that it runs."""

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: dict[str, str] | None = None,
        ablation: Literal["alone", "leave_one_out", "lattice"] | None = None,
    ) -> None:
        super().__init__(max_batch_size, params)
        self.ablation = ablation

    def sweep(self, arguments: list[str]) -> Any:
        """Run all jobs, whatever becomes of one.

        Raises:
            RunFailed: when there are some that are neither done nor skipped.
        """
        if not isinstance(self.launcher, Commands):
            return super().sweep(arguments)
        typed = OverridesParser.create().parse_overrides([*self._parse_config(), *arguments])
        (jobs,) = self.split_arguments(typed, None)
        if self.ablation is not None:
            jobs = ablate(jobs, listed(typed), self.ablation, conf_of(self.launcher.config.hydra))
        outcomes = self.launcher.sweep(enumerate(jobs))
        bad = [outcome for outcome in outcomes if outcome.status not in ("done", "skipped")]
        if bad:
            raise RunFailed(
                f"{len(bad)} of {len(jobs)} jobs did not end well; the same command tries them again."
            )
        return outcomes


class Optuna(Sweeper):
    """A search by optuna (`cifarlab.sweeps.search.Search`)."""

    def __init__(self, params: dict[str, str] | None = None, **options: Any) -> None:
        """`params` are searched where the command does not say otherwise."""
        self.params, self.options = params or {}, options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.loader = config, hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the trials that the study lacks.

        Raises:
            UserError: when optuna is not installed, or a trial would choose by the test images or by none.
            RunFailed: when no trial ended well.
        """
        try:
            from cifarlab.sweeps.search import Search
        except ImportError:
            raise UserError("search=optuna needs optuna: pip install -e '.[optuna]'.") from None
        if not isinstance(self.launcher, Commands):
            raise UserError("search=optuna needs a launcher of ours: leave out hydra/launcher=.")
        assert self.config is not None
        if (validation := self.config.data.validation) in ("none", "test"):
            raise UserError(
                f"data.validation={validation}: a search chooses by validation images, which cannot be none, "
                "nor the test's; type data.validation=split."
            )
        typed = {override.partition("=")[0] for override in arguments}
        params = [f"{key}={value}" for key, value in self.params.items() if key not in typed]
        present = without_strangers(params, self.config.reg)
        overrides = OverridesParser.create().parse_overrides([*present, *arguments])
        search = Search(Path(self.config.hydra.sweep.dir), overrides, **self.options)
        try:
            outcomes = self.launcher.sweep(search.jobs(), watch=search.watch, heard=search.hear)
        finally:
            log.info(search.summary())
        ends = {outcome.status for outcome in outcomes}
        # some may well fail, at too high a rate
        if ends & {"failed", "elsewhere"} and not ends & {"done", "skipped", "pruned"}:
            raise RunFailed("No trial ended well; the same command tries more.")
        return outcomes
