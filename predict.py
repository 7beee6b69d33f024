"""Label image files by a run's network: `python predict.py run=logs/runs/... images=photos`."""

from cifarlab import signals

if __name__ == "__main__":
    signals.listen()  # before the seconds that all else takes to import

import hydra
from omegaconf import DictConfig

from cifarlab.cli import arguments, plain_errors


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def main(config: DictConfig) -> None:
    """Print each file's likeliest classes, and write what was asked for."""
    options = arguments(config, "cifarlab.prediction.predict")
    from cifarlab.prediction import predict  # here, because it takes time to import

    predict(**options)


if __name__ == "__main__":
    with plain_errors():
        main()
