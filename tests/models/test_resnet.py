"""Residual networks: sizes worked out by hand, shapes, shortcuts, places for dropout."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cifarlab.errors import UserError
from cifarlab.models.resnet import Block, PaddedIdentity, ResNet, conv
from cifarlab.regularizers import Regularization
from cifarlab.regularizers.dropout import DropoutIncreasing


def resnet18(num_classes: int = 10) -> ResNet:
    return ResNet([64, 128, 256, 512], [2, 2, 2, 2], num_classes=num_classes)


def resnet(n: int, **run: object) -> ResNet:
    return ResNet([16, 32, 64], [n, n, n], "identity", **{"num_classes": 10, **run})


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_resnet18_has_11_173_962_parameters() -> None:
    net = resnet18().net
    # 3x3 convolutions, then 1x1 projection, then scale and shift of each batch norm
    by_hand = {
        "stem": 9 * 3 * 64 + 2 * 64,  # 1,856
        "stage1": 4 * 9 * 64 * 64 + 4 * 2 * 64,  # 147,968
        "stage2": 9 * 64 * 128 + 3 * 9 * 128 * 128 + 64 * 128 + 5 * 2 * 128,  # 525,568
        "stage3": 9 * 128 * 256 + 3 * 9 * 256 * 256 + 128 * 256 + 5 * 2 * 256,  # 2,099,712
        "stage4": 9 * 256 * 512 + 3 * 9 * 512 * 512 + 256 * 512 + 5 * 2 * 512,  # 8,393,728
        "mean": 0,
        "linear": 512 * 10 + 10,  # 5,130
    }
    assert {name: size(part) for name, part in net.named_children()} == by_hand
    assert size(net) == 11_173_962
    assert size(resnet18(100).net) == 11_173_962 + 90 * 513


@pytest.mark.parametrize("n, total", [(3, 269_722), (9, 853_018)])
def test_resnet_20_and_56_parameters(n: int, total: int) -> None:
    # stem 9*3*16 + 32 = 464, linear 64*10 + 10 = 650; a stage has 2n convolutions, of which the first widens:
    # 16: 2n (9*16*16 + 32);  32: 9*16*32 + (2n-1) 9*32*32 + 2n 64;  64: 9*32*64 + (2n-1) 9*64*64 + 2n 128
    # n = 3: 464 +  14,016 +  51,072 + 203,520 + 650 = 269,722
    # n = 9: 464 +  42,048 + 162,432 + 647,424 + 650 = 853,018
    net = resnet(n).net
    stages = [
        2 * n * (9 * 16 * 16 + 32),
        9 * 16 * 32 + (2 * n - 1) * 9 * 32 * 32 + 2 * n * 64,
        9 * 32 * 64 + (2 * n - 1) * 9 * 64 * 64 + 2 * n * 128,
    ]
    assert [size(part) for part in net] == [464, *stages, 0, 650]
    assert size(net) == total
    # the depth in the name counts the stem, 6n convolutions and the linear layer
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == 6 * n + 2


def shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    x = torch.zeros(2, 3, 32, 32)
    seen = {}
    for name, part in net.eval().named_children():
        x = part(x)
        seen[name] = tuple(x.shape[1:])
    return seen


def test_shapes_of_the_stages() -> None:
    assert shapes(resnet18().net) == {
        "stem": (64, 32, 32),
        "stage1": (64, 32, 32),
        "stage2": (128, 16, 16),
        "stage3": (256, 8, 8),
        "stage4": (512, 4, 4),
        "mean": (512,),
        "linear": (10,),
    }
    assert shapes(resnet(3, num_classes=100).net) == {
        "stem": (16, 32, 32),
        "stage1": (16, 32, 32),
        "stage2": (32, 16, 16),
        "stage3": (64, 8, 8),
        "mean": (64,),
        "linear": (100,),
    }


def test_padded_identity_takes_every_second_pixel_and_adds_zero_channels() -> None:
    x = torch.arange(1.0, 33).reshape(1, 2, 4, 4)
    y = PaddedIdentity(extra=2, stride=2)(x)
    assert y[0, :2].tolist() == [[[1, 3], [9, 11]], [[17, 19], [25, 27]]]
    assert y.shape == (1, 4, 2, 2)
    assert y[0, 2:].eq(0).all()


def silence(block: Block) -> None:
    """Let a block's branch put out zeros, which leaves the shortcut."""
    nn.init.zeros_(block.branch[-1].weight)


def test_shortcuts() -> None:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    same = Block(4, 4, 1, "projection", "relu")
    silence(same)
    assert torch.equal(same(x), x.relu())
    assert size(same) == 2 * (9 * 4 * 4 + 2 * 4)

    option_a = Block(4, 6, 2, "identity", "relu").eval()
    silence(option_a)
    expected = torch.zeros(2, 6, 4, 4)
    expected[:, :4] = x[:, :, ::2, ::2].relu()
    assert torch.equal(option_a(x), expected)

    option_b = Block(4, 6, 2, "projection", "relu").eval()
    silence(option_b)
    weight = option_b.shortcut[0].weight[:, :, 0, 0]
    # batch norm in evaluation, with running mean 0 and variance 1, divides by sqrt(1 + 1e-5)
    by_hand = torch.einsum("oc,nchw->nohw", weight, x[:, :, ::2, ::2]).relu() / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(option_b(x), by_hand)


def test_he_normal_by_outputs() -> None:
    torch.manual_seed(0)
    layer = conv(32, 64, 3)
    assert layer.bias is None
    # std sqrt(2 / (9 * 64)) = 0.0589 over 18,432 draws, whose own standard error is 0.0003
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / 576), abs=0.0015)
    assert abs(layer.weight.mean().item()) < 0.002


def test_dropout_after_each_stage() -> None:
    net = resnet(3, regularization=Regularization([DropoutIncreasing(0.1, 0.3)])).net
    rates = {name: part.p for name, part in net.named_children() if isinstance(part, nn.Dropout)}
    assert rates == pytest.approx({"dropout1": 0.1, "dropout2": 0.2, "dropout3": 0.3})
    order = ["stem", "stage1", "dropout1", "stage2", "dropout2", "stage3", "mean", "dropout3", "linear"]
    assert [name for name, _ in net.named_children()] == order


def test_penalised_kernels_are_all_but_the_last_layer() -> None:
    model = resnet(3)
    kernels: list[Tensor] = model.kernels()
    assert len(kernels) == 19
    assert all(kernel is not model.net.linear.weight for kernel in kernels)


def test_activation_is_used_everywhere() -> None:
    net = ResNet([8, 16], [1, 1], activation="silu", num_classes=10).net
    assert sum(isinstance(m, nn.SiLU) for m in net.modules()) == 1 + 2 * 2
    assert not any(isinstance(m, nn.ReLU) for m in net.modules())


def test_refuses_lists_that_do_not_match() -> None:
    with pytest.raises(UserError, match=r"model\.widths has 2 numbers and model\.blocks 1"):
        ResNet([16, 32], [2], num_classes=10)
    with pytest.raises(UserError, match=r"model\.widths=\[32, 16\] falls"):
        ResNet([32, 16], [1, 1], "identity", num_classes=10)
    assert size(ResNet([32, 16], [1, 1], "projection", num_classes=10).net.linear) == 170


def test_projections_of_few_channels_are_refused() -> None:
    with pytest.raises(UserError, match="expected 8 or more in front of a projection shortcut"):
        ResNet([4, 8], [1, 1], num_classes=2)
    ResNet([8, 4], [1, 1], num_classes=2)
    ResNet([4, 8], [1, 1], shortcut="identity", num_classes=2)
