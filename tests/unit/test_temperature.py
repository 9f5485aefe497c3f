"""Temperature scaling: confidences become what the held-out images say, and no label changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from worker.learning.temperature import build_in, fit_temperature, scale
from worker.predicting.tensorflow_runtime import keras

layers = keras.layers


def softmax(scores: np.ndarray) -> np.ndarray:
    grown = np.exp(scores - scores.max(axis=1, keepdims=True))
    return (grown / grown.sum(axis=1, keepdims=True)).astype(np.float32)


def calibrated(images: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of seven classes, and labels drawn with the probabilities that they stand for."""
    rng = np.random.default_rng(1)
    scores = rng.normal(0, 2, (images, 7))
    return scores, (softmax(scores).cumsum(axis=1) > rng.random((images, 1))).argmax(axis=1)


@pytest.mark.parametrize("factor", [0.5, 1, 3])
def test_the_temperature_undoes_too_much_or_too_little_confidence(factor: float) -> None:
    scores, labels = calibrated(4000)
    sure = softmax(factor * scores)
    temperature = fit_temperature(sure, labels)
    assert temperature == pytest.approx(factor, rel=0.06)
    assert np.allclose(scale(sure, temperature), softmax(factor / temperature * scores), atol=1e-4)


def test_too_few_images_and_answers_that_are_no_probabilities_change_nothing() -> None:
    scores, labels = calibrated(49)
    assert fit_temperature(softmax(3 * scores), labels) == 1
    assert fit_temperature(np.full((60, 7), np.nan, np.float32), np.zeros(60, np.uint16)) == 1


@pytest.mark.parametrize(
    ("top", "possible"),
    [
        (lambda: [layers.Dense(4, activation="softmax")], True),
        (lambda: [layers.Dense(4), layers.Activation("softmax")], True),
        (lambda: [layers.Dense(4), layers.Softmax()], True),
        (lambda: [layers.Dense(4, activation="relu"), layers.Softmax()], False),
        (lambda: [layers.Dense(4, activation="sigmoid")], False),
    ],
    ids=["softmax", "an activation", "a layer", "after a relu", "no softmax"],
)
def test_a_temperature_is_built_into_the_last_layer_if_that_is_the_same(
    top: Callable[[], list[Any]], possible: bool
) -> None:
    network = keras.Sequential([keras.Input((5,)), layers.Dense(8, activation="relu"), *top()])
    inputs = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    before = np.asarray(network(inputs))
    assert build_in(network, 2.5) is possible
    expected = scale(before, 2.5) if possible else before
    assert np.allclose(network(inputs), expected, atol=1e-6)
