"""The command line as a user meets it: what is typed, what comes on stderr, the exit code, what is left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from commands import Command

from cifarlab import cli
from cifarlab.errors import UserError
from cifarlab.runs import record as records
from cifarlab.runs import resume

ROOT = Path(__file__).parents[1]
# a command that, where train.py trains, prints what it was given, and fails as it is told by the seed
COMMAND = """
import json
import hydra
from cifarlab.cli import job, plain_errors
from cifarlab.errors import RunFailed

@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config):
    plain, folder, overrides, choices = job(config)
    if plain["seed"] == 13:
        raise RunFailed("The loss became NaN in epoch 3.")
    if plain["seed"] == 14:
        raise KeyError("a bug")
    print(json.dumps({"config": plain, "folder": str(folder), "overrides": overrides, "choices": choices}))

if __name__ == "__main__":
    with plain_errors(sweeps=True):
        main()
"""


@pytest.fixture
def project(workplace: Path) -> Path:
    """With a command of its own."""
    (workplace / "train.py").write_text(COMMAND)
    return workplace


@pytest.fixture
def run(command: Command, project: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the command where torch cannot be imported."""
    monkeypatch.setitem(sys.modules, "torch", None)
    return partial(command, project / "train.py")


@pytest.fixture
def refused(run: Command, project: Path) -> Callable[..., str]:
    """Runs what has to be refused; returns the one sentence."""

    def refused(*arguments: str) -> str:
        answer = run(*arguments)
        assert (answer.code, answer.out) == (2, ""), answer
        assert not (project / "logs").exists()
        assert not (project / "outputs").exists()
        (sentence,) = answer.err.splitlines()
        assert sentence[-1] in ".?"
        return sentence

    return refused


