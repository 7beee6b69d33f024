"""The YAMLs against the signatures that are their schema, and what `check` says of a wrong value."""

from __future__ import annotations

import copy
import subprocess
import sys
from contextlib import nullcontext
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import cifarlab.cli  # noqa: F401  (the resolvers that conf/train.yaml uses)
from cifarlab import config as configs
from cifarlab.config import WrongKey, check, signature

CONF = Path(__file__).parents[1] / "conf"
SHARED = OmegaConf.to_container(OmegaConf.load(CONF / "train.yaml"))
NO_SCHEMA = ("trainer", "experiment", "search")  # groups whose options have no `_target_`


def options(group: str) -> list[str]:
    folder = CONF / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


GROUPS = configs.groups(CONF)
# as few compositions as name every option of every group but the experiments, which choose for themselves
ROWS = {group: options(group) for group in GROUPS if group != "experiment"}
LONGEST = max(map(len, ROWS.values()))
MIXED = list(
    zip(*(cycle([f"{g}={o}" for o in names]) for g, names in ROWS.items()), range(LONGEST), strict=False)
)
CHOICES = [list(row[:-1]) for row in MIXED] + [[f"experiment={name}"] for name in options("experiment")]


def plain(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("train", list(overrides)), resolve=True)


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    return plain("reg=[dropout,augment]")


