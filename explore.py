"""Look at a data set, and at what augmentation makes of it: `python explore.py data=cifar100 reg=augment`."""

from cifarlab import signals

if __name__ == "__main__":
    signals.listen()  # before the seconds that all else takes to import

import hydra
from omegaconf import DictConfig

from cifarlab.cli import arguments, plain_errors


@hydra.main(version_base="1.3", config_path="conf", config_name="explore")
def main(config: DictConfig) -> None:
    """Say what is in the data set, and draw it."""
    options = arguments(config, "cifarlab.exploration.explore")
    from cifarlab.exploration import explore  # here, because it takes seconds to import

    explore(**options)


if __name__ == "__main__":
    with plain_errors():
        main()
