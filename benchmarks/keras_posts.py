"""The two sides of `run.py sections=keras`: posts A3, A6 and A9 in Keras, as the posts train them, and ours.

Keras's side has its own layers, `fit` and ImageDataGenerator; ours is the whole of `train.py`: batches,
augmentation, metrics, record. Both train on the real CIFAR-10 in processes of their own, which take turns of
`steps` batches of 64; while one works the other sleeps. The first turn of each warms up.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[1]
POSTS = {"a3": "a3_baseline", "a6": "a6_augment", "a9": "a9_dropout_increasing_augment_batch_norm"}
BATCH = 64


def compare(post: str, policy: str, steps: int, rounds: int) -> list[tuple[float, float]]:
    """Images per second of ours and of Keras's under that `keras.mixed_precision` policy, round by round; who
    begins alternates."""
    with Worker("ours", post, policy, steps) as ours, Worker("keras", post, policy, steps) as keras:
        pairs = []
        for number in range(rounds + 1):
            order = (keras, ours) if number % 2 else (ours, keras)
            seconds = {worker: worker.turn() for worker in order}
            pairs.append((BATCH * steps / seconds[ours], BATCH * steps / seconds[keras]))
    return pairs[1:]


class Worker:
    """A process that trains for so many steps whenever it is told to, until the end of its input."""

    def __init__(self, side: str, post: str, policy: str, steps: int) -> None:
        self.command = [sys.executable, __file__, side, post, policy, str(steps)]

    def __enter__(self) -> Self:
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
        self.said = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            env=environment,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.said.close()

    def turn(self) -> float:
        """Seconds of a turn."""
        assert self.process.stdin
        assert self.process.stdout
        with suppress(BrokenPipeError):
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        self.said.seek(0)
        last = (self.said.read().splitlines() or ["it says nothing"])[-1]
        raise SystemExit(f"{' '.join(self.command)} ended: {last}")


def say(seconds: float) -> None:
    print(f"seconds {seconds}", flush=True)


def keras_worker(post: str, policy: str, steps: int) -> None:
    import keras
    import numpy as np
    from keras import layers
    from keras.src.legacy.preprocessing.image import ImageDataGenerator
    from safetensors.numpy import load_file

    keras.mixed_precision.set_global_policy(policy)
    regularized = post == "a9"
    net = keras.Sequential([keras.Input((32, 32, 3))])

    def normalize() -> None:
        if regularized:
            net.add(layers.BatchNormalization())

    def drop(rate: float) -> None:
        if regularized:
            net.add(layers.Dropout(rate))

    for width, rate in ((32, 0.2), (64, 0.3), (128, 0.4)):
        for _ in range(2):
            he = "he_uniform"
            net.add(layers.Conv2D(width, 3, activation="relu", kernel_initializer=he, padding="same"))
            normalize()
        net.add(layers.MaxPooling2D(2))
        drop(rate)
    net.add(layers.Flatten())
    net.add(layers.Dense(128, activation="relu", kernel_initializer="he_uniform"))
    normalize()
    drop(0.5)
    net.add(layers.Dense(10, activation="softmax", dtype="float32"))
    sgd = keras.optimizers.SGD(learning_rate=0.001, momentum=0.9)
    net.compile(optimizer=sgd, loss="categorical_crossentropy", metrics=["accuracy"])

    # not through torch, whose LLVM and TensorFlow's do not go together in one process
    prepared = load_file(ROOT / "data" / "cifar10.safetensors")
    images = prepared["train_images"].transpose(0, 2, 3, 1).astype(np.float32) / 255
    labels = keras.utils.to_categorical(prepared["train_labels"], 10)
    if post == "a3":
        few = steps * BATCH
        turn: Callable[..., Any] = partial(net.fit, images[:few], labels[:few], batch_size=BATCH)
    else:
        augment = ImageDataGenerator(width_shift_range=0.1, height_shift_range=0.1, horizontal_flip=True)
        turn = partial(net.fit, augment.flow(images, labels, batch_size=BATCH), steps_per_epoch=steps)

    class Clock(keras.callbacks.Callback):
        """Starts behind what `fit` makes ready, which in an epoch of 782 batches is little of it."""

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.started = time.perf_counter() if batch == 0 else self.started

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            say(time.perf_counter() - self.started)

    for _ in sys.stdin:
        turn(verbose=0, callbacks=[Clock()])


def our_worker(post: str, steps: int) -> None:
    import pytorch_lightning as pl
    import training_loop  # with torch: not for Keras's process

    class Turns(pl.Callback):
        """Waits for its turn in front of each epoch, and says how long the epoch took."""

        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.should_stop = not sys.stdin.readline()
            self.started = time.perf_counter()

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            say(time.perf_counter() - self.started)

    overrides = [f"experiment=posts/{POSTS[post]}", f"trainer.limit_train_batches={steps}", "test=false"]
    overrides += ["data.validation=none", "trainer.max_epochs=1000", "export=none"]
    training_loop.trained(overrides, Turns(), first=True)


if __name__ == "__main__":
    side, post, policy, steps = sys.argv[1:]
    keras_worker(post, policy, int(steps)) if side == "keras" else our_worker(post, int(steps))