@pytest.fixture
def config(composed: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(composed)


@pytest.mark.parametrize("overrides", CHOICES, ids=",".join)
def test_every_yaml_composes_and_passes(overrides: list[str]) -> None:
    check(plain(*overrides))


@pytest.mark.parametrize("file", [f"{g}/{o}" for g in GROUPS if g not in NO_SCHEMA for o in options(g)])
def test_a_yaml_lists_the_keys_of_its_signature(file: str) -> None:
    group, _, _ = file.partition("/")
    node = OmegaConf.to_container(OmegaConf.load(CONF / f"{file}.yaml")) or {}
    node.pop("defaults", None)
    for part in node.values() if group == "reg" else [node] if node else []:
        keys = signature(part.pop("_target_"))
        assert keys is not None
        assert {*part, *(SHARED["data"] if group == "data" else [])} == {*keys}


def test_train_yaml_lists_the_arguments_of_the_trainer() -> None:
    assert {*SHARED["trainer"]} == {*configs.trainer_signature()}


def test_train_yaml_lists_the_root_keys() -> None:
    assert {*SHARED} == {*configs.ROOT, *configs.TARGETS, "trainer", "defaults", "hydra"} - {
        "model",
        "optimizer",
        "scheduler",
    }


CONVNET = {
    "_target_": "cifarlab.models.plain.ConvNet",
    "blocks": [[8]] * 3,
    "padding": ["valid"],
    "dense": [8],
}
SPEEDRUN = {"_target_": "cifarlab.models.speedrun.Speedrun", "widths": [8, 8]}
RESIZING = {
    "progressive_resizing": {
        "_target_": "cifarlab.regularizers.progressive_resizing.ProgressiveResizing",
        "sizes": [16, 24],
        "until": [0.3, 0.6],
    }
}
WRONG = {
    "seed=-1: expected a whole number from 0 to 4294967295.": {"seed": -1},
    "seed=true: expected a whole number from 0 to 4294967295.": {"seed": True},
    "seed=4294967296: expected a whole number from 0 to 4294967295.": {"seed": 2**32},
    "test=1: expected true or false.": {"test": 1},
    "test_weights=bst: expected one of last, best; did you mean best?": {"test_weights": "bst"},
    "optimizer.lr=fast: expected a number above 0.": {"optimizer.lr": "fast"},
    "optimizer.lr=-0.1: expected a number above 0.": {"optimizer.lr": -0.1},
    "optimizer.lr=nan: expected a number above 0.": {"optimizer.lr": float("nan")},
    "optimizer.lr=null: expected a number above 0.": {"optimizer.lr": None},
    "reg.dropout.rate=1.2: expected a rate of at least 0 and below 1.": {"reg.dropout.rate": 1.2},
    "reg.dropout.rate=1: expected a rate of at least 0 and below 1.": {"reg.dropout.rate": 1},
    "reg.dropout.rte: reg.dropout has no key 'rte'; did you mean 'rate'?": {"reg.dropout.rte": 0.1},
    "trainer.max_epochs=ten: expected a whole number of 1 or more, or -1.": {"trainer.max_epochs": "ten"},
    "trainer.max_epoch: trainer has no key 'max_epoch'; did you mean 'max_epochs'?": {"trainer.max_epoch": 3},
    "trainer.callbacks: trainer has no key 'callbacks'": {"trainer.callbacks": []},
    "model.blocks=2.5: expected 1 to 5 blocks": {"model.blocks": 2.5},
    "model.blocks=6: expected 1 to 5 blocks": {"model.blocks": 6},
    "model.activation=rlu: expected one of relu, leaky_relu,": {"model.activation": "rlu"},
    "data.batch_size=0: expected a whole number of 1 or more.": {"data.batch_size": 0},
    "data.drop_last=maybe: expected true or false.": {"data.drop_last": "maybe"},
    "data.scaling=standardise: expected one of unit, center, standardize, whiten, raw; did you mean "
    "standardize?": {"data.scaling": "standardise"},
    "data.validation=1.5: expected one of split, fold, test, none, or a fraction between 0 and 1, or a whole "
    "number of 1 or more.": {"data.validation": 1.5},
    "data.mirrors=[1]: expected a list, each entry text, or null.": {"data.mirrors": [1]},
    "data.fold=7: expected 0 to 4, because data.folds=5.": {"data.fold": 7},
    "data.folds=1: expected a whole number of 2 or more.": {"data.folds": 1},
    "model._target_=os.system: expected a name in cifarlab.models; ": {"model._target_": "os.system"},
    "model._target_=cifarlab.models_evil.f: expected a name in ": {
        "model._target_": "cifarlab.models_evil.f"
    },
    "model._target_=cifarlab.models.plain.VGGG: there is no such class": {
        "model._target_": "cifarlab.models.plain.VGGG"
    },
    "model._target_=cifarlab.models.classifier.Classifier: expected a class derived from Classifier": {
        "model._target_": "cifarlab.models.classifier.Classifier"
    },
    "data._target_=cifarlab.data.module.Batches: expected a class derived from ImageData": {
        "data._target_": "cifarlab.data.module.Batches"
    },
    "reg.dropout._target_=cifarlab.regularizers.base.Penalty: expected a class derived from Regularizer": {
        "reg.dropout._target_": "cifarlab.regularizers.base.Penalty"
    },
    "reg.dropout._target_=3: expected a name in cifarlab.regularizers": {"reg.dropout._target_": 3},
    "reg.cutout has no _target_: an option of conf/reg is chosen by reg=OPTION.": {"reg.cutout": {"size": 3}},
    "model=vgg3: expected keys with values, or model=OPTION.": {"model": "vgg3"},
    "trainer=[1]: expected keys with values": {"trainer": [1]},
    "reg=null: expected keys with values": {"reg": None},
    "modle: the configuration has no key 'modle'; did you mean 'model'?": {"modle": "vgg3"},
    "zzz: the configuration has no key 'zzz'; expected one of seed, test,": {"zzz": 1},
    "test_weights=best needs validation images: type data.validation=split instead of none.": {
        "data.validation": "none",
        "test_weights": "best",
    },
    "reg=early_stopping needs validation images": {
        "data.validation": "none",
        "reg.early_stopping": {"_target_": "cifarlab.regularizers.early_stopping.EarlyStopping"},
    },
    "scheduler=plateau needs validation images": {
        "data.validation": "none",
        "scheduler": {"_target_": "cifarlab.optim.schedules.plateau"},
    },
    "scheduler=plateau needs validation: let trainer.limit_val_batches be above 0.": {
        "trainer.limit_val_batches": 0,
        "scheduler": {"_target_": "cifarlab.optim.schedules.plateau"},
    },
    "test_weights=best needs validation, but trainer.max_epochs=3 ends before "
    "trainer.check_val_every_n_epoch=4.": {
        "trainer.check_val_every_n_epoch": 4,
        "trainer.max_epochs": 3,
        "test_weights": "best",
    },
    "optimizer.nesterov=true needs optimizer.momentum above 0, for example 0.9.": {
        "optimizer.momentum": 0.0,
        "optimizer.nesterov": True,
    },
    "optimizer.betas=[0.9]: expected two rates of at least 0 and below 1, such as [0.9,0.999]": {
        "optimizer": {"_target_": "cifarlab.optim.optimizers.adam"},
        "optimizer.betas": [0.9],
    },
    "scheduler=cosine needs to know the length of the run: set trainer.max_epochs to 1 or more": {
        "trainer.max_epochs": -1,
        "scheduler": {"_target_": "cifarlab.optim.schedules.cosine"},
    },
    "scheduler=one_cycle needs to know the length of the run: ": {
        "trainer.max_epochs": -1,
        "trainer.max_steps": 100,
        "scheduler": {"_target_": "cifarlab.optim.schedules.one_cycle", "interval": "epoch"},
    },
    "reg holds dropout and other, but a run has one set of dropout rates; choose one of them.": {
        "reg": {
            "dropout": {"_target_": "cifarlab.regularizers.dropout.Dropout"},
            "other": {"_target_": "cifarlab.regularizers.dropout.DropoutIncreasing"},
        }
    },
    "reg holds a and b, but a run has one normalization; ": {
        "reg": {name: {"_target_": "cifarlab.regularizers.batch_norm.BatchNorm"} for name in "ab"}
    },
    "reg.zoom.low=1.2 is above reg.zoom.high=1.1; write the smaller one as low.": {
        "reg.zoom": {"_target_": "cifarlab.regularizers.affine.Zoom", "high": 1.1},
        "reg.zoom.low": 1.2,
    },
    "reg.progressive_resizing.until=[0.5,0.4]: expected a share of the epochs for each of ": {
        "reg": RESIZING,
        "reg.progressive_resizing.until": [0.5, 0.4],
    },
    "reg.progressive_resizing.until=[0.5]: expected a share of the epochs for each of "
    "reg.progressive_resizing.sizes=[16,24], ": {
        "reg": RESIZING,
        "reg.progressive_resizing.until": [0.5],
    },
    "reg.progressive_resizing.sizes=[]: expected at least one size.": {
        "reg": RESIZING,
        "reg.progressive_resizing.sizes": [],
        "reg.progressive_resizing.until": [],
    },
    "reg.progressive_resizing.sizes=[16,32]: expected a list, each entry a whole number of pixels from 1 ": {
        "reg": RESIZING,
        "reg.progressive_resizing.sizes": [16, 32],
    },
    "reg=progressive_resizing counts in epochs of the run, not trainer.max_epochs=-1: ": {
        "reg": RESIZING,
        "trainer.max_epochs": -1,
        "trainer.max_steps": 9,
    },
    "reg=progressive_resizing counts in epochs of the run, not trainer.max_steps=9: ": {
        "reg": RESIZING,
        "trainer.max_steps": 9,
    },
    "reg=progressive_resizing counts in epochs of the run, not trainer.max_time=00:01:00:00: ": {
        "reg": RESIZING,
        "trainer.max_time": "00:01:00:00",
    },
    "data.scaling=whiten is a matrix for all pixels of 32 x 32, which reg=progressive_resizing makes ": {
        "reg": RESIZING,
        "data.scaling": "whiten",
    },
    "reg holds mixup and hard_examples: the loss of a mixed image does not say how hard either is; ": {
        "reg": {
            "mixup": {"_target_": "cifarlab.regularizers.mixing.Mixup"},
            "hard_examples": {"_target_": "cifarlab.regularizers.hard_examples.HardExamples"},
        }
    },
    "reg=hard_examples chooses by the losses that one process has seen; set trainer.num_nodes=1, not 2.": {
        "reg": {"hard_examples": {"_target_": "cifarlab.regularizers.hard_examples.HardExamples"}},
        "trainer.num_nodes": 2,
    },
    "reg=hard_examples chooses by the losses that one process has seen; set trainer.devices=1, not 2.": {
        "reg": {"hard_examples": {"_target_": "cifarlab.regularizers.hard_examples.HardExamples"}},
        "trainer.devices": 2,
    },
    "model.widths=[8,8,8,8,8]: expected 1 to 4 whole numbers, ": {"model": SPEEDRUN, "model.widths": [8] * 5},
    "model.widths=[]: expected 1 to 4 whole numbers, ": {"model": SPEEDRUN, "model.widths": []},
    # CONVNET is 32 -> 15 -> 6 -> 2 pixels wide
    "model.blocks=[[8],[8],[8],[8]] leaves no pixel of a 32 x 32 image; take fewer blocks.": {
        "model": CONVNET,
        "model.blocks": [[8]] * 4,
    },
    "model.blocks=[[8,8],[8]]: expected 1 to 1 convolutions in each block, one for each entry of "
    "model.padding=[valid].": {"model": CONVNET, "model.blocks": [[8, 8], [8]]},
    "model.blocks=[[8],[]]: expected 1 to 1 convolutions": {"model": CONVNET, "model.blocks": [[8], []]},
    "model.dropout=[0.1,0.2]: expected 4 rates, one after each of 3 pools and 1 dense layers.": {
        "reg": {},
        "model": CONVNET,
        "model.dropout": [0.1, 0.2],
    },
    "trainer.precision=64-true: expected one of auto, 32-true, bf16-mixed, 16-mixed": {
        "trainer.precision": "64-true"
    },
    "trainer.num_sanity_val_steps=2: expected 0, because ": {"trainer.num_sanity_val_steps": 2},
    "trainer.overfit_batches=1: expected 0.0, because ": {"trainer.overfit_batches": 1},
    "trainer.fast_dev_run=true: expected false, because ": {"trainer.fast_dev_run": True},
    "trainer.barebones=true: expected false, because ": {"trainer.barebones": True},
    "trainer.enable_checkpointing=false: expected true, because ": {"trainer.enable_checkpointing": False},
    "trainer.reload_dataloaders_every_n_epochs=1: expected 0, because ": {
        "trainer.reload_dataloaders_every_n_epochs": 1
    },
    "trainer.limit_train_batches=0: expected a number above 0, or null.": {"trainer.limit_train_batches": 0},
    "trainer.limit_test_batches=0: nothing would be tested; ": {"trainer.limit_test_batches": 0},
    "trainer.max_time=00:00:00:00: expected more than no time": {"trainer.max_time": "00:00:00:00"},
}


@pytest.mark.parametrize("sentence, changes", WRONG.items(), ids=[" ".join(c) for c in WRONG.values()])
def test_what_is_wrong_is_said(config: dict[str, Any], sentence: str, changes: dict[str, Any]) -> None:
    for key, value in copy.deepcopy(changes).items():
        *owners, name = key.split(".")
        node = config
        for owner in owners:
            node = node[owner]
        node[name] = value
    with pytest.raises(WrongKey) as caught:
        check(config)
    said = str(caught.value)
    assert said.startswith(sentence)
    assert said[-1] in ".?"
    assert "\n" not in said
    assert caught.value.keys[0] in changes


@pytest.mark.parametrize("name", [*configs.ROOT, *configs.TARGETS, "trainer"])
def test_a_key_that_is_missing_is_named(config: dict[str, Any], name: str) -> None:
    del config[name]
    with pytest.raises(WrongKey, match=f"^{name} is missing: give it by {name}=...$"):
        check(config)


def test_a_key_without_default_is_required(config: dict[str, Any]) -> None:
    config["model"] = {"_target_": "cifarlab.models.resnet.ResNet", "widths": [16]}
    with pytest.raises(WrongKey, match=r"^model\.blocks is missing, and has no default\.$"):
        check(config)


def test_values_at_the_edge_pass(config: dict[str, Any]) -> None:
    config["reg"]["dropout"]["rate"] = 0
    config["data"] |= {"validation": 0.2, "fold": 4}
    config["trainer"] |= {"max_epochs": -1, "gradient_clip_val": 0}
    config["model"]["blocks"] = 5
    config["logger"] = {}
    check(config)
    config["data"]["validation"] = 5000
    check(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": CONVNET},
        {"model": CONVNET | {"dropout": [0.1]}},  # reg=dropout gives the rates
        {"optimizer": {"_target_": "cifarlab.optim.optimizers.sgd", "momentum": 0.9, "nesterov": True}},
        {
            "scheduler": {"_target_": "cifarlab.optim.schedules.cosine", "interval": "step"},
            "trainer": {"max_epochs": -1, "max_steps": 100},
        },
        {"trainer": {"limit_val_batches": 0, "max_time": "00:01:00:00"}},
    ],
)
def test_what_goes_together_passes(config: dict[str, Any], changes: dict[str, Any]) -> None:
    check(config | changes)


