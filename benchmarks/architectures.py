"""`python -m benchmarks.architectures [NAME...]`: which runtimes compute `keras.applications`.

Each network is registered in a home of its own, which compiles it. Its weights are random, but its answers
are as different as those of a trained one: the statistics are those of made-up pictures, and so is the scale
of the last layer.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import typer

from benchmarks.harness.producer import in_fresh_process
from benchmarks.harness.report import RESULTS, write_result
from benchmarks.harness.setup import Json, run
from jobs.models.model import InputSpec
from jobs.models.runtime import ModelRuntime, Runtime, RuntimeState
from jobs.settings import Settings
from labelmill.client import Client
from labelmill.console.terminal import say

_NAMES: Final = (
    *("MobileNetV2", "MobileNetV3Small", "MobileNetV3Large", "EfficientNetB0", "EfficientNetV2B0"),
    *("ResNet50", "ResNet50V2", "DenseNet121", "Xception", "InceptionV3", "NASNetMobile", "ConvNeXtTiny"),
)
_CLASSES: Final = 1000

#: The sides of pictures for networks that do not take 224 by 224.
_SIDES: Final = {"Xception": 299, "InceptionV3": 299}

#: The standard deviation of a logit over the pictures.
_LOGIT_SPREAD: Final = 3.0


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Default: twelve.")] = None,
    json: Json = RESULTS,
) -> None:
    """Register and compile each network, and print a table for Markdown."""
    found = {}
    print(f"| ms per image | {' | '.join(Runtime)} |\n| --- |{' ---: |' * len(Runtime)}")
    for name in names or _NAMES:
        # In a process of its own: TensorFlow keeps the memory of each network.
        runtimes = {each.runtime: each for each in in_fresh_process(_compile, name)}
        found[name] = [asdict(each) for each in runtimes.values()]
        print(f"| {name} | {' | '.join(_cell(runtimes[runtime]) for runtime in Runtime)} |", flush=True)
    if names is None:
        write_result("architectures", {"networks": found}, json)


def _cell(found: ModelRuntime) -> str:
    if found.state is RuntimeState.PASSED:
        return f"{(found.image_microseconds or 0) / 1000:.1f}"
    return f"{found.state}: {found.reason}"


def _compile(name: str) -> list[ModelRuntime]:
    with TemporaryDirectory() as folder, Client(Settings(home=Path(folder) / "home")) as client:
        file = Path(folder) / f"{name}.keras"
        _build(name).save(file)
        names = [f"{number:04}" for number in range(_CLASSES)]
        model = client.register(file, classes=names, logits=True, on_message=say).model
        return client.runtimes(model.id)


def _build(name: str) -> Any:
    """Return a network whose answers, logits, differ from picture to picture."""
    import numpy as np

    from worker.learning.compiling.compile import make_pictures
    from worker.predicting.tensorflow_runtime import keras

    keras.utils.set_random_seed(1)
    side = _SIDES.get(name, 224)
    network = getattr(keras.applications, name)(
        weights=None, classes=_CLASSES, classifier_activation=None, input_shape=(side, side, 3)
    )
    inputs = keras.Input((side, side, 3))
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
    pictures = make_pictures(InputSpec(side, side, "RGB")).astype(np.float32)
    model(pictures, training=True)
    logits = model.predict(pictures, verbose=0)
    last = [layer for layer in network.layers if layer.weights][-1]
    factor = _LOGIT_SPREAD / logits.std(axis=0).mean()
    kernel, bias = last.get_weights()
    last.set_weights([kernel * factor, (bias - logits.mean(axis=0)) * factor])
    return model


if __name__ == "__main__":
    run(main)
