"""What makes this machine fast: precision, and an allocator that keeps its memory."""

from __future__ import annotations

import ctypes
import logging
import platform
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from cifarlab.errors import UserError
from cifarlab.models import winograd

if TYPE_CHECKING:
    import pytorch_lightning as pl

log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def keep_memory() -> None:
    """Let glibc keep freed memory, which it else hands back to the kernel and asks for again at each step.

    Does nothing where there is no glibc.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, 2**30)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def return_memory() -> None:
    """Hand freed memory back to the kernel after all: kept from pass to pass, training's and evaluation's
    batches of two sizes fray it, and it grows by megabytes an epoch.

    Does nothing where there is no glibc.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def has_fast_bfloat16(device: str) -> bool:
    """Whether `cuda` or `cpu` multiplies bfloat16 in hardware; elsewhere it is emulated, and very slow."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return device == "cpu" and bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def choose_precision(accelerator: str) -> str:
    """For `trainer.precision=auto`: bfloat16 with float32 weights where the hardware has it, else float32."""
    device = "cuda" if accelerator == "gpu" and torch.cuda.is_available() else "cpu"
    return "bf16-mixed" if has_fast_bfloat16(device) else "32-true"


def possible(precision: str, device: str) -> str:
    """That precision where `cuda` or `cpu` has it in hardware, else float32."""
    fast = {"bf16-mixed": has_fast_bfloat16(device), "16-mixed": device == "cuda"}
    return precision if fast.get(precision, False) else "32-true"


def capture(net: nn.Module, how: str, trainer: pl.Trainer) -> Callable[[Tensor], Tensor] | None:
    """`trainer.capture`: the network compiled, or None to run it layer by layer.

    On one GPU the kernels of a pass, forward and backward, are recorded once for each shape of a batch (CUDA
    graphs) and then launched together: those of small networks take less time than launching each from
    Python. Several processes, and accumulated gradients, which live on from one replay to the next, are
    compiled without; `auto` leaves them as they are. What torch cannot compile runs as it is, after a warning
    of torch's.
    """
    one_gpu = trainer.strategy.root_device.type == "cuda" and trainer.world_size == 1
    replayable = one_gpu and trainer.accumulate_grad_batches == 1
    if how == "none" or (how == "auto" and not replayable):
        return None
    torch._dynamo.config.suppress_errors = True
    # no kernel is chosen by a timing, which no resumed run repeats
    torch._inductor.config.deterministic = True
    mode = "reduce-overhead" if replayable else "default"
    compiled: Callable[[Tensor], Tensor] = torch.compile(net.forward, mode=mode, dynamic=False)
    return compiled


def convolution(
    options: dict[str, Any], net: nn.Module, trainer: pl.Trainer, began: str | None
) -> Literal["winograd", "direct"]:
    """How a run with these keys of `trainer` computes the 3 x 3 convolutions of its steps.

    In float32 on a CPU, where the time goes into multiplications, Winograd's way has fewer; bfloat16 would
    lose its digits to it, and what `trainer.capture` compiles is torch's own. A run goes on as it `began`,
    which is None for a new one: the other way rounds in another way.

    Raises:
        UserError: it began with Winograd's, which cannot be had here.
    """
    plain = "direct" in (options.get("convolution"), began) or options.get("capture") == "compile"
    if plain or trainer.strategy.root_device.type != "cpu" or trainer.precision != "32-true":
        return "direct"
    if not any(isinstance(layer, winograd.Conv2d) and winograd.suits(layer) for layer in net.modules()):
        return "direct"
    if winograd.library() is None and began == "winograd":
        raise UserError(
            "this run began with convolutions that need gcc, which does not work here: mend that, or let it "
            "go on with other roundings by trainer.convolution=direct."
        )
    return "direct" if winograd.library() is None else "winograd"


def describe(device: torch.device) -> str:
    """The device's name for a record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({cpu_name()})"


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def settle(trainer: dict[str, Any]) -> dict[str, Any]:
    """A copy of `trainer`'s keys with `accelerator=auto` and `precision=auto` decided."""
    trainer = dict(trainer)
    if trainer["accelerator"] == "auto":  # Lightning's auto also takes Apple's GPU, which has no float64
        trainer["accelerator"] = "gpu" if torch.cuda.is_available() else "cpu"
    if trainer["accelerator"] == "gpu":
        torch.set_float32_matmul_precision("high")  # TF32 where it has that
    if trainer.get("precision") == "auto":
        precision = choose_precision(trainer["accelerator"])
        why = "bfloat16 is in hardware here" if precision == "bf16-mixed" else "no bfloat16 in hardware here"
        log.info(f"Precision {precision}: {why}.")
        trainer["precision"] = precision
    return trainer
