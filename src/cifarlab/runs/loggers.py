"""What `logger=` names: where curves go besides the run's own files."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.utils.tensorboard.summary import hparams


class RunLogger(TensorBoardLogger):
    """One event file in the run's folder; what `hparams.yaml` would hold is in `config.yaml`.

    Args:
        folder: the run's.
        histograms: whether `cifarlab.runs.boards.Board` adds the weights' after each epoch.
        log_graph: whether the network is drawn as a graph.
    """

    def __init__(self, folder: Path, histograms: bool = False, log_graph: bool = False) -> None:
        # `default_hp_metric` would add a figure that means nothing
        super().__init__(folder, name="", version="", log_graph=log_graph, default_hp_metric=False)
        self.histograms = histograms

    def save(self) -> None:
        self.experiment.flush()

    def finalize(self, status: str) -> None:
        """Called after the fit and again after the test: a closed writer would begin another file."""
        if status == "success":
            self.save()
        else:
            with suppress(OSError):  # a full disk is why the run fails, or it will fail there as well
                super().finalize(status)

    @rank_zero_only
    def log_hyperparams(  # type: ignore[override]
        self, params: Mapping[str, Any], metrics: Mapping[str, float] | None = None, step: int | None = None
    ) -> None:
        """What the run was, for the HPARAMS page; its figures are the last of each curve, and `metrics`.

        Torch's summary of the columns is left out: of several runs' TensorBoard would take the first one it
        finds, and hide the keys that only the others have. Without it every key of any run is a column.
        """
        self.log_metrics(metrics or {}, step)
        _, start, end = hparams(dict(params), {})
        for summary in (start, end):
            self.experiment.file_writer.add_summary(summary, step)

    @rank_zero_only
    def log_graph(  # type: ignore[override]
        self, model: LightningModule, input_array: Tensor | None = None
    ) -> None:
        """The scaling and the network, traced in a copy: as it scores, with no state of the run touched."""
        if self._log_graph:
            layers = OrderedDict(scaling=model.scaling, net=model.net)
            network = copy.deepcopy(nn.Sequential(layers)).cpu().eval()  # type: ignore[arg-type]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of tracing, the only way into TensorBoard
                self.experiment.add_graph(network, torch.zeros(1, 3, 32, 32))


def tensorboard(log_graph: bool = False, histograms: bool = False, *, folder: Path) -> RunLogger:
    """Event files in the run's folder itself."""
    return RunLogger(folder, histograms=histograms, log_graph=log_graph)