MODELS = (
    "conv1, conv4, convnet, lab3, resnet18, resnet18_transfer, resnet20, resnet56, "
    "speedrun, vgg1, vgg16_transfer, vgg2, vgg3, vgg4, vgg5"
)
READ = "cannot be read: expected key=value, such as model=vgg3 or trainer.max_epochs=10."
SENTENCES = {
    # options of groups
    "model=vg3": "model=vg3: model has no option 'vg3'; did you mean 'vgg3'?",
    "+model=vgg1": "+model=vgg1: a group's option is chosen without a plus: model=vgg1.",
    "++model=vgg1": "++model=vgg1: a group's option is chosen without a plus: model=vgg1.",
    "~model": "model is missing: give it by model=...",
    "~model=vgg1": "Could not delete 'model=vgg1'. No match in the defaults list.",
    "model=": "model=: model has no option ''; expected one of ",
    "model=null": "model=null: model has no option 'null'; expected one of ",
    "model=[vgg1,vgg2]": "model=[vgg1,vgg2]: expected one model, not a list of them.",
    "reg=dropot": "reg=dropot: reg has no option 'dropot'; did you mean 'dropout'?",
    "reg=[dropout,augmnt]": "reg=[dropout,augmnt]: reg has no option 'augmnt'; did you mean 'augment'?",
    "experiment=posts/a3": "experiment=posts/a3: experiment has no option 'posts/a3'; did you mean 'posts/",
    "hydra/launcher=basi": "hydra/launcher has no option 'basi'; did you mean 'basic'?",
    # keys
    "modle=vgg3": "modle: the configuration has no key 'modle'; did you mean 'model'?",
    "+modle=vgg3": "modle: the configuration has no key 'modle'; did you mean 'model'?",
    "~modle": "Could not delete from config. 'modle' does not exist.",
    "sed=1": "sed: the configuration has no key 'sed'; did you mean 'seed'?",
    "optimizer.lrr=1": "optimizer.lrr: optimizer has no key 'lrr'; did you mean 'lr'?",
    "+optimizer.lrr=1": "optimizer.lrr: optimizer has no key 'lrr'; did you mean 'lr'?",
    "++optimizer.lrr=1": "optimizer.lrr: optimizer has no key 'lrr'; did you mean 'lr'?",
    "~optimizer.lrr": "Could not delete from config. 'optimizer.lrr' does not exist.",
    "data.batchsize=3": "data.batchsize: data has no key 'batchsize'; did you mean 'batch_size'?",
    "reg=dropout reg.dropout.rte=0.1": "reg.dropout.rte: reg.dropout has no key 'rte'; did you mean 'rate'?",
    "reg.dropout.rate=0.3": "reg.dropout: 'dropout' is not among the chosen regularizers; choose it by "
    "reg=dropout.",
    "reg=cutout reg.dropout.rate=0": "reg.dropout: 'dropout' is not among the chosen regularizers; choose it "
    "by reg=[cutout,dropout].",
    # values
    "seed=": "seed=: expected a whole number from 0 to 4294967295.",
    "trainer.fast_dev_run=true": "trainer.fast_dev_run=true: expected false, because it would leave no",
    "reg=[dropout,dropout_increasing]": "reg holds dropout and dropout_increasing, but a run has one set of",
    "optimizer.lr=${nope}": "optimizer.lr: Interpolation key 'nope' not found.",
    "scheduler=plateau data.validation=none": "scheduler=plateau needs validation images: type "
    "data.validation=split instead of none.",
    # sweeps that are not meant
    "model=a,b": "model=a,b holds several values, which is a sweep: type `python train.py -m model=a,b`.",
    "reg=none,dropout": "reg=none,dropout holds several values, which is a sweep: type `python train.py -m "
    "reg=none,dropout`, or for all at once reg=[none,dropout].",
    "seed=range(3)": "seed=range(3) holds several values, which is a sweep: type `python train.py -m "
    "'seed=range(3)'`.",
    # what cannot be read
    "reg=[dropout": f"'reg=[dropout' {READ}",
    "=3": f"'=3' {READ}",
    "foo": f"'foo' {READ}",
    "--foo": "Unrecognized arguments: --foo; --help shows what there is.",
    "--cfg all -m": "Only one of --run, --multirun, --cfg, --info and --shell_completion can be asked for; "
    "--help shows what there is.",
    "--config-dir conf": "The configuration lies in conf/, beside the command; --help shows what there is.",
    # runs
    "resume=nowhere": "resume=nowhere: there is no such folder; expected the folder of a run, such as",
    "resume=": "resume=: there is no such folder; expected the folder of a run, such as",
    "resume=conf": "conf is no run folder: it has no record.json.",
    "resume=conf -m": "resume= goes on with one run: leave out -m.",
    "start_from=nowhere": "start_from=nowhere: there is no such folder; expected the folder of a run,",
    "start_from=conf": "conf is no run folder: it has no record.json.",
    # the base of a sweep, before any of its jobs
    "-m seed=0,1 optimizer.lr=fast": "optimizer.lr=fast: expected a number above 0.",
    "seed=0,1 -m model=vgg3,vg4": "model=vgg3,vg4: model has no option 'vg4'; did you mean 'vgg4'?",
    "-m trainer=ddp seed=0,1": "conf/trainer/ddp.yaml: trainer.devices=2: each process would start the sweep",
    "-m trainer.devices=auto trainer.strategy=ddp seed=0,1": "trainer.devices=auto: each process would start",
    "-m optimizer.lrr=1,2": "optimizer.lrr: optimizer has no key 'lrr'; did you mean 'lr'?",
}


@pytest.mark.parametrize("typed, sentence", SENTENCES.items(), ids=SENTENCES)
def test_a_mistake_gets_one_sentence(refused: Callable[..., str], typed: str, sentence: str) -> None:
    assert refused(*typed.split(" ")).startswith(sentence)


def change(file: str, old: str, new: str) -> None:
    text = Path(file).read_text()
    assert old in text
    Path(file).write_text(text.replace(old, new))


