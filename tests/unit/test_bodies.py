"""Bodies: a trained network is cut before its classifier, for images of any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jobs.errors import ModelRefused
from jobs.models.model import InputSpec
from worker.learning.bodies import body_of, resized, with_head
from worker.predicting.tensorflow_runtime import keras

layers = keras.layers

PIXELS = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)


class Subclassed(keras.Model):  # type: ignore[misc]
    """Has code instead of a graph."""


def convolutions() -> list[Any]:
    return [
        keras.Input((32, 32, 3), dtype="uint8"),
        layers.Rescaling(1 / 255),
        layers.Conv2D(6, 3, strides=2, activation="relu"),
        layers.GlobalAveragePooling2D(name="pooled"),
    ]


@pytest.mark.parametrize(
    "top",
    [
        lambda: [layers.Dense(4, activation="softmax")],
        lambda: [layers.Dropout(0.2), layers.Dense(4), layers.Activation("softmax")],
        lambda: [layers.Dense(4), layers.Softmax()],
        list,
    ],
    ids=["classifier", "dropout and softmax", "logits and softmax", "features already"],
)
def test_the_body_is_all_before_the_classifier(top: Callable[[], list[Any]]) -> None:
    # Given a network that sums up an image as 6 numbers
    network = keras.Sequential([*convolutions(), *top()])
    # When it is cut, then the body returns these numbers
    body = body_of(network)
    expected = keras.Model(network.inputs[0], network.get_layer("pooled").output)(PIXELS)
    assert np.array_equal(body(PIXELS), expected)


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (lambda: keras.Sequential(convolutions()[:-1]), "have the shape"),
        (lambda: Subclassed(), "cannot be cut"),
    ],
    ids=["no pooling", "no graph"],
)
def test_a_network_without_a_body_is_refused(network: Callable[[], keras.Model], why: str) -> None:
    with pytest.raises(ModelRefused, match=why):
        body_of(network())


def test_a_body_takes_images_of_another_size_with_the_same_weights() -> None:
    body = body_of(keras.Sequential(convolutions()))
    smaller = resized(body, InputSpec(16, 16, "RGB"))
    assert smaller(PIXELS[:, :16, :16]).shape == (3, 6)
    assert all(map(np.array_equal, body.get_weights(), smaller.get_weights()))
    # and one that depends on the size says so
    flat = body_of(
        keras.Sequential([*convolutions()[:-1], layers.Flatten(), layers.Dense(8), layers.Dense(2)])
    )
    with pytest.raises(ModelRefused, match="leave out --size"):
        resized(flat, InputSpec(16, 16, "RGB"))


def test_a_head_makes_a_network_of_one_level_with_its_answers() -> None:
    body = body_of(keras.Sequential(convolutions()))
    rng = np.random.default_rng(2)
    weights, bias = rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    network = with_head(body, weights, bias)
    scores = np.exp(np.asarray(body(PIXELS)) @ weights + bias)
    assert np.allclose(network(PIXELS), scores / scores.sum(axis=1, keepdims=True), atol=1e-6)
    assert not any(isinstance(layer, keras.Model) for layer in network.layers)
