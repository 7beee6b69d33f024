"""Folders as runs leave them, without training: record.json, config.yaml, metrics.csv of realistic size."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import yaml

from cifarlab.runs import record as records
from cifarlab.runs.curves import write_metrics

CONFIG: dict[str, Any] = {
    "seed": 0,
    "test": True,
    "test_weights": "last",
    "resume": None,
    "start_from": None,
    "data": {
        "batch_size": 64,
        "eval_batch_size": 500,
        "validation": "split",
        "split": "stratified",
        "folds": 5,
        "fold": 0,
        "scaling": "unit",
        "drop_last": False,
        "_target_": "cifarlab.data.sets.CIFAR10",
        "root": "data",
        "mirrors": ["https://example.org/cifar-10-python.tar.gz"],
    },
    "reg": {},
    "trainer": {
        "accelerator": "auto",
        "devices": 1,
        "strategy": "auto",
        "num_nodes": 1,
        "precision": "auto",
        "max_epochs": 20,
        "min_epochs": None,
        "max_steps": -1,
        "max_time": None,
        "accumulate_grad_batches": 1,
        **{f"limit_{part}_batches": None for part in ("train", "val", "test", "predict")},
        "overfit_batches": 0.0,
        "fast_dev_run": False,
        "check_val_every_n_epoch": 1,
        "num_sanity_val_steps": 0,
        "deterministic": None,
        "inference_mode": True,
        "log_every_n_steps": 50,
        "enable_checkpointing": True,
        "enable_progress_bar": "auto",
    },
    "logger": {"_target_": "cifarlab.runs.loggers.tensorboard", "log_graph": False},
    "model": {
        "_target_": "cifarlab.models.plain.VGG",
        "blocks": 3,
        "width": 32,
        "dense": 128,
        "activation": "relu",
    },
    "optimizer": {
        "_target_": "cifarlab.optim.optimizers.sgd",
        "lr": 0.01,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.0,
    },
    "scheduler": {"_target_": "cifarlab.optim.schedules.constant"},
}
REG: dict[str, dict[str, Any]] = {
    "dropout": {"_target_": "cifarlab.regularizers.dropout.Dropout", "rate": 0.2},
    "flip": {"_target_": "cifarlab.regularizers.affine.Flip", "rate": 0.5},
    "shift": {"_target_": "cifarlab.regularizers.affine.Shift", "by": 0.1},
    "batch_norm": {"_target_": "cifarlab.regularizers.batch_norm.BatchNorm"},
}


def write_run(
    folder: Path,
    test: float | None,
    val: float | None = None,
    *,
    seed: int = 0,
    reg: tuple[str, ...] = (),
    changes: dict[str, Any] | None = None,
    typed: list[str] | None = None,
    record: dict[str, Any] | None = None,
    epochs: int = 20,
    seconds: float = 350.0,
) -> Path:
    """A run with these accuracies; `changes` and `record` are dotted keys of its configuration and record."""
    config = copy.deepcopy(CONFIG)
    config |= {"seed": seed, "reg": {name: dict(REG[name]) for name in reg}}
    for key, value in (changes or {}).items():
        lay(config, key, value)
    validation = config["data"]["validation"]
    val = test if val is None else val
    made = records.new(config, {"model": "vgg3", "reg": list(reg) or ["none"], "data": "cifar10"})
    made["choices"] |= {"optimizer": "sgd", "scheduler": "constant"}
    made |= {
        "status": "done",
        "started": "2026-01-31T12:00:00+00:00",
        "finished": "2026-01-31T12:10:00+00:00",
        "overrides": [f"reg=[{','.join(reg)}]", f"seed={seed}", *(typed or [])],
        "config_hash": records.config_hash(config),
        "epochs": epochs,
        "steps": 704 * epochs,
        "train_seconds": seconds,
        "images_per_second": 45_000 * epochs / seconds,
        "wall_seconds": 1.1 * seconds,
        "peak_memory_bytes": 1_300_000_000,
        "val": {"accuracy": val, "loss": 0.9},
        "best_val": {"accuracy": val, "loss": 0.9, "epoch": epochs},
    }
    made["data"] |= {"name": "cifar10", "num_classes": 10, "train_images": 45_000, "validation": validation}
    made["model"]["parameters"] = 550_570
    made["environment"] |= {"python": "3.11.7", "torch": "2.15.0", "lightning": "2.6.6", "device": "cpu"}
    made["test"] |= {"accuracy": test, "loss": 0.9, "images": 10_000, "weights": config["test_weights"]}
    for key, value in (record or {}).items():
        lay(made, key, value)
    folder.mkdir(parents=True)
    records.write(folder, made)
    (folder / "config.yaml").write_text(dumped(config))
    write_metrics(folder / "metrics.csv", history(epochs, val if val is not None else 0.1, seconds, seed))
    return folder


def lay(node: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        node = node[parent]
    node[last] = value


def dumped(config: dict[str, Any]) -> str:
    return yaml.dump(config, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)


def history(epochs: int, val: float, seconds: float, seed: int) -> list[dict[str, Any]]:
    """Curves that rise to the last accuracy, with some noise on the way."""
    chance = random.Random(seed)
    rows = []
    for epoch in range(1, epochs + 1):
        rise = (1 - math.exp(-5 * epoch / epochs)) / (1 - math.exp(-5))
        noise = chance.gauss(0, 0.008) if epoch < epochs else 0.0
        accuracy = min(1.0, max(0.0, 0.1 + (val - 0.1) * rise + noise))
        rows.append(
            {
                "epoch": epoch,
                "step": 704 * epoch,
                "lr": 0.01,
                "train/loss": 2.3 * (1 - rise) + 0.123456789,
                "train/accuracy": min(1.0, accuracy + 0.03),
                "val/loss": 2.3 * (1 - rise) + 0.3456789012,
                "val/accuracy": accuracy,
                "seconds": seconds / epochs,
            }
        )
    return rows


def write_lattice(folder: Path, seeds: int = 3, epochs: int = 20) -> Path:
    """All 16 subsets of four regularizers; what each brings is smaller the more others there are."""
    gains = {"dropout": 0.06, "flip": 0.05, "shift": 0.03, "batch_norm": 0.02}
    chance = random.Random(0)
    for bits in range(16):
        reg = tuple(name for bit, name in enumerate(gains) if bits >> bit & 1)
        mean = 0.72 + sum(gains[name] for name in reg) * (1 - 0.12 * len(reg))
        for seed in range(seeds):
            test = mean + chance.gauss(0, 0.003)
            name = "+".join(reg) or "none"
            write_run(
                folder / f"{bits}_{name}_seed={seed}",
                test,
                test + 0.01,
                seed=seed,
                reg=reg,
                epochs=epochs,
                seconds=300 + 40 * len(reg) + 100 * ("dropout" in reg) + chance.gauss(0, 5),
            )
    return folder


def write_many(folder: Path, count: int, seeds: int = 3, epochs: int = 100) -> Path:
    """`count` runs of `count / seeds` configurations: a random search over three keys."""
    chance = random.Random(0)
    names = list(REG)
    for number in range(count):
        if number % seeds == 0:
            lr, width = 10 ** chance.uniform(-4, -1), chance.choice([16, 32, 48, 64])
            reg = tuple(name for name in names if chance.random() < 0.5)
            mean = chance.uniform(0.5, 0.9)
        test = min(1.0, mean + chance.gauss(0, 0.003))
        write_run(
            folder / f"{number}_lr={lr:.5g}",
            test,
            seed=number % seeds,
            reg=reg,
            changes={"optimizer.lr": lr, "model.width": width},
            typed=[f"optimizer.lr={lr}", f"model.width={width}"],
            epochs=epochs,
            seconds=chance.uniform(100, 1000),
        )
    return folder