VGG3, A3 = "conf/model/vgg3.yaml", "conf/experiment/posts/a3_baseline.yaml"
IN_YAML = {
    "a key": (VGG3, "blocks:", "bloks:", "model.bloks: model has no key 'bloks'; did you mean 'blocks'?"),
    "a value": (VGG3, "blocks: 3", "blocks: 2.5", "model.blocks=2.5: expected 1 to 5 blocks (each halves"),
    "a target": (
        VGG3,
        "cifarlab.models.plain.VGG",
        "os.system",
        "model._target_=os.system: expected a name in",
    ),
    "a root key": (
        "conf/train.yaml",
        "seed: 0",
        "seed: 0\nsed: 1",
        "sed: the configuration has no key 'sed'",
    ),
    "a root value": (
        "conf/train.yaml",
        "seed: 0",
        "seed: zero",
        "seed=zero: expected a whole number from 0",
    ),
    "an interpolation": (
        VGG3,
        "width: 32",
        "width: ${nope}",
        "model.width: Interpolation key 'nope' not found.",
    ),
    "an experiment's key": (
        A3,
        "lr:",
        "lrr:",
        "optimizer.lrr: optimizer has no key 'lrr'; did you mean 'lr'?",
    ),
    "an experiment's value": (A3, "lr: 0.001", "lr: fast", "optimizer.lr=fast: expected a number above 0."),
    "an experiment's group": (
        A3,
        "trainer:",
        "trianer:",
        "trianer: the configuration has no key 'trianer'; did",
    ),
    "an experiment's option": (
        A3,
        "model: vgg3",
        "model: vg3",
        "model has no option 'vg3'; did you mean 'vgg3'?",
    ),
}


@pytest.mark.parametrize("file, old, new, sentence", IN_YAML.values(), ids=IN_YAML)
def test_a_mistake_in_a_yaml_is_found_there(
    refused: Callable[..., str], file: str, old: str, new: str, sentence: str
) -> None:
    change(file, old, new)
    assert refused("experiment=posts/a3_baseline").startswith(f"{file}: {sentence}")


def test_a_mistake_in_one_of_several_regularizers_is_found_there(refused: Callable[..., str]) -> None:
    change("conf/reg/shift.yaml", "height: 0.1", "height: 10")
    said = refused("reg=[dropout,augment]")
    assert said == "conf/reg/shift.yaml: reg.shift.height=10: expected a number from 0 to 1."


@pytest.mark.parametrize(
    "text, problem",
    [
        (
            "_target_: x\nblocks: [3\n",
            ", line 3 cannot be read as keys and values in YAML: expected ',' or ']'",
        ),
        (
            "blocks: 3\nblocks: 4\n",
            ", line 2 cannot be read as keys and values in YAML: found duplicate key blocks",
        ),
        ("3\n", " cannot be read as keys and values in YAML: Invalid loaded object type: int"),
    ],
)
def test_a_yaml_that_is_none_is_named(refused: Callable[..., str], text: str, problem: str) -> None:
    Path(VGG3).write_text(text)
    assert refused().startswith(f"{VGG3}{problem}")


@pytest.mark.parametrize("arguments", [["reg=[]"], ["reg=none"], ["~reg"], ["reg=[none]"]])
def test_no_regularizer_is_none(run: Command, arguments: list[str]) -> None:
    (given,) = run(*arguments).jobs
    assert given["config"]["reg"] == {}
    assert given["choices"]["reg"] == ["none"]


def test_a_run_gets_what_was_typed(run: Command, project: Path) -> None:
    (given,) = run("reg=[dropout,augment]", "experiment=posts/a3_baseline", "seed=7").jobs
    assert given["config"]["seed"] == 7
    assert given["config"]["trainer"]["max_epochs"] == 100
    assert given["choices"] == {
        "model": "vgg3",
        "reg": ["dropout", "flip", "shift"],
        "data": "cifar10",
        "optimizer": "sgd",
        "scheduler": "constant",
        "experiment": "posts/a3_baseline",
    }
    assert given["overrides"] == ["reg=[dropout,augment]", "experiment=posts/a3_baseline", "seed=7"]
    assert Path(given["folder"]).parent == project / "logs/runs"


