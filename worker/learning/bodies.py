"""Cut a trained network into a body, which sums up an image as features, and put a new head on it.

The body is all up to the input of the last `Dense` layer. For a network without such a layer, which returns
features already, it is the whole network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from jobs.errors import ModelRefused
from jobs.models.model import InputSpec
from worker.predicting.networks.keras_network import (
    as_input,
    input_spec_of,
    load_model,
    translated_model_errors,
)
from worker.predicting.tensorflow_runtime import keras

#: A new backbone is tried on this many images of noise.
_TRIED_IMAGES: Final = 8

#: Layers after the last `Dense` that have no weights, and those before it that do nothing in prediction.
_AFTER: Final = (keras.layers.Softmax, keras.layers.Activation)
_BEFORE: Final = (keras.layers.Dropout,)

_ADVICE: Final = (
    "It must take images and end with a Dense layer, or return one row of numbers per image "
    "(`include_top=False, pooling='avg'` in keras.applications)."
)


def body_of(network: keras.Model) -> keras.Model:
    """Return the body, from the network's input to features of shape (n, features).

    Raises ModelRefused if the network has no such part.
    """
    try:
        layers = list(network.layers)
        while layers and isinstance(layers[-1], _AFTER):
            layers.pop()
        if layers and isinstance(layers[-1], keras.layers.Dense):
            features = layers.pop().input
            while layers and isinstance(layers[-1], _BEFORE) and layers[-1].output is features:
                features = layers.pop().input
        else:
            features = network.outputs[0]
        body = keras.Model(network.inputs[0], features, name=network.name)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        # It is neither Sequential nor Functional.
        reason = str(error).partition("\n")[0]
        raise ModelRefused(f"The network cannot be cut: {reason}. {_ADVICE}") from error
    if len(features.shape) != 2 or features.shape[1] is None:
        raise ModelRefused(
            f"The network cannot be cut: its last features have the shape {tuple(features.shape)}. {_ADVICE}"
        )
    return body


def resized(body: keras.Model, spec: InputSpec) -> keras.Model:
    """Return the body for images of another size, with the same weights. Raises ModelRefused."""
    if tuple(body.inputs[0].shape[1:3]) == (spec.height, spec.width):
        return body
    shape = (spec.height, spec.width, *body.inputs[0].shape[3:])
    try:
        other = keras.models.clone_model(body, keras.Input(shape, dtype=body.inputs[0].dtype))
        other.set_weights(body.get_weights())
    except ValueError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelRefused(
            f"The backbone takes images of its own size only ({reason}): leave out --size."
        ) from error
    return other


def with_head(
    body: keras.Model, weights: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]
) -> keras.Model:
    """Return the body with a classifier on its features: softmax(features @ weights + bias).

    `weights` are float32 (features, classes), and `bias` float32 (classes,). The network is flat: all layers
    are its own, as exporters and `clone_model` need it.
    """
    head = keras.layers.Dense(len(bias), activation="softmax", name="head", dtype="float32")
    network = keras.Model(body.inputs[0], head(body.outputs[0]), name=body.name)
    head.set_weights([weights, bias])
    return network


def measure_body(path: Path) -> tuple[InputSpec, int]:
    """Return the input and the number of features of the body in a checked `.keras` file, after a try.

    Raises ModelRefused if the network has no body, or one that returns nothing of use; Unavailable.
    """
    body = body_of(load_model(path))
    spec = input_spec_of(body)
    pixels = np.random.default_rng(1).integers(0, 256, (_TRIED_IMAGES, *spec.shape), np.uint8)
    with translated_model_errors():
        found = np.asarray(body(as_input(body, pixels), training=False))
    if not np.isfinite(found).all():
        raise ModelRefused("its features are not finite numbers: are its weights loaded?")
    if np.ptp(found, axis=0).max() == 0:
        raise ModelRefused("its features are the same for every image: are its weights loaded?")
    return spec, found.shape[1]
