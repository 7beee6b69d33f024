"""Score a run's weights again, from its folder: `python evaluate.py run=logs/runs/...`."""

from cifarlab import signals

if __name__ == "__main__":
    signals.listen()  # before the seconds that all else takes to import

import hydra
from omegaconf import DictConfig

from cifarlab.cli import arguments, plain_errors


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(config: DictConfig) -> None:
    """Write the scores and pictures, and say the scores."""
    options = arguments(config, "cifarlab.evaluation.evaluate")
    from cifarlab.evaluation import evaluate  # here, because it takes seconds to import

    evaluate(**options)


if __name__ == "__main__":
    with plain_errors():
        main()