def save(given: dict) -> str:
    """Write the record and configuration of a run that was given those; returns its folder."""
    folder = Path(given["folder"])
    record = records.new(given["config"], given["choices"]) | {"overrides": given["overrides"]}
    records.write(folder, record)
    records.write_config(folder, given["config"])
    return str(folder.relative_to(Path.cwd()))


@pytest.fixture
def saved(run: Command) -> str:
    """The folder of a run of vgg2 with a seed of 7; its name has equals signs."""
    (given,) = run("seed=7", "model=vgg2", "optimizer.lr=0.5").jobs
    assert "=" in Path(given["folder"]).name
    return save(given)


@pytest.mark.parametrize("quotes", ["", "'", '"'])
def test_a_resumed_run_keeps_its_configuration(run: Command, saved: str, quotes: str) -> None:
    change("conf/optimizer/sgd.yaml", "momentum: 0.9", "momentum: 0.1")  # meanwhile
    (given,) = run(f"resume={quotes}{saved}{quotes}", "trainer.max_epochs=200").jobs
    config = given["config"]
    assert (config["seed"], config["model"]["blocks"], config["optimizer"]["lr"]) == (7, 2, 0.5)
    assert config["optimizer"]["momentum"] == 0.9
    assert config["trainer"]["max_epochs"] == 200
    assert config["resume"] == saved
    assert Path(given["folder"]) == Path(saved).resolve()
    assert given["choices"]["model"] == "vgg2"
    assert given["overrides"] == ["seed=7", "model=vgg2", "optimizer.lr=0.5", "trainer.max_epochs=200"]


def test_what_a_resumed_run_may_change(run: Command) -> None:
    typed = (
        "scheduler=cosine",
        "scheduler.final=0.5",
        "trainer.max_epochs=30",
        "trainer.limit_val_batches=5",
    )
    folder = save(run(*typed).jobs[0])

    def resumed(*typed: str) -> dict:
        (given,) = run(f"resume={folder}", *typed).jobs
        return given

    config = resumed(
        "scheduler.warmup=0.1", "optimizer.lr=1", "data.root=there", "test=false", "trainer=cpu"
    )["config"]
    target = "cifarlab.optim.schedules.cosine"
    assert config["scheduler"] == {"_target_": target, "interval": "step", "warmup": 0.1, "final": 0.5}
    assert (config["optimizer"]["lr"], config["data"]["root"], config["test"]) == (1, "there", False)
    trainer = config["trainer"]
    assert (trainer["accelerator"], trainer["max_epochs"], trainer["limit_val_batches"]) == ("cpu", 30, 5)
    # an option of the trainer changes what it says, whatever stands behind it; the others replace
    trainer = resumed("trainer.limit_val_batches=7", "trainer=smoke")["config"]["trainer"]
    assert (trainer["max_epochs"], trainer["limit_val_batches"], trainer["limit_train_batches"]) == (1, 7, 10)
    given = resumed("scheduler.every=3", "scheduler=step", "logger=none")
    target = "cifarlab.optim.schedules.step"
    assert given["config"]["scheduler"] == {"_target_": target, "every": 3, "gamma": 0.1, "interval": "epoch"}
    assert given["config"]["logger"] == {}
    assert given["choices"]["scheduler"] == "step"


