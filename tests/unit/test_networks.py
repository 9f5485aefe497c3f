"""The networks: they fit images of every size, and a trained one keeps what it has learnt from many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.models.model import InputSpec
from worker.learning.fit import save
from worker.learning.networks import build, freeze, make_training_copy
from worker.predicting.classifier import Classifier
from worker.predicting.tensorflow_runtime import keras, tf

layers = keras.layers


@pytest.mark.parametrize(
    ("width", "height", "mode"),
    [(1, 1, "L"), (8, 8, "RGB"), (17, 31, "L"), (28, 28, "RGB"), (64, 64, "RGB"), (300, 200, "RGB")],
)
def test_a_residual_network_fits_images_of_every_size(
    width: int, height: int, mode: str, tmp_path: Path
) -> None:
    # Given an input of this size, when a network is built for it and stored
    spec = InputSpec(width, height, "L" if mode == "L" else "RGB")
    network = build("cnn", spec, 3)
    save(network, tmp_path / "model.keras")
    # Then it is served as any other model, and all its layers are Keras's own
    classifier = Classifier.load(tmp_path / "model.keras", ("a", "b", "c"), spec)
    pixels = np.random.default_rng(1).integers(0, 256, (2, *spec.shape), np.uint8)
    assert (classifier.predict(pixels).class_index >= 0).all()
    assert {type(layer).__module__.split(".")[0] for layer in network.layers} == {"keras"}


@pytest.mark.parametrize(
    ("side", "last_map"),
    [(16, (8, 8, 64)), (32, (8, 8, 128)), (48, (6, 6, 256)), (96, (6, 6, 256)), (224, (7, 7, 128))],
)
def test_a_larger_image_makes_the_residual_network_deeper_and_not_much_slower(
    side: int, last_map: tuple[int, ...]
) -> None:
    network = build("cnn", InputSpec(side, side, "RGB"), 3)
    pool = next(each for each in network.layers if isinstance(each, layers.GlobalAveragePooling2D))
    assert pool.input.shape[1:] == last_map


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_residual_network_has_a_training_copy(kind: str) -> None:
    # Given a residual network and its training copy
    spec = InputSpec(32, 32, "RGB")
    plain = build("cnn", spec, 4)
    quick = make_training_copy(plain, kind)
    pixels = np.random.default_rng(1).integers(0, 256, (8, *spec.shape), np.uint8)
    # Then both answer the same, as far as the precision allows, and the copy has gradients for all weights.
    tolerance = 1e-5 if kind == "float32" else 0.05
    assert np.allclose(plain(pixels), quick(pixels), atol=tolerance)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(quick(pixels, training=True)[:, 0])
    assert all(each is not None for each in tape.gradient(loss, quick.trainable_variables))


def test_normalisation_that_is_not_of_pictures_is_trained_as_it_is() -> None:
    # Given a network that normalises a vector, and one with a frozen layer
    inputs = keras.Input((4, 4, 2))
    hidden = layers.BatchNormalization(name="frozen", trainable=False)(inputs)
    hidden = layers.BatchNormalization(scale=False)(hidden)
    answers = layers.BatchNormalization()(layers.Flatten()(hidden))
    copy = make_training_copy(keras.Model(inputs, answers), "float32")
    before = copy.get_layer("frozen").get_weights()
    # When the training copy sees a batch, then it runs, and the frozen layer has not moved.
    copy(np.random.default_rng(1).normal(5, 2, (8, 4, 4, 2)).astype(np.float32), training=True)
    for weights, same in zip(before, copy.get_layer("frozen").get_weights(), strict=True):
        assert (weights == same).all()


@pytest.mark.parametrize(("depth", "learning"), [(4, 4), (23, 7)], ids=["small", "deep"])
def test_of_a_deep_network_only_the_layers_before_its_head_learn_and_no_statistics(
    depth: int, learning: int
) -> None:
    found = inputs = keras.Input((8, 8, 3))
    for _ in range(depth):
        found = layers.BatchNormalization()(layers.Conv2D(3, 3, padding="same", use_bias=False)(found))
    network = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(found)))
    copy = make_training_copy(network, "float32")
    freeze(copy)
    trainable = [layer for layer in copy.layers if layer.trainable_variables]
    assert trainable == [layer for layer in copy.layers if layer.weights and layer in trainable]
    assert len(trainable) == learning
    assert not any(isinstance(layer, layers.BatchNormalization) for layer in trainable)
    # and a batch moves none of the statistics
    before = copy.get_weights()
    copy(np.random.default_rng(1).normal(5, 2, (4, 8, 8, 3)).astype(np.float32), training=True)
    assert all(map(np.array_equal, before, copy.get_weights()))
