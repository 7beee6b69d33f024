"""Which values the keys of launchers and sweepers take."""

from __future__ import annotations

from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from cifarlab.config import check_value
from cifarlab.types import Count, Natural, NonNegative, Positive, Seed

LAUNCHER: dict[str, Any] = {
    "n_jobs": Count,
    "threads": Count | None,
    "force": bool,
    "timeout_min": Count,
    "max_num_timeout": Natural,
    "signal_delay_s": Natural,
    "cpus_per_task": Count | None,
    "gpus_per_node": Natural | None,
    "mem_gb": Positive | None,
    "name": str,
    "partition": str | None,
    "account": str | None,
    "qos": str | None,
    "constraint": str | None,
    "setup": list[str] | None,
    "address": str | None,
    "num_cpus": NonNegative,
    "num_gpus": NonNegative,
}
SWEEPER: dict[str, Any] = {
    "max_batch_size": Count | None,
    "ablation": Literal["alone", "leave_one_out", "lattice"] | None,
    "trials": Count,
    "minutes": Positive | None,
    "seed": Seed,
    "startup": Natural,
    "warmup": Natural,
}


def check(launcher: DictConfig, sweeper: DictConfig) -> None:
    """Refuse the options that a launcher and a sweeper of ours would not take; those of others pass.

    Raises:
        WrongKey: naming the first key that is wrong, and what was expected.
    """
    # as many as there are GPUs or cores can only be known on this machine
    here = {"n_jobs": Count | Literal[-1]} if launcher._target_.endswith(".ThisMachine") else {}
    for owner, node, known in (("launcher", launcher, LAUNCHER | here), ("sweeper", sweeper, SWEEPER)):
        if node._target_.startswith("hydra_plugins.cifarlab_sweeps."):
            plain: Any = OmegaConf.to_container(node, resolve=True)
            for name in plain.keys() & known.keys():
                check_value(f"hydra.{owner}.{name}", plain[name], known[name])
