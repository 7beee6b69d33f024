"""Winograd's convolutions against torch's in float64, and where they are used."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifarlab import hardware
from cifarlab.models import winograd
from cifarlab.models.winograd import Conv2d, Convolution, kernels, suits, use


@pytest.fixture(autouse=True, scope="module")
def compiled() -> None:
    if shutil.which("gcc") is None:
        pytest.skip("winograd.c needs a C compiler")
    assert kernels() is not None


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
    layer, x = Conv2d(16, 16, 3, padding=1), torch.randn(2, 16, 16, 16)
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
        ({}, 5, True),
        ({}, 2, False),  # three quarters of a tile would be for nothing
        ({"in_channels": 3}, 32, False),
        ({"out_channels": 20}, 32, False),
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
    layer = Conv2d(**{"in_channels": 16, "out_channels": 8, "kernel_size": 3, "padding": 1} | options)
    x = torch.randn(1, layer.in_channels, size, size, dtype=layer.weight.dtype)
    assert suits(layer, x) is suited
    use(layer, True)
    assert layer(x).shape[1] == layer.out_channels
    with torch.autocast("cpu", torch.bfloat16):
        assert not suits(layer, x)


def test_its_threads_are_torchs() -> None:
    """A second library of threads would fight the first for the cores."""

    def loaded() -> set[str]:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return {line.split()[-1] for line in lines if "gomp" in line or "iomp" in line}

    before = loaded()
    kernels.cache_clear()
    assert kernels() is not None
    assert loaded() == before


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
    kernels.cache_clear()
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert hardware.convolution({}, trainer("cpu", "32-true")) == "direct"
    assert caplog.text.count("cannot be compiled here") == 1
    assert why in caplog.text
    kernels.cache_clear()


def trainer(device: str, precision: str) -> Any:
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)), precision=precision)


@pytest.mark.parametrize(
    "options, device, precision, way",
    [
        ({}, "cpu", "32-true", "winograd"),
        ({"convolution": "auto"}, "cpu", "32-true", "winograd"),
        ({"convolution": "direct"}, "cpu", "32-true", "direct"),
        ({"capture": "compile"}, "cpu", "32-true", "direct"),
        ({}, "cpu", "bf16-mixed", "direct"),
        ({}, "cuda", "32-true", "direct"),
    ],
)
def test_which_way_a_run_takes(options: dict[str, str], device: str, precision: str, way: str) -> None:
    assert hardware.convolution(options, trainer(device, precision)) == way
