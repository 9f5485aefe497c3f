"""Training, top to bottom: a recipe, a network, one run over the data, a file.

`worker.learning.mnist` brings the data; `worker.learning.evaluation` measures what comes out of here the
way it will be served.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.model import MNIST_INPUT, InputSpec
from worker.learning.mnist import Mnist
from worker.predicting.decode import prepare_arrays
from worker.predicting.runtime import keras

#: What an answer's place in the output means.
CLASSES = tuple("0123456789")


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides how a model turns out, besides the data."""

    architecture: str = "mlp"
    #: Passes over all training images.
    epochs: int = 3
    #: Images per step. Measured on two cores, three epochs, three seeds each: 128 takes 14 s and reaches
    #: 0.974 to 0.979; 64 takes 18 s for 0.969 to 0.977, 32 takes 32 s for 0.972 to 0.977.
    batch_size: int = 128
    seed: int = 1
    #: Adam's.
    learning_rate: float = 0.001


@dataclass(frozen=True, slots=True)
class EpochResult:
    """How one pass over the training images went; `val_` is measured on the test images after it."""

    epoch: int  # the first is 1
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float


def train(
    data: Mnist,
    recipe: Recipe,
    spec: InputSpec = MNIST_INPUT,
    *,
    on_batch: Callable[[int, int, int], None] | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
) -> keras.Model:
    """Train a model from scratch and return it, a compiled `keras.Model`.

    `on_batch(epoch, done, total)` is called after each step with the steps of this epoch, `on_epoch` after
    each epoch; an exception from either ends the training. Raises ValueError for an unknown architecture.
    """
    keras.utils.set_random_seed(recipe.seed)
    model = build(recipe.architecture, spec)
    model.compile(
        optimizer=keras.optimizers.Adam(recipe.learning_rate),
        loss="categorical_crossentropy",
        metrics=["accuracy"],
    )

    steps = -(-len(data.train_images) // recipe.batch_size)
    callbacks = [_follow_epochs(on_epoch)] if on_epoch else []
    if on_batch:
        callbacks.append(_follow_batches(on_batch, steps))

    model.fit(
        prepare_arrays(data.train_images, spec),
        keras.utils.to_categorical(data.train_labels, len(CLASSES)),
        validation_data=(
            prepare_arrays(data.test_images, spec),
            keras.utils.to_categorical(data.test_labels, len(CLASSES)),
        ),
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        callbacks=callbacks,
        verbose=0,
    )
    return model


def build(architecture: str, spec: InputSpec) -> keras.Model:
    """The untrained network: uint8 pixels of shape (n, *spec.shape) in, (n, 10) probabilities out.

    The scaling to 0..1 is the model's own first layer: nobody who serves it can forget it.
    """
    layers = keras.layers
    if architecture != "mlp":
        raise ValueError(f"unknown architecture {architecture!r}: the one there is is 'mlp'")
    return keras.Sequential(
        [
            keras.Input(spec.shape, dtype="uint8"),
            layers.Rescaling(1 / 255),
            layers.Flatten(),
            layers.Dense(512, activation="relu"),
            layers.Dense(512, activation="relu"),
            layers.Dense(len(CLASSES), activation="softmax"),
        ],
        name=architecture,
    )


def save(model: keras.Model, path: Path) -> None:
    """Write `model` to `path`, a `.keras` file: after a crash there is the whole file or none."""
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.keras")
    try:
        model.save(temporary, include_optimizer=False)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)  # the rename itself is on disk only once the folder is
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _follow_batches(on_batch: Callable[[int, int, int], None], steps: int) -> keras.callbacks.Callback:
    epoch = 0

    def begin(number: int, logs: Any = None) -> None:  # noqa: ARG001 -- Keras passes both by name
        nonlocal epoch
        epoch = number + 1

    def end(step: int, logs: Any = None) -> None:  # noqa: ARG001 -- Keras passes both by name
        on_batch(epoch, step + 1, steps)

    return keras.callbacks.LambdaCallback(on_epoch_begin=begin, on_train_batch_end=end)


def _follow_epochs(on_epoch: Callable[[EpochResult], None]) -> keras.callbacks.Callback:
    started = 0.0

    def begin(epoch: int, logs: Any = None) -> None:  # noqa: ARG001 -- Keras passes both by name
        nonlocal started
        started = time.monotonic()

    def end(epoch: int, logs: dict[str, float]) -> None:
        measured = {name: float(logs[name]) for name in ("loss", "accuracy", "val_loss", "val_accuracy")}
        on_epoch(EpochResult(epoch=epoch + 1, seconds=time.monotonic() - started, **measured))

    return keras.callbacks.LambdaCallback(on_epoch_begin=begin, on_epoch_end=end)
