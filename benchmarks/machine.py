"""What the machine can do: the yardsticks that every timing here is held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from cifarlab import hardware
from cifarlab.models.plain import VGG

TRAINING_IMAGES = 50_000


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    """For what a GPU has been told to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], repeats: int = 5) -> float:
    """Of one call, the median of several behind a first one."""
    times = []
    for _ in range(repeats + 1):
        wait()
        started = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - started)
    return median(times[1:])


def dtype() -> torch.dtype:
    """What training multiplies in here."""
    return torch.bfloat16 if hardware.has_fast_bfloat16(device().type) else torch.float32


def matrix_rate(size: int = 2048) -> float:
    """GFLOP/s of a square matrix product in that type."""
    a = torch.randn(size, size, device=device(), dtype=dtype())
    return 2 * size**3 / seconds(lambda: a @ a) / 1e9


def copy_rate(megabytes: int = 256) -> float:
    """GB/s read and written by copying a tensor much larger than any cache."""
    a = torch.zeros(megabytes * 2**18, device=device())
    b = torch.empty_like(a)
    return 2 * a.nbytes / seconds(lambda: b.copy_(a)) / 1e9


class BareSteps:
    """A training loop with nothing around it: one fixed batch, forward, loss, backward, optimizer.

    `bf16` says whether it multiplies in bfloat16; None for what training does here.
    """

    def __init__(
        self,
        net: nn.Module,
        batch_size: int,
        optimizer: torch.optim.Optimizer,
        classes: int,
        bf16: bool | None = None,
    ) -> None:
        self.net, self.optimizer = net.train(), optimizer
        self.bf16 = dtype() == torch.bfloat16 if bf16 is None else bf16
        where = next(net.parameters()).device
        self.images = torch.rand(batch_size, 3, 32, 32, device=where).to(memory_format=torch.channels_last)
        self.labels = torch.randint(classes, (batch_size,), device=where)

    def step(self) -> None:
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.bf16):
            loss = cross_entropy(self.net(self.images).float(), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def rate(self, steps: int) -> float:
        """Images per second over so many steps."""
        wait()
        started = time.perf_counter()
        for _ in range(steps):
            self.step()
        wait()
        return steps * len(self.images) / (time.perf_counter() - started)

    def flops(self) -> int:
        """Of one step."""
        with FlopCounterMode(display=False) as counter:
            self.step()
        return counter.get_total_flops()


def bare_vgg3(batch_size: int = 64) -> BareSteps:
    """VGG-3 as the posts train it: the loop that E is an epoch of."""
    net = VGG(num_classes=10).net.to(device(), memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    return BareSteps(net, batch_size, optimizer, 10)


def describe(steps: int = 15, rounds: int = 5) -> dict[str, Any]:
    """The machine, its rates, and E: the seconds of an epoch of 50,000 images of the bare VGG-3 loop."""
    hardware.keep_memory()
    bare = bare_vgg3()
    bare.rate(3)
    images_per_second = median(bare.rate(steps) for _ in range(rounds))
    return {
        "device": hardware.describe(device()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(dtype()).removeprefix("torch."),
        "matrix_gflops": matrix_rate(),
        "copy_gb_per_second": copy_rate(),
        "bare_vgg3_images_per_second": images_per_second,
        "bare_vgg3_gflops": bare.flops() * images_per_second / 64 / 1e9,
        "e_seconds": TRAINING_IMAGES / images_per_second,
    }