def test_a_process_of_a_resumed_run_reads_what_its_parent_read(
    run: Command, saved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Lightning starts it with the parent's sys.argv, which holds what Hydra was given, and the folder
    parent = run(f"resume={saved}", "trainer.max_epochs=200").jobs
    arguments = sys.argv[1:]
    monkeypatch.setenv("LOCAL_RANK", "1")
    child = run(*arguments, f'hydra.run.dir="{saved}"').jobs
    assert child == parent


def test_the_processes_of_a_new_run_share_its_folder(
    run: Command, saved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run("seed=7", f'hydra.run.dir="{saved}"').code == 0


def test_a_folder_that_cannot_be_made(run: Command, project: Path) -> None:
    (project / "file").touch()
    for folder, why in (("file", "File exists"), ("file/below", "Not a directory")):
        answer = run(f"hydra.run.dir={folder}")
        assert (answer.code, answer.err) == (2, f"{why}: {folder}.\n")


def test_a_folder_that_another_made_meanwhile_is_not_removed(
    run: Command, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(folder: Path, resumed: str | None) -> None:
        (folder / "checkpoints").mkdir(parents=True)
        raise UserError("It is at work in another process.")

    monkeypatch.setattr("cifarlab.runs.resume.take", take)
    assert run("hydra.run.dir=shared").code == 2
    cli.CheckConfig.remove_unstarted()
    assert (project / "shared/checkpoints").exists()


def test_no_two_runs_share_a_folder(run: Command, saved: str) -> None:
    answer = run(f"hydra.run.dir='{saved}'")
    assert answer.code == 2
    assert answer.err == (
        f"{saved} holds a run already; go on with it by resume={saved} or choose another hydra.run.dir=.\n"
    )
    answer = run(f"resume={saved}", "hydra.run.dir=other")
    assert answer.code == 2
    assert answer.err.startswith("hydra.run.dir=other: a resumed run goes on in its own folder")


def test_cfg_job_shows_what_a_resumed_run_would_be(run: Command, saved: str) -> None:
    answer = run(f"resume={saved}", "--cfg", "job", "trainer.max_epochs=200")
    assert answer.code == 0
    assert "\n  blocks: 2\n" in answer.out
    assert "\n  max_epochs: 200\n" in answer.out
    assert not list(Path(saved).parent.glob("*resume*"))


def test_a_run_starts_from_another(run: Command, saved: str) -> None:
    assert run(f"start_from={saved}").err.endswith("that run has no checkpoints/last.ckpt to start from.\n")
    Path(saved, "checkpoints").mkdir()
    Path(saved, "checkpoints/last.ckpt").touch()
    (given,) = run(f"start_from={saved}").jobs
    assert given["config"]["start_from"] == saved
    assert given["folder"] != str(Path(saved).resolve())


@pytest.mark.parametrize(
    "typed, sentence",
    [
        (
            "model=vgg3",
            "model=vgg3: a resumed run cannot change model; start a new one from its weights with",
        ),
        ("reg=dropout", "reg=dropout: a resumed run cannot change reg; "),
        ("reg.dropout.rate=0.1", "reg.dropout.rate=0.1: a resumed run cannot change reg.dropout.rate; "),
        ("experiment=posts/a2_vgg2", "experiment=posts/a2_vgg2: a resumed run cannot change experiment; "),
        ("seed=8", "seed=8: a resumed run cannot change seed; "),
        ("data.batch_size=8", "data.batch_size=8: a resumed run cannot change data.batch_size; "),
        ("optimizer.momentum=0", "optimizer.momentum=0: a resumed run cannot change optimizer.momentum; "),
        ("~trainer.max_epochs", "~trainer.max_epochs: a resumed run cannot change trainer.max_epochs; "),
        ("start_from=x", "start_from=x: start_from= makes a new run and resume= goes on with one; leave out"),
        (
            "trainer.max_epoch=8",
            "trainer.max_epoch: trainer has no key 'max_epoch'; did you mean 'max_epochs'",
        ),
        ("scheduler.warmup=0.1", "scheduler.warmup: scheduler has no key 'warmup'; it has none."),
        ("optimizer.lr=fast", "optimizer.lr=fast: expected a number above 0."),
        ("modle=vgg3", "modle: the configuration has no key 'modle'; did you mean 'model'?"),
    ],
)
def test_a_resumed_run_cannot_become_another(run: Command, saved: str, typed: str, sentence: str) -> None:
    answer = run(f"resume={saved}", typed)
    assert answer.code == 2
    assert answer.err.startswith(sentence)
    assert answer.err.count("\n") == 1


def test_plateau_keeps_the_rate_of_a_resumed_run(run: Command) -> None:
    folder = save(run("scheduler=plateau").jobs[0])
    answer = run(f"resume={folder}", "optimizer.lr=0.1")
    assert answer.code == 2
    assert answer.err.startswith("optimizer.lr: under scheduler=plateau a resumed run keeps the rate")
    assert run(f"resume={folder}", "optimizer.lr=0.1", "scheduler=constant").code == 0


@pytest.mark.parametrize(
    "file, text, sentence",
    [
        ("record.json", '{"schema": 1, ', "{}/record.json cannot be read: it is torn, or no JSON."),
        ("record.json", "[]", "{}/record.json is no record of schema 1."),
        ("config.yaml", "seed: 7\nmodel: [", "{}/config.yaml cannot be read: it is no valid YAML"),
        ("config.yaml", "seed: 7\n", "{}/config.yaml: test is missing: give it by test=..."),
        ("config.yaml", "", "{}/config.yaml cannot be read: it is no configuration of a run."),
    ],
)
def test_a_torn_run_is_refused(run: Command, saved: str, file: str, text: str, sentence: str) -> None:
    Path(saved, file).write_text(text)
    answer = run(f"resume={saved}")
    assert answer.code == 2
    assert answer.err.startswith(sentence.format(saved))
    assert answer.err.count("\n") == 1


def test_a_wrong_value_that_a_run_was_saved_with_is_found_there(run: Command, saved: str) -> None:
    change(f"{saved}/config.yaml", "blocks: 2", "blocks: 9")
    assert run(f"resume={saved}").err.startswith(
        f"{saved}/config.yaml: model.blocks=9: expected 1 to 5 blocks"
    )


def test_exit_codes(run: Command) -> None:
    failed = run("seed=13")
    assert failed.code == 1
    assert failed.err.endswith("The loss became NaN in epoch 3.\n")
    (folder,) = Path("logs/runs").iterdir()  # a run that failed keeps what it left
    assert [path.name for path in folder.iterdir()] == ["train.log"]
    with pytest.raises(KeyError, match="a bug"):  # not the user's doing: the traceback is wanted
        run("seed=14")


def test_the_log_of_a_failed_run_says_why(run: Command, saved: str) -> None:
    change(f"{saved}/config.yaml", "seed: 7", "seed: 13")
    answer = run(f"resume={saved}")
    assert answer.code == 1
    assert (answer.out + answer.err).count("The loss became NaN in epoch 3.") == 1
    assert Path(saved, "train.log").read_text().endswith("The loss became NaN in epoch 3.\n")


def test_the_traceback_shows_when_asked_for(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    for typed in ("optimizer.lr=fast", "optimizer.lrr=1"):
        answer = run(typed)
        assert answer.code == 2
        assert "Traceback (most recent call last)" in answer.err
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_help_says_what_there_is(run: Command, project: Path) -> None:
    answer = run("--help", "model=vgg1")
    assert answer.code == 0
    assert f"\nmodel: {MODELS}" in answer.out
    assert "\n  max_epochs: 100\n" in answer.out
    assert "\n  blocks: 1\n" in answer.out
    assert "hydra:" not in answer.out
    assert not (project / "logs").exists()


def test_cfg_job_shows_what_would_run(run: Command, project: Path) -> None:
    answer = run("model=vgg2", "--cfg", "job", "trainer.max_epochs=3")
    assert answer.code == 0
    assert "\n  blocks: 2\n" in answer.out
    assert "\n  max_epochs: 3\n" in answer.out
    assert not (project / "logs").exists()


def test_what_an_experiment_sets_of_an_option_goes_with_it(run: Command) -> None:
    experiment = "experiment=speedrun/cifar10_94"
    (given,) = run(experiment, "reg=[crop,flip]", "optimizer=sgd").jobs
    reg = given["config"]["reg"]
    assert list(reg) == given["choices"]["reg"] == ["crop", "flip"]
    assert reg["crop"]["padding"] == 3  # the experiment's
    assert set(given["config"]["optimizer"]) == {"_target_", "lr", "momentum", "nesterov", "weight_decay"}
    assert given["config"]["optimizer"]["lr"] == 0.15
    (given,) = run(experiment, "reg=none").jobs
    assert (given["config"]["reg"], given["choices"]["reg"]) == ({}, ["none"])
    assert run(experiment, "logger=none").jobs[0]["config"]["logger"] == {}
    answer = run(experiment, "reg=none", "--cfg", "job")
    assert "reg: {}\n" in answer.out


def test_what_was_typed_or_stands_in_an_option_is_refused(refused: Callable[..., str], project: Path) -> None:
    (project / "conf" / "model" / "own.yaml").write_text("_target_: cifarlab.models.plain.VGG\nblokcs: 3\n")
    assert refused("model=own").startswith("conf/model/own.yaml: model.blokcs: model has no key 'blokcs'")
    (project / "conf" / "reg" / "own.yaml").write_text("own:\n  rate: 3\n")
    assert refused("reg=own").startswith("conf/reg/own.yaml: reg.own has no _target_: ")
    experiment = "experiment=speedrun/cifar10_94"
    sentence = refused(experiment, "reg=flip", "reg.crop.padding=2")
    assert sentence == "reg.crop has no _target_: an option of conf/reg is chosen by reg=OPTION."
    sentence = refused(experiment, "optimizer=sgd", "optimizer.rounds=2")
    assert sentence.startswith("optimizer.rounds: optimizer has no key 'rounds'")


def test_a_new_run_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["data.root=/a b/c", "model=vgg3", "reg=[dropout,augment]", "++trainer.max_epochs=" + "9" * 90]
    name = cli.run_folder(None, typed)
    stamp, _, rest = name.removeprefix("logs/runs/").partition("_root")
    assert len(stamp) == len("2026-01-31_23-59-59-123456")
    assert rest == "=-a-b-c_model=vgg3_reg=-dropout-augment-_max_epochs=" + "9" * 24
    assert len(f"root{rest}") == 80
    assert cli.run_folder("logs/runs/x", ["seed=1"]) == "logs/runs/x"


@pytest.mark.parametrize(
    "arguments, code, said",
    [
        (["--hydra-help"], 0, "Hydra ("),
        (["--shell-completion", "install=bash"], 0, "hydra_bash_completion"),
        (["modle=vgg3"], 2, "did you mean 'model'?"),
    ],
)
def test_the_real_command_answers_without_torch(
    tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    script = (
        "import runpy, sys, atexit\n"
        "heavy = {'torch', 'pytorch_lightning', 'numpy'}\n"
        "atexit.register(lambda: print('heavy:', heavy & set(sys.modules)))\n"
        f"sys.argv = [{str(ROOT / 'train.py')!r}, *sys.argv[1:]]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert done.stdout.endswith("heavy: set()\n")
    assert not any(tmp_path.iterdir())


def test_completion_completes(tmp_path: Path) -> None:
    line = f"python {ROOT / 'train.py'} model=vgg"
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "-sc", "query=bash"],
        env={**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.stdout.split() == [f"model={path.stem}" for path in sorted(ROOT.glob("conf/model/vgg*"))]


def test_only_the_name_of_a_folder_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a,b", "plain=1", "plain"):
        Path(name).mkdir()
    typed = [
        "start_from=a,b",
        "start_from=plain=1",
        "resume=plain",
        "start_from=c,d",
        "seed=a,b",
        "resume='a,b'",
        "resume=",
    ]
    assert [resume.quoted(text) for text in typed] == [
        "start_from='a,b'",
        "start_from='plain=1'",
        *typed[2:],
    ]
