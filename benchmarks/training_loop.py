"""The whole training loop against a bare PyTorch loop with the same layers, precision and memory format.

    python benchmarks/training_loop.py [steps=60] [rounds=5] [key=value ...]

Trains `experiment=posts/a3_baseline` (or another; overrides on top) for one warm-up epoch and `rounds` epochs
of `steps` batches, and after each runs as many steps of a bare loop on one fixed batch: forward, loss,
backward, optimizer, nothing else. The two alternate in one process, so a machine that drifts slows both.
Prints images per second of each, their ratio, and the medians over the rounds.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.nn.functional import cross_entropy

from cifarlab import hardware, training
from cifarlab.models.classifier import Classifier
from cifarlab.runs.callbacks import RunRecord

CONF = Path(__file__).parents[1] / "conf"


class BareLoop(pl.Callback):
    """Times a bare loop after each epoch, on a copy of the network."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.seconds: list[float] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Classifier)
        batch_size, device = trainer.datamodule.batch_size, module.device
        net = copy.deepcopy(module.net).train()
        assert module.make_optimizer is not None
        optimizer = module.make_optimizer(params=net.parameters())
        images = torch.rand(batch_size, 3, 32, 32, device=device).to(memory_format=module.memory_format)
        labels = torch.randint(module.num_classes, (batch_size,), device=device)

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=trainer.precision == "bf16-mixed"):
                loss = cross_entropy(net(images).float(), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        for _ in range(3):
            step()
        self.synchronize(device)
        started = time.perf_counter()
        for _ in range(self.steps):
            step()
        self.synchronize(device)
        self.seconds.append(time.perf_counter() - started)

    def synchronize(self, device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()


def matrix_rate(dtype: torch.dtype, size: int = 2048, repeats: int = 5) -> float:
    """GFLOP/s of a square matrix product, the best of a few."""
    a = torch.randn(size, size).to(dtype)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times) / 1e9


def main() -> None:
    own = {"steps": 60, "rounds": 5}
    overrides: list[str] = []
    for argument in sys.argv[1:]:
        key, _, value = argument.partition("=")
        if key in own:
            own[key] = int(value)
        else:
            overrides.append(argument)
    if not any(o.startswith("experiment=") for o in overrides):
        overrides.insert(0, "experiment=posts/a3_baseline")
    overrides += [
        f"trainer.limit_train_batches={own['steps']}",
        f"trainer.max_epochs={own['rounds'] + 1}",
        "trainer.limit_val_batches=1",
        "test=false",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("train", overrides), resolve=True)
    bare = BareLoop(own["steps"])
    recorders: list[RunRecord] = []
    make_trainer = training.make_trainer

    def with_bare_loop(*arguments: Any, **options: Any) -> pl.Trainer:
        trainer = make_trainer(*arguments, **options)
        recorders.extend(c for c in trainer.callbacks if isinstance(c, RunRecord))
        trainer.callbacks.append(bare)  # behind the record, whose clock has then stopped
        return trainer

    training.make_trainer = with_bare_loop
    with tempfile.TemporaryDirectory() as folder:
        training.train(config, Path(folder), overrides, {})
    images = own["steps"] * config["data"]["batch_size"]
    ours = [images / row["seconds"] for row in recorders[0].history][1:]
    theirs = [images / seconds for seconds in bare.seconds][1:]
    bf16 = hardware.has_fast_bfloat16("cpu")
    rate = matrix_rate(torch.bfloat16 if bf16 else torch.float32)
    print(f"{hardware.cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'bfloat16' if bf16 else 'float32'} product of 2,048 x 2,048 on the CPU: {rate:,.0f} GFLOP/s")
    print(f"{'whole loop':>12} {'bare loop':>12} {'ratio':>8}   images/s, {' '.join(overrides[:-4])}")
    for one, other in zip(ours, theirs, strict=True):
        print(f"{one:12,.0f} {other:12,.0f} {one / other:8.3f}")
    ratio = median(one / other for one, other in zip(ours, theirs, strict=True))
    print(f"{median(ours):12,.0f} {median(theirs):12,.0f} {ratio:8.3f}   medians")


if __name__ == "__main__":
    main()
