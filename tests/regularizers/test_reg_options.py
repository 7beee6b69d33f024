"""The YAMLs of `conf/reg`: they compose, and say what the constructors say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf"
OPTIONS = {
    "dropout", "dropout_increasing", "batch_norm", "weight_decay", "l1", "elastic_net", "flip", "shift",
    "rotate", "zoom", "crop", "cutout", "mixup", "cutmix", "label_smoothing", "early_stopping",
    "weight_averaging", "alternating_flip", "progressive_resizing", "hard_examples",
}  # fmt: skip


@pytest.fixture(params=["none", "[none]"])
def reg(request, tmp_path: Path):
    """What `reg` holds after these overrides, under a root configuration with this default."""
    root = f"defaults:\n  - reg: {request.param}\n  - _self_\nhydra:\n  searchpath: ['file://{CONF}']\n"
    (tmp_path / "root.yaml").write_text(root)

    def read(*overrides: str) -> dict:
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            return OmegaConf.to_container(compose("root", overrides=list(overrides)).reg)

    return read


def test_the_options_are_those_promised() -> None:
    assert {path.stem for path in (CONF / "reg").glob("*.yaml")} == OPTIONS | {"none", "augment"}


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_an_option_is_one_key_that_repeats_its_classs_defaults(name: str) -> None:
    (key, option), *others = OmegaConf.load(CONF / "reg" / f"{name}.yaml").items()
    assert (key, others) == (name, [])
    built = instantiate(option)
    assert built == type(built)()
    assert set(option) - {"_target_"} == set(type(built).__dataclass_fields__)


def test_options_compose(reg) -> None:
    assert reg() == reg("reg=none") == {}
    assert list(reg("reg=[augment,dropout]")) == ["flip", "shift", "dropout"]
    assert list(reg("reg=augment")) == ["flip", "shift"]
    assert list(reg("reg=dropout_increasing")) == ["dropout_increasing"]
    assert set(reg(f"reg=[{','.join(sorted(OPTIONS))}]")) == OPTIONS


def test_a_key_is_overridden(reg) -> None:
    changed = reg("reg=[dropout,augment]", "reg.dropout.rate=0.3", "reg.shift.width=0.2")
    assert changed["dropout"]["rate"] == 0.3
    assert (changed["shift"]["height"], changed["shift"]["width"]) == (0.1, 0.2)
