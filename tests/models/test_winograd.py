"""Winograd's convolutions against torch's in float64, and where they are used."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from cifarlab import hardware
from cifarlab.models import winograd
from cifarlab.models.winograd import Conv2d, Convolution, faster, library, suits, use


@pytest.fixture(autouse=True)
def compiled() -> Iterator[None]:
    if shutil.which("gcc") is None:
        pytest.skip("winograd.c needs a C compiler")
    assert library() is not None
    yield
    if library() is None:  # a test has hidden the compiler
        library.cache_clear()


def images(count: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    numbers = torch.randn(
        count, channels, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return numbers.to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "count, before, behind, height, width, bias, at_once",
    [
        (3, 8, 8, 4, 4, True, 3),
        (3, 24, 16, 31, 31, False, 2),  # tiles stand out, and the last part has fewer images
        (2, 16, 40, 7, 5, True, 1),
        (5, 8, 16, 32, 12, True, 5),
        (1, 16, 8, 1, 9, True, 1),
    ],
)
def test_results_and_gradients(
    count: int, before: int, behind: int, height: int, width: int, bias: bool, at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    each = -(-height // 4) * -(-width // 4)
    monkeypatch.setattr(winograd, "CHUNK", 36 * each * max(before, behind) * at_once)
    torch.manual_seed(1)
    layer = nn.Conv2d(before, behind, 3, padding=1, bias=bias, dtype=torch.float64)
    exact = [images(count, before, height, width).requires_grad_(), *layer.parameters()]
    rounded = [tensor.detach().float().requires_grad_() for tensor in exact]
    result = layer(exact[0])
    ours = Convolution.apply(*rounded, *[None] * (not bias))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    gradient = images(*result.shape, seed=2)
    wanted = [result, *torch.autograd.grad(result, exact, gradient)]
    found = [ours, *torch.autograd.grad(ours, rounded, gradient.float())]
    for name, one, other in zip(("result", "images", "weight", "bias"), found, wanted, strict=False):
        assert one.shape == other.shape, name
        assert (one.double() - other).norm() < 1e-5 * other.norm(), name


def test_images_in_any_memory_format() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 8, 8, 8), torch.randn(8, 8, 3, 3)
    last = Convolution.apply(x.to(memory_format=torch.channels_last), weight, None)
    assert torch.equal(Convolution.apply(x, weight, None), last)


@pytest.mark.parametrize("learns", [(True, False), (False, True)])
def test_what_does_not_learn_has_no_gradient(learns: tuple[bool, bool]) -> None:
    x, weight = torch.randn(2, 8, 8, 8), torch.randn(8, 8, 3, 3)
    tensors = [tensor.requires_grad_(yes) for tensor, yes in zip((x, weight), learns, strict=True)]
    Convolution.apply(*tensors, None).sum().backward()
    assert [tensor.grad is not None for tensor in tensors] == list(learns)


def test_scores_are_computed_the_plain_way() -> None:
    torch.manual_seed(0)
    layer, x = Conv2d(24, 32, 3, padding=1), torch.randn(2, 24, 16, 16)
    plain = layer(x)
    use(layer, True)
    assert not torch.equal(layer(x), plain)
    torch.testing.assert_close(layer(x), plain, rtol=1e-4, atol=1e-5)
    assert torch.equal(layer.eval()(x), plain)
    use(layer.train(), False)
    assert torch.equal(layer(x), plain)


@pytest.mark.parametrize(
    "options, size, suited",
    [
        ({}, 32, True),
        ({"padding": "same"}, 32, True),
        ({}, 6, True),
        ({}, 5, False),  # more than half of the tiles would be for nothing
        ({"in_channels": 3}, 32, False),
        ({"in_channels": 16}, 32, False),
        ({"out_channels": 44}, 32, False),
        ({"kernel_size": 5, "padding": 2}, 32, False),
        ({"padding": 0}, 32, False),
        ({"padding": "valid"}, 32, False),
        ({"stride": 2}, 32, False),
        ({"dilation": 2, "padding": 2}, 32, False),
        ({"groups": 2}, 32, False),
        ({"padding_mode": "circular"}, 32, False),
        ({"dtype": torch.float64}, 32, False),
    ],
)
def test_where_it_is_the_way(options: dict[str, Any], size: int, suited: bool) -> None:
    layer = Conv2d(**{"in_channels": 32, "out_channels": 24, "kernel_size": 3, "padding": 1} | options)
    x = torch.randn(8, layer.in_channels, size, size, dtype=layer.weight.dtype)
    assert (suits(layer) and faster(x, layer)) is suited
    use(layer, True)
    assert layer(x).shape[1] == layer.out_channels
    with torch.autocast("cpu", torch.bfloat16):
        assert not faster(x, layer)


def test_what_else_a_convolution_takes() -> None:
    layer, x = Conv2d(24, 24, 3, padding=1), torch.randn(4, 24, 16, 16)
    use(layer, True)
    assert faster(x, layer)
    assert not faster(x[:, :, :8, :8][:1], layer)  # four tiles
    assert layer(x[0]).shape == (24, 16, 16)
    with pytest.raises(RuntimeError, match="expected input"):
        layer(torch.randn(4, 32, 16, 16))


def test_parameters_and_gradients_of_any_strides() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 8, 8, 8), torch.randn(8, 8, 3, 3).flip(3).transpose(0, 1)
    for bias in (torch.randn(16)[::2], torch.randn(1).expand(8)):
        plain = nn.functional.conv2d(x, weight, bias, padding=1)
        torch.testing.assert_close(Convolution.apply(x, weight, bias), plain, rtol=1e-4, atol=1e-4)
    slopes = []
    for convolve in (lambda x: Convolution.apply(x, weight, None), partial(conv2d, weight=weight, padding=1)):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            with torch.autocast("cpu", enabled=False):
                result = convolve(leaf)
            result.sum().backward()  # of strides 0
        slopes.append(leaf.grad)
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-4)


def test_its_threads_are_torchs(tmp_path: Path) -> None:
    """A second library of threads would fight the first for the cores."""
    built = Path(winograd.build(tmp_path)).read_bytes()
    assert b"GOMP_parallel" in built
    assert b"libgomp" not in built


@pytest.mark.parametrize(
    "gcc, why",
    [
        (None, "No such file"),
        ("echo one; echo the last of many >&2; exit 1", "(the last of many)"),
        ("exit 1", "status 1"),
        ("exit 0", "cannot open shared object"),
    ],
)
def test_without_a_compiler_it_is_the_plain_way(
    gcc: str | None,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if gcc is not None:
        (tmp_path / "gcc").write_text(f"#!/bin/sh\n{gcc}\n")
        (tmp_path / "gcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    library.cache_clear()
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert hardware.convolution({}, WIDE, trainer("cpu", "32-true"), None) == "direct"
    assert caplog.text.count("cannot be compiled here") == 1
    assert why in caplog.text


WIDE, NARROW = Conv2d(24, 24, 3, padding=1), Conv2d(16, 16, 3, padding=1)


def trainer(device: str, precision: str) -> Any:
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)), precision=precision)


@pytest.mark.parametrize(
    "options, net, device, precision, began, way",
    [
        ({}, WIDE, "cpu", "32-true", None, "winograd"),
        ({"convolution": "auto"}, WIDE, "cpu", "32-true", "winograd", "winograd"),
        ({}, WIDE, "cpu", "32-true", "direct", "direct"),
        ({"convolution": "direct"}, WIDE, "cpu", "32-true", None, "direct"),
        ({"convolution": "direct"}, WIDE, "cpu", "32-true", "winograd", "direct"),
        ({"capture": "compile"}, WIDE, "cpu", "32-true", None, "direct"),
        ({}, NARROW, "cpu", "32-true", None, "direct"),
        ({}, WIDE, "cpu", "bf16-mixed", None, "direct"),
        ({}, WIDE, "cuda", "32-true", None, "direct"),
    ],
)
def test_which_way_a_run_takes(
    options: dict[str, str], net: nn.Module, device: str, precision: str, began: str | None, way: str
) -> None:
    assert hardware.convolution(options, net, trainer(device, precision), began) == way
