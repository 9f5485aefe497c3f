"""A model that takes a given time per image, for `benchmarks.latency`: convolutions, as many as that takes.

It is built for this machine on each run. Its weights are random: only its speed is of interest. Its input is
so large that workers compute only small batches of it, as they do for photographs.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.harness.producer import in_fresh_process
from jobs.ledger import Ledger
from jobs.models.model import InputSpec
from jobs.settings import Settings
from jobs.storage.registry import register_model
from jobs.storage.store import Store

_CLASSES: Final = tuple("0123456789")
_SPEC: Final = InputSpec(width=160, height=160, mode="L", invert="never")
_CHANNELS: Final = 64

#: Two networks of so many layers are measured, to know the time of one layer.
_FEW: Final = 2
_MANY: Final = 12

#: The fastest of so many calls counts: other programs only make a call slower.
_REPEATS: Final = 5


class SlowModel(NamedTuple):
    """A model's `.keras` file, and what it takes on one core."""

    data: bytes
    image_ms: float


def build_slow_model(image_ms: float) -> SlowModel:
    """Build a model that takes about so many milliseconds per image on one core of this machine."""
    # In a process of its own: the caller forks workers, and must not have TensorFlow's threads.
    return in_fresh_process(_build, image_ms)


def register_slow_model(model: SlowModel, ledger: Ledger, settings: Settings) -> str:
    """Register the model without an alias, and return its id."""
    return register_model(
        ledger,
        Store(settings.store),
        model.data,
        architecture="slow",
        classes=_CLASSES,
        input_spec=_SPEC,
        accuracy=None,
        metrics={},
    ).id


def _build(image_ms: float) -> SlowModel:
    from worker.predicting.tensorflow_runtime import set_threads

    set_threads(1)
    few, many = (_image_ms(_network(layers)) for layers in (_FEW, _MANY))
    layer_ms = max((many - few) / (_MANY - _FEW), 1e-3)
    network = _network(max(1, _FEW + round((image_ms - few) / layer_ms)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slow.keras"
        network.save(path)
        return SlowModel(path.read_bytes(), _image_ms(network))


def _network(layers: int) -> Any:
    from worker.predicting.tensorflow_runtime import keras

    inputs = keras.Input((*_SPEC.shape, 1))
    found = keras.layers.Rescaling(1 / 255)(inputs)
    found = keras.layers.Conv2D(_CHANNELS, 8, strides=8, activation="relu")(found)
    for _ in range(layers):
        found = keras.layers.Conv2D(_CHANNELS, 3, padding="same", activation="relu")(found)
    found = keras.layers.GlobalAveragePooling2D()(found)
    return keras.Model(inputs, keras.layers.Dense(len(_CLASSES), activation="softmax")(found))


def _image_ms(network: Any) -> float:
    """Measure the milliseconds of processor time per image, in full batches."""
    import numpy as np

    from worker.predicting.classifier import Classifier

    classifier = Classifier.of_keras(network, _CLASSES, _SPEC)
    pixels = np.zeros((classifier.batch, *_SPEC.shape), np.uint8)
    classifier.warm_up()
    seconds = []
    for _ in range(_REPEATS):
        began = time.process_time()
        classifier.predict(pixels)
        seconds.append(time.process_time() - began)
    return 1000 * min(seconds) / len(pixels)
