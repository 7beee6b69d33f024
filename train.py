"""Train a network on CIFAR: `python train.py model=vgg3 reg=dropout_increasing data=cifar100`."""

from cifarlab import signals

if __name__ == "__main__":
    signals.listen()  # before the seconds that all else takes to import

import hydra
from omegaconf import DictConfig

from cifarlab.cli import job, plain_errors


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float | None:
    """One run; returns its best validation accuracy, which a search over sweeps maximizes."""
    plain, folder, overrides, choices = job(config)
    from cifarlab.training import train  # here, because it takes seconds to import

    record = train(plain, folder, overrides, choices)
    return record["best_val"]["accuracy"]


if __name__ == "__main__":
    with plain_errors(sweeps=True):
        main()
