"""How fast image files are labelled, against reading them alone and against the bare network.

    python benchmarks/predict.py [files=10000] [rounds=3]

Writes that many 32 x 32 PNG and as many JPEG files to a temporary folder and labels them with a VGG-3 of
random weights, as `predict.py` does. The three alternate in one process, so a machine that drifts slows all;
start-up is left out. Prints medians in images per second, and what is left of the bare network's rate.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cifarlab import hardware, images, prediction
from cifarlab.models.plain import VGG


def rate(count: int, work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def main() -> None:
    own = {"files": 10_000, "rounds": 3}
    own |= {key: int(value) for key, value in (text.split("=") for text in sys.argv[1:])}
    count = own["files"]
    hardware.keep_memory()  # as predict.py does
    model = VGG(blocks=3, num_classes=10).eval().to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def classify(pixels: Tensor) -> Tensor:
        return model(pixels).softmax(1)

    batch = torch.randint(256, (prediction.BATCH, 3, 32, 32), dtype=torch.uint8)
    print(f"{hardware.cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'':6}{'labelled':>10}{'read':>10}{'network':>10}{'share':>8}   images/s")
    for suffix in ("png", "jpg"):
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder, f"{number}.{suffix}") for number in range(count)]
            for path in paths:  # coarse noise enlarged: about the size of a photograph's file
                coarse = torch.randint(256, (8, 8, 3), dtype=torch.uint8)
                Image.fromarray(coarse.numpy()).resize((32, 32), Image.Resampling.BICUBIC).save(path)
            works: list[Callable[[], Any]] = [
                lambda paths=paths: list(prediction.label(iter(paths), classify, ["x"] * 10, 3, "stretch")),
                lambda paths=paths: [images.read(path) for path in paths],
                lambda: [classify(batch) for _ in range(count // len(batch))],
            ]
            rounds = [[rate(count, work) for work in works] for _ in range(own["rounds"])]
        labelled, read, bare = map(median, zip(*rounds, strict=True))
        share = median(one[0] / one[2] for one in rounds)
        print(f"{suffix:6}{labelled:10,.0f}{read:10,.0f}{bare:10,.0f}{share:8.2f}")


if __name__ == "__main__":
    main()
