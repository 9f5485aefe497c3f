"""`python -m worker.learning.applications NAME FILE`: save a network of keras.applications as a backbone.

It is a process of its own, because Keras keeps downloaded weights below KERAS_HOME, which it reads once.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, Final

from worker.predicting.tensorflow_runtime import keras

_USUAL_SIDE: Final = 224


def application_names() -> dict[str, str]:
    """Return the networks of keras.applications: lower-case names, and Keras's own."""
    return {
        name.lower(): name
        for name in dir(keras.applications)
        if name[0].isupper() and callable(getattr(keras.applications, name))
    }


def save_application(name: str, target: Path, weights: str | None = "imagenet") -> None:
    """Save the network that takes uint8 pixels and returns features, with its weights.

    Raises KeyError for an unknown name, and what Keras raises if the weights cannot be downloaded.
    """
    make: Any = getattr(keras.applications, application_names()[name])
    module: Any = importlib.import_module(make.__module__)
    # The size of the images that it was trained on. Some say that they take any.
    side = make(weights=None).inputs[0].shape[1] or _USUAL_SIDE
    pixels = keras.Input((side, side, 3), dtype="uint8", name="pixels")
    scaled = module.preprocess_input(keras.ops.cast(pixels, "float32"))
    # With its layers in one level, as exporters and `clone_model` need it.
    make(weights=weights, include_top=False, pooling="avg", input_tensor=scaled).save(target)


if __name__ == "__main__":
    save_application(sys.argv[1], Path(sys.argv[2]))
