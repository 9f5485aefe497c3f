"""Temperature scaling: make a network right as often as its confidences say, without changing a label.

C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017,
section 4.2.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from worker.predicting.tensorflow_runtime import keras

Float32 = npt.NDArray[np.float32]

#: Fewer held-out images tell nothing about confidences.
_LEAST_IMAGES: Final = 50

_LINEAR: Final = keras.activations.linear
_SOFTMAX: Final = keras.activations.softmax

#: The temperature is sought from 1/20 to 20.
_MOST: Final = math.log(20)


def fit_temperature(probabilities: Float32, labels: npt.NDArray[np.integer]) -> float:
    """Return the temperature T for which softmax(log p / T) has the lowest log loss.

    `probabilities` is float32 (n, classes), `labels` are class indexes (n,), both of images that the network
    has not learnt. Without enough of them, or with an answer that is no probability, it is 1.
    """
    if len(labels) < _LEAST_IMAGES or not np.isfinite(probabilities).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        scaled = scale(probabilities, math.exp(log_temperature))
        truth = scaled[np.arange(len(labels)), labels].astype(np.float64)
        return float(-np.log(np.maximum(truth, 1e-12)).mean())

    found = minimize_scalar(loss, bounds=(-_MOST, _MOST), method="bounded")
    return math.exp(found.x)


def scale(probabilities: Float32, temperature: float) -> Float32:
    """Return softmax(log p / T) for each row of probabilities."""
    logarithms: Float32 = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    return softmax(logarithms / np.float32(temperature))


def softmax(scores: Float32) -> Float32:
    """Return the probabilities that rows of scores stand for, float32 (n, classes)."""
    grown = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: Float32 = grown / grown.sum(axis=1, keepdims=True)
    return result


def build_in(network: keras.Model, temperature: float) -> bool:
    """Divide a network's logits by the temperature, and return whether that was possible.

    The `Dense` layer before the softmax computes them, so its weights are divided: the file needs nothing
    else, and whatever serves it is calibrated.
    """
    last = network.layers[-1]
    before = network.layers[-2] if len(network.layers) > 1 else None
    logits = before if _is_softmax(last) and getattr(before, "activation", None) is _LINEAR else last
    if not isinstance(logits, keras.layers.Dense) or not _is_softmax(last):
        return False
    logits.set_weights([weight / np.float32(temperature) for weight in logits.get_weights()])
    return True


def _is_softmax(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.Softmax) or getattr(layer, "activation", None) is _SOFTMAX
