"""3 x 3 convolutions in a quarter of the multiplications, for float32 on a CPU: Winograd's F(4 x 4, 3 x 3).

An image is cut into tiles, each tile is mapped to 36 numbers a channel, and there a convolution is 36 matrix
products, which BLAS does as fast as the machine can multiply (Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks", 2016). All maps are linear, so the gradients go through their adjoints and are
as cheap. Rounding moves results by some 1e-6 of their size, ten times what it does in a plain convolution.

What cuts and puts is in winograd.c, which gcc compiles for this processor when a run starts, in half a
second: nothing is kept that another machine might find.
"""

from __future__ import annotations

import ctypes
import logging
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".c")
SIZE, POINTS = 4, 36  # pixels of a tile's result along a side; numbers that a tile is mapped to
LANES = 8  # channels that winograd.c takes at once
CHUNK = 3 * 2**19  # numbers of one kind of tiles at a time: what stays in the last cache, in few parts
GAP = 3  # tiles' rows left between the 36: at powers of two apart they would displace each other in it
WASTE = 2.6  # of what is computed to what is wanted, where tiles stand out; above, a plain convolution wins
# of a filter's row or column to its six numbers, and of the nine of a filter to the 36
ROW = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
FILTER = torch.kron(ROW, ROW)
SUM = 7  # which of a tile's numbers is the sum of its gradients


class Conv2d(nn.Conv2d):
    """A convolution that in training goes Winograd's way where that is faster, once `use` has seen it.

    Scores are always computed the plain way: they are the same wherever a run is scored again.
    """

    winograd = False

    def forward(self, x: Tensor) -> Tensor:
        if not (self.winograd and self.training and suits(self, x)):
            return super().forward(x)
        result: Tensor = Convolution.apply(x, self.weight, self.bias)
        return result


def use(net: nn.Module, on: bool) -> None:
    """Let the network's convolutions go Winograd's way, or the plain one again."""
    for layer in net.modules():
        if isinstance(layer, Conv2d):
            layer.winograd = on


def suits(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether Winograd's way is open for these images (N, C, H, W), and the faster one."""
    height, width = x.shape[-2:]
    covered = tiles_of(height, width) * SIZE**2
    return (
        layer.kernel_size == (3, 3)
        and layer.stride == layer.dilation == (1, 1)
        and layer.padding in ((1, 1), "same")
        and layer.padding_mode == "zeros"
        and layer.groups == 1
        and layer.in_channels % LANES == layer.out_channels % LANES == 0
        and x.device.type == "cpu"
        and x.dtype == layer.weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and covered <= WASTE * height * width
    )


def tiles_of(height: int, width: int) -> int:
    """How many tiles an image has."""
    return -(-height // SIZE) * -(-width // SIZE)


@cache
def kernels() -> ctypes.CDLL | None:
    """winograd.c, compiled and loaded, or None where that cannot be."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            return ctypes.CDLL(build(Path(folder)))
    except subprocess.CalledProcessError as error:
        why = (error.stderr.decode(errors="replace").strip().splitlines() or [str(error)])[-1]
    except OSError as error:
        why = str(error)
    log.info(f"Torch's own convolutions: winograd.c cannot be compiled here ({why}).")
    return None


def build(folder: Path) -> str:
    """The library that gcc makes of winograd.c there.

    Raises:
        OSError, subprocess.CalledProcessError: there is no gcc, or what it says.
    """
    module, library = f"{folder}/winograd.o", f"{folder}/winograd.so"
    for step in (
        ["-O3", "-funroll-loops", "-march=native", "-fopenmp", "-fPIC", "-c", str(SOURCE), "-o", module],
        ["-shared", module, "-o", library],  # without -fopenmp: its threads are to be torch's
    ):
        subprocess.run(["gcc", *step], check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return library


class Convolution(torch.autograd.Function):
    """Images (N, C, H, W), weight (K, C, 3, 3) and bias (K,) or None to (N, K, H, W): float32, in channels
    last, padded with a zero on each side."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        filters = transformed(weight)
        result = empty_images(x, len(weight))
        for part in parts(x, filters):
            put("put_result", torch.bmm(cut("cut_data", x[part]), filters), result[part], bias)
        ctx.save_for_backward(x, filters)
        ctx.has_bias = bias is not None
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, filters = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x = empty_images(x, x.shape[1]) if ctx.needs_input_grad[0] else None
        of_filters = torch.zeros_like(filters) if ctx.needs_input_grad[1] else None
        of_bias = gradient.new_zeros(gradient.shape[1]) if ctx.has_bias else None
        for part in parts(x, filters):
            products = cut("cut_result_gradient", gradient[part])
            if of_bias is not None:
                of_bias += products[SUM].sum(0)
            if of_filters is not None:
                of_filters.baddbmm_(cut("cut_data", x[part]).transpose(1, 2), products)
            if of_x is not None:
                put("put_data_gradient", torch.bmm(products, filters.transpose(1, 2)), of_x[part])
        return of_x, None if of_filters is None else gradient_of_weight(of_filters), of_bias


def transformed(weight: Tensor) -> Tensor:
    """Filters (K, C, 3, 3) as the matrices (36, C, K) of the 36 products."""
    width, channels = weight.shape[:2]
    return (FILTER @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(POINTS, channels, width)


def gradient_of_weight(gradient: Tensor) -> Tensor:
    """The adjoint of `transformed`."""
    return (FILTER.T @ gradient.flatten(1)).view(3, 3, *gradient.shape[1:]).permute(3, 2, 0, 1)


def empty_images(like: Tensor, channels: int) -> Tensor:
    count, _, height, width = like.shape
    return torch.empty(count, channels, height, width, memory_format=torch.channels_last)


def parts(x: Tensor, filters: Tensor) -> Iterator[slice]:
    """Which images to take at a time."""
    count = max(1, CHUNK // (POINTS * tiles_of(*x.shape[-2:]) * max(filters.shape[1:])))
    for start in range(0, len(x), count):
        yield slice(start, start + count)


def cut(function: str, images: Tensor) -> Tensor:
    """Tiles (36, tiles and a gap of zeros, C) of images (N, C, H, W), mapped as that function does."""
    count, channels, height, width = images.shape
    tiles = torch.empty(POINTS, count * tiles_of(height, width) + GAP, channels)
    tiles[:, -GAP:] = 0
    call(function, images, tiles, [images, tiles])
    return tiles


def put(function: str, tiles: Tensor, images: Tensor, *bias: Tensor | None) -> None:
    """The way back from what `cut` returns, into these images."""
    call(function, images, tiles, [tiles, images, *bias])


def call(function: str, images: Tensor, tiles: Tensor, arguments: list[Tensor | None]) -> None:
    """One of winograd.c's functions."""
    count, channels, height, width = images.shape
    pointers = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in arguments]
    sizes = [ctypes.c_int(size) for size in (count, height, width, channels)]
    getattr(kernels(), function)(*pointers, *sizes, ctypes.c_long(tiles.stride(0)))
