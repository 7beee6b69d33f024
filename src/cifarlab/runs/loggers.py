"""What `logger=` names: where curves go besides the run's own files."""

from __future__ import annotations

from pathlib import Path

from pytorch_lightning.loggers import TensorBoardLogger


class RunLogger(TensorBoardLogger):
    """Event files alone: what `hparams.yaml` would hold is in `config.yaml`."""

    def save(self) -> None:
        self.experiment.flush()


def tensorboard(log_graph: bool = False, *, folder: Path) -> TensorBoardLogger:
    """Event files in the run's folder itself; `default_hp_metric` would add a figure that means nothing."""
    return RunLogger(folder, name="", version="", log_graph=log_graph, default_hp_metric=False)
