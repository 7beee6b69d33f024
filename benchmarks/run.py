"""All timings in one table: ours, what it is held against, the ratio, and the machine.

    python benchmarks/run.py [sections=loop,batch,rewrites,speedrun,together,memory,start,keras] [rounds=5]

| section | ours | held against |
|---|---|---|
| loop | images/s of A3, A6 and A9: batches, augmentation, metrics | a bare loop with the same layers |
| batch | the same of A3 at batches of 32 to 2,048 | a bare loop of 64; then the slowest and the fastest |
| rewrites | a bare step as our networks are built | the same without one of the rewrites |
| speedrun | seconds of training of `experiment=speedrun/...` | what it may take, in E |
| together | images/s of several bare A3 loops at once | one alone |
| memory | the peak of A3; what a process has of the data set for itself | 1.2 GiB; all of it |
| start | launch to first step, loading the data, `--help` | 7 s, 0.5 s, 0.6 s |
| keras | training images/s of A3, A6 and A9 (needs the extra `bench`) | Keras, see `keras_posts.py` |

Figures are medians over `rounds` that alternate between the two sides, so that a machine that drifts slows
both; behind the ratio stand its lowest and highest round, and what it is wanted to be. What lies between
epochs (validation, checkpoints, files) is in no rate of images. Times depend on the machine, so its rates
come with them: a matrix product, a copy, and E, the seconds of an epoch of a bare VGG-3 loop. From 5 rounds
on each section also goes to `benchmarks/results/<section>.json`.
"""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import keras_posts
import machine
import torch
import training_loop
from torch import nn

from cifarlab import hardware
from cifarlab.data.sets import CIFAR10
from cifarlab.models import winograd
from cifarlab.models.layers import Dropout
from cifarlab.models.plain import VGG
from cifarlab.regularizers import DropoutIncreasing, Regularization

ROOT = Path(__file__).parents[1]
DATA = ROOT / "data"
RESULTS = Path(__file__).parent / "results"
KEPT = 5  # rounds, at least, of what is written there
POSTS = keras_posts.POSTS
SPEEDRUNS = {"cifar10_89": 6, "cifar10_94": 14, "cifar100": 35}  # how many E each may take


@dataclass
class Row:
    """One line: what was measured, ours and the other's figure in `unit`, their ratio, the lowest and highest
    of it over the rounds, and what it is wanted to be."""

    what: str
    ours: float
    other: float
    unit: str
    ratio: float
    span: tuple[float, float]
    wanted: str = ""


def compared(
    what: str, pairs: list[tuple[float, float]], unit: str = "images/s", wanted: float | None = None
) -> Row:
    """Medians over rounds of (ours, other), and of their ratios, which are wanted to be no lower (of seconds
    and MiB no higher) than that."""
    ours, other = (median(side) for side in zip(*pairs, strict=True))
    ratios = [one / two for one, two in pairs]
    sign = "\N{GREATER-THAN OR EQUAL TO}" if unit == "images/s" else "\N{LESS-THAN OR EQUAL TO}"
    said = "" if wanted is None else f"{sign} {wanted:.2f}"
    return Row(what, ours, other, unit, median(ratios), (min(ratios), max(ratios)), said)


def loop(rounds: int) -> Iterator[Row]:
    for (post, name), wanted in zip(POSTS.items(), (0.95, 0.92, 0.85), strict=True):
        pairs = training_loop.compare([f"experiment=posts/{name}"], steps=25, rounds=rounds)
        yield compared(f"{post.upper()}, against its bare loop", pairs, wanted=wanted)


