"""3 x 3 convolutions in a quarter of the multiplications, for float32 on a CPU: Winograd's F(4 x 4, 3 x 3).

An image is cut into tiles, each tile is mapped to 36 numbers a channel, and there a convolution is 36 matrix
products, which BLAS does as fast as the machine can multiply (Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks", 2016). All maps are linear, so the gradients go through their adjoints and are
as cheap. Rounding moves results by some 1e-6 of their size, up to some ten times what a plain one's does.

What cuts and puts is in winograd.c, which gcc compiles for this processor when a run starts, in half a
second: nothing is kept that another machine might find.
"""

from __future__ import annotations

import ctypes
import logging
import math
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
CHANNELS = 24  # of fewer, cutting and putting take longer than the multiplications saved
TILES = 32  # in a batch; so do the filters, transformed at each step, for fewer
WASTE = 2.0  # of what is computed to what is wanted, where tiles stand out
# of a filter's row or column to its six numbers, and of the nine of a filter to the 36
ROW = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
FILTER = torch.kron(ROW, ROW)
SUM = 7  # which of a tile's numbers is the sum of its gradients


class Conv2d(nn.Conv2d):
    """A convolution that in training goes Winograd's way where that is faster, once `use` has seen it.

    Scores are always computed the plain way: they are the same wherever a run is scored again. Winograd's has
    no second derivative, and none of `torch.func`.
    """

    winograd = False

    def forward(self, x: Tensor) -> Tensor:
        if not (self.winograd and self.training and faster(x, self) and library()):
            return super().forward(x)
        result: Tensor = Convolution.apply(x, self.weight, self.bias)
        return result


def use(net: nn.Module, on: bool) -> None:
    """Let those of the network's convolutions that it suits go Winograd's way, or all the plain one again."""
    for layer in net.modules():
        if isinstance(layer, Conv2d):
            layer.winograd = on and suits(layer)


def suits(layer: nn.Conv2d) -> bool:
    """Whether Winograd's way is open for that convolution, and not too narrow to be worth it."""
    return (
        layer.kernel_size == (3, 3)
        and layer.stride == layer.dilation == (1, 1)
        and layer.padding in ((1, 1), "same")
        and layer.padding_mode == "zeros"
        and layer.groups == 1
        and layer.in_channels % LANES == layer.out_channels % LANES == 0
        and min(layer.in_channels, layer.out_channels) >= CHANNELS
    )


def faster(x: Tensor, layer: nn.Conv2d) -> bool:
    """Whether it is open for these images (N, C, H, W), and shorter."""
    if x.dim() != 4 or x.shape[1] != layer.in_channels or torch.compiler.is_compiling():
        return False
    tiles, pixels = tiles_of(*x.shape[2:]), x.shape[2] * x.shape[3]
    return (
        len(x) * tiles >= TILES
        and tiles * SIZE**2 <= WASTE * pixels
        and x.device.type == layer.weight.device.type == "cpu"
        and x.dtype == layer.weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


def tiles_of(height: int, width: int) -> int:
    """How many tiles an image has."""
    return -(-height // SIZE) * -(-width // SIZE)


@cache
def library() -> ctypes.CDLL | None:
    """winograd.c, compiled and loaded, or None where that cannot be."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            return ctypes.CDLL(build(Path(folder)))
    except subprocess.CalledProcessError as error:
        why = (error.stderr.decode(errors="replace").strip().splitlines() or [str(error)])[-1]
    except (OSError, subprocess.SubprocessError) as error:
        why = str(error)
    log.info(f"Torch's own convolutions: winograd.c cannot be compiled here ({why}).")
    return None


def build(folder: Path) -> str:
    """The library that gcc makes of winograd.c there.

    Raises:
        OSError, subprocess.SubprocessError: there is no gcc, or what it says.
    """
    module, library = f"{folder}/winograd.o", f"{folder}/winograd.so"
    for step in (
        ["-O3", "-funroll-loops", "-march=native", "-fopenmp", "-fPIC", "-c", str(SOURCE), "-o", module],
        ["-shared", module, "-o", library],  # without -fopenmp: its threads are to be torch's
    ):
        command = ["gcc", *step]
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=60)
    return library


class Convolution(torch.autograd.Function):
    """Images (N, C, H, W), weight (K, C, 3, 3) and bias (K,) or None to (N, K, H, W): float32, in channels
    last, padded with a zero on each side."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        bias = None if bias is None else bias.contiguous()
        filters = transformed(weight)
        result = empty_images(x, len(weight))
        for part, data, products in parts(x, filters):
            cut("cut_data", x[part], data)
            put("put_result", torch.bmm(data, filters, out=products), result[part], bias)
        ctx.save_for_backward(x, filters)
        ctx.has_bias = bias is not None
        return result

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, filters = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x = empty_images(x, x.shape[1]) if ctx.needs_input_grad[0] else None
        of_filters = torch.zeros_like(filters) if ctx.needs_input_grad[1] else None
        of_bias = gradient.new_zeros(gradient.shape[1]) if ctx.has_bias else None
        for part, data, products in parts(x, filters):
            cut("cut_result_gradient", gradient[part], products)
            if of_bias is not None:
                of_bias += products[SUM].sum(0)
            if of_filters is not None:
                cut("cut_data", x[part], data)
                of_filters.baddbmm_(data.transpose(1, 2), products)
            if of_x is not None:
                torch.bmm(products, filters.transpose(1, 2), out=data)
                put("put_data_gradient", data, of_x[part])
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
    shape, last = (count, channels, height, width), torch.channels_last
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=last)


def parts(x: Tensor, filters: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Which images to take at a time, with room for their tiles: (36, tiles and a gap, C) of the data,
    (36, tiles and a gap, K) of the products."""
    each, widths = tiles_of(*x.shape[-2:]), filters.shape[1:]
    at_once = min(len(x), max(1, CHUNK // (POINTS * each * max(widths))))
    rooms = [x.new_empty(POINTS * (at_once * each + GAP) * width) for width in widths]  # once: others fray
    for start in range(0, len(x), at_once):
        rows = min(at_once, len(x) - start) * each + GAP
        shapes = [(POINTS, rows, width) for width in widths]
        data, products = (r[: math.prod(s)].view(s) for r, s in zip(rooms, shapes, strict=True))
        yield slice(start, start + at_once), data, products


def cut(function: str, images: Tensor, tiles: Tensor) -> None:
    """Tiles of images (N, C, H, W), mapped as that function does; zeros in the gap."""
    tiles[:, -GAP:] = 0
    call(function, images, tiles, [images, tiles])


def put(function: str, tiles: Tensor, images: Tensor, *bias: Tensor | None) -> None:
    """The way back from tiles, into these images."""
    call(function, images, tiles, [tiles, images, *bias])


def call(function: str, images: Tensor, tiles: Tensor, arguments: list[Tensor | None]) -> None:
    """One of winograd.c's functions."""
    count, channels, height, width = images.shape
    pointers = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in arguments]
    sizes = [ctypes.c_int(size) for size in (count, height, width, channels)]
    getattr(library(), function)(*pointers, *sizes, ctypes.c_long(tiles.stride(0)))
