"""Networks of `keras.applications` with random weights, to measure how fast they are: labels mean nothing."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Final

from benchmarks.harness.model import TrainedModel
from benchmarks.harness.producer import in_fresh_process
from jobs.models.model import PHOTO_REDUCTION, InputSpec, Model

CLASSES: Final = tuple(f"class {number}" for number in range(1000))
SPEC: Final = InputSpec(224, 224, "RGB", "bilinear", reduction=PHOTO_REDUCTION, invert="never")

#: Random logits get this standard deviation, so that labels differ and hardly any are tied.
_LOGITS: Final = 3.0

#: On so many photographs the normalisation is adjusted.
_PHOTOGRAPHS: Final = 64


def known_network(name: str, folder: Path, work_dir: Path) -> TrainedModel:
    """Return the network that `keras.applications` calls `name`, kept between runs.

    Its normalisation is adjusted to photographs in `folder`: with the weights as they are drawn, all of them
    get the same label.
    """
    path = work_dir / f"{name}.keras"
    if not path.exists():
        # In a process of its own: the caller forks workers, and must not have TensorFlow's threads.
        in_fresh_process(_build, name, folder, path)
    return TrainedModel(_row(name, path), path)


def _row(name: str, path: Path) -> Model:
    data = path.read_bytes()
    return Model(
        id="",
        architecture=name,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        classes=CLASSES,
        input_spec=SPEC,
        accuracy=None,
        metrics={},
        created_at=datetime.now(UTC),
    )


def _build(name: str, folder: Path, path: Path) -> None:
    import numpy as np

    from worker.predicting.decode import decode
    from worker.predicting.tensorflow_runtime import keras

    keras.utils.set_random_seed(1)
    photographs = np.stack(
        [decode(file.read_bytes(), SPEC) for file in islice(sorted(folder.rglob("*.jpg")), _PHOTOGRAPHS)]
    )
    body = getattr(keras.applications, name)(weights=None, include_top=False, pooling="avg")
    layers = [each for each in body._flatten_layers() if isinstance(each, keras.layers.BatchNormalization)]
    for layer in layers:
        layer.momentum = 0.0  # so that one pass sets the averages
    inputs = keras.Input(SPEC.shape)
    features = body(keras.layers.Rescaling(1 / 127.5, -1)(inputs))
    keras.Model(inputs, features)(photographs, training=True)
    found = np.asarray(keras.Model(inputs, features)(photographs, training=False))
    head = keras.layers.Dense(len(CLASSES), activation="softmax")
    network = keras.Model(
        inputs, head(keras.layers.Normalization(mean=found.mean(0), variance=found.var(0) + 1e-6)(features))
    )
    kernel, bias = head.get_weights()
    scale = _LOGITS / np.sqrt((kernel**2).sum(0).mean())
    head.set_weights([kernel * scale, bias])
    network.save(path)