def batch(rounds: int) -> Iterator[Row]:
    experiment = f"experiment=posts/{POSTS['a3']}"
    ratios = []
    for size in (32, 64, 128, 256, 512, 1024, 2048):
        overrides = [experiment, f"data.batch_size={size}"]
        steps = max(4, 2048 // size)
        pairs = training_loop.compare(overrides, steps, rounds, bare_batch_size=64, bare_steps=16)
        row = compared(f"A3 in batches of {size:,}, against a bare loop of 64", pairs)
        ratios.append(row.ratio)
        yield row
    slowest, fastest = min(ratios), max(ratios)
    ratio = slowest / fastest
    yield Row(
        "the slowest of these, against the fastest", slowest, fastest, "", ratio, (ratio, ratio), "> 0.90"
    )


def rewrites(rounds: int) -> Iterator[Row]:
    """Each rewrite undone, alone, in a network of its own."""

    def relu_before_pool(side: machine.BareSteps) -> None:
        layers = list(side.net.children())
        for i, layer in enumerate(layers[:-1]):
            if isinstance(layer, nn.MaxPool2d):
                layers[i : i + 2] = layers[i : i + 2][::-1]
        side.net = nn.Sequential(*layers)

    def out_of_place(side: machine.BareSteps) -> None:
        for layer in side.net.children():
            if isinstance(layer, nn.ReLU):
                layer.inplace = False

    def torchs_dropout(side: machine.BareSteps) -> None:
        layers = side.net.children()
        side.net = nn.Sequential(*(nn.Dropout(m.p) if isinstance(m, Dropout) else m for m in layers))

    def channels_first(side: machine.BareSteps) -> None:
        side.net.to(memory_format=torch.contiguous_format)
        side.images = side.images.contiguous()

    def torchs_convolutions(side: machine.BareSteps) -> None:
        winograd.use(side.net, False)

    def a_loop_over_weights(side: machine.BareSteps) -> None:
        for group in side.optimizer.param_groups:
            group["fused"], group["foreach"] = False, False

    increasing = Regularization([DropoutIncreasing()])
    cases: dict[str, tuple[Regularization, Callable[[machine.BareSteps], None]]] = {
        "max pool in front of ReLU, against behind it": (Regularization(), relu_before_pool),
        "ReLU in place, against with a copy": (Regularization(), out_of_place),
        "dropout's mask of 16-bit integers, against torch's": (increasing, torchs_dropout),
        "channels last, against channels first": (Regularization(), channels_first),
        "SGD over all weights at once, against one by one": (Regularization(), a_loop_over_weights),
    }
    float32 = machine.device().type == "cpu" and machine.dtype() == torch.float32
    if fewer := float32 and winograd.library() is not None:
        cases["Winograd's convolutions, against torch's"] = (Regularization(), torchs_convolutions)
    for what, (regularization, undo) in cases.items():
        sides = []
        for _ in range(2):
            torch.manual_seed(0)
            net = VGG(num_classes=10, regularization=regularization).net
            net = net.to(machine.device(), memory_format=torch.channels_last)
            winograd.use(net, fewer)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9, fused=True)
            sides.append(machine.BareSteps(net, 64, optimizer, 10))
        undo(sides[1])
        for side in sides:
            side.rate(3)
        yield compared(f"VGG-3: {what}", in_turns(*(partial(side.rate, 30) for side in sides), rounds=rounds))


def in_turns(ours: Callable[[], float], other: Callable[[], float], rounds: int) -> list[tuple[float, float]]:
    """Both figures of each round; who begins alternates."""
    pairs = []
    for number in range(rounds):
        if number % 2:
            theirs, mine = other(), ours()
        else:
            mine, theirs = ours(), other()
        pairs.append((mine, theirs))
    return pairs


def speedrun(rounds: int) -> Iterator[Row]:
    """In turns: some batches of each epoch of the experiment, and the bare loop that E is an epoch of."""
    bare = machine.bare_vgg3()
    bare.rate(3)
    for name, limit in SPEEDRUNS.items():
        typed = [f"experiment=speedrun/{name}"]
        pairs = in_turns(
            lambda typed=typed: training_loop.training_seconds(typed, steps=6),
            lambda limit=limit: limit * machine.TRAINING_IMAGES / bare.rate(20),
            rounds,
        )
        yield compared(f"training of speedrun/{name}, against {limit} E", pairs, "s", 1)


WORKERS_READY = 120  # seconds


def work(threads: int, seconds: float, begin: Any, rates: Any) -> None:
    """A process of `together`: a bare A3 for so long, from when all are ready."""
    torch.set_num_threads(threads)
    hardware.keep_memory()
    bare = machine.bare_vgg3()
    bare.rate(3)
    begin.wait(WORKERS_READY)
    started, images = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        images += 5 * 64
        bare.rate(5)
    rates.put(images / (time.perf_counter() - started))


