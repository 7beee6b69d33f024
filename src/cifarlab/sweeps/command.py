"""A sweep, top to bottom: its folder, its jobs, what came of them."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import configure_log
from omegaconf import DictConfig

from cifarlab.mistakes import as_typed
from cifarlab.sweeps.folders import Claim, remember, remembered, what_is_swept
from cifarlab.sweeps.jobs import Outcome, Planner
from cifarlab.sweeps.loop import Engine, Watch, listening, run
from cifarlab.sweeps.table import cross_validation, line, table

log = logging.getLogger(__name__)


def run_sweep(
    config: DictConfig,
    loader: ConfigLoader,
    engine: Engine,
    jobs: Iterable[tuple[int, Sequence[str]]],
    again: bool = False,
    watch: Watch | None = None,
    heard: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run the numbered overrides as jobs, say what comes of each at once and of all in a table.

    Args:
        config: the sweep's, as Hydra composed it.
        again: whether jobs that were run before are run once more.
        watch: looks at each job at work; True stops it.
        heard: is told of each outcome as it comes.

    Raises:
        UserError: when the same sweep is at work already.
        Stop: by a signal, all jobs' last finished epochs saved.
    """
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    claim = Claim(folder)
    outcomes = []
    try:
        forced = again or bool(remembered(folder).get("forced"))
        remember(folder, what_is_swept(config.hydra.overrides), forced)
        planner = Planner(config, loader, again, forced)
        with listening() as stopped:
            for outcome in run((planner.plan(*job) for job in jobs), engine, stopped, watch):
                outcomes.append(outcome)
                if heard is not None:
                    heard(outcome)
                if outcome.status != "skipped":
                    log.info(line(outcome))
    finally:
        claim.release()
    last = [
        "",
        table(outcomes, folder),
        *cross_validation(outcomes),
        f"Sweep folder: {folder}",
    ]
    if stopped.signals:
        last.append(f"To go on: {command(config)}")
    log.info("\n".join(last))
    stopped.leave()
    return outcomes


def command(config: DictConfig) -> str:
    """What was typed to start the sweep, but for `force=true`, which would begin it again."""
    own, task = as_typed(config.hydra)
    # not typed: the sweeper comes with search=
    left_out = ("hydra.mode=", "hydra.launcher.force=", "hydra/sweeper=cifarlab/optuna")
    own = [o for o in own if not o.startswith(left_out)]
    typed = [o.replace("hydra.sweeper.ablation=", "ablation=").replace("=cifarlab/", "=") for o in own]
    return shlex.join(["python", Path(sys.argv[0]).name, "-m", *task, *typed])
