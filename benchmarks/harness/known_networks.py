"""Networks of `keras.applications` with random weights, to measure runtimes: their labels mean nothing."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.harness.model import TrainedModel, make_champion
from benchmarks.harness.producer import in_fresh_process
from benchmarks.harness.setup import Setup
from jobs.models.model import PHOTO_REDUCTION, InputSpec, Model
from jobs.models.runtime import ModelRuntime
from labelmill.client import Client

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CLASSES: Final = tuple(f"class {number}" for number in range(1000))
SPEC: Final = InputSpec(224, 224, "RGB", "bilinear", reduction=PHOTO_REDUCTION, invert="never")

#: The standard deviation of a logit over the pictures.
_LOGIT_SPREAD: Final = 3.0

#: On so many photographs the statistics of the normalisation are those of the benchmark's images.
_PHOTOGRAPHS: Final = 64


def known_network(name: str, folder: Path, work_dir: Path) -> TrainedModel:
    """Return the network that `keras.applications` calls `name`, for the photographs in `folder`.

    It is kept between runs.
    """
    path = work_dir / f"{name}.keras"
    if not path.exists():
        # In a process of its own: the caller forks workers, and must not have TensorFlow's threads.
        in_fresh_process(_save, name, folder, path)
    data = path.read_bytes()
    row = Model(
        id="",
        architecture=name,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        classes=CLASSES,
        input_spec=SPEC,
        accuracy=None,
        metrics={},
        created_at=datetime.now(UTC),
        logits=True,
    )
    return TrainedModel(row, path)


def compile_champion(setup: Setup) -> list[ModelRuntime]:
    """Make the model the champion, and compile it. Return what came of each runtime."""
    with Client(setup.settings) as client:
        model = make_champion(setup.model, client.ledger, setup.settings)
        return client.compile_model(model.id)


def build_network(name: str, pictures: npt.NDArray[np.uint8]) -> Any:
    """Return the network that `keras.applications` calls `name`, which answers logits.

    Its weights are random, but its answers differ from picture to picture, as those of a trained network do:
    the statistics are those of `pictures`, uint8 (n, height, width, 3), as is the scale of the last layer.
    """
    import numpy as np

    from worker.predicting.tensorflow_runtime import keras

    keras.utils.set_random_seed(1)
    shape = pictures.shape[1:]
    network = getattr(keras.applications, name)(
        weights=None, classes=len(CLASSES), classifier_activation=None, input_shape=shape
    )
    inputs = keras.Input(shape)
    scalers = (keras.layers.Rescaling, keras.layers.Normalization)
    scales_itself = any(isinstance(layer, scalers) for layer in network.layers)
    scaled = inputs if scales_itself else keras.layers.Rescaling(1 / 127.5, -1)(inputs)
    model = keras.Model(inputs, network(scaled))

    random = np.random.default_rng(1)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # the statistics become those of the next batch
        for weight in layer.weights:
            if weight.name in ("bias", "beta"):  # exporters remove an addition of zeros
                weight.assign(random.normal(0, 0.1, weight.shape))
    pixels = pictures.astype(np.float32)
    model(pixels, training=True)
    logits = model.predict(pixels, verbose=0)
    last = [layer for layer in network.layers if layer.weights][-1]
    factor = _LOGIT_SPREAD / logits.std(axis=0).mean()
    kernel, bias = last.get_weights()
    last.set_weights([kernel * factor, (bias - logits.mean(axis=0)) * factor])
    return model


def _save(name: str, folder: Path, path: Path) -> None:
    import numpy as np

    from worker.predicting.decode import decode

    photographs = islice(sorted(folder.rglob("*.jpg")), _PHOTOGRAPHS)
    build_network(name, np.stack([decode(file.read_bytes(), SPEC) for file in photographs])).save(path)