@pytest.mark.parametrize(
    "trainer, several",
    [
        ({"devices": 1, "strategy": "auto"}, False),
        ({"devices": 2, "strategy": "auto"}, True),
        ({"devices": [0, 1], "strategy": "auto"}, True),
        ({"devices": [1], "strategy": "ddp"}, False),
        ({"devices": -1, "strategy": "ddp"}, True),
        ({"devices": "auto", "strategy": "auto"}, False),
        ({"devices": 2, "strategy": "ddp_spawn"}, False),
    ],
)
def test_a_sweep_takes_one_process(trainer: dict[str, Any], several: bool) -> None:
    with pytest.raises(WrongKey) if several else nullcontext():
        configs.check_sweep({"trainer": trainer})


def test_a_signature_is_the_keys_and_not_what_the_code_supplies() -> None:
    # `num_classes`, `regularization` and `seed` are the code's; `batch_size` is the base class's
    assert [*signature("cifarlab.models.plain.VGG")] == ["blocks", "width", "dense", "activation"]
    digits = signature("cifarlab.data.sets.Digits")
    assert "batch_size" in digits
    assert "seed" not in digits
    assert {*signature("cifarlab.data.sets.CIFAR100")} - {*digits} == {"root", "mirrors", "labels"}
    assert [*signature("cifarlab.regularizers.affine.Shift")] == ["height", "width"]
    assert signature("cifarlab.models.resnet.ResNet")["widths"].required
    assert not signature("cifarlab.models.plain.VGG")["width"].required
    assert signature("cifarlab.models.nothing.There") is None
    assert signature("os.system") is None


def test_a_check_imports_nothing_heavy() -> None:
    code = (
        "import sys; from cifarlab.config import signature, trainer_signature;"
        "trainer_signature(), signature('cifarlab.data.sets.CIFAR10');"
        "print({'torch', 'numpy', 'pytorch_lightning', 'hydra'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