def together(rounds: int) -> Iterator[Row]:
    cores = len(os.sched_getaffinity(0))
    counts = [1, 2, 4, 8, 16] if machine.device().type == "cuda" else [1, cores]
    spawn = multiprocessing.get_context("spawn")

    def rate(count: int) -> float:
        begin, rates = spawn.Barrier(count), spawn.Queue()
        threads = max(1, cores // count)
        workers = [spawn.Process(target=work, args=(threads, 8.0, begin, rates)) for _ in range(count)]
        for worker in workers:
            worker.start()
        total = sum(rates.get(timeout=WORKERS_READY) for _ in workers)
        for worker in workers:
            worker.join()
        return total

    for count in counts[1:]:
        pairs = in_turns(partial(rate, count), partial(rate, 1), rounds)
        yield compared(f"{count} bare loops at once, against one of all cores", pairs)


def memory(rounds: int) -> Iterator[Row]:
    typed = [f"experiment=posts/{POSTS['a3']}", "trainer.max_epochs=2", "trainer.limit_train_batches=100"]
    peaks = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            launch("train.py", *typed, f"hydra.run.dir={folder}/run")
            record = json.loads(Path(folder, "run", "record.json").read_text())
        peaks.append((record["peak_memory_bytes"] / 2**20, 1.2 * 1024))
    yield compared("peak memory of A3 in 2 epochs of 100 batches, against 1.2 GiB", peaks, "MiB", 1)
    loaded = CIFAR10(root=str(DATA), seed=0, regularization=Regularization())
    loaded.setup()
    assert loaded.set is not None
    whole = sum(tensor.nbytes for tensor in loaded.set.tensors().values()) / 2**20
    total = sum(int(tensor.sum()) for tensor in loaded.set.tensors().values())  # every page is read
    assert total > 0
    read, private = mapped("cifar10.safetensors")
    assert read > 0.9 * whole, "the data set is not mapped"
    yield compared("data set, the part that no other process shares", [(private, whole)], "MiB", 0.01)


def mapped(name: str) -> tuple[float, float]:
    """MiB in memory of a mapped file, and of these MiB that were written to, which no other process can
    share."""
    found, ours = {"Rss:": 0, "Anonymous:": 0}, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, value = line.split()[:2]
        if "-" in key and not key.endswith(":"):
            ours = line.endswith(name)
        elif ours and key in found:
            found[key] += int(value)
    return found["Rss:"] / 1024, found["Anonymous:"] / 1024


def launch(*command: str) -> None:
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def start(rounds: int) -> Iterator[Row]:
    typed = ["data.validation=none", "trainer.limit_train_batches=1", "trainer.max_epochs=1", "test=false"]
    first_step, loading, asking = [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder, "run")
            started = time.perf_counter()
            command = [sys.executable, "train.py", *typed, f"hydra.run.dir={run}"]
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
            while not (run / "metrics.csv").exists() and process.poll() is None:  # an epoch of one step
                time.sleep(0.005)
            first_step.append(time.perf_counter() - started)
            if process.wait():
                raise SystemExit(f"{' '.join(command)} failed")
        started = time.perf_counter()
        CIFAR10(root=str(DATA), seed=0, regularization=Regularization()).setup()
        loading.append(time.perf_counter() - started)
        started = time.perf_counter()
        launch("train.py", "--help")
        asking.append(time.perf_counter() - started)
    for what, times, limit in (
        ("launch to the first step, its epoch written", first_step, 7.0),
        ("loading and verifying CIFAR-10", loading, 0.5),
        ("--help", asking, 0.6),
    ):
        yield compared(f"{what}, against {limit:g} s", [(time, limit) for time in times], "s", 1)


def keras(rounds: int) -> Iterator[Row]:
    if find_spec("tensorflow") is None:
        print("keras is left out: pip install -e '.[bench]'", file=sys.stderr)
        return
    wanted = {"float32": (3.0, 3.5, 3.5)}
    if hardware.has_fast_bfloat16("cpu"):
        wanted["mixed_bfloat16"] = (1.2, 1.6, 1.6)
    for number, post in enumerate(POSTS):
        for policy, at_least in wanted.items():
            pairs = keras_posts.compare(post, policy, steps=25, rounds=rounds)
            yield compared(f"{post.upper()}, against Keras in {policy}", pairs, wanted=at_least[number])


SECTIONS: dict[str, Callable[[int], Iterator[Row]]] = {
    f.__name__: f for f in (loop, batch, rewrites, speedrun, together, memory, start, keras)
}


def main() -> None:
    own = {"sections": ",".join(SECTIONS), "rounds": "5"}
    for argument in sys.argv[1:]:
        key, equals, value = argument.partition("=")
        if key not in own or not equals:
            raise SystemExit(f"{argument}: expected {' or '.join(f'{name}=' for name in own)}.")
        own[key] = value
    chosen = own["sections"].split(",")
    if unknown := [name for name in chosen if name not in SECTIONS]:
        raise SystemExit(f"sections={','.join(unknown)}: expected some of {', '.join(SECTIONS)}.")
    if not own["rounds"].isdecimal() or not int(own["rounds"]):
        raise SystemExit(f"rounds={own['rounds']}: expected a whole number of 1 or more.")
    rounds = int(own["rounds"])
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    at = machine.describe()
    rates = f"{at['matrix_gflops']:,.0f} GFLOP/s, copy {at['copy_gb_per_second']:.1f} GB/s"
    print(f"{at['device']}, {at['threads']} threads, torch {at['torch']}; {at['dtype']} product {rates}")
    share = at["bare_vgg3_gflops"] / at["matrix_gflops"]
    speed = f"{at['bare_vgg3_images_per_second']:,.0f} images/s, {share:.2f} of the product's rate"
    print(f"bare VGG-3 loop {speed}, E = {at['e_seconds']:.1f} s")
    if rounds < KEPT:
        print(f"fewer than {KEPT} rounds: not written to {RESULTS.name}/")
    print(f"{'':<62}{'ours':>9}{'other':>9}{'ratio':>8}  {'from to':<12}{'wanted':<8}")
    for name in chosen:
        rows = []
        for row in SECTIONS[name](rounds):
            rows.append(row)
            digits = 0 if row.unit in ("images/s", "MiB") else 2
            figures = "".join(f"{value:>9,.{digits}f}" for value in (row.ours, row.other))
            span = "{:.2f} {:.2f}".format(*row.span)
            print(
                f"{row.what:<62}{figures}{row.ratio:>8.2f}  {span:<12}{row.wanted:<8}{row.unit}", flush=True
            )
            gc.collect()
        if rows and rounds >= KEPT:
            content = {"section": name, "measured": datetime.now(UTC).isoformat(timespec="seconds")}
            content |= {"rounds": rounds, "machine": at, "rows": [asdict(row) for row in rows]}
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
